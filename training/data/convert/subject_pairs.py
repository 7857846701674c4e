"""OmniGen2 and UNO: instructions with pictures, and the picture that follows them.

    omnigen2  .jsonl: {"task_type", "instruction", "input_images": [...], "output_image"}
    uno       .jsonl or one .json list: {"prompt", "image_paths": [...], "image_tgt_path"}

Without pictures a row becomes a captioned picture, an edit of one picture becomes an edit sample, all else becomes a
compositional sample: a picture stands behind the words that speak of it ("image 2", "the second picture",
"<|image_2|>"), and those that no words speak of stand before the text. Each kind becomes a data set of its own below
the output folder.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..samples import BadSample
from .conversion import Converted
from .edits import edit_parts
from .image_store import ImageStore, checked
from .records import Records

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_MENTION = re.compile(
    r"(?:<img>)?<\|image_(?P<tag>\d+)\|>(?:</img>)?"
    r"|\b(?:image|picture|photo|img)\s*#?\s*(?P<number>\d+)\b"
    rf"|\b(?:the\s+)?(?P<ordinal>{'|'.join(_ORDINALS)})\s+(?:image|picture|photo|reference(?:\s+image)?)\b",
    re.IGNORECASE,
)


class Subjects:
    """The rows of an OmniGen2 or UNO file. root: the folder that their picture paths are relative to."""

    def __init__(self, layout: str, source: Path, root: Path | None, work: Path):
        self.layout = layout
        self.records = Records(source)
        root = root or (source if source.is_dir() else source.parent)
        self.images = ImageStore(root, work / "pictures.sqlite")

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> dict[str, Any]:
        found = {"layout": self.layout, "pictures": str(self.images.root.resolve())}
        return found | self.records.fingerprint()

    def convert(self, number: int) -> Converted:
        row = self.records[number]
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
        target, images = self.images.get(output), [self.images.get(name) for name in inputs]
        key = f"{number:09d}"
        if not images:
            ending, content = checked(target)
            return Converted("captions", key, {ending: content, "txt": text.encode()})
        if len(images) == 1 and "edit" in str(row.get("task_type", "")).lower():
            return Converted("edit", key, edit_parts("", text, [(images[0], target)]))
        return Converted("compositional", key, _compositional(text, images, target))


def mentions(text: str, count: int) -> list[tuple[int, int]]:
    """Where the text speaks of each of `count` pictures, from the first mention on; (0, 0) where it does not."""
    found: dict[int, tuple[int, int]] = {}
    for match in _MENTION.finditer(text):
        digits = match["tag"] or match["number"]
        image = int(digits) - 1 if digits else _ORDINALS.index(match["ordinal"].lower())
        found.setdefault(image, match.span())
    return [found.get(image, (0, 0)) for image in range(count)]


def _compositional(text: str, images: list[bytes], target: bytes) -> dict[str, bytes]:
    ending, content = checked(target)
    parts, entities = {ending: content}, []
    for number, (image, (start, end)) in enumerate(zip(images, mentions(text, len(images)), strict=True)):
        ending, content = checked(image)
        parts[f"{number}.{ending}"] = content
        entities.append({"text": text[start:end], "span": [start, end]})
    described = {"caption": text, "entities": entities}
    return parts | {"json": json.dumps(described, ensure_ascii=False).encode()}
