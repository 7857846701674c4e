"""Checkpoints that a killed process, a full disk or a lost rank cannot spoil.

A checkpoint is written by torch.distributed.checkpoint, in the background, into `step-N.tmp`; when every process has
written and synced its part, process 0 renames it to `step-N` and only then points the file `latest` at it. What is
called step-N is therefore complete, and a kill at any moment leaves the previous one in place. Parameters are stored
under their own names, so any engine on any number of processes can go on from it.
"""

from __future__ import annotations

import os
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from kosmos_core.atomic import write_file

from ..base.errors import CheckpointError
from ..base.processes import ProcessGroup
from .checkpoint_config import CheckpointConfig

SETTINGS = "config.yaml"
# One process needs no process group; torch warns of it at every save and load.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # opens no folders, and makes renames durable by itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def innermost(error: BaseException) -> BaseException:
    """The first error of those that led to this one; the operating system's where there is one."""
    failures = list(getattr(error, "failures", {}).values())  # dcp reports errors per rank
    inner = failures[0][0] if failures else error.__cause__ or error.__context__
    return error if inner is None or getattr(error, "strerror", None) else innermost(inner)


def reason(error: BaseException) -> str:
    """The message of the innermost error."""
    error = innermost(error)
    return getattr(error, "strerror", None) or " ".join(f"{type(error).__name__}: {error}".split())


def step_of(path: Path) -> int:
    """The step number in a checkpoint's name."""
    return int(path.name.split("-")[-1])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest step first."""
    named = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    found = [path for path in named if (path / ".metadata").is_file()]
    return sorted(found, key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from: the one that the file `latest` names, else the newest complete one."""
    complete = complete_checkpoints(folder)
    pointer = folder / "latest"
    if pointer.is_file():
        named = folder / pointer.read_text(errors="replace").strip()
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
        self.settings = ""
        """The run's configuration as YAML, kept in every checkpoint: the run folder's is that of its last start."""

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
        write_file(temporary / SETTINGS, self.settings)
        _sync_folder(temporary)
        if final.exists():  # of a run that was set back to an earlier step
            shutil.rmtree(final)
        temporary.rename(final)
        _sync_folder(self.folder)
        write_file(self.folder / "latest", final.name + "\n")
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
        reasons = list(filter(None, self.process_group.gather(error and reason(error))))
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
