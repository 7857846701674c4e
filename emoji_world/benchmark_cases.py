"""Prompts of the benchmark in which a copied reference is a wrong answer, and what is measured in pictures for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .features import object_alone, object_pixels
from .judge import PromptCase, draw_prompts
from .scenes import BACKGROUNDS, Background, EmojiScene, EmojiWorld, Identity

GREY = 0.12  # mean chroma below which an object has no colour, as in the world's captions
LOPSIDED = 0.06  # difference of the two poses' pixels below which an object is taken for its own mirror image
Pixels = np.ndarray


@dataclass
class SwappedCase(PromptCase):
    """A prompt whose reference shows another identity of the noun than its words ask for."""

    shown: Identity | None = None


@dataclass(frozen=True)
class Edit:
    """A scene, an instruction, and the prompt that says what has to be seen afterwards."""

    image: Pixels
    instruction: str
    prompt: PromptCase


def look_swapped(world: EmojiWorld, identities: Sequence[Identity], count: int) -> list[tuple[str, SwappedCase]]:
    """Texts such as "a glossy <i> on a blue background", whose reference has another look, and what they ask for."""
    rng, found = np.random.default_rng(63), []
    for prompt in draw_prompts(world, list(identities), count, 1, 63):
        shown = prompt.identities[0]
        asked = replace(shown, look=str(rng.choice([look for look in world.looks if look != shown.look])))
        text = f"a {world.atlas.words[asked.look]} {prompt.marks}"
        found.append((text, SwappedCase((asked,), prompt.background, prompt.references, prompt.shuffled, shown)))
    return found


def pose_swapped(world: EmojiWorld, identities: Sequence[Identity], count: int) -> list[PromptCase]:
    """Prompts whose references show another pose than the world draws; none of what is its own mirror image."""
    turned = [x for x in identities if pose_of(world.reference(x, 1), world, x, 1) > LOPSIDED]
    prompts = draw_prompts(world, turned, count, 1, 66)
    return [replace(p, references=tuple(world.reference(x, 1) for x in p.identities)) for p in prompts]


def pose_of(image: Pixels, world: EmojiWorld, identity: Identity, pose: int) -> float:
    """By how much, 0..1, an object's pixels are nearer to one pose of an identity than to the other."""
    own, first, second = (
        np.asarray(Image.fromarray(object_alone(x)).resize((32, 32)), float) / 255
        for x in (image, world.reference(identity, pose), world.reference(identity, 1 - pose))
    )
    return float(np.abs(own - second).mean() - np.abs(own - first).mean())


def in_scenes(world: EmojiWorld, identities: Sequence[Identity], count: int) -> tuple[list[PromptCase], list[str]]:
    """Prompts whose references are scenes with a background of another colour than asked for, and those colours."""
    rng, prompts, colours = np.random.default_rng(64), [], []
    for prompt in draw_prompts(world, list(identities), count, 1, 64):
        colour = other_colour(prompt.background.colour, rng)
        scene = EmojiScene(world.place(list(prompt.identities), rng), Background(colour))
        prompts.append(replace(prompt, references=(world.render(scene)[0],)))
        colours.append(colour)
    return prompts, colours


def edits(world: EmojiWorld, identities: Sequence[Identity], count: int, kind: str) -> list[Edit]:
    """Scenes with an instruction: another background, or the object "in grey"."""
    rng, found = np.random.default_rng(65), []
    coloured = [x for x in identities if kind == "background" or world.colour(x) != "grey"]
    for prompt in draw_prompts(world, coloured, count, 1, 65):
        before = prompt.background if kind == "in grey" else Background(other_colour(prompt.background.colour, rng))
        image = world.render(EmojiScene(world.place(list(prompt.identities), rng), before))[0]
        found.append(Edit(image, prompt.background.phrase if kind == "background" else kind, prompt))
    return found


def other_colour(colour: str, rng: np.random.Generator) -> str:
    """A background's colour that is another one, and not white, on which references stand."""
    return str(rng.choice([name for name in BACKGROUNDS if name not in (colour, "white")]))


def background_colour(image: Pixels) -> str:
    """The world's colour that is nearest to the middle one of a picture's border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(float)
    distances = {name: np.abs(np.median(border, axis=0) - colour).sum() for name, colour in BACKGROUNDS.items()}
    return min(distances, key=distances.__getitem__)


def object_is_grey(image: Pixels) -> bool:
    """Whether the object's pixels have hardly any colour; a picture without an object has none that is grey."""
    pixels = image[object_pixels(image)].astype(float) / 255
    return len(pixels) > 0 and float((pixels.max(1) - pixels.min(1)).mean()) < GREY
