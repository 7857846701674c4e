"""Pictures whose contents are known: sprites with alpha on a textured ground, their captions and masks, by number."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training.construct.chunks import SourceImage
from training.construct.construct_config import EntityConfig, SegmentConfig
from training.construct.entity_extractors import LanguageModelExtractor
from training.construct.listed_nouns import parse_list
from training.construct.masks import Region

SIDE = 256
SHAPES = ("ball", "box", "kite", "wedge")


@dataclass(frozen=True)
class Scene:
    """pixels: (s, s, 3). masks: by word, (s, s) bool, where the sprite's alpha is not 0."""

    pixels: np.ndarray
    caption: str
    masks: dict[str, np.ndarray]

    def box(self, word: str) -> tuple[int, int, int, int]:
        ys, xs = np.nonzero(self.masks[word])
        return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def scene(number: int, side: int = SIDE) -> Scene:
    """One to three sprites that do not overlap, each in a quadrant of its own."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(60, 200, (5, 5, 3), dtype=np.uint8)
    ground = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    words = [SHAPES[i] for i in rng.permutation(4)[: rng.integers(1, 4)]]
    masks = {}
    for word, quadrant in zip(words, rng.permutation(4), strict=False):
        sprite = Image.new("RGBA", (side, side))
        reach = side // 2
        size = int(rng.integers(side // 4, side * 2 // 5))
        left, top = (int(rng.integers(2, reach - size - 2)) + reach * int(half) for half in divmod(int(quadrant), 2))
        colour = (*(int(c) for c in rng.integers(0, 256, 3)), 255)
        draw, frame = ImageDraw.Draw(sprite), (left, top, left + size, top + size * 3 // 4)
        middle, centre = left + size // 2, top + size // 2
        if word == "ball":
            draw.ellipse(frame, fill=colour)
        elif word == "box":
            draw.rectangle(frame, fill=colour)
        elif word == "kite":
            draw.polygon([(middle, top), (left + size, centre), (middle, top + size), (left, centre)], fill=colour)
        else:
            draw.polygon([(left, top), (left + size, top), (left, top + size)], fill=colour)
        masks[word] = np.asarray(sprite)[..., 3] > 0
        ground.paste(sprite, mask=sprite)
    things = " and ".join(f"a {word}" for word in words)
    return Scene(np.asarray(ground.convert("RGB")), f"a picture of {things} on the ground", masks)


def encoded(pixels: np.ndarray, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"quality": 95} if form == "JPEG" else {}), **options)
    return buffer.getvalue()


def write_folder(folder: Path, numbers: range) -> None:
    """number.jpg and its caption beside it, for every number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        one = scene(number)
        (folder / f"{number:06}.jpg").write_bytes(encoded(one.pixels))
        (folder / f"{number:06}.txt").write_text(one.caption)


def number_of(image: SourceImage) -> int:
    return int(image.source.rpartition("/")[2].partition(".")[0])


class Oracle:
    """A segmenter that knows the scenes; stands in for CLIPSeg."""

    def __init__(self, config: SegmentConfig):
        pass

    def __call__(self, pairs: list[tuple[SourceImage, str]]) -> list[Region | None]:
        masks = [scene(number_of(image)).masks.get(words) for image, words in pairs]
        return [None if mask is None else Region(mask, 1.0) for mask in masks]


class Scripted(LanguageModelExtractor):
    """The language model's step with its generation replaced by a script: prompts and reading stay as they are."""

    def __init__(self, config: EntityConfig):
        self.config = config

    def __call__(self, captions: list[str]) -> list[list[str] | None]:
        return [parse_list(self.script(caption)) for caption in captions]

    @staticmethod
    def script(caption: str) -> str:
        words = [word for word in SHAPES if word in caption.split()]
        ways = (
            ", ".join(words),
            "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1)),
            "Sure! Here are the nouns: " + " and ".join(words) + ".",
        )
        return ways[len(caption) % 3]
