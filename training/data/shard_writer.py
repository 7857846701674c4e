"""WebDataset tars written so that they depend on their samples alone and are never seen half-written."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

Parts = Mapping[str, bytes]


class ShardWriter:
    """One tar in the making; it gets its name on leaving the `with` block without an error, and only with samples.

    The parts of a sample stand in the order of their names and no header tells a time or a user: same samples, same
    bytes.
    """

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> ShardWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)
        return self

    def add(self, key: str, parts: Parts) -> None:
        """Append a sample. Its key may not contain a dot, which ends a key in a tar."""
        if "." in key.rpartition("/")[2]:
            raise ValueError(f"the key {key!r} contains a dot")
        for name in sorted(parts):
            member = tarfile.TarInfo(f"{key}.{name}")
            member.size = len(parts[name])
            self._tar.addfile(member, io.BytesIO(parts[name]))
            self._tar.members = []  # tarfile would keep every header
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None and self.count:
                self._tar.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._partial.replace(self.path)
        finally:
            with contextlib.suppress(OSError):  # a full disk again, which the first error has told already
                self._file.close()
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)


def write_shard(path: Path, samples: Iterable[tuple[str, Parts]]) -> int:
    """Write (key, parts) as one tar and return their number; the samples may be made on the way."""
    with ShardWriter(path) as writer:
        for key, parts in samples:
            writer.add(key, parts)
    return writer.count
