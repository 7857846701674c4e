"""From crude samples (named parts as bytes) to this package's samples: one cooker per layout, and the reasons to skip.

The cookers are stateless in Energon's sense: module-level functions of the sample alone. `COOKERS` registers them by
the `kind` sub-flavour, so an Energon task encoder (with `decoder = None`) can take the list as it is.

| kind          | parts of a sample                                                                                  |
| ------------- | -------------------------------------------------------------------------------------------------- |
| text          | `txt`, or `json` (a line of a .jsonl file) `{"text"}`                                              |
| captions      | `jpg`, `txt`, `json` as img2dataset writes them; png and webp too                                  |
| interleaved   | `json` `{"segments": [{"text": ...}, {"image": "0.jpg"}, ...]}` and the named parts                |
| compositional | `jpg` target, `<k>.jpg` square crops, `<k>.mask.png` or the crop on white `<k>.white.jpg`,         |
|               | `json` `{"caption", "entities": [{"span": [start, end]}]}`                                         |
| edit          | `json` `{"input", "edit"}`, also `"output"`, pairs `<k>_0.jpg` (before) and `<k>_1.jpg` (after)      |
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from megatron.energon import Cooker, basic_sample_keys, stateless
from megatron.energon.task_encoder.cooking import cooker

from .samples import BadSample, CaptionSample, CompositionalSample, EditSample, Entity, InterleavedSample, TextSample

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")


def _described(crude: dict[str, Any]) -> dict[str, Any]:
    if "json" not in crude:
        raise BadSample("missing json")
    try:
        described = json.loads(crude["json"])
    except ValueError as error:
        raise BadSample("bad json") from error
    if not isinstance(described, dict):
        raise BadSample("bad json")
    return described


def _text(value: Any, name: str) -> str:
    """A text that is there and not blank; bytes are decoded."""
    if value is None:
        raise BadSample(f"missing {name}")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadSample(f"{name} is not UTF-8") from error
    if not isinstance(value, str):
        raise BadSample(f"bad {name}")
    if not value.strip():
        raise BadSample(f"empty {name}")
    return value


def _image(crude: dict[str, Any], name: str = "") -> bytes:
    """The part with this name and any picture ending."""
    for ending in IMAGE_ENDINGS:
        part = f"{name}.{ending}" if name else ending
        if part in crude:
            return crude[part]
    raise BadSample("missing picture")


@stateless
@cooker
def cook_text(crude: dict[str, Any]) -> TextSample:
    """A document from a .txt part or a json line."""
    text = crude["txt"] if "txt" in crude else _described(crude).get("text")
    return TextSample(**basic_sample_keys(crude), text=_text(text, "text"))


@stateless
@cooker
def cook_caption(crude: dict[str, Any]) -> CaptionSample:
    """A picture and its caption as img2dataset stores them; the sizes are those its json states, if any."""
    sizes: dict[str, Any] = {}
    if "json" in crude:
        sizes = _described(crude)
    caption = _text(crude["txt"] if "txt" in crude else sizes.get("caption"), "caption")
    image = next((crude[ending] for ending in IMAGE_ENDINGS if ending in crude), None)
    width, height = (value if isinstance(value := sizes.get(name), int) else None for name in ("width", "height"))
    return CaptionSample(**basic_sample_keys(crude), caption=caption, image=image, width=width, height=height)


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
            if segment["image"] not in crude:
                raise BadSample("missing picture")
            segments.append(crude[segment["image"]])
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
        except (KeyError, TypeError, ValueError) as error:
            raise BadSample("bad span") from error
        if not 0 <= start <= end <= len(caption):
            raise BadSample("bad span")
        on_white = next((crude[part] for e in IMAGE_ENDINGS if (part := f"{number}.white.{e}") in crude), None)
        mask = crude.get(f"{number}.mask.png")
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
    numbers = sorted({int(part.partition("_")[0]) for part in crude if part.partition("_")[0].isdigit()})
    pairs = [(_image(crude, f"{number}_0"), _image(crude, f"{number}_1")) for number in numbers]
    if not pairs:
        raise BadSample("missing picture")
    edited = described.get("output")
    if edited is not None and not isinstance(edited, str):
        raise BadSample("bad output")
    return EditSample(**basic_sample_keys(crude), caption=caption, instruction=instruction, pairs=pairs, edited=edited)


COOKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "text": cook_text,
    "captions": cook_caption,
    "pictures": cook_image,
    "interleaved": cook_interleaved,
    "compositional": cook_compositional,
    "edit": cook_edit,
}
COOKERS = [Cooker(cook, has_subflavors={"kind": kind}) for kind, cook in COOKS.items()]
