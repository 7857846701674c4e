"""Nodes that prepare reference pictures: cut out, average, one per entity."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..kosmos_core.crops import BACKGROUNDS, CROP_RULES, EmptyMaskError, crop_subject
from ..kosmos_core.images import to_rgb
from ..kosmos_core.reference import MAX_WEIGHT, Reference, View, average
from .image_inputs import SLOTS, KosmosGImage, as_bytes
from .schema import advanced, check_choice, node_schema

CATEGORY = "Kosmos-G/reference"
VIEW_SIZE = 224  # pixels of a side that the official model sees
MOST_ENTITIES = 64
MEANS = ("mean", "norm-preserving mean")
NOTHING_TO_INVERT = "invert_mask is on, but no mask is connected: nothing is inverted."
EMPTY_MASK = (
    "The mask is empty: it marks no pixel of the picture. Load Image's mask is, for a picture without transparency: "
    "leave mask unconnected then. Else give a mask that is white where the subject is; invert_mask turns one that is "
    "black there."
)
TOUCHES_ALL_BORDERS = (
    "What the mask marks touches all four borders of the picture: it may mark the surroundings in place of the "
    "subject, as Load Image's mask of a transparent picture does. If so, switch invert_mask the other way."
)


def crop_inputs(default_background: str = "white") -> list[io.Input]:
    """The inputs that say how a subject is cut out."""
    return [
        io.Combo.Input(
            "crop",
            options=list(CROP_RULES),
            default=CROP_RULES[0],
            tooltip="entity square: the square around the mask's largest part, as the model was trained. centre: the "
            "picture's central square. pad: the subject's whole box on a white square. squash: the whole box, "
            "stretched to a square.",
        ),
        io.Float.Input(
            "margin",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Room left on each side of the subject, as a share of its longer side. 0 is what the model was "
            "trained with.",
            **advanced(io.Float),
        ),
        io.Combo.Input(
            "background",
            options=list(BACKGROUNDS),
            default=default_background,
            tooltip="white: everything outside the mask becomes white, as in half of the training pictures. keep: the "
            "surroundings stay, and the model may draw them too.",
        ),
        io.Float.Input(
            "weight",
            default=1.0,
            min=0.0,
            max=MAX_WEIGHT,
            step=0.05,
            tooltip="How much the picture counts beside the rest of the prompt; it multiplies with a weight in the "
            "prompt. 1 is neutral, 0 hides the picture.",
        ),
    ]


def cut_out(
    image: Tensor, mask: Tensor | None, crop: str, margin: float, background: str, weight: float, noun: str
) -> tuple[Reference, Tensor, Tensor, str]:
    """Reference of one picture (h, w, c), its view (S, S, 3) and view mask (S, S) in floats, and warnings, or "".

    The picture's alpha is the mask where none is given. Raises ValueError for an empty mask, or one of NaN or infinity.
    """
    pixels = as_bytes(image)
    height, width = pixels.shape[:2]
    given = mask is not None
    if mask is None and pixels.ndim == 3 and pixels.shape[2] == 4:
        mask = image[..., 3]
        if background == "keep":
            pixels = pixels[..., :3]
    if mask is not None and not torch.isfinite(mask).all():
        raise ValueError("The mask holds NaN or infinite values: expected numbers in 0..1, white where the subject is.")
    inside = None if mask is None else (mask.cpu() > 0.5).numpy()
    found = crop_subject(np.array(to_rgb(pixels)), inside, crop, margin, background)
    reference = Reference.of_crop(found, squash=crop == "squash", weight=weight, noun=noun)
    shown = View(torch.from_numpy(found.mask), crop == "squash").seen(VIEW_SIZE)
    touches = given and found.box == (0, 0, width, height)
    warnings = [warning for warning in (TOUCHES_ALL_BORDERS if touches else None, found.warning) if warning]
    view = reference.views[0].seen(VIEW_SIZE).float() / 255
    return reference, view, (shown[..., 0] > 127).float(), " ".join(warnings)


class KosmosGReference(io.ComfyNode):
    """Cut a subject out of a picture as the training pictures were."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGReference",
            display_name="Kosmos-G Reference",
            category=CATEGORY,
            description="Prepares a picture of a subject as the model was trained: the largest part of the mask, the "
            "square around it, white outside. Connect the result to an image input of Kosmos-G Prompt.",
            search_aliases=["kosmos", "subject", "crop", "reference image", "weight"],
            essentials_category="Image Tools",
            has_intermediate_output=True,
            inputs=[
                io.Image.Input(
                    "image", tooltip="One picture. An alpha channel is its mask where no other mask is given."
                ),
                *crop_inputs(),
                io.String.Input(
                    "noun",
                    default="",
                    dynamic_prompts=False,
                    tooltip="What the subject is, such as dog. It is put before the picture's mark unless the prompt "
                    "has it there already. May be empty.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the subject is, any size: so are masks of segmentation nodes, and those "
                    "painted over the subject in the mask editor. Load Image's mask of a transparent picture is white "
                    "around the subject: switch invert_mask on for that one.",
                ),
                # The last, so that the widgets of saved graphs keep their places.
                io.Boolean.Input(
                    "invert_mask",
                    default=False,
                    optional=True,
                    tooltip="Takes what is black in the mask for the subject. A picture's own alpha is never inverted.",
                    **advanced(io.Boolean),
                ),
            ],
            outputs=[
                KosmosGImage.Output(
                    display_name="reference", tooltip="The prepared picture, for an image input of Kosmos-G Prompt."
                ),
                io.Image.Output(display_name="view", tooltip="What the model sees of it, 224 x 224 pixels."),
                io.Mask.Output(display_name="view_mask", tooltip="The subject's mask in the view."),
                io.String.Output(
                    display_name="report",
                    tooltip="A warning where much of the subject is cut away, or the mask seems inverted; else empty.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        crop: str,
        margin: float,
        background: str,
        weight: float,
        noun: str,
        mask: Tensor | None = None,
        invert_mask: bool = False,
    ) -> io.NodeOutput:
        """Cut out and show."""
        _one("image", image, "pictures")
        if mask is not None:
            mask = _one("mask", mask if mask.ndim == 3 else mask[None], "masks")
            mask = 1 - mask if invert_mask else mask
        try:
            reference, view, view_mask, warning = cut_out(image[0], mask, crop, margin, background, weight, noun)
        except EmptyMaskError as error:
            if mask is None:
                raise ValueError("The picture's alpha is 0 everywhere: it shows nothing to cut out.") from error
            raise ValueError(EMPTY_MASK) from error
        if invert_mask and mask is None:
            warning = f"{warning} {NOTHING_TO_INVERT}".strip()
        if warning:
            logging.warning("Kosmos-G Reference: %s", warning)
        shown = ui.PreviewImage(view[None], cls=cls)
        return io.NodeOutput(reference, view[None], view_mask[None], warning, ui=shown)


class KosmosGAverage(io.ComfyNode):
    """Several pictures of one subject as one reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGAverage",
            display_name="Kosmos-G Average References",
            category=CATEGORY,
            description="Averages what the model sees in several photos of one subject, so that what they share stays "
            "and what differs, such as pose and light, fades.",
            search_aliases=["kosmos", "combine", "mean", "several photos", "merge embeds"],
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(MEANS),
                    default=MEANS[0],
                    tooltip="mean: the plain mean. norm-preserving mean: the mean's direction with the photos' mean "
                    "strength, which keeps very different photos from fading.",
                    **advanced(io.Combo),
                ),
                *(
                    KosmosGImage.Input(
                        f"reference_{number}",
                        optional=number > 1,
                        tooltip="A photo of the subject. Its weight is its share in the mean.",
                    )
                    for number in range(1, SLOTS + 1)
                ),
            ],
            outputs=[
                KosmosGImage.Output(
                    display_name="reference", tooltip="One reference of weight 1 with the first noun that was given."
                )
            ],
        )

    @classmethod
    def execute(cls, mode: str, **references: Reference | None) -> io.NodeOutput:
        """Average."""
        check_choice("mode", mode, MEANS)
        given = [references.get(f"reference_{number}") for number in range(1, SLOTS + 1)]
        connected = [reference for reference in given if reference is not None]
        return io.NodeOutput(average(connected, keep_norm=mode == MEANS[1]))


class KosmosGEntities(io.ComfyNode):
    """One reference for each mask of a segmentation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGEntities",
            display_name="Kosmos-G Entities",
            category=CATEGORY,
            description="Cuts one reference out of the picture for each mask, from any segmentation node.",
            search_aliases=["kosmos", "segmentation", "sam", "masks to references", "entities"],
            inputs=[
                io.Image.Input("image", tooltip="The picture, or one picture for each mask."),
                io.Mask.Input("masks", tooltip="A batch of masks, one for each entity. Empty ones are left out."),
                *crop_inputs(),
                io.String.Input(
                    "nouns",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="One noun a line, in the masks' order; lines may be empty or missing.",
                ),
                io.Int.Input(
                    "only",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="0 gives all entities: the nodes after this one run once for each. A number gives that "
                    "mask's entity alone, so that two of these nodes feed one prompt.",
                ),
            ],
            outputs=[
                KosmosGImage.Output(
                    display_name="references", is_output_list=True, tooltip="A list: one reference for each mask."
                ),
                io.Image.Output(display_name="preview", tooltip="What the model sees of each, as a batch."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        masks: Tensor,
        crop: str,
        margin: float,
        background: str,
        weight: float,
        nouns: str,
        only: int,
    ) -> io.NodeOutput:
        """Cut out each."""
        masks = masks if masks.ndim == 3 else masks[None]
        if len(image) not in (1, len(masks)):
            raise ValueError(
                f"image holds {len(image)} pictures and masks {len(masks)} masks: give one picture, or one per mask."
            )
        if not 0 <= only <= len(masks):
            raise ValueError(f"only is {only}, but there are {len(masks)} masks: choose one of them, or 0 for all.")
        if not only and len(masks) > MOST_ENTITIES:
            raise ValueError(
                f"masks holds {len(masks)} masks, but at most {MOST_ENTITIES} become references at once, each with a "
                "picture of its own: choose one by its number in only, or fewer with Get Mask from Batch or the "
                "segmentation node's own limits."
            )
        names = [*nouns.split("\n"), *[""] * len(masks)]
        made: list[tuple[Any, ...]] = []
        for index in [only - 1] if only else range(len(masks)):
            pixels = image[index if len(image) > 1 else 0][..., :3]
            try:
                made.append(cut_out(pixels, masks[index], crop, margin, background, weight, names[index]))
            except EmptyMaskError:
                logging.info("Kosmos-G Entities: mask %d is empty and left out.", index + 1)
        if not made:
            raise EmptyMaskError()
        return io.NodeOutput([reference for reference, *_ in made], torch.stack([view for _, view, *_ in made]))


def _one(name: str, batch: Tensor, what: str) -> Tensor:
    """The one item of a batch; ValueError for none or several."""
    if len(batch) != 1:
        raise ValueError(
            f"{name} holds {len(batch)} {what}, but a reference is made of one: pick one with Get Image from Batch, "
            "or use Kosmos-G Average References for several photos of a subject."
        )
    return batch[0]
