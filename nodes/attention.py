"""Nodes that record the U-Net's attention and show where in the result each word and picture went."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import comfy.patcher_extension
import torch
from comfy_api.latest import io
from torch import Tensor

from ..kosmos_core.attention_maps import Place, TokenGroup, Trace, group_maps
from .analysis import CATEGORY, prompt_attention, prompt_inputs, table, written_prompt
from .charts import overlay, tiles
from .image_inputs import ONE_EACH, ONE_SUBJECT, WrittenPrompt, as_bytes
from .recording import Recording
from .schema import advanced, check_choice, node_schema

KosmosGTrace = io.Custom("KOSMOSG_TRACE")
BLOCKS = {"all": ("input", "middle", "output"), "down": ("input",), "middle": ("middle",), "up": ("output",)}
LAST_STEP = 10000
LARGEST_IMAGE = 512  # pixels of a side of an overlay
MOST_WORDS = 48
ANOTHER_CONDITION = 0.02  # distance per unit of norm from which on a recorded condition is not the prompt's own

BlockName = tuple[str, int, int]


def cross_attentions(unet: torch.nn.Module) -> Iterator[tuple[BlockName, torch.nn.Module]]:
    """Every cross-attention of a U-Net under the name that ComfyUI gives it in transformer_options."""
    stacks = [("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)]
    for kind, blocks in stacks:
        for number, block in enumerate(blocks):
            stacked = (getattr(module, "transformer_blocks", ()) for module in block.modules())
            for index, transformer in enumerate(itertools.chain.from_iterable(stacked)):
                if transformer.attn2 is not None:
                    yield (kind, number, index), transformer.attn2


def step_of(options: dict[str, Any]) -> int:
    """Number of the sampler's step that a call of the U-Net belongs to, from 0."""
    sigmas = options["sample_sigmas"]
    return int((sigmas[:-1].to("cpu") >= options["sigmas"][0].to("cpu") * (1 - 1e-5)).sum()) - 1


class SamplingModel(threading.local):
    """The U-Net that is computing in this thread: not always the one that the nodes were given.

    ComfyUI may sample on a copy, for hooks or for another graphics card, whose weights and places are its own.
    """

    def __init__(self, blocks: tuple[str, ...]) -> None:
        self.blocks = blocks
        self.modules: dict[BlockName, torch.nn.Module] = {}
        self.trace = Trace()
        self.shown: tuple[int, ...] = ()  # (rows, channels, h, w) that the U-Net is given
        self.entries: dict[Any, dict[str, Any]] = {}  # conditioning entries of the step by ComfyUI's id
        self.whole: tuple[int, ...] = ()  # (images, channels, h, w) that are sampled
        self.places: dict[tuple[Any, int], Place | None] = {}

    def note_entries(self, executor: Any, model: Any, conds: Any, x: Tensor, *arguments: Any, **options: Any) -> Any:
        """Note where the conditionings of a step act, and go on."""
        self.entries = {entry.get("uuid"): entry for entries in conds for entry in entries or () if entry}
        self.whole, self.places = tuple(x.shape), {}
        try:
            return executor(model, conds, x, *arguments, **options)
        finally:
            self.entries, self.whole, self.places = {}, (), {}

    def images(self, rows: int, parts: int) -> int:
        """Number of images in a call of `rows` rows that computes `parts` conditionings together."""
        return self.whole[0] if self.whole and self.whole[0] * parts == rows else rows // parts

    def place(self, uuid: Any, image: int) -> Place | None:
        """The part of image number `image` that a conditioning acts on; None for all of it, or if that is not known."""
        if (uuid, image) not in self.places:
            self.places[uuid, image] = self._place(self.entries.get(uuid), image)
        return self.places[uuid, image]

    def _place(self, entry: dict[str, Any] | None, image: int) -> Place | None:
        if entry is None or len(self.whole) != 4:
            return None
        place = place_of(entry, self.whole[-2:], image)
        box = (0, 0, *self.whole[-2:]) if place is None else place.box
        if tuple(self.shown[-2:]) != tuple(box[2:]):
            self.trace.tiled = True  # another pack cuts the image into tiles and tells nobody which is which
            return None
        return place

    def enter(self, executor: Any, *arguments: Any, **options: Any) -> Any:
        """Note the modules of the U-Net that ComfyUI calls through `executor`, and call it."""
        self.modules = {name: module for name, module in cross_attentions(executor.class_obj) if name[0] in self.blocks}
        self.shown = tuple(arguments[0].shape) if arguments else ()
        try:
            return executor(*arguments, **options)
        finally:
            self.modules = {}


def place_of(entry: dict[str, Any], size: tuple[int, int], image: int) -> Place | None:
    """Where a conditioning entry acts, as ComfyUI has resolved it for latents of `size` (h, w); None for everywhere."""
    height, width = size
    top, left, tall, wide = 0, 0, height, width
    if "area" in entry:
        area = list(entry["area"])
        sides, offsets = area[: len(area) // 2][-2:], area[len(area) // 2 :][-2:]
        (tall, wide), (top, left) = sides, offsets
        tall, wide = min(tall, height - top), min(wide, width - left)
    strength = float(entry.get("strength", 1.0))
    mask = entry.get("mask")
    if mask is None and (top, left, tall, wide) == (0, 0, height, width) and strength:
        return None
    opacity = torch.zeros(height, width)
    opacity[top : top + tall, left : left + wide] = 1
    if mask is not None:
        opacity *= (mask[image % len(mask)].float().cpu() * float(entry.get("mask_strength", 1.0) != 0)).clamp(0, 1)
    if not strength:
        opacity.zero_()
    return Place(opacity, (top, left, tall, wide))


def recorder(sampling: SamplingModel, first: int, last: int) -> Callable:
    """A patch of cross-attention that looks on and changes nothing.

    It computes queries and keys a second time from the same weights (LoRAs included), in the recorded blocks alone, and
    so leaves any other node's replacement of the attention in place.
    """

    def look(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        name = (*options["block"], options.get("block_index", 0))
        module = sampling.modules.get(name)
        if module is not None and "cond_or_uncond" in options and first <= step_of(options) < last:
            height, width = options["activations_shape"][-2:]
            parts = len(options["cond_or_uncond"])
            batch = sampling.images(len(n), parts)
            uuids = options.get("uuids") or [None] * parts
            for row in range(len(n)):  # one by one: a large picture's attention need not be held for a whole batch
                query, key = module.to_q(n[row : row + 1]), module.to_k(context[row : row + 1])
                image = row % batch
                place = sampling.place(uuids[min(row // (len(n) // parts), parts - 1)], image)
                condition = context[row : row + 1]
                sampling.trace.add(query, key, module.heads, condition, (height, width), image, place)
        return n, context, value

    return look


class KosmosGAttentionRecorder(io.ComfyNode):
    """Let a model's cross-attention be recorded while it samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGAttentionRecorder",
            display_name="Kosmos-G Attention Recorder",
            category=CATEGORY,
            description="Records where the image model looks while it samples, without changing the result. Put it "
            "last before the sampler, and connect the trace to Kosmos-G Attention Map.",
            search_aliases=["kosmos", "attention", "trace", "daam", "explain"],
            inputs=[
                io.Model.Input("model", tooltip="The model, after LoRAs and other patches."),
                io.Int.Input(
                    "first_step",
                    default=0,
                    min=0,
                    max=LAST_STEP,
                    tooltip="First step to record, from 0. The layout is settled in the first steps, details later.",
                    **advanced(io.Int),
                ),
                io.Int.Input(
                    "end_step",
                    default=LAST_STEP,
                    min=1,
                    max=LAST_STEP,
                    tooltip="Recording stops before this step. Fewer steps cost less time.",
                    **advanced(io.Int),
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(BLOCKS),
                    default="up",
                    tooltip="Blocks of the U-Net to record: up is the sharpest, middle the coarsest.",
                    **advanced(io.Combo),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="The same model for the sampler, which draws the same pictures."
                ),
                KosmosGTrace.Output(
                    display_name="trace",
                    tooltip="For Kosmos-G Attention Map. It holds the latest samplings and which is whose.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, first_step: int, end_step: int, blocks: str) -> io.NodeOutput:
        """Add the recorder to a copy of the model."""
        check_choice("blocks", blocks, BLOCKS)
        if end_step <= first_step:
            raise ValueError(f"end_step is {end_step}, but has to be above first_step, which is {first_step}.")
        unet = model.model.diffusion_model
        if not hasattr(unet, "input_blocks"):
            raise ValueError(
                f"The model is a {type(unet).__name__}, but Kosmos-G is for Stable Diffusion 1.5: connect its MODEL."
            )
        if not any(name[0] in BLOCKS[blocks] for name, _ in cross_attentions(unet)):
            raise ValueError(f"This model has no cross-attention in its {blocks} blocks: choose other blocks.")
        recording = Recording()
        patched = model.clone()
        sampling = SamplingModel(BLOCKS[blocks])
        patched.set_model_attn2_patch(recorder(sampling, first_step, end_step))

        def sample_anew(executor: Callable, *arguments: Any, **options: Any) -> Any:
            sampling.trace = recording.begin()
            return executor(*arguments, **options)

        kinds = comfy.patcher_extension.WrappersMP
        key = "kosmos_g_attention_recorder"
        patched.add_wrapper_with_key(kinds.OUTER_SAMPLE, key, sample_anew)
        patched.add_wrapper_with_key(kinds.CALC_COND_BATCH, key, sampling.note_entries)
        patched.add_wrapper_with_key(kinds.DIFFUSION_MODEL, key, sampling.enter)
        return io.NodeOutput(patched, recording)


class KosmosGAttentionMap(io.ComfyNode):
    """Draw where in a sampled picture each reference picture and each word went."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGAttentionMap",
            display_name="Kosmos-G Attention Map",
            category=CATEGORY,
            description="Shows where in the result each picture and each word of the prompt went: what the recorder "
            "saw, times which words and pictures fill which slots.",
            search_aliases=["kosmos", "attention", "heatmap", "daam", "explain"],
            inputs=[
                KosmosGTrace.Input("trace", tooltip="The trace of Kosmos-G Attention Recorder."),
                io.Image.Input(
                    "image", tooltip="The picture that was sampled with the recorder's model, one or a batch."
                ),
                io.Clip.Input("clip", tooltip="The CLIP of Load Kosmos-G."),
                *prompt_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="pictures", tooltip="One overlay for each reference picture and sampled picture."
                ),
                io.Image.Output(display_name="words", tooltip="One overlay for each word and sampled picture."),
                io.String.Output(
                    display_name="report", tooltip="Each word's and picture's share of the whole sampled picture."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        trace: Recording,
        image: Tensor,
        clip: Any,
        text: str = "",
        prompt: WrittenPrompt | None = None,
        **images: Any,
    ) -> io.NodeOutput:
        """Encode the prompt again for its own attention and multiply."""
        sampling, remarks = trace.of_image("KosmosGAttentionMap")
        if sampling is None or not sampling.trace.conditions:
            raise ValueError(
                "The trace is empty: connect the recorder's MODEL to the sampler, and the sampler's picture here, and "
                "check that the recorded steps lie within the sampler's."
            )
        trace = sampling.trace
        if len(image) != trace.images and not trace.full:
            raise ValueError(
                f"image holds {len(image)} pictures, but the trace is of a sampling of {trace.images}: connect the "
                "pictures of the sampler that uses the recorder's MODEL."
            )
        written, unread = written_prompt(text, prompt, images)
        prompts = prompts_of_images(trace, clip, written)
        shown: dict[bool, list[Tensor]] = {True: [], False: []}
        lines = []
        farthest = 0.0
        for number, sampled in enumerate(image):
            groups, condition, slots_from_tokens = prompts[number % len(prompts)]
            index, distance = trace.nearest(condition, number)
            farthest = max(farthest, distance)
            small = shrunk(as_bytes(sampled[..., :3].cpu()))
            size = tuple(small.shape[:2])
            opacity = trace.opacity(index, number, size)
            maps = group_maps(trace.map(index, number, size), slots_from_tokens, groups) * opacity
            if len(image) > 1:
                lines.append(f"picture {number + 1} of {len(image)}")
            for group, amounts in list(zip(groups, maps, strict=True))[1 : MOST_WORDS + 1]:
                share = float(amounts.mean())
                lines.append(f"{group.label[:24]:24} {share:6.1%}")
                shown[group.slot is not None].append(overlay(small, amounts, f"{group.label} {share:.1%}", opacity))
            if not opacity.all():
                lines.append(
                    f"The prompt acts on {float((opacity > 0).float().mean()):.0%} of the picture: rest blank."
                )
        if farthest > ANOTHER_CONDITION:
            lines.append(
                f"The sampler's nearest conditioning differs from this prompt by {farthest:.0%}: it was "
                "blended, or made from another prompt, or the prompt's own was not used in the recorded steps."
            )
        lines += [*remarks, *unread]
        if trace.full:
            lines.append("The trace reached its memory limit: the last pictures of the batch are not in it.")
        nothing = torch.zeros(1, 64, 64, 3)
        return io.NodeOutput(
            *(tiles(overlays) if overlays else nothing for overlays in (shown[True], shown[False])), table(lines)
        )


EncodedPrompt = tuple[list[TokenGroup], Tensor, Tensor]  # words and pictures, condition, slots from tokens


def prompts_of_images(trace: Trace, clip: Any, written: WrittenPrompt) -> list[EncodedPrompt]:
    """The prompt's conditionings: one for all sampled images, or one for each as the sampler was given them.

    Which of the two Kosmos-G Prompt made of a batch on an input is seen from what was recorded.
    """
    together = [prompt_attention(clip, written, written.gather(ONE_SUBJECT))[1:]]
    batched = any(isinstance(value, Tensor) and len(value) > 1 for value in written.images.values())
    if not batched or trace.images == 1 or not farthest_of(trace, together):
        return together
    each = written.gather(ONE_EACH)
    apart = [prompt_attention(clip, written, each, index)[1:] for index in range(min(len(each.batches), trace.images))]
    return min(together, apart, key=lambda prompts: farthest_of(trace, prompts))


def farthest_of(trace: Trace, prompts: list[EncodedPrompt]) -> float:
    """The largest distance of an image's recorded condition from the prompt that would be its own."""
    numbers = sorted({image for _, image, _ in trace.sums})
    return max(trace.nearest(prompts[number % len(prompts)][1], number)[1] for number in numbers)


def shrunk(image: Tensor) -> Tensor:
    """The picture (h, w, 3) uint8, at most 512 pixels a side."""
    height, width, _ = image.shape
    scale = LARGEST_IMAGE / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    moved = image.permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(moved, size=size, mode="area")[0].permute(1, 2, 0).round().to(torch.uint8)
