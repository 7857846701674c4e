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
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from .errors import CheckpointError
from .optimizer import MovingAverage
from .parallel import Engine
from .processes import World

# One process needs no process group; torch warns of it at every save and load.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


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
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """The innermost message of an error, the operating system's where there is one."""
    failures = list(getattr(error, "failures", {}).values())  # dcp reports errors per rank
    inner = failures[0][0] if failures else error.__cause__ or error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = f"{type(error).__name__}: {error}".strip()
    return _reason(inner) if inner is not None and inner is not error else " ".join(text.split())


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

    def __init__(self, run_folder: str | Path, config: CheckpointConfig, world: World) -> None:
        self.folder = Path(run_folder) / "checkpoints"
        self.config, self.world = config, world
        # A group of its own: the background save talks while training does, and messages of one group must not mix.
        self._group = dist.new_group(backend="gloo") if world.distributed else None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def prepare(self) -> None:
        """Create the folder and clear what a killed run left half written.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        problem = None
        if self.world.rank == 0:
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
        problem = self.world.gather(problem)[0]
        if problem:
            raise CheckpointError(problem)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write the state after `step` steps; call on all processes. Waits for the previous one first.

        Raises:
            CheckpointError: this one (when not asynchronous) or the previous one could not be written.
        """
        self.wait()
        temporary = self.folder / f"step-{step:08d}.tmp"
        single = not self.world.distributed
        self._step = step
        try:
            written = dcp.async_save(state, checkpoint_id=temporary, process_group=self._group, no_dist=single)
        except Exception as error:
            raise self._failed(error) from error
        self._pending = self._writer.submit(self._finish, written, temporary)
        if not self.config.asynchronous:
            self.wait()

    def _finish(self, written: Future, temporary: Path) -> None:
        written.result()
        if self.world.rank != 0:
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
        pointer.rename(self.folder / "latest")
        _sync_folder(self.folder)
        older = [path for path in complete_checkpoints(self.folder) if step_of(path) <= step_of(final)]
        for path in older[: -self.config.keep]:
            shutil.rmtree(path)

    def failed(self) -> bool:
        """Whether the checkpoint in the background is known to have failed."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint in the background is complete.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        if self.world.rank == 0:
            shutil.rmtree(self.folder / f"step-{self._step:08d}.tmp", ignore_errors=True)
        last = latest_checkpoint(self.folder)
        remains = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        return CheckpointError(
            f"The checkpoint of step {self._step} could not be written to {self.folder} ({_reason(error)}); {remains}. "
            f"Make room or repair the folder, then go on with --resume auto."
        )


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
        f"random.{engine.world.rank}": pickle.dumps(random_state()),
    }
    if average is not None:
        state["average"] = dict(average.average)
    for index, position in streams.items():
        state[f"data.{index}"] = pickle.dumps(position)
    return state


def stored_names(path: Path) -> set[str]:
    """The names of everything in a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return set(dcp.FileSystemReader(path).read_metadata().state_dict_metadata)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({_reason(error)}).") from error


def read_progress(path: Path) -> dict[str, Any]:
    """The counters of a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    state = {"progress": b""}
    try:
        dcp.load(state, checkpoint_id=path, no_dist=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({_reason(error)}).") from error
    return pickle.loads(state["progress"])


def restore_state(path: Path, engine: Engine, average: MovingAverage | None, streams: list[int]) -> dict[int, Any]:
    """Load a checkpoint into model, optimiser, moving average and random generators.

    Returns:
        the stored position of each data stream in `streams`.
    Raises:
        CheckpointError: it cannot be read, or belongs to another model.
    """
    stored = stored_names(path)
    model = engine.stage.model
    own = f"random.{engine.world.rank}"
    state: dict[str, Any] = {"model": get_model_state_dict(model), "optimizer": engine.optimizer_state()}
    state |= {f"data.{index}": b"" for index in streams}
    if average is not None and any(key.startswith("average.") for key in stored):
        state["average"] = dict(average.average)
    if own in stored:
        state[own] = b""
    try:
        dcp.load(state, checkpoint_id=path, process_group=engine.world.group, no_dist=not engine.world.distributed)
    except Exception as error:
        raise CheckpointError(
            f"{path} does not fit this configuration ({_reason(error)}); resume with the config.yaml of its run folder."
        ) from error
    set_model_state_dict(model, state["model"])
    engine.load_optimizer_state(state["optimizer"])
    if own in state:
        set_random_state(pickle.loads(state[own]))
    return {index: pickle.loads(state[f"data.{index}"]) for index in streams}
