"""Whether the files behind a path are still the same: by their content, not by name, size or date.

Reading terabytes again at every start would take hours, so a digest can be remembered beside sizes and times of its
files. The time of the last change of status cannot be set by a program: what is written to shows, whatever it does to
the date of modification.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kosmos_core.atomic import write_file

AT_ONCE = 1 << 20  # bytes
HUB_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def content_digest(paths: Sequence[str | os.PathLike], names: Sequence[str], tolerant: bool = False) -> str:
    """32 hexadecimal digits that change with the content, the number or the `names` of the files.

    tolerant: a file that cannot be read counts as one without content; else it raises OSError.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path, name in zip(paths, names, strict=True):
        try:
            own = _file_digest(Path(path))
        except OSError:
            if not tolerant:
                raise
            own = "unreadable"
        digest.update(f"{name}\n{own}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == "blobs" and HUB_BLOB.fullmatch(blob.name):
        return blob.name  # files of the hub's cache are called by their content: no need to read gigabytes
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def files_below(path: str | os.PathLike) -> tuple[list[Path], list[str]]:
    """The file itself, or all files of a folder by name, hidden ones left out; and their names relative to it."""
    path = Path(path)
    if not path.is_dir():
        return [path], [""]
    found = sorted(file for file in path.rglob("*") if file.is_file())
    names = [file.relative_to(path).as_posix() for file in found]
    shown = [(file, name) for file, name in zip(found, names, strict=True) if not name.startswith((".", "__pycache__"))]
    return [file for file, _ in shown], [name for _, name in shown]


class RememberedDigests:
    """Digests of sets of files, read again only where a file's size or times are others than when it was read.

    path: the JSON file that remembers them; a missing or broken one is an empty one.
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        self._known: dict[str, str] = {}
        self._used: dict[str, str] = {}
        if path is not None:
            try:
                known = json.loads(Path(path).read_bytes())
                self._known = {str(mark): str(digest) for mark, digest in known.items()}
            except (OSError, ValueError, AttributeError, RecursionError):
                pass

    def of(self, groups: Sequence[tuple[Sequence[Path], Sequence[str]]]) -> list[str]:
        """The digest of each group of (files, their names); what cannot be read counts as a file without content."""
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            found = list(pool.map(self._one, groups))
        self._used.update(found)
        return [digest for _, digest in found]

    def _one(self, group: tuple[Sequence[Path], Sequence[str]]) -> tuple[str, str]:
        paths, names = group
        mark = hashlib.blake2b(digest_size=16)
        for path, name in zip(paths, names, strict=True):
            try:
                state = os.stat(path)
                told = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
            except OSError as error:
                told = str(error.errno)
            mark.update(f"{name}\n{os.fspath(path)}\n{told}\n".encode("utf-8", "surrogateescape"))
        marked = mark.hexdigest()
        return marked, self._known.get(marked) or content_digest(paths, names, tolerant=True)

    def save(self, path: str | os.PathLike) -> None:
        """Keep what was asked for since the beginning; what nobody asked for is forgotten."""
        write_file(path, json.dumps(self._used))
