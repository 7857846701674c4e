"""The layouts of data sets: a cooker for each, which makes a sample of named parts, and how `auto` tells them apart.

"Crude" samples and "cookers" are Megatron-Energon's words: a crude sample is a dictionary of a sample's parts as bytes
by name, as a tar or a line holds them, and a cooker is a function of it alone. An Energon task encoder with `decoder =
None` can use them too: `Cooker(cook_caption)`. What is missing or broken raises BadSample with the reason to count.

| kind          | parts of a sample (docs/data-layouts.md shows each by an example)                                  |
| ------------- | -------------------------------------------------------------------------------------------------- |
| text          | `txt`, or `json` (a line of a .jsonl file) `{"text"}`                                              |
| captions      | `jpg`, `txt`, `json` as img2dataset writes them; png and webp too                                  |
| pictures      | `jpg`: pictures without text, from which `training.construct` makes compositional samples          |
| interleaved   | `json` `{"segments": [{"text": ...}, {"image": "0.jpg"}, ...]}` and the named parts                |
| compositional | `jpg` target, `<k>.jpg` square crops, `<k>.mask.png` or the crop on white `<k>.white.jpg`,         |
|               | `json` `{"caption", "entities": [{"span": [start, end]}]}`                                         |
| edit          | `json` `{"input", "edit"}`, also `"output"`, pairs `<k>_0.jpg` (before) and `<k>_1.jpg` (after)      |
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

from megatron.energon import basic_sample_keys, stateless
from megatron.energon.task_encoder.cooking import cooker

from kosmos_core.images import IMAGE_ENDINGS, is_image_name

from ..base.text import TEXT_ENDINGS, decode_text
from .decoding import check_size
from .original_cookers import cook_original_instructpix2pix, cook_original_laion, cook_original_openimage
from .sample_bounds import MOST_IMAGES
from .sample_types import (
    BadSample,
    CaptionSample,
    CompositionalSample,
    EditSample,
    Entity,
    InterleavedSample,
    TextSample,
    one_bad_sample,
)

PAIR = re.compile(r"([0-9]{1,18})_[01]\.")


def read_json(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises BadSample where it is none."""
    try:
        described = json.loads(decode_text(content))
    except (ValueError, RecursionError) as error:
        raise BadSample("bad json") from error
    if not isinstance(described, dict):
        raise BadSample("bad json")
    return described


def find_image(crude: dict[str, Any], name: str = "") -> bytes | None:
    """The picture of this name, with any picture ending; without a name, the part that is an ending alone."""
    parts = (f"{name}.{ending}" if name else ending for ending in IMAGE_ENDINGS)
    return next((crude[part] for part in parts if part in crude), None)


def find_text(crude: dict[str, Any]) -> bytes | None:
    """The part that is a text alone, with any of the endings that are in use for it."""
    return next((crude[ending] for ending in TEXT_ENDINGS if ending in crude), None)


def unknown_endings(crude: dict[str, Any]) -> list[str]:
    """Endings of a sample's parts that no layout reads."""
    endings = {part.rpartition(".")[2] for part in crude if not part.startswith("__")}
    return sorted(endings.difference(IMAGE_ENDINGS, TEXT_ENDINGS, ("json", "tsv")))


def _described(crude: dict[str, Any]) -> dict[str, Any]:
    if "json" not in crude:
        raise BadSample("missing json")
    return read_json(crude["json"])


def _text(value: Any, name: str) -> str:
    """A text that is there and not blank; bytes are decoded."""
    if value is None:
        raise BadSample(f"missing {name}")
    if isinstance(value, bytes):
        try:
            value = decode_text(value)
        except ValueError as error:
            raise BadSample(f"{name} is not UTF-8") from error
    if not isinstance(value, str):
        raise BadSample(f"bad {name}")
    if not value.strip():
        raise BadSample(f"empty {name}")
    return value


def _image(crude: dict[str, Any], name: str = "") -> bytes:
    """The picture that has to be there."""
    if (image := find_image(crude, name)) is None:
        raise BadSample("missing picture")
    return image


@stateless
@cooker
def cook_text(crude: dict[str, Any]) -> TextSample:
    """A document from a .txt part or a json line."""
    text = found if (found := find_text(crude)) is not None else _described(crude).get("text")
    return TextSample(**basic_sample_keys(crude), text=_text(text, "text"))


@stateless
@cooker
def cook_caption(crude: dict[str, Any]) -> CaptionSample:
    """A picture and its caption as img2dataset stores them; the sizes are those its json states, if any."""
    sizes = _described(crude) if "json" in crude else {}
    caption = _text(found if (found := find_text(crude)) is not None else sizes.get("caption"), "caption")
    width, height = (value if isinstance(value := sizes.get(name), int) else None for name in ("width", "height"))
    return CaptionSample(
        **basic_sample_keys(crude), caption=caption, image=find_image(crude), width=width, height=height
    )


@stateless
@cooker
def cook_image(crude: dict[str, Any]) -> CaptionSample:
    """A picture without a caption: input of data construction, of no use to a stage."""
    return CaptionSample(**basic_sample_keys(crude), caption="", image=_image(crude))


@stateless
@cooker
def cook_interleaved(crude: dict[str, Any]) -> InterleavedSample:
    """A document of text and pictures; empty texts are left out, a named picture that is not there makes it bad."""
    listed = _described(crude).get("segments")
    if not isinstance(listed, list):
        raise BadSample("missing segments")
    segments: list[str | bytes] = []
    for segment in listed:
        if not isinstance(segment, dict):
            raise BadSample("bad segments")
        if "image" in segment:
            if not isinstance(name := segment["image"], str):
                raise BadSample("bad segments")
            if not isinstance(image := crude.get(name.lower()), bytes):
                raise BadSample("missing picture")
            segments.append(image)
        elif isinstance(text := segment.get("text"), str):
            segments.extend([text] if text.strip() else [])
        else:
            raise BadSample("bad segments")
    if not segments:
        raise BadSample("empty document")
    return InterleavedSample(**basic_sample_keys(crude), segments=segments)


@stateless
@cooker
def cook_compositional(crude: dict[str, Any]) -> CompositionalSample:
    """A caption with pictures of its entities by their spans; an empty span is a picture without words."""
    described = _described(crude)
    caption = _text(described.get("caption"), "caption")
    listed = described.get("entities")
    if not isinstance(listed, list):
        raise BadSample("missing entities")
    entities = []
    for number, entity in enumerate(listed):
        try:
            start, end = (int(position) for position in entity["span"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadSample("bad span") from error
        if not 0 <= start <= end <= len(caption):
            raise BadSample("bad span")
        mask, on_white = crude.get(f"{number}.mask.png"), find_image(crude, f"{number}.white")
        entities.append(Entity(start, end, _image(crude, str(number)), mask, on_white))
    entities.sort(key=lambda entity: entity.start)
    if any(later.start < earlier.end for earlier, later in itertools.pairwise(entities)):
        raise BadSample("overlapping spans")
    target = _image(crude)
    return CompositionalSample(**basic_sample_keys(crude), caption=caption, entities=entities, target=target)


@stateless
@cooker
def cook_edit(crude: dict[str, Any]) -> EditSample:
    """An editing instruction with one or more pairs of pictures. The caption before it may be empty."""
    described = _described(crude)
    instruction = _text(described.get("edit"), "edit")
    caption = described.get("input") or ""
    if not isinstance(caption, str):
        raise BadSample("bad input")
    numbers = sorted({found[1] for part in crude if (found := PAIR.match(part))}, key=lambda told: (int(told), told))
    pairs = [(_image(crude, f"{number}_0"), _image(crude, f"{number}_1")) for number in numbers]
    if not pairs:
        raise BadSample("missing picture")
    edited = described.get("output")
    if edited is not None and not isinstance(edited, str):
        raise BadSample("bad output")
    return EditSample(**basic_sample_keys(crude), caption=caption, instruction=instruction, pairs=pairs, edited=edited)


COOKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "text": cook_text,
    "captions": cook_caption,
    "pictures": cook_image,
    "interleaved": cook_interleaved,
    "compositional": cook_compositional,
    "edit": cook_edit,
    "original-laion": cook_original_laion,
    "original-instructpix2pix": cook_original_instructpix2pix,
    "original-openimage": cook_original_openimage,
}


def cook(kind: str, crude: dict[str, Any], max_pixels: int) -> Any:
    """The sample that a raw one describes, for training, lint and sheets alike.

    Raises BadSample, whatever is wrong with it, also where a picture has more than `max_pixels`: before it is decoded.
    """
    with one_bad_sample():
        sample = COOKERS[kind](crude)
        images = [content for content in sample.contents() if isinstance(content, bytes)]
        for entity in getattr(sample, "entities", ()):
            images += [image for image in (entity.mask, entity.on_white) if image is not None]
        if len(images) > MOST_IMAGES:
            raise BadSample("too many pictures")
        for content in images:
            check_size(content, max_pixels)
        return sample


def kind_of(crude: dict[str, Any]) -> str | None:
    """The layout that a sample's parts and the entries of its json tell; None where they tell none."""
    if "tsv" in crude:
        return None  # the original's three layouts look alike: the user names the one
    try:
        described = read_json(crude.get("json") or b"{}")
    except BadSample:
        described = {}  # the other parts may tell it, and the cooker then why the sample is bad
    images = any(is_image_name(part) for part in crude if not part.startswith("__"))
    text = find_text(crude) is not None
    if "segments" in described:
        return "interleaved"
    if "entities" in described and images:
        return "compositional"
    if "edit" in described and images:
        return "edit"
    if (images and text) or "caption" in described:
        return "captions"
    if text and unknown_endings(crude):
        return None  # perhaps a picture in a format that is not read: its caption is no document
    if text or "text" in described:
        return "text"
    return "pictures" if images else None
