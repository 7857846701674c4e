"""A run folder belongs to one run at a time, and nothing in it changes before that run has really begun."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..base.errors import CheckpointError, ConfigError
from ..base.processes import ProcessGroup

LOCK, OWNER = ".lock", ".owner.json"
PATIENCE = 15.0  # seconds: a run that was told to end may still be saving when its successor starts


@contextlib.contextmanager
def owned(folder: Path, process_group: ProcessGroup) -> Iterator[None]:
    """Own the run folder while within; call on all processes. What a failed start has made is removed again.

    The lock is the system's, so it ends with the process that holds it, however that ends.

    Raises:
        ConfigError: another run has it.
        CheckpointError: it cannot be made or written.
    """
    made = process_group.rank == 0 and not folder.exists()
    lock, problem = None, None
    if process_group.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK).acquire(timeout=PATIENCE)
            owner = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            (folder / OWNER).write_text(json.dumps(owner))
        except Timeout:
            problem = ConfigError(
                f"run_folder: {folder} is in use by {_owner(folder)}; wait until that run has ended, or choose another "
                f"--run_folder."
            )
        except OSError as error:
            if lock is not None:  # the disk is full: not even the owner's name has room
                (folder / OWNER).unlink(missing_ok=True)
                lock.lock.release()
            problem = CheckpointError(
                f"run_folder: {folder} cannot be written ({error.strerror}); make room or choose another --run_folder."
            )
    if problem := process_group.gather(problem)[0]:
        if made:
            _remove_if_unused(folder)
        raise problem
    try:
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                (folder / OWNER).unlink()
            if made:
                _remove_if_unused(folder)
            lock.lock.release()


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text())
        return f"the training of process {owner['process']} on {owner['host']}, begun {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another training"


def _remove_if_unused(folder: Path) -> None:
    """Remove the folder where it holds nothing but its lock and an empty folder for checkpoints."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {LOCK, "checkpoints"}:
            if (folder / "checkpoints").is_dir():
                (folder / "checkpoints").rmdir()
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
