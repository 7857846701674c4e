"""Small data sets of coloured shapes in every layout, made in seconds: for tests, demonstrations and a first run.

    python -m training.data.synthetic DIR --samples 200

makes DIR/{text,pairs,interleaved,compositional,edit} as WebDataset tars and a vocabulary, DIR/spm.model and
DIR/dict.txt. The captions tell what the pictures show, so that a model can learn from them; same seed, same bytes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from PIL import Image, ImageDraw

from kosmos_core.atomic import write_file
from kosmos_core.tokenizer import dictionary_of

from .shard_writer import Parts, write_shard

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (245, 200, 30),
    "purple": (130, 60, 170),
    "orange": (240, 130, 30),
}
BACKGROUNDS = {"white": (246, 246, 246), "grey": (140, 140, 140), "black": (24, 24, 24)}
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True)
class Shape:
    """A shape in a picture: x, y of its box's corner and the box's side, in pixels."""

    kind: str
    colour: str
    x: int
    y: int
    side: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    def draw(self, image: Image.Image, fill: tuple[int, int, int] | int | None = None, at: tuple = (0, 0)) -> None:
        """Draw it, its box's corner at (x, y) minus `at`."""
        left, top = self.x - at[0], self.y - at[1]
        right, bottom = left + self.side - 1, top + self.side - 1
        fill = COLOURS[self.colour] if fill is None else fill
        draw = ImageDraw.Draw(image)
        if self.kind == "circle":
            draw.ellipse((left, top, right, bottom), fill)
        elif self.kind == "square":
            draw.rectangle((left, top, right, bottom), fill)
        else:
            draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill)


@dataclass(frozen=True)
class ShapeScene:
    """Shapes side by side on a plain background of `size` x `size` pixels."""

    size: int
    background: str
    shapes: tuple[Shape, ...]

    @property
    def caption(self) -> str:
        names = " and ".join(f"a {shape.name}" for shape in self.shapes)
        return f"{names} on a {self.background} background"

    def image(self) -> Image.Image:
        image = Image.new("RGB", (self.size, self.size), BACKGROUNDS[self.background])
        for shape in self.shapes:
            shape.draw(image)
        return image


def random_scene(rng: random.Random, size: int, shapes: int) -> ShapeScene:
    """A scene with shapes of different kinds and colours."""
    kinds, colours = rng.sample(SHAPES, shapes), rng.sample(sorted(COLOURS), shapes)
    side = size // (shapes + 1)
    placed = []
    for number, (kind, colour) in enumerate(zip(kinds, colours, strict=True)):
        x = size * number // shapes + rng.randrange(2, side // 4 + 3)
        placed.append(Shape(kind, colour, x, rng.randrange(2, size - side), side))
    return ShapeScene(size, rng.choice(sorted(BACKGROUNDS)), tuple(placed))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """A picture as JPEG or PNG bytes."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def text_samples(rng: random.Random, samples: int, size: int) -> Iterator[Parts]:
    """Documents of two to twelve sentences about scenes."""
    for _ in range(samples):
        scenes = [random_scene(rng, size, rng.randint(1, 3)) for _ in range(rng.randint(2, 12))]
        yield {"txt": " ".join(f"There is {scene.caption}." for scene in scenes).encode()}


def pair_samples(rng: random.Random, samples: int, size: int) -> Iterator[Parts]:
    """Pictures with captions, as img2dataset writes them."""
    for number in range(samples):
        scene = random_scene(rng, size, rng.randint(1, 3))
        described = {
            "key": f"{number:09d}",
            "caption": scene.caption,
            "status": "success",
            "width": size,
            "height": size,
        }
        yield {"jpg": encoded(scene.image()), "txt": scene.caption.encode(), "json": json.dumps(described).encode()}


def interleaved_samples(rng: random.Random, samples: int, size: int) -> Iterator[Parts]:
    """Documents that show a scene, speak of it, and show the next."""
    for _ in range(samples):
        segments, parts = [], {}
        for number in range(rng.randint(1, 3)):
            scene = random_scene(rng, size, rng.randint(1, 3))
            parts[f"{number}.jpg"] = encoded(scene.image())
            segments += [{"image": f"{number}.jpg"}, {"text": f"This is {scene.caption}. Look at it."}]
        yield parts | {"json": json.dumps({"segments": segments}).encode()}


def compositional_samples(rng: random.Random, samples: int, size: int) -> Iterator[Parts]:
    """Scenes with the crop and the mask of every shape."""
    for _ in range(samples):
        scene = random_scene(rng, size, rng.randint(1, 2))
        whole, caption = scene.image(), scene.caption
        parts, entities = {"jpg": encoded(whole)}, []
        for number, shape in enumerate(scene.shapes):
            box = (shape.x, shape.y, shape.x + shape.side, shape.y + shape.side)
            mask = Image.new("L", (shape.side, shape.side))
            shape.draw(mask, 255, at=(shape.x, shape.y))
            parts[f"{number}.jpg"] = encoded(whole.crop(box))
            parts[f"{number}.mask.png"] = encoded(mask.convert("1"), "PNG")
            start = caption.index(shape.name)
            span = [start, start + len(shape.name)]
            entities.append({"text": shape.name, "span": span, "box": list(box), "score": 1.0})
        described = {"caption": caption, "entities": entities, "source": "synthetic", "license": "MIT"}
        yield parts | {"json": json.dumps(described).encode()}


def edit_samples(rng: random.Random, samples: int, size: int) -> Iterator[Parts]:
    """Scenes in which one shape changes its colour, for one or two seeds."""
    for _ in range(samples):
        parts, scene = {}, random_scene(rng, size, rng.randint(1, 2))
        shape = rng.choice(scene.shapes)
        colour = rng.choice([name for name in COLOURS if name != shape.colour])
        for number in range(rng.randint(1, 2)):
            moved = [Shape(s.kind, s.colour, s.x, rng.randrange(2, size - s.side), s.side) for s in scene.shapes]
            changed = [Shape(s.kind, colour if s.kind == shape.kind else s.colour, s.x, s.y, s.side) for s in moved]
            for moment, shapes in enumerate((moved, changed)):
                parts[f"{number}_{moment}.jpg"] = encoded(ShapeScene(size, scene.background, tuple(shapes)).image())
        described = {"input": scene.caption, "edit": f"make the {shape.kind} {colour}", "pairs": len(parts) // 2}
        yield parts | {"json": json.dumps(described).encode()}


LAYOUTS = {
    "text": text_samples,
    "pairs": pair_samples,
    "interleaved": interleaved_samples,
    "compositional": compositional_samples,
    "edit": edit_samples,
}


def write_tars(folder: Path, samples: Iterable[Parts], per_shard: int) -> None:
    """Samples as WebDataset tars 00000.tar, 00001.tar, ..., keys counted through."""
    numbered = ((f"{number:09d}", parts) for number, parts in enumerate(samples))
    for shard in itertools.count():
        if not write_shard(folder / f"{shard:05d}.tar", itertools.islice(numbered, per_shard)):
            return


def train_vocabulary(folder: Path, texts: Iterable[str], pieces: int) -> tuple[Path, Path]:
    """A SentencePiece model of about `pieces` pieces of the texts, spm.model, and its dict.txt; returns their paths."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=pieces,
        hard_vocab_limit=False,
        model_type="unigram",
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    spm, dictionary = folder / "spm.model", folder / "dict.txt"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(spm, model.getvalue())
    write_file(dictionary, dictionary_of(model.getvalue()))
    return spm, dictionary


def write_vocabulary(folder: Path, seed: int = 0, pieces: int = 200) -> tuple[Path, Path]:
    """A vocabulary of about `pieces` pieces that knows the captions; returns the paths of spm.model and dict.txt."""
    rng = random.Random(f"vocabulary/{seed}")
    words = [parts["txt"].decode() for parts in text_samples(rng, 300, 64)]
    words += [f"make the {shape} {colour}" for shape in SHAPES for colour in COLOURS] * 20
    words += ["This is a picture. Look at it.", "a photo of a dog and a cat at the beach, wearing a hat"] * 20
    words += [string.ascii_lowercase, string.ascii_uppercase, string.digits, string.punctuation]
    return train_vocabulary(folder, words, pieces)


def write_all(folder: Path, samples: int = 200, size: int = 96, seed: int = 0, per_shard: int = 50) -> None:
    """Every layout under `folder` in a folder of its own, and the vocabulary."""
    for name, make in LAYOUTS.items():
        write_tars(folder / name, make(random.Random(f"{name}/{seed}"), samples, size), per_shard)
    write_vocabulary(folder, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Small data sets of coloured shapes in every layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=200, help="samples of each data set")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_all(given.folder, given.samples, given.size, given.seed)
    print(f"{given.samples} samples each of {', '.join(LAYOUTS)} in {given.folder}, vocabulary in spm.model, dict.txt")


if __name__ == "__main__":
    main()
