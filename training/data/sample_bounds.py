"""How much one sample may hold: a line that names one picture a million times is short, and what it names is not."""

from __future__ import annotations

from pathlib import Path

from .sample_types import BadSample

MOST_IMAGES = 512
MOST_BYTES = 1 << 30  # of a sample's encoded pictures together
LARGEST_IMAGE = 256_000_000  # bytes, as a part of a sample in `Reader`


class SampleBound:
    """Counts the encoded pictures of one sample while they are read, the same one again as another."""

    def __init__(self) -> None:
        self.images = self.bytes = 0

    def add(self, size: int) -> None:
        """One more picture of so many bytes. Raises BadSample where that is too much."""
        self.images += 1
        self.bytes += size
        if self.images > MOST_IMAGES:
            raise BadSample("too many pictures")
        if size > LARGEST_IMAGE or self.bytes > MOST_BYTES:
            raise BadSample("file too large")

    def read(self, path: Path) -> bytes:
        """The content of a picture's file. Raises BadSample before it is read, OSError where it cannot be."""
        self.add(path.stat().st_size)
        return path.read_bytes()
