"""WebDataset tars written so that they depend on their samples alone and are never seen half-written."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

Parts = Mapping[str, bytes]


def write_shard(path: Path, samples: Iterable[tuple[str, Parts]]) -> int:
    """Write (key, parts) as one tar and return their number; a tar without samples is not written.

    The parts stand in the order of their names and no header tells a time or a user: same samples, same bytes. The
    samples are taken one by one, so they may be made on the way. Keys may not contain a dot, which ends a key in a tar.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for key, parts in samples:
                    if "." in key.rpartition("/")[2]:
                        raise ValueError(f"the key {key!r} contains a dot")
                    for name in sorted(parts):
                        member = tarfile.TarInfo(f"{key}.{name}")
                        member.size = len(parts[name])
                        tar.addfile(member, io.BytesIO(parts[name]))
                        tar.members = []  # tarfile would keep every header
                    count += 1
            file.flush()
            os.fsync(file.fileno())
        if count:
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return count
