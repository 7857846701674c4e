"""Whether all processes of a training see one and the same folder, asked before anything is written into it."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path

from .errors import ConfigError
from .processes import ProcessGroup

PATIENCE = 10.0  # seconds that a network file system may take to show one machine what another has written


def require_shared(name: str, folder: str | Path, process_group: ProcessGroup) -> None:
    """Process 0 leaves a file of a random name in `folder`, and every other one looks for it; all call this together.

    Args:
        name: the setting that a person changes, for the message.
    Raises:
        ConfigError: on every process, where one of them does not see the file, or process 0 cannot write it. Nothing
            is left behind, not even the folder where it is new.
    """
    if not process_group.distributed:
        return
    folder = Path(folder)
    mark, made, problem = folder / f".seen-by-all-{secrets.token_hex(8)}", [], None
    if process_group.rank == 0:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            problem = f"{name}: {folder} cannot be written ({error.strerror or error}); choose another folder."
    try:
        written, problem = process_group.gather((mark.name, problem))[0]
        seen = problem is not None or appears(folder / written)
        answers = process_group.gather((seen, socket.gethostname()))
    finally:
        if process_group.rank == 0:
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)
    blind = [rank for rank, (seen, _) in enumerate(answers) if not seen]
    if process_group.rank == 0 and (blind or problem):
        for path in made:  # innermost first; a folder that somebody has filled meanwhile stays
            with contextlib.suppress(OSError):
                path.rmdir()
    if problem:
        raise ConfigError(problem)
    if blind:
        hosts = ", ".join(sorted({answers[rank][1] for rank in blind}))
        raise ConfigError(
            f"{name}: {folder} is not one folder for all processes: {len(blind)} of {len(answers)} (first process "
            f"{blind[0]}, on {hosts}) do not see what process 0 on {answers[0][1]} wrote there; choose a folder on a "
            "file system that all machines share."
        )


def appears(path: Path) -> bool:
    """Whether `path` is there, or becomes so within `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # a network file system looks again, where `exists` may answer from memory
        if path.exists():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
