"""Full-sentence packing: sequences of fixed length, filled with whole sentences of consecutive documents.

A document is `<s>`, its units, `</s>`. A unit is a sentence, a picture with the sentence behind it, or a picture with
its whole caption. Where the next unit does not fit, the rest of the sequence is padding, and the unit begins the next
sequence behind another `<s>`. So no picture's tokens are cut, no caption is parted from its picture, and a sentence is
cut only if it is longer than a whole sequence. (The "full-sentence" format of arXiv 2310.02992, section 3.2.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from kosmos_core.config import VisionConfig
from kosmos_core.images import preprocess_image
from kosmos_core.tokenizer import Tokenizer

from .decoding import decode
from .sample_types import CaptionSample, InterleavedSample, TextSample
from .sequences import encode

# A sentence ends behind . ! ? or their CJK forms, with closing quotes or brackets, and at every line break.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")


@dataclass
class PackingUnit:
    """What packing never cuts: token ids, which of them image embeddings replace, and the pictures' pixels."""

    token_ids: list[int] = field(default_factory=list)
    image_mask: list[bool] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)

    def __add__(self, other: PackingUnit) -> PackingUnit:
        return PackingUnit(
            self.token_ids + other.token_ids, self.image_mask + other.image_mask, self.pixels + other.pixels
        )


@dataclass
class PackedRow:
    """A row of stage 1's micro-batch, not padded yet. documents: for each id the number of its document in the row."""

    token_ids: list[int] = field(default_factory=list)
    image_mask: list[bool] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def add(self, unit: PackingUnit, key: str) -> None:
        if not self.keys or self.keys[-1] != key:
            self.keys.append(key)
        self.token_ids += unit.token_ids
        self.image_mask += unit.image_mask
        self.pixels += unit.pixels
        self.documents += [len(self.keys) - 1] * len(unit.token_ids)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, stripped; none is empty."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if sentence := text[start : end.end()].strip():
            yield sentence
        start = end.end()
    if rest := text[start:].strip():
        yield rest


def document_units(
    sample: TextSample | CaptionSample | InterleavedSample,
    tokenizer: Tokenizer,
    length: int,
    image_size: int = VisionConfig.image_size,
) -> list[PackingUnit]:
    """A document's units, `<s>` in the first and `</s>` in the last; none has more than length - 1 ids.

    Raises BadSample where a picture is corrupt.
    """
    if isinstance(sample, CaptionSample):
        units = [_image(sample.image or b"", tokenizer, image_size)]
        units += _text(sample.caption, tokenizer, length - 3 - len(units[0].token_ids), whole=True)
        units = [units[0] + units[1], *units[2:]] if len(units) > 1 else units
    elif isinstance(sample, TextSample):
        units = _text(sample.text, tokenizer, length - 3)
    else:
        units = []
        for segment in sample.segments:
            if isinstance(segment, bytes):
                units.append(_image(segment, tokenizer, image_size))
                continue
            added = _text(segment, tokenizer, length - 3)
            last = units[-1] if units else None
            # The sentence behind a picture is likely to speak of it: they stay together where they fit.
            if added and last and last.pixels and last.image_mask[-2] and _fits(last, added[0], length - 3):
                units[-1] = last + added.pop(0)
            units += added
    if units:
        units[0] = PackingUnit([tokenizer.ids.bos], [False]) + units[0]
        units[-1] = units[-1] + PackingUnit([tokenizer.ids.eos], [False])
    return units


def _fits(first: PackingUnit, second: PackingUnit, length: int) -> bool:
    return len(first.token_ids) + len(second.token_ids) <= length


def _image(content: bytes, tokenizer: Tokenizer, image_size: int) -> PackingUnit:
    return PackingUnit(*tokenizer.ids.image(tokenizer.latents), [preprocess_image(decode(content), image_size)])


def _text(text: str, tokenizer: Tokenizer, length: int, whole: bool = False) -> list[PackingUnit]:
    """A unit for every sentence, or one for the whole text; what has more than `length` ids is cut into pieces."""
    units = []
    for sentence in [text] if whole else sentences(text):
        ids = encode(sentence, tokenizer)
        for start in range(0, len(ids), length):
            piece = ids[start : start + length]
            units.append(PackingUnit(piece, [False] * len(piece)))
    return units
