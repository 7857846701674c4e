"""Files that are complete or absent: written beside their place, on the disk, and only then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".*.tmp"  # glob of what a killed process leaves behind


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, new: bool = False) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` when the block ends without an error.

    After an error, or a kill, an existing file is as it was; with `new` it always is: FileExistsError where there is
    one by then, even if another process has made it just now. Raises OSError where the folder is missing or the disk
    refuses.
    """
    path = Path(path)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        if new:
            _move_to_free(unfinished, path)
        else:
            os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            os.unlink(unfinished)
        raise


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a whole file by `atomic_write`; text as UTF-8."""
    with atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _move_to_free(unfinished: str, path: Path) -> None:
    try:
        os.link(unfinished, path)  # fails where the name is taken, which a rename does not
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is taken by an empty file first
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(unfinished, path)
    else:
        os.unlink(unfinished)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
