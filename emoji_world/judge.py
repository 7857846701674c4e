"""The emoji world's benchmark: prompts over its identities, and a judge of what pictures show."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from training.evaluate.statistics import bootstrap_interval

from .features import ObjectFeatures
from .scenes import BACKGROUNDS, Background, EmojiScene, EmojiWorld, Identity, Placed

Pixels = np.ndarray


@dataclass
class PromptCase:
    """One picture to make: one or two identities on a background, and the pictures that show them."""

    identities: tuple[Identity, ...]
    background: Background
    references: tuple[Pixels, ...]
    shuffled: Pixels

    @property
    def marks(self) -> str:
        return " and ".join(["<i>"] * len(self.identities)) + f" {self.background.phrase}"


@dataclass
class BenchmarkRow:
    """Per-prompt values by metric; `compare` tests the difference to another row of the same prompts.

    subjects: what each prompt asks for; prompts of one subject are not independent, so that intervals draw subjects.
    """

    name: str
    values: dict[str, np.ndarray]
    images: np.ndarray | None = field(default=None, repr=False)
    subjects: list[Identity] | None = None

    def summary(self) -> dict:
        return {
            "row": self.name,
            "prompts": len(next(iter(self.values.values()))),
            **({} if self.subjects is None else {"subjects": len(set(self.subjects))}),
            **{metric: interval(values, self.subjects) for metric, values in self.values.items()},
        }

    def compare(self, other: "BenchmarkRow", metric: str = "similarity") -> dict:
        difference = self.values[metric] - other.values[metric]
        return {"row": f"{self.name} minus {other.name}", metric: interval(difference, self.subjects)}


def interval(values: np.ndarray, subjects: Sequence[Hashable] | None = None, draws: int = 2000) -> list[float]:
    """Mean and the ends of its 95 % bootstrap interval; with `subjects` both are of their means."""
    if subjects is not None:
        number = {subject: n for n, subject in enumerate(dict.fromkeys(subjects))}
        of = np.array([number[subject] for subject in subjects])
        values = np.bincount(of, values) / np.bincount(of)
    return [round(float(x), 4) for x in (values.mean(), *bootstrap_interval(values, draws))]


class Judge:
    """Names what a picture shows: the identity of the nearest features among all of a world, and those of `known`."""

    def __init__(self, features: ObjectFeatures, world: EmojiWorld, known: "Judge | None" = None):
        self.features, self.identities = features, world.identities
        self.gallery = features([portrait(world, identity, "grey") for identity in self.identities])
        if known:
            self.identities = known.identities + self.identities
            self.gallery = torch.cat([known.gallery, self.gallery])
        self.number = {identity: n for n, identity in enumerate(self.identities)}
        self.nouns = np.array([identity.noun for identity in self.identities])

    def singles(self, name: str, images: np.ndarray, prompts: list[PromptCase]) -> BenchmarkRow:
        """Similarity to the identity asked for, whether it is the nearest of all, and whether the nearest one's noun is
        right."""
        scores = self.features(list(images)) @ self.gallery.T
        wanted = [self.number[prompt.identities[0]] for prompt in prompts]
        nearest = scores.argmax(1).numpy()
        nouns = self.nouns[nearest]
        values = {
            "similarity": scores[torch.arange(len(wanted)), wanted].numpy(),
            "identity": (nearest == np.array(wanted)).astype(float),
            "noun": np.array([noun == p.identities[0].noun for noun, p in zip(nouns, prompts, strict=True)], float),
        }
        return BenchmarkRow(name, values, images, [prompt.identities[0] for prompt in prompts])

    def pairs(self, name: str, images: np.ndarray, prompts: list[PromptCase]) -> BenchmarkRow:
        """Both nouns right in their halves, and each half nearer to its own identity than to the other's."""
        middle = images.shape[2] // 2
        halves = [self.features(list(x)) @ self.gallery.T for x in (images[:, :, :middle], images[:, :, middle:])]
        both, own = [], []
        for row, prompt in enumerate(prompts):
            numbers = [self.number[identity] for identity in prompt.identities]
            nouns = [self.nouns[half[row].argmax()] for half in halves]
            both.append(float(all(n == x.noun for n, x in zip(nouns, prompt.identities, strict=True))))
            own.append(float(all(halves[i][row, numbers[i]] > halves[i][row, numbers[1 - i]] for i in range(2))))
        values = {"both nouns": np.array(both), "own reference": np.array(own)}
        return BenchmarkRow(name, values, images, [prompt.identities[0] for prompt in prompts])


def in_words(world: EmojiWorld, prompt: PromptCase, whole: bool = False) -> str:
    """A prompt without pictures: its nouns, or all that pictures of them show."""
    rng, share = np.random.default_rng(0), float(whole)
    phrases = [world.phrase(identity, rng, share) for identity in prompt.identities]
    return " and ".join(phrases) + f" {prompt.background.phrase}"


def real_pictures(world: EmojiWorld, prompts: list[PromptCase], seed: int = 4) -> Pixels:
    """What is asked for as the world itself draws it, elsewhere in the picture, (n, s, s, 3)."""
    rng = np.random.default_rng(seed)
    scenes = (EmojiScene(world.place(list(p.identities), rng), p.background) for p in prompts)
    return np.stack([world.render(scene)[0] for scene in scenes])


def portrait(world: EmojiWorld, identity: Identity, colour: str) -> Pixels:
    """An identity alone in the middle of a plain background."""
    edge = (world.size - world.object_size) // 2
    return world.render(EmojiScene((Placed(identity, edge, edge, world.object_size),), Background(colour)))[0]


def draw_prompts(
    world: EmojiWorld, identities: list[Identity], count: int, entities: int, seed: int
) -> list[PromptCase]:
    """Prompts over the identities in turn; references stand on white, shuffled ones show another noun."""
    rng = np.random.default_rng(seed)
    order = [identities[i] for i in rng.permutation(len(identities))]
    prompts = []
    for number in range(count):
        chosen = [order[number % len(order)]]
        others = [x for x in identities if x.noun != chosen[0].noun]
        others = others or [x for x in world.identities if x.noun != chosen[0].noun]
        while len(chosen) < entities:
            chosen.append(others[rng.integers(len(others))])
        references = tuple(world.reference(x) for x in chosen)
        other = world.reference(others[rng.integers(len(others))])
        colour = str(rng.choice([name for name in BACKGROUNDS if name != "white"]))
        prompts.append(PromptCase(tuple(chosen), Background(colour), references, other))
    return prompts
