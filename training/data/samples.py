"""The kinds of sample that training reads, after cooking and before tokenisation. Pictures are still encoded bytes.

The classes derive from Megatron-Energon's `Sample`, so the cookers of this package also serve an Energon task encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.energon import Sample, SkipSample
from megatron.energon.edataclass import edataclass


class BadSample(SkipSample):
    """A sample that cannot be used; `reason` is what is counted."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason,)


class Filtered(BadSample):
    """A sound sample that the configuration leaves out, such as a caption that is too long: counted, never an error."""


@edataclass
class TextSample(Sample):
    """A document of plain text."""

    text: str


@edataclass
class CaptionSample(Sample):
    """A picture and its caption; `picture` is None when only captions are read."""

    caption: str
    image: bytes | None
    width: int | None = None
    height: int | None = None


@edataclass
class InterleavedSample(Sample):
    """A document of text (str) and pictures (bytes) in reading order."""

    segments: list[str | bytes]


@dataclass(frozen=True)
class Entity:
    """Words of a caption and the square picture of what they name.

    start, end: character span in the caption. What stands on white: `crop` inside `mask` (1 bit, of its size), or
    `on_white` where the data set has that picture ready, or the crop as it is.
    """

    start: int
    end: int
    crop: bytes
    mask: bytes | None = None
    on_white: bytes | None = None


@edataclass
class CompositionalSample(Sample):
    """A caption, pictures of its entities in reading order, and the picture that the caption describes."""

    caption: str
    entities: list[Entity]
    target: bytes


@edataclass
class EditSample(Sample):
    """A caption, an editing instruction and pairs of pictures (before, after).

    edited: caption of the pictures after; None where the data set has none.
    """

    caption: str
    instruction: str
    pairs: list[tuple[bytes, bytes]]
    edited: str | None = None
