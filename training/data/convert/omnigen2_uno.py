"""OmniGen2 and UNO: instructions with input pictures, and the picture that follows the instruction.

    omnigen2  .jsonl: {"task_type", "instruction", "input_images": [...], "output_image"}
    uno       .jsonl or one .json list: {"prompt", "image_paths": [...], "image_tgt_path"}

A row without input pictures becomes a captioned picture, an edit of one picture becomes an edit sample, every other
row a compositional sample: each input picture comes behind the words that speak of it ("image 2", "the second picture",
"<|image_2|>"), or before the text where none do. Each kind becomes a data set of its own below the output folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..sample_bounds import SampleBound
from ..sample_types import BadSample, Entity
from .conversion import Converted, key_of
from .image_store import ImageStore
from .parts import caption_parts, compositional_parts, edit_parts
from .row_files import Rows

# Fixed phrases with a number: a library of plurals or lemmas has nothing to do here.
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_MENTION = re.compile(
    r"(?:<img>)?<\|image_(?P<tag>\d+)\|>(?:</img>)?"
    r"|\b(?:image|picture|photo|img)\s*#?\s*(?P<number>\d+)\b"
    rf"|\b(?:the\s+)?(?P<ordinal>{'|'.join(_ORDINALS)})\s+(?:image|picture|photo|reference(?:\s+image)?)\b",
    re.IGNORECASE,
)


class ImageInstructions:
    """The rows of an OmniGen2 or UNO file. root: the folder that their picture paths are relative to."""

    def __init__(self, layout: str, source: Path, root: Path | None, work: Path):
        self.layout = layout
        self.rows = Rows(source)
        root = root or (source if source.is_dir() else source.parent)
        self.images = ImageStore(root, work / "pictures.sqlite")

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> dict[str, Any]:
        found = {"layout": self.layout, **self.images.fingerprint()}
        return found | self.rows.fingerprint()

    def convert(self, number: int) -> Converted:
        row = self.rows[number]
        text, inputs, output = (
            (row.get("instruction"), row.get("input_images"), row.get("output_image"))
            if self.layout == "omnigen2"
            else (row.get("prompt"), row.get("image_paths"), row.get("image_tgt_path"))
        )
        inputs = [inputs] if isinstance(inputs, str) else inputs or []
        if not isinstance(text, str) or not text.strip():
            raise BadSample("empty instruction")
        if not isinstance(output, str) or not all(isinstance(name, str) for name in inputs):
            raise BadSample("bad row")
        bound = SampleBound()
        target = self.images.get(output, bound=bound)
        images = [self.images.get(name, bound=bound) for name in inputs]
        if not images:
            return Converted("captions", key_of(number), caption_parts(target, text))
        if len(images) == 1 and "edit" in str(row.get("task_type", "")).lower():
            return Converted("edit", key_of(number), edit_parts("", text, [(images[0], target)]))
        spans = mentions(text, len(images))
        entities = [Entity(*span, image) for span, image in zip(spans, images, strict=True)]
        return Converted("compositional", key_of(number), compositional_parts(text, target, entities))


def mentions(text: str, count: int) -> list[tuple[int, int]]:
    """The span (start, end) where the text first speaks of each of `count` pictures; (0, 0) where it does not."""
    found: dict[int, tuple[int, int]] = {}
    for match in _MENTION.finditer(text):
        digits = match["tag"] or match["number"]
        image = int(digits) - 1 if digits else _ORDINALS.index(match["ordinal"].lower())
        found.setdefault(image, match.span())
    return [found.get(image, (0, 0)) for image in range(count)]
