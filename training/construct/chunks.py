"""What travels between the stages: a chunk of pictures of one input shard."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .caption_spans import CaptionSpan
from .masks import Region


@dataclass(frozen=True)
class ImageHeader:
    """What a picture's header says: `side` of its centre square in pixels; plain: it is an upright RGB JPEG."""

    side: int
    plain: bool


@dataclass
class SourceImage:
    """One picture on its way through the stages.

    content: encoded, as read. rotation: degrees counter-clockwise that the source prescribes, None for "as its EXIF
    tag says". problem: why it is left out already. header: once it is judged. view: (s, s, 3) uint8, the small centre
    square that models see. regions[i]: where spans[i] was found, None for "nowhere".
    """

    key: str
    content: bytes
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

    def skip(self, key: str, reason: str) -> None:
        self.skipped.append((key, reason))

    def note(self, reason: str, count: int = 1) -> None:
        if count:
            self.notes[reason] = self.notes.get(reason, 0) + count

    def to_row(self) -> dict[str, Any]:
        """As a row of a Ray data set."""
        return {"shard": self.shard, "chunk": self.number, "data": pickle.dumps(self, protocol=5)}

    @staticmethod
    def from_row(row: dict[str, Any]) -> Chunk:
        return pickle.loads(row["data"])


class UnusableImage(Exception):
    """A picture that cannot be used; the message is the reason that is counted."""
