"""Kosmos-G Prompt: text with pictures in it, to conditionings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..kosmos_core import Prompt, preprocess_image
from .adapter import KEY, TextEncoder, encoder_of, progress
from .schema import node_schema

SLOTS = 8
CONTEXT = 2048  # tokens of a training sequence


class KosmosGTextEncode(io.ComfyNode):
    """Encode a prompt with pictures, its negative, and the same prompt without its pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGTextEncode",
            display_name="Kosmos-G Prompt",
            category="Kosmos-G",
            description="Encodes text with pictures in it: write <i> where a picture belongs, as in 'a dog <i> wearing "
            "<i> at the beach'. The marks take the pictures in order; <i2> names image_2, and (<i>:1.3) sets a weight.",
            search_aliases=["kosmos", "kosmos-g", "multimodal prompt", "subject driven", "image prompt", "text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load Kosmos-G. Other CLIPs cannot see pictures."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="a dog <i> wearing <i> at the beach",
                    tooltip="The prompt. <i> takes the next unused picture, <i2> is image_2; put the noun before the "
                    r"mark. (text or marks:1.3) weighs, \<i> and \( are plain text.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    optional=True,
                    placeholder="what the picture should not show",
                    tooltip="The negative prompt, text only. It has to be encoded by Kosmos-G as well: a negative from "
                    "the checkpoint's CLIP does not fit. Empty is what the model was trained with.",
                ),
                *(
                    io.Image.Input(
                        f"image_{slot}",
                        optional=True,
                        tooltip=f"The picture that <i{slot}> names, one picture and no batch. The model sees its "
                        "central square: crop to the subject, a white background helps.",
                    )
                    for slot in range(1, SLOTS + 1)
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt with its pictures: the sampler's positive."
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt, encoded by Kosmos-G: the sampler's negative."
                ),
                io.Conditioning.Output(
                    display_name="text_only",
                    tooltip="The prompt without its pictures, for guidance between text and pictures.",
                ),
                io.String.Output(
                    display_name="parsed",
                    tooltip="The prompt as it was understood: marks, weights, number of tokens, the pictures.",
                ),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, negative: str = "", **pictures: Tensor | None) -> io.NodeOutput:
        """Encode; pictures come as image_1 to image_8, those not connected are absent."""
        encoder = encoder_of(clip)
        given = {
            slot: _one_picture(pictures[f"image_{slot}"], slot)
            for slot in range(1, SLOTS + 1)
            if pictures.get(f"image_{slot}") is not None
        }
        prompt = Prompt.parse(text, slots=list(given))
        unwanted = _parse_negative(negative)
        prepared = [_prepare(picture, slot, encoder) for slot, picture in given.items()]

        sections = [clip.tokenize(prompt, images=prepared), clip.tokenize(unwanted)]
        if given:
            sections.append(clip.tokenize(prompt.text_only()))
        with progress(encoder, prompts=len(sections), pictures=len(given)):
            positive, null, *text_only = [clip.encode_from_tokens_scheduled(section) for section in sections]
        report = _report(prompt, unwanted, given, [_length(section, encoder) for section in sections])
        return io.NodeOutput(positive, null, text_only[0] if given else positive, report)


def _one_picture(image: Tensor, slot: int) -> Tensor:
    """(1, H, W, C) -> (H, W, C); ValueError for a batch."""
    if len(image) != 1:
        raise ValueError(
            f"image_{slot} holds a batch of {len(image)} pictures, but a mark stands for one: pick one with Get Image "
            "from Batch, or connect each to an input of its own."
        )
    return image[0]


def _prepare(picture: Tensor, slot: int, encoder: TextEncoder) -> Tensor:
    """(H, W, C) -> (3, S, S); ValueError that names the input, for NaN and the like."""
    try:
        return preprocess_image(picture, size=encoder.model.config.vision.image_size)
    except ValueError as error:
        raise ValueError(f"image_{slot}: {error}") from error


def _parse_negative(negative: str) -> Prompt:
    prompt = Prompt.parse(negative)
    if prompt.pictures:
        raise ValueError(
            f"The negative prompt has a mark <i{prompt.pictures[0].slot}>, but it takes text only: describe in words "
            r"what the picture should not show, or write \<i> for plain text."
        )
    return prompt


def _length(section: dict[str, Any], encoder: TextEncoder) -> int:
    """Number of tokens that the model reads."""
    latents = encoder.model.config.resampler.latents
    return sum(latents if isinstance(entry, dict) else 1 for entry, *_ in section[KEY][0])


def _report(prompt: Prompt, negative: Prompt, given: dict[int, Tensor], lengths: list[int]) -> str:
    """The `parsed` text."""
    lines = [prompt.normalised() or "(empty prompt)", f"{lengths[0]} of {CONTEXT} tokens"]
    if lengths[0] > CONTEXT:
        lines[-1] += ": longer than any sequence the model was trained on, expect little of its end"
    for picture in prompt.pictures:
        height, width = given[picture.slot].shape[:2]
        weight = "" if picture.weight == 1 else f", weight {picture.weight:g}"
        lines.append(f"<i{picture.slot}>: image_{picture.slot}, {width} x {height}{weight}")
    lines.append(f"negative: {negative.normalised() or '(empty)'}, {lengths[1]} tokens")
    return "\n".join(lines)
