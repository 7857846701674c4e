"""Nodes that show what is in a conditioning and where its slots come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..kosmos_core import Prompt
from ..kosmos_core.attention_maps import TokenGroup, slots_from_group, token_groups
from ..kosmos_core.reference import Reference
from .adapter import KEY, TextEncoder, encoder_of, progress
from .charts import bars, grid, tiles
from .image_inputs import KosmosGPrompt, PromptImages, WrittenPrompt, image_inputs
from .schema import node_schema

CATEGORY = "Kosmos-G/analysis"
WIDTH, SLOTS = 768, 77
SHOWN = 5  # slots listed for a word
WARNING = "WARNING: "
COLUMNS = 7  # numbers of a line, which a node of usual width shows whole
# By the mean cosine of their slots; the image model reads directions finely, so that 0.9 is already another picture.
ALIKE = ((0.99, "nearly the same"), (0.9, "alike"), (0.5, "different"), (-2.0, "of quite another content"))


class KosmosGInspect(io.ComfyNode):
    """Show the strength of every slot of a conditioning, and compare it with another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGInspect",
            display_name="Kosmos-G Inspect",
            category=CATEGORY,
            description="Draws the norm of each slot of any conditioning, looks for NaN, compares it with a second one "
            "and warns when Stable Diffusion 1.5 cannot use it.",
            search_aliases=["kosmos", "debug conditioning", "norm", "cosine", "nan"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", tooltip="Any conditioning. Of several entries the first is drawn."
                ),
                io.Conditioning.Input(
                    "compared_with", optional=True, tooltip="A second conditioning, to be drawn beside the first."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="chart",
                    tooltip="Strength of each slot; blue the first, orange the second. The scale may not begin at 0.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="First whether it can be used, then shape, numbers, options, warnings, cosine per slot.",
                ),
            ],
        )

    @classmethod
    def execute(cls, conditioning: list[list[Any]], compared_with: list[list[Any]] | None = None) -> io.NodeOutput:
        """Draw and describe."""
        first = conditioning[0][0].float().cpu()
        rows = [("conditioning", first[0].norm(dim=-1))]
        lines = describe("conditioning", conditioning)
        second = None
        if compared_with is not None:
            second = compared_with[0][0].float().cpu()
            rows.append(("compared_with", second[0].norm(dim=-1)))
            lines += describe("compared_with", compared_with) + compare(first[0], second[0])
        said = verdict(lines, first[0], None if second is None else second[0])
        return io.NodeOutput(tiles([bars(rows, "Strength (norm) of each of the slots")]), f"{said}\n\n{table(lines)}")


def verdict(lines: list[str], first: Tensor, second: Tensor | None) -> str:
    """What the lines of `describe` come to, in a sentence, and how near the second condition is to the first."""
    faults = [line.split(WARNING)[1] for line in lines if WARNING in line]
    said = f"Look at this: {faults[0]}" if faults else "Fine: Stable Diffusion 1.5 can use this."
    if len(faults) > 1:
        said += f" And {len(faults) - 1} more, see below."
    if second is None or first.shape[-1] != second.shape[-1] or torch.equal(first, second):
        return said if second is None or first.shape[-1] != second.shape[-1] else f"{said} Both are the same."
    slots = min(len(first), len(second))
    cosine = float(torch.nn.functional.cosine_similarity(first[:slots], second[:slots], dim=-1).mean())
    if cosine != cosine:
        return said
    words = next(words for limit, words in ALIKE if cosine >= limit)
    return f"{said} The two are {words} (mean cosine {cosine:.2f})."


def table(lines: list[str]) -> str:
    """The lines indented, which makes them code in Markdown: ComfyUI's Preview Any then shows columns and <i> marks."""
    return "\n".join(f"    {line}" for line in lines)


def describe(name: str, conditioning: list[list[Any]]) -> list[str]:
    """Lines on every entry of a conditioning, warnings included."""
    lines = []
    for number, (condition, options) in enumerate(conditioning, 1):
        batch, slots, width = condition.shape
        norms = condition.float().norm(dim=-1)
        title = name if len(conditioning) == 1 else f"{name}, entry {number} of {len(conditioning)}"
        lines.append(f"{title}: {batch} x {slots} x {width}, {str(condition.dtype).removeprefix('torch.')}")
        lines.append(f"  norm of a slot: {norms.min():.4g} to {norms.max():.4g}, mean {norms.mean():.4g}")
        if options:
            lines.append(f"  options: {', '.join(sorted(options))}")
        broken = int((~torch.isfinite(condition)).any(dim=-1).sum())
        if broken:
            lines.append(f"  {WARNING}{broken} slot(s) hold NaN or infinity: the picture will be black or noise.")
        if width != WIDTH:
            lines.append(
                f"  {WARNING}{width} wide, Stable Diffusion 1.5 needs {WIDTH}: this conditioning is for another model."
            )
        elif slots % SLOTS:
            lines.append(
                f"  {WARNING}{slots} slots are no multiple of {SLOTS}: it works, but the sampler runs positive and "
                "negative apart, which is slower."
            )
        if not condition.any():
            lines.append(f"  {WARNING}all numbers are 0: this is Zero Out, not Kosmos-G's empty prompt.")
    return lines


def compare(first: Tensor, second: Tensor) -> list[str]:
    """Cosine per slot of two conditions (slots, width)."""
    if first.shape[-1] != second.shape[-1]:
        return [f"cosine: none, one is {first.shape[-1]} wide and the other {second.shape[-1]}"]
    slots = min(len(first), len(second))
    if torch.equal(first, second):
        return ["the two are equal, bit for bit"]
    cosine = torch.nn.functional.cosine_similarity(first[:slots], second[:slots], dim=-1)
    lines = [f"cosine per slot: mean {cosine.mean():.4f}, lowest {cosine.min():.4f} in slot {int(cosine.argmin())}"]
    for start in range(0, slots, COLUMNS):
        lines.append(
            f"  {start:3d}: " + " ".join(f"{value:6.3f}" for value in cosine[start : start + COLUMNS].tolist())
        )
    return lines


def prompt_attention(
    clip: Any, written: WrittenPrompt, images: PromptImages, index: int = 0
) -> tuple[Prompt, list[TokenGroup], Tensor, Tensor]:
    """Prompt, its words and pictures, its condition (77, 768) and slots x tokens, encoded by a Kosmos-G CLIP.

    `images` are those of `written`; `index` chooses one of the conditionings that a batch of pictures makes.
    """
    encoder: TextEncoder = encoder_of(clip)
    prompt = images.parse_both(written.text, written.negative)[0][index]
    tokens = clip.tokenize(prompt, images=images.sources(encoder.model.config.vision.image_size, index))
    tokenizer = encoder.model.required_tokenizer()
    groups = token_groups(tokenizer.layout(prompt), tokenizer)
    clip.load_model()
    encoder.reset_clip_options()
    with progress(encoder, 1, len(images.slots)):
        condition, slots_from_tokens = encoder.slot_attention(tokens[KEY][0])
    return prompt, groups, condition, slots_from_tokens


def prompt_inputs() -> list[io.Input]:
    """The inputs of nodes that look at a prompt: it is written again, or comes whole from a Kosmos-G Prompt."""
    return [
        io.String.Input(
            "text",
            multiline=True,
            dynamic_prompts=False,
            default="",
            tooltip="The same prompt as in Kosmos-G Prompt. Not read where prompt is connected.",
        ),
        *image_inputs(),
        # The last, so that the inputs of saved graphs keep their places.
        KosmosGPrompt.Input(
            "prompt",
            optional=True,
            tooltip="The prompt of Kosmos-G Prompt, with its pictures: text and the image inputs stay empty then.",
        ),
    ]


def written_prompt(
    text: str, prompt: WrittenPrompt | None, images: Mapping[str, Any]
) -> tuple[WrittenPrompt, list[str]]:
    """The prompt that `prompt_inputs` give, and remarks on those that are not read."""
    if prompt is None:
        return WrittenPrompt(text, images=images), []
    unread = [
        name
        for name, value in {"text": text.strip(), **images}.items()
        if isinstance(value, Tensor | Reference) or value
    ]
    verb = "is" if len(unread) == 1 else "are"
    return prompt, [f"{', '.join(unread)} {verb} not read: prompt is connected."] if unread else []


class KosmosGTokenMap(io.ComfyNode):
    """Show which words and pictures fill which slots of the condition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGTokenMap",
            display_name="Kosmos-G Token Map",
            category=CATEGORY,
            description="Shows which words and pictures fill which of the 77 slots that the image model reads: one row "
            "for each word and picture, one column for each slot.",
            search_aliases=["kosmos", "attention", "slots", "tokens", "explain"],
            inputs=[io.Clip.Input("clip", tooltip="The CLIP of Load Kosmos-G."), *prompt_inputs()],
            outputs=[
                io.Image.Output(display_name="map", tooltip="Rows: words and pictures. Columns: slots 0 to 76."),
                io.String.Output(display_name="report", tooltip="Each word's and picture's share, and its main slots."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str = "", prompt: WrittenPrompt | None = None, **images: Any) -> io.NodeOutput:
        """Encode and draw."""
        written, remarks = written_prompt(text, prompt, images)
        gathered = written.gather()
        _, groups, _, slots_from_tokens = prompt_attention(clip, written, gathered)
        shares = slots_from_group(slots_from_tokens, groups)
        lines = [f"{'':24} share   main slots"]
        for index, group in enumerate(groups):
            strongest = shares[:, index].argsort(descending=True)[:SHOWN].tolist()
            slots = ", ".join(f"{slot} ({shares[slot, index]:.0%})" for slot in strongest)
            lines.append(f"{group.label[:24]:24} {float(shares[:, index].mean()):5.1%}   {slots}")
        if len(gathered.batches) > 1:
            remarks.append(f"The map is of the first of {len(gathered.batches)} conditionings.")
        lines += remarks
        drawn = grid(shares, [group.label for group in groups], "What fills each of the 77 slots")
        return io.NodeOutput(tiles([drawn]), table(lines))
