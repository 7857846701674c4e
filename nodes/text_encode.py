"""Kosmos-G Prompt: text with pictures in it, to conditionings."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..kosmos_core import Prompt
from ..kosmos_core.blend import likeness as mix_likeness
from .adapter import KEY, TextEncoder, encoder_of, progress
from .connections import is_read
from .image_inputs import (
    BATCH_MODES,
    ONE_SUBJECT,
    KosmosGPrompt,
    PromptImages,
    WrittenPrompt,
    describe_source,
    image_inputs,
)
from .schema import advanced, node_schema

CONTEXT = 2048  # tokens of a training sequence
TEXT_ONLY = 2  # number of the output
Conditioning = list[list[Any]]


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
            essentials_category="Basics",
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
                    tooltip="The negative prompt, with pictures too: <i> takes the next picture that no mark has, <i2> "
                    "is image_2. It has to be encoded by Kosmos-G as well: a negative from the checkpoint's CLIP does "
                    "not fit. Empty is what the model was trained with.",
                ),
                *image_inputs(),
                io.Float.Input(
                    "likeness",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="How far the pictures pull the prompt away from its text alone: 0 ignores them, 1 is what "
                    "the model says, above 1 overdraws them. Lower it where the text is not followed.",
                ),
                io.Combo.Input(
                    "batch",
                    options=list(BATCH_MODES),
                    default=ONE_SUBJECT,
                    optional=True,
                    tooltip="What a batch of pictures on one input means: several photos of one subject, which are "
                    "averaged; or one conditioning for each, to be sampled with a latent batch of that size.",
                    **advanced(io.Combo),
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
                    tooltip="The prompt as it was understood: marks, weights, number of tokens, pictures, warnings.",
                ),
                # The last, so that the outputs of saved graphs keep their places.
                KosmosGPrompt.Output(
                    display_name="prompt",
                    tooltip="Text, pictures and weights in one, for Kosmos-G Token Map and Kosmos-G Attention Map.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, likeness: float = 1.0, **others: Any) -> bool:
        """What decides the result beside the inputs: whether `text_only` is in it."""
        images = any(name.startswith("image_") for name in others)
        return not images or likeness != 1 or is_read(TEXT_ONLY, "KosmosGTextEncode")

    @classmethod
    def execute(
        cls, clip: Any, text: str, negative: str = "", likeness: float = 1.0, batch: str = ONE_SUBJECT, **images: Any
    ) -> io.NodeOutput:
        """Encode; pictures come as image_1 to image_8, those not connected are absent.

        The text alone is encoded only where `likeness` needs it or the output text_only is connected.
        """
        encoder = encoder_of(clip)
        prompt_images = PromptImages.gather(images, batch)
        prompts, unwanted = prompt_images.parse_both(text, negative)

        size = encoder.model.config.vision.image_size
        sources = [prompt_images.sources(size, index) for index in range(len(prompts))]
        full, null = (
            [clip.tokenize(prompt, images=images) for prompt, images in zip(group, sources, strict=False)]
            for group in (prompts, unwanted)
        )
        seen = bool(prompts[0].images)
        text_matters = seen and (likeness != 1 or is_read(TEXT_ONLY, "KosmosGTextEncode"))
        # Nouns are the same for all of a batch, so all of it has one text.
        alone = clip.tokenize(prompts[0].text_only()) if text_matters else None
        with progress(encoder, len(full) + len(null) + text_matters, len(full) * len(prompt_images.slots)):
            positive = _joined([clip.encode_from_tokens_scheduled(tokens) for tokens in full])
            nothing = _joined([clip.encode_from_tokens_scheduled(tokens) for tokens in null])
            text_only = clip.encode_from_tokens_scheduled(alone) if text_matters else None if seen else positive
        if seen and likeness != 1:
            positive = [
                [mix_likeness(plain, condition, likeness), options]
                for (condition, options), (plain, _) in zip(positive, text_only, strict=True)
            ]
        remarks = prompt_images.remarks(text, negative)
        for remark in remarks:
            logging.warning("Kosmos-G Prompt: %s", remark)
        lengths = [_length(tokens[0], encoder) for tokens in (full, null)]
        report = _report(prompts, unwanted[0], prompt_images, lengths, remarks)
        # The prompt box shows the remarks of a run where it cannot read the texts itself.
        written = WrittenPrompt(text, negative, images, batch)
        return io.NodeOutput(positive, nothing, text_only, report, written, ui={"kosmos_g_remarks": remarks})


def _joined(conditionings: list[Conditioning]) -> Conditioning:
    """Conditionings of a batch as one, (b, 77, 768)."""
    if len(conditionings) == 1:
        return conditionings[0]
    joined = []
    for entries in zip(*conditionings, strict=True):
        options = dict(entries[0][1])
        options["pooled_output"] = torch.cat([entry[1]["pooled_output"] for entry in entries])
        joined.append([torch.cat([condition for condition, _ in entries]), options])
    return joined


def _length(section: dict[str, Any], encoder: TextEncoder) -> int:
    """Number of tokens that the model reads."""
    latents = encoder.model.config.resampler.latents
    return sum(latents if isinstance(entry, dict) else 1 for entry, *_ in section[KEY][0])


def _report(
    prompts: list[Prompt], negative: Prompt, images: PromptImages, lengths: list[int], remarks: list[str]
) -> str:
    """The `parsed` text, in Markdown: ComfyUI's Preview Any shows it so, and would swallow a bare <i1>."""
    prompt = prompts[0]
    length = f"{lengths[0]} of {CONTEXT} tokens"
    if lengths[0] > CONTEXT:
        length += ": longer than any sequence the model was trained on, expect little of its end"
    lines = [length]
    lines += _describe_images(prompt, images)
    if len(prompts) > 1:
        lines.append(f"{len(prompts)} conditionings, one for each picture of the batch")
    lines.append(f"negative: `{negative.normalised() or '(empty)'}`, {lengths[1]} tokens")
    lines += [f"{line}, in the negative" for line in _describe_images(negative, images)]
    lines += [f"warning: {_as_code(remark)}" for remark in remarks]
    return "\n".join([f"`{prompt.normalised() or '(empty prompt)'}`", "", *(f"- {line}" for line in lines)])


def _as_code(text: str) -> str:
    """A sentence in which Markdown reads nothing."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _describe_images(prompt: Prompt, images: PromptImages) -> list[str]:
    lines = []
    for image in prompt.images:
        weight = "" if image.weight == 1 else f", weight {image.weight:g}"
        source = describe_source(images.batches[0][image.index])
        lines.append(f"`<i{image.slot}>`: image_{image.slot}, {source}{weight}")
    return lines
