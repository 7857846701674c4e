"""Nodes that mix Kosmos-G's conditioning with CLIP's."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..kosmos_core.blend import MODES, blend
from .schema import node_schema

Conditioning = list[list[Any]]
HAND_OFF = MODES[-1]


class KosmosGBlend(io.ComfyNode):
    """Mix a Kosmos-G conditioning with a CLIP conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGBlend",
            display_name="Kosmos-G Blend",
            category="Kosmos-G/conditioning",
            description="Mixes Kosmos-G's conditioning with one of the checkpoint's CLIP, so that LoRA trigger words, "
            "textual inversions and styles that only CLIP knows have a say.",
            search_aliases=["kosmos", "lora trigger", "mix conditioning", "average", "slerp", "hand-off"],
            inputs=[
                io.Conditioning.Input("kosmos", tooltip="The positive of Kosmos-G Prompt."),
                io.Conditioning.Input(
                    "clip_conditioning", tooltip="A conditioning of CLIP Text Encode, with the LoRA's trigger words."
                ),
                io.Float.Input(
                    "amount",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="CLIP's share: 0 is the Kosmos-G conditioning itself, 1 the CLIP conditioning itself.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="lerp: straight mix. slerp per slot: mix of directions, keeps the strength. keep slot 0: "
                    "lerp, but the first slot stays Kosmos-G's. concat: slots of both side by side. hand-off at "
                    "percent: Kosmos-G first, CLIP for the last part of the steps.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="The mix, for the sampler's positive.")
            ],
        )

    @classmethod
    def execute(cls, kosmos: Conditioning, clip_conditioning: Conditioning, amount: float, mode: str) -> io.NodeOutput:
        """Mix entry by entry; one entry on either side goes with all of the other."""
        if not 0 <= amount <= 1:  # ComfyUI checks no linked numbers, and takes NaN for one within any bounds
            raise ValueError(f"amount is {amount}; expected 0 to 1.")
        if amount == 0 or amount == 1:
            return io.NodeOutput(clip_conditioning if amount else kosmos)
        if mode == HAND_OFF:
            first = [limited(entry, 0.0, 1 - amount) for entry in kosmos]
            second = [limited(entry, 1 - amount, 1.0) for entry in clip_conditioning]
            remaining = [entry for entry in (*first, *second) if entry is not None]
            if not remaining:
                raise ValueError(
                    f"amount is {amount:g}, so kosmos holds the first {1 - amount:.0%} of the steps and "
                    "clip_conditioning the rest, but their own time ranges leave nothing of either there: choose "
                    "another amount or wider ranges."
                )
            return io.NodeOutput(remaining)
        counts = len(kosmos), len(clip_conditioning)
        if counts[0] != counts[1] and 1 not in counts:
            raise ValueError(
                f"kosmos has {counts[0]} entries and clip_conditioning {counts[1]} (from Combine or from scheduling): "
                "give the same number, or one entry on either side; or blend before combining."
            )
        pairs = max(counts)
        left, right = (entries * pairs if len(entries) == 1 else entries for entries in (kosmos, clip_conditioning))
        return io.NodeOutput(
            [
                [blend(one, other, amount, mode), dict(options)]
                for (one, options), (other, _) in zip(left, right, strict=True)
            ]
        )


def limited(entry: list[Any], start: float, end: float) -> list[Any] | None:
    """An entry within `start`..`end` of the sampling, its own range respected; None where nothing is left."""
    condition, options = entry
    first, last = max(start, options.get("start_percent", 0.0)), min(end, options.get("end_percent", 1.0))
    return None if first >= last else [condition, {**options, "start_percent": first, "end_percent": last}]
