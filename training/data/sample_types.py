"""The types of sample that cookers make and tasks tokenise. Pictures are still encoded: the bytes of a JPEG, say.

`contents()` of each type gives its texts (str) and pictures (bytes), the prompt's first. The classes derive from
Megatron-Energon's `Sample`, so that the cookers also serve an Energon task encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from megatron.energon import Sample, SkipSample
from megatron.energon.edataclass import edataclass

from ..base.errors import ConfigError, TrainingStopped


class BadSample(SkipSample):
    """A sample that cannot be used; samples are counted by `reason`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason,)


class Filtered(BadSample):
    """A sound sample that the configuration leaves out, such as a caption that is too long: counted, never an error."""


@contextlib.contextmanager
def one_bad_sample() -> Iterator[None]:
    """Whatever a sample raises in here, it is one bad sample: data from outside can raise anything."""
    try:
        yield
    except (BadSample, TrainingStopped, ConfigError):
        raise
    except Exception as error:
        raise BadSample(f"broken ({type(error).__name__})") from error


@edataclass
class TextSample(Sample):
    """A document of plain text."""

    text: str

    def contents(self) -> list[str | bytes]:
        return [self.text]


@edataclass
class CaptionSample(Sample):
    """A picture and its caption; `image` is None where only captions are read. Sizes are those the data set states."""

    caption: str
    image: bytes | None
    width: int | None = None
    height: int | None = None

    def contents(self) -> list[str | bytes]:
        return [self.caption] if self.image is None else [self.caption, self.image]


@edataclass
class InterleavedSample(Sample):
    """A document of text (str) and pictures (bytes) in reading order."""

    segments: list[str | bytes]

    def contents(self) -> list[str | bytes]:
        return self.segments


@dataclass(frozen=True)
class Entity:
    """Words of a caption and the picture of what they name, a square crop of the whole picture.

    start, end: character span of the words in the caption. For the picture without its background a data set has a mask
    of the crop's size (1 bit) or that picture itself, `on_white`; with neither, the crop is used as it is.
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

    def contents(self) -> list[str | bytes]:
        return [self.caption, *(entity.crop for entity in self.entities), self.target]


@edataclass
class EditSample(Sample):
    """A caption, which may be empty, an editing instruction and pairs of pictures (before, after).

    edited: caption of the pictures after; None where the data set has none.
    """

    caption: str
    instruction: str
    pairs: list[tuple[bytes, bytes]]
    edited: str | None = None

    def contents(self) -> list[str | bytes]:
        return [self.caption, self.instruction, *(image for pair in self.pairs for image in pair)]
