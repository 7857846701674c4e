"""Checkpoints that a killed process, a full disk or a lost rank cannot spoil.

A checkpoint is written by torch.distributed.checkpoint, in the background, into `step-N.tmp`; when every process has
written and synced its part, process 0 renames it to `step-N` and only then points the file `latest` at it. What is
called step-N is therefore complete, and a kill at any moment leaves the previous one in place. Parameters are stored
under their own names, so any engine on any number of processes can go on from it.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from ..base.errors import CheckpointError
from ..base.processes import ProcessGroup
from .optimizer import MovingAverage
from .sharding import Engine

# One process needs no process group; torch warns of it at every save and load.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


FAILURES = (Exception, CheckpointException)  # the latter derives from BaseException


@dataclass
class CheckpointConfig:
    """When to save and how much to keep."""

    every: int = 2000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """How many to keep; older ones are deleted after a newer one is complete."""
    asynchronous: bool = True
    """Write in the background while training goes on; costs a copy of the state in host memory."""

    def __post_init__(self) -> None:
        for key in ("every", "keep"):
            if getattr(self, key) < 1:
                raise ValueError(f"checkpoint.{key}: {getattr(self, key)} must be at least 1.")


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # opens no folders, and makes renames durable by itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """The innermost message of an error, the operating system's where there is one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    failures = list(getattr(error, "failures", {}).values())  # dcp reports errors per rank
    inner = failures[0][0] if failures else error.__cause__ or error.__context__
    return " ".join(f"{type(error).__name__}: {error}".split()) if inner is None else _reason(inner)


def step_of(path: Path) -> int:
    """The step number in a checkpoint's name."""
    return int(path.name.split("-")[-1])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest step first."""
    found = [path for path in folder.glob("step-*[0-9]") if (path / ".metadata").is_file()]
    return sorted(found, key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from: the one that the file `latest` names, else the newest complete one."""
    complete = complete_checkpoints(folder)
    pointer = folder / "latest"
    if pointer.is_file():
        named = folder / pointer.read_text().strip()
        if named in complete:
            return named
    return complete[-1] if complete else None


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_folder: str | Path, config: CheckpointConfig, process_group: ProcessGroup) -> None:
        self.folder = Path(run_folder) / "checkpoints"
        self.config, self.process_group = config, process_group
        # A group of its own: the background save talks while training does, and messages of one group must not mix.
        self._group = dist.new_group(backend="gloo") if process_group.distributed else None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def prepare(self) -> None:
        """Create the folder and clear what a killed run left half written.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        problem = None
        if self.process_group.rank == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for leftover in self.folder.glob("*.tmp"):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                probe = self.folder / "writable.tmp"
                probe.touch()
                probe.unlink()
            except OSError as error:
                problem = (
                    f"run_folder: {self.folder} cannot be written ({error.strerror}); choose another --run_folder."
                )
        problem = self.process_group.gather(problem)[0]
        if problem:
            raise CheckpointError(problem)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write the state after `step` steps; call on all processes. Waits for the previous one first.

        Raises:
            CheckpointError: this one (when not asynchronous) or the previous one could not be written.
        """
        self.wait()
        self._step = step
        temporary = self.folder / f"step-{step:08d}.tmp"
        single = not self.process_group.distributed
        self._pending = self._writer.submit(
            self._finish,
            dcp.async_save(state, checkpoint_id=temporary, process_group=self._group, no_dist=single),
            temporary,
        )
        if not self.config.asynchronous:
            self.wait()

    def _finish(self, written: Future, temporary: Path) -> None:
        written.result()
        if self.process_group.rank != 0:
            return
        final = temporary.with_suffix("")
        _sync_folder(temporary)
        if final.exists():  # of a run that was set back to an earlier step
            shutil.rmtree(final)
        temporary.rename(final)
        _sync_folder(self.folder)
        pointer = self.folder / "latest.tmp"
        with pointer.open("w") as handle:
            handle.write(final.name + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        pointer.replace(self.folder / "latest")
        _sync_folder(self.folder)
        older = [path for path in complete_checkpoints(self.folder) if step_of(path) <= step_of(final)]
        for path in older[: -self.config.keep]:
            shutil.rmtree(path)

    def failed(self) -> bool:
        """Whether the checkpoint in the background is known to have failed."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint in the background is complete; call on all processes.

        Raises:
            CheckpointError: a process could not write its part.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        error = pending.exception()
        reasons = [reason for reason in self.process_group.gather(error and _reason(error)) if reason]
        if not reasons:
            return
        left = shutil.disk_usage(self.folder).free
        if self.process_group.rank == 0:
            shutil.rmtree(self.folder / f"step-{self._step:08d}.tmp", ignore_errors=True)
        last = latest_checkpoint(self.folder)
        remains = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise CheckpointError(
            f"The checkpoint of step {self._step} could not be written to {self.folder} ({reasons[0]}; "
            f"{left / 1e6:.1f} MB are free there); {remains}. Make room or repair the folder, then go on with "
            f"--resume auto."
        ) from error


def random_state() -> dict[str, Any]:
    """The state of every global random generator of this process."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def gather_state(
    engine: Engine, average: MovingAverage | None, progress: dict[str, Any], streams: dict[int, Any]
) -> dict[str, Any]:
    """The whole state of a run as one dictionary for `Checkpoints.save`.

    Args:
        progress: counters, equal on all processes.
        streams: position of each data stream that this process owns.
    """
    model = engine.stage.model
    state: dict[str, Any] = {
        "model": get_model_state_dict(model),
        "optimizer": engine.optimizer_state(),
        # One opaque object each: their inner keys need not be known when they are loaded.
        "progress": pickle.dumps(progress),
        f"random.{engine.process_group.rank}": pickle.dumps(random_state()),
    }
    if average is not None:
        state["average"] = dict(average.average)
    for index, position in streams.items():
        state[f"data.{index}"] = pickle.dumps(position)
    return state


def stored(path: Path) -> dict[str, tuple[int, ...] | None]:
    """The names of everything in a checkpoint with the shapes of what is a tensor.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        entries = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    except FAILURES as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({_reason(error)}).") from error
    return {name: tuple(entry.size) if hasattr(entry, "size") else None for name, entry in entries.items()}


def load(state: dict[str, Any], path: Path, process_group: ProcessGroup | None = None) -> None:
    """Fill `state` in place from a checkpoint; with `process_group`, on all its processes together.

    Raises:
        CheckpointError: something is not in it, has another shape, or cannot be read.
    """
    single = process_group is None or not process_group.distributed
    try:
        dcp.load(state, checkpoint_id=path, process_group=None if single else process_group.group, no_dist=single)
    except FAILURES as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}).") from error


def read_progress(path: Path) -> dict[str, Any]:
    """The counters of a checkpoint; CheckpointError where it cannot be read."""
    state = {"progress": b""}
    load(state, path)
    return pickle.loads(state["progress"])


def _check_fits(path: Path, found: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model: one that is larger would load without a word."""
    expected = {f"model.{name}": tuple(tensor.shape) for name, tensor in state["model"].items()}
    for name, moments in state["optimizer"]["state"].items():
        expected |= {f"optimizer.state.{name}.{key}": tuple(tensor.shape) for key, tensor in moments.items()}
    found = {name: shape for name, shape in found.items() if name.startswith(("model.", "optimizer.state."))}
    if different := sorted(name for name, _ in expected.items() ^ found.items()):
        raise CheckpointError(
            f"{path} is of another model or trains other parts: {different[0]} and {len(set(different)) - 1} other "
            f"tensors differ from this configuration; resume with the config.yaml of its run folder."
        )


def restore_state(path: Path, engine: Engine, average: MovingAverage | None, streams: list[int]) -> dict[int, Any]:
    """Load a checkpoint into model, optimiser, moving average and random generators.

    Returns:
        the stored position of each data stream in `streams`.
    Raises:
        CheckpointError: it cannot be read, or belongs to another model.
    """
    found = stored(path)
    model = engine.stage.model
    own = f"random.{engine.process_group.rank}"
    state: dict[str, Any] = {"model": get_model_state_dict(model), "optimizer": engine.optimizer_state()}
    _check_fits(path, found, state)
    state |= {f"data.{index}": b"" for index in streams}
    averaged = average is not None and any(name.startswith("average.") for name in found)
    if averaged:
        state["average"] = dict(average.average)
    if own in found:  # absent with more processes than saved it; all draws that matter are of (seed, step, row) anyway
        state[own] = b""
    load(state, path, engine.process_group)
    set_model_state_dict(model, state["model"])
    engine.load_optimizer_state(state["optimizer"])
    if average is not None and not averaged:
        average.restart()
    if own in state:
        set_random_state(pickle.loads(state[own]))
    return {index: pickle.loads(state[f"data.{index}"]) for index in streams}
