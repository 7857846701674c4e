"""Pictures of made-up subjects, in the folders in which users have the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image, ImageDraw


def drawing(seed: int, size: int = 96, view: int = 0) -> Image.Image:
    """A made-up thing before a made-up background: the thing depends on the seed, place and background on the view."""
    look, scene = numpy.random.default_rng(seed), numpy.random.default_rng(1000 * seed + view)
    top, bottom = scene.integers(90, 255, (2, 3))
    ramp = numpy.linspace(0, 1, size)[:, None, None]
    pixels = (top * (1 - ramp) + bottom * ramp) * numpy.ones((size, size, 1))
    image = Image.fromarray(pixels.astype(numpy.uint8))
    draw = ImageDraw.Draw(image)
    middle = scene.integers(size * 2 // 5, size * 3 // 5, 2)
    for radius in (0.3, 0.2, 0.1):
        reach = int(radius * size)
        box = [*(middle - reach), *(middle + reach)]
        colour = tuple(int(x) for x in look.integers(0, 220, 3))
        (draw.ellipse, draw.rectangle, draw.rounded_rectangle)[int(look.integers(3))](box, fill=colour)
    return image


def save_subjects(folder: Path, counts: dict[str, int]) -> Path:
    """Subjects in DreamBooth's layout: folder/dataset/<subject>/00.jpg and so on, `counts` pictures of each."""
    for seed, (name, count) in enumerate(counts.items()):
        place = folder / "dataset" / name
        place.mkdir(parents=True)
        for view in range(count):
            drawing(seed, view=view).save(place / f"{view:02d}.jpg", quality=92)
    return folder
