"""The shipped workflows in the small world of assets/world: its weights, its pictures, its words, 64 x 64 pixels.

The workflows are written for Stable Diffusion 1.5; the world's weights know 34 nouns on plain backgrounds.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from PIL import Image

from emoji_world.scenes import EmojiWorld, Identity

SIZE, WRITTEN_FOR = 64, 512  # pixels of a side
GUIDANCE = 4.0
# What the world has no trained model for: such a workflow runs with random stand-ins, whose result shows nothing.
BEYOND = ("LoraLoader", "ControlNetLoader")
IMAGES = {
    "cat.png": Identity("cat", "fluent-3d", 120),  # cats of natural hue are held out from stage 3
    "pizza.png": Identity("pizza", "fluent-3d"),
    "same cat.png": Identity("cat", "noto", 120),
    "rocket.png": Identity("rocket", "noto", 120),
}
SAVED = "cat.png"  # what the saved reference shows
# For each workflow its pictures and its prompts, both in the order of the nodes.
WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text_only": ((), ("a cat on a blue background",)),
    "one_subject": (("cat.png",), ("<i> on a yellow background",)),
    "two_subjects": (("cat.png", "pizza.png"), ("<i> and <i> on a blue background",)),
    "negative_image": (("cat.png", "pizza.png"), ("<i1> and a pizza on a blue background",)),
    "subject_and_style": (("cat.png", "rocket.png"), ("<i1> and (<i2>:0.9) on a green background",)),
    "edit_instruction": (("cat.png",), ("<i> on a purple background",)),
    "regional_two_subjects": (
        ("cat.png", "pizza.png"),
        # Each half names what the other shows: a U-Net that sees an object already adds no second one unasked.
        (
            "<i> and a pizza on a blue background",
            "a cat and <i> on a blue background",
            "a cat and a pizza on a blue background",
        ),
    ),
    "dual_cfg": (("cat.png",), ("<i> on a red background",)),
    "save_reference": (("cat.png", "same cat.png"), ("<i> on a green background",)),
    "load_reference": ((), ("<i> on an orange background",)),
    "inspect_and_attention": (("cat.png", "pizza.png"), ("<i> and <i> on a blue background",) * 3),
}
NEGATIVE = "<i2>"  # where a workflow has a negative


def save_images(folder: Path) -> None:
    """The references: subjects on white that fill the picture, as the world's training samples show them."""
    world = EmojiWorld.named("full")
    for name, identity in IMAGES.items():
        Image.fromarray(world.reference(identity)).save(folder / name)


def has_result(workflow: dict[str, Any]) -> bool:
    """Whether the world's weights suffice for a workflow."""
    return not any(node["type"] in BEYOND for node in workflow["nodes"])


def in_the_world(name: str, workflow: dict[str, Any], checkpoint: str, kosmos: str) -> dict[str, Any]:
    """The workflow `name` with the world's files, pictures, prompts, size and guidance; the graph stays as it is."""
    adapted = copy.deepcopy(workflow)
    images, prompts = map(iter, WORDS[name])
    for node in sorted(adapted["nodes"], key=lambda node: node["id"]):
        values = node.get("widgets_values")
        match node["type"]:
            case "CheckpointLoaderSimple":
                values[0] = checkpoint
            case "KosmosGLoader":
                values[0] = kosmos
            case "LoadImage":
                values[0] = next(images)
            case "KosmosGTextEncode":
                values[0] = next(prompts)
                values[1] = values[1] and NEGATIVE
            case "KosmosGTokenMap" | "KosmosGAttentionMap":
                values[0] = next(prompts)
            case "KosmosGReference":
                values[4] = ""  # the prompts of the world's third stage put a picture in a noun's place
            case "EmptyLatentImage":
                values[:2] = SIZE, SIZE
            case "SolidMask":
                values[1:] = (side * SIZE // WRITTEN_FOR for side in values[1:])
            case "KSampler":
                values[3] = GUIDANCE
            case "DualCFGGuider":
                values[:2] = GUIDANCE / 2, GUIDANCE
    return adapted
