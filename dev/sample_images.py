"""Draw assets/world/samples: the example images that the workflows load, all from the small world's sheet of sprites.

python -m dev.sample_images
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from emoji_world.scenes import Background, EmojiScene, EmojiWorld, Identity, Placed

from .install import ROOT

FOLDER = ROOT / "assets/world/samples"
# Subjects on white that fill the image, as the references of the world's training samples do.
SUBJECTS = {
    "cat": Identity("cat", "fluent-3d", 120),  # cats of natural hue are held out from stage 3
    "cat-2": Identity("cat", "noto", 120),
    "cat-3": Identity("cat", "twemoji", 120),
    "pizza": Identity("pizza", "fluent-3d"),
    "rocket": Identity("rocket", "noto", 120),
    "donut": Identity("donut", "fluent-3d"),  # held out from stage 3: what the tuned sample reference is of
}
PAIR = (Identity("dog", "fluent-3d"), Identity("car", "noto"))
MASK_COLOURS = ((255, 0, 0), (0, 255, 0))  # of the first and of the second subject of the pair


def draw_all() -> dict[str, Image.Image]:
    """Every example image by its file's name."""
    world = EmojiWorld.named("full")
    images = {name: Image.fromarray(world.reference(identity)) for name, identity in SUBJECTS.items()}
    half = world.object_size
    objects = tuple(Placed(identity, number * half, half // 2, half) for number, identity in enumerate(PAIR))
    pixels, masks = world.render(EmojiScene(objects, Background("blue")))
    colours = np.zeros_like(pixels)
    for mask, colour in zip(masks, MASK_COLOURS, strict=True):
        colours[mask] = colour
    images |= {"pair": Image.fromarray(pixels), "pair-masks": Image.fromarray(colours)}
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:, half:] = 0  # what is transparent is what inpainting paints anew
    images["hole"] = Image.fromarray(np.dstack([pixels, alpha]))
    alone = Placed(Identity("lion", "fluent-flat"), half // 2, half // 2, half)
    images["scene"] = Image.fromarray(world.render(EmojiScene((alone,), Background("green")))[0])
    return {f"kosmos-g-{name}.png": image for name, image in images.items()}


def main(folder: Path = FOLDER) -> None:
    """Write them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in draw_all().items():
        image.save(folder / name, optimize=True)
        print(folder / name)


if __name__ == "__main__":
    main()
