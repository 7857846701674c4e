"""The parts of a sample, as a tar holds them, in each layout that converters write: pictures checked, texts encoded."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from typing import Any

from PIL import Image

from kosmos_core.images import open_undecoded

from ..decoding import decode
from ..sample_types import BadSample, Entity
from ..shard_writer import Parts

TRAINING_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # Pillow's formats that training reads: their endings


def caption_parts(image: bytes, caption: str, described: dict[str, Any] | None = None) -> Parts:
    """A picture and its caption, and what else is known of it."""
    return image_part(image) | {"txt": caption.encode()} | (json_part(described) if described else {})


def compositional_parts(caption: str, target: bytes, entities: Iterable[Entity]) -> Parts:
    """A caption, its picture, and the pictures of words of it."""
    parts, listed = image_part(target), []
    for number, entity in enumerate(entities):
        parts |= image_part(entity.crop, f"{number}.")
        if entity.on_white is not None:
            parts |= image_part(entity.on_white, f"{number}.white.")
        listed.append({"text": caption[entity.start : entity.end], "span": [entity.start, entity.end]})
    return parts | json_part({"caption": caption, "entities": listed})


def edit_parts(caption: str, instruction: Any, pairs: list[tuple[bytes, bytes]], edited: str | None = None) -> Parts:
    """An edit sample; `edited` is the caption of the pictures after. Raises BadSample for an empty instruction."""
    if not isinstance(instruction, str) or not instruction.strip():
        raise BadSample("empty edit")
    parts: Parts = {}
    for number, pair in enumerate(pairs):
        for moment, content in enumerate(pair):
            parts |= image_part(content, f"{number}_{moment}.")
    described = {"input": caption, "edit": instruction, "pairs": len(pairs)}
    return parts | json_part(described | ({"output": edited} if edited else {}))


def image_part(content: bytes, name: str = "") -> Parts:
    """A picture under its name and ending: as it is if it is a still JPEG, PNG or WebP, else its first frame as JPEG.

    Raises BadSample where it cannot be decoded whole.
    """
    image = decode(content)
    with contextlib.suppress(OSError), open_undecoded(content) as opened:
        if opened.format in TRAINING_FORMATS and getattr(opened, "n_frames", 1) == 1:
            return {f"{name}{TRAINING_FORMATS[opened.format]}": content}
    return {f"{name}jpg": as_jpeg(image)}


def as_jpeg(image: Image.Image) -> bytes:
    """A picture as JPEG of high quality, without losing colour resolution."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def json_part(described: dict[str, Any]) -> Parts:
    """What is said of a sample."""
    return {"json": json.dumps(described, ensure_ascii=False).encode()}
