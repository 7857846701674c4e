"""What travels between the stages: a chunk of pictures of one input shard."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from .caption_spans import CaptionSpan
from .masks import Region

ALIGNED = 64  # bytes, so that arrays of every type lie as NumPy and OpenCV want them
WORTH_KEEPING = 0.75  # of the bytes that arrived: where less is still in use, the rest is left behind


@dataclass(frozen=True)
class ImageHeader:
    """What a picture's header says: `side` of its centre square in pixels; plain: it is an upright RGB JPEG."""

    side: int
    plain: bool


@dataclass
class SourceImage:
    """One picture on its way through the stages.

    content: encoded, as read; behind the first stage a view of what Ray holds. rotation: degrees counter-clockwise that
    the source prescribes, None for "as its EXIF tag says". problem: why it is left out already. header: once it is
    judged. view: (s, s, 3) uint8, the small centre square that models see. regions[i]: where spans[i] was found, None
    for "nowhere".
    """

    key: str
    content: bytes | memoryview
    source: str
    licence: str = ""
    given_caption: str = ""
    rotation: int | None = None
    problem: str = ""
    header: ImageHeader | None = None
    view: np.ndarray | None = None
    caption: str = ""
    spans: list[CaptionSpan] = field(default_factory=list)
    regions: list[Region | None] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        """As an array, which pickle hands out as a buffer; bytes it would copy."""
        return {**vars(self), "content": np.frombuffer(self.content, dtype=np.uint8)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, content=state["content"].data)


@dataclass
class Chunk:
    """Pictures of one input shard that are in work together.

    skipped: (key, reason) of those left out so far; notes: reason -> count of entities left out. last: no further chunk
    of this shard follows. problem: why the shard cannot be read any further.
    """

    shard: int
    number: int
    images: list[SourceImage]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    last: bool = False
    problem: str | None = None
    _arrived: np.ndarray | None = field(default=None, repr=False, compare=False)

    def skip(self, key: str, reason: str) -> None:
        self.skipped.append((key, reason))

    def note(self, reason: str, count: int = 1) -> None:
        if count:
            self.notes[reason] = self.notes.get(reason, 0) + count

    def to_row(self) -> dict[str, Any]:
        """As a row of a Ray data set: what it says, and beside it the bytes of its pictures, views and regions.

        All are arrays: Ray keeps those as they are, and would copy `bytes` several times at each stage.
        """
        buffers: list[pickle.PickleBuffer] = []
        said = pickle.dumps(self, protocol=5, buffer_callback=buffers.append)
        parts = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
        places, content = _places(parts, self._arrived), self._arrived
        if places is None:
            sizes = [-(-len(part) // ALIGNED) * ALIGNED for part in parts]
            places = [(end - size, len(part)) for end, size, part in zip(accumulate(sizes), sizes, parts, strict=True)]
            content = np.empty(max(sum(sizes), 1), dtype=np.uint8)  # Ray wants no empty ones
            for (start, length), part in zip(places, parts, strict=True):
                content[start : start + length] = part
        row = {"said": np.frombuffer(said, dtype=np.uint8), "places": np.array(places, dtype=np.int64).reshape(-1, 2)}
        return {"shard": self.shard, "chunk": self.number, "content": content, **row}

    @staticmethod
    def from_row(row: dict[str, Any], own: bool = False) -> Chunk:
        """The chunk of a row; its pictures, views and regions are views of the row's bytes, which nobody may change.

        own: of a copy, for models: they may compute in place.
        """
        content = row["content"].copy() if own else row["content"]
        parts = [content[start : start + length] for start, length in row["places"].tolist()]
        chunk = pickle.loads(row["said"], buffers=parts)
        chunk._arrived = content
        return chunk

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrived": None}


def _places(parts: list[np.ndarray], arrived: np.ndarray | None) -> list[tuple[int, int]] | None:
    """(start, length) of each part in the bytes that arrived, where all are there and take most of them; else None."""
    if arrived is None or sum(map(len, parts)) < WORTH_KEEPING * len(arrived):
        return None
    begin = arrived.ctypes.data
    places = [(part.ctypes.data - begin, len(part)) for part in parts]
    return places if all(0 <= start <= len(arrived) - length for start, length in places) else None


class UnusableImage(Exception):
    """A picture that cannot be used; the message is the reason that is counted."""
