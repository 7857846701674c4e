"""WebDataset tars: the same samples give the same bytes, and no tar is ever seen half-written."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from kosmos_core.atomic import atomic_write

Parts = dict[str, bytes]  # of one sample, by their names in the tar


class ShardWriter(contextlib.ExitStack):
    """One tar in the making; it appears on leaving the `with` block without an error, and only if it has samples.

    The parts of a sample stand in the order of their names, and no header tells a time or a user.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.count = path, 0

    def add(self, key: str, parts: Parts) -> None:
        """Append a sample. Raises ValueError for a key with a dot, which would end the key in a tar."""
        if "." in key.rpartition("/")[2]:
            raise ValueError(f"the key {key!r} contains a dot")
        if not self.count:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.enter_context(atomic_write(self.path))
            self._tar = self.enter_context(tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT))
        for name in sorted(parts):
            member = tarfile.TarInfo(f"{key}.{name}")
            member.size = len(parts[name])
            self._tar.addfile(member, io.BytesIO(parts[name]))
            self._tar.members = []  # tarfile would keep every header
        self.count += 1


def write_shard(path: Path, samples: Iterable[tuple[str, Parts]]) -> int:
    """Write (key, parts) as one tar and return their number; the samples may be made on the way."""
    with ShardWriter(path) as writer:
        for key, parts in samples:
            writer.add(key, parts)
    return writer.count
