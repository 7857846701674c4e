"""Scenes of the open world: one to three of hundreds of nouns, anywhere, of any size, related, on many backgrounds.

Beside `scenes`, whose world lies on a grid: here a reference shows another pose of the object than the picture that it
stands for, so that copying it is no answer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import open_atlas
from .atlas import Atlas
from .scenes import BACKGROUNDS, HUES, OPEN_WORLDS, Background, EmojiScene, EmojiWorld, Identity, Placed, WorldSettings

SIZE = 64
# Shares of the nouns that nothing is trained on, that stage 3 does not show, and by which settings are chosen.
HELD_OUT, INSTRUCT_HELD_OUT, PROBED = 0.06, 0.12, 0.04
COUNTS = (0.4, 0.4, 0.2)  # how often a scene shows one, two and three objects
RELATIONS = {"and": 0.4, "left of": 0.2, "on": 0.2, "behind": 0.2}  # of two objects, with their shares
PATTERNS, PATTERNED = ("striped", "dotted", "checked"), 0.3
# Places by their name in captions: the colours above and below the horizon.
PLACES = {
    "on grass": ((168, 208, 240), (104, 168, 84)),
    "in the snow": ((196, 214, 232), (246, 248, 252)),
    "by the sea": ((176, 216, 244), (52, 116, 184)),
    "in the desert": ((240, 214, 168), (214, 172, 108)),
    "at night": ((24, 28, 66), (44, 52, 84)),
    "in a room": ((226, 214, 196), (148, 108, 78)),
}
PLACE_SHARE, HORIZON = 0.25, 0.6


@dataclass(frozen=True)
class PatternedBackground(Background):
    """Two shades of one colour, in stripes, dots or squares."""

    pattern: str = PATTERNS[0]

    @property
    def phrase(self) -> str:
        return f"on a {self.pattern} {self.colour} background"


@dataclass(frozen=True)
class Place(Background):
    """Ground and sky; `colour` is its name in PLACES."""

    @property
    def phrase(self) -> str:
        return self.colour


def settings_of(nouns: Sequence[str], count: int) -> tuple[WorldSettings, tuple[str, ...]]:
    """Settings with `count` of the nouns, split by a fixed hash, and those of them that nothing is trained on."""
    ordered = sorted(nouns, key=lambda noun: hashlib.sha256(noun.encode()).digest())[:count]
    ends = np.cumsum([round(share * len(ordered)) for share in (HELD_OUT, INSTRUCT_HELD_OUT, PROBED)])
    held_out, instruct, probed, seen = (
        tuple(sorted(ordered[start:end])) for start, end in zip((0, *ends), (*ends, None), strict=True)
    )
    return WorldSettings(SIZE, seen, instruct, probed, pairs=1 - COUNTS[0]), held_out


class OpenWorld(EmojiWorld):
    """A world whose objects stand anywhere; the held-out look is drawn by name only."""

    def __init__(self, atlas: Atlas, settings: WorldSettings, hues: tuple[int, ...] = HUES):
        super().__init__(atlas, settings, hues)
        self.looks = [look for look in atlas.looks if look != open_atlas.HELD_OUT_LOOK]

    @classmethod
    def named(cls, name: str, hues: tuple[int, ...] = HUES) -> "OpenWorld":
        """The world of all nouns of the atlas, or of as many as OPEN_WORLDS says."""
        atlas = Atlas.load(open_atlas.ASSETS, "emoji_world.open_atlas")
        return cls(atlas, settings_of(atlas.nouns, OPEN_WORLDS[name])[0], hues)

    def draw_count(self, rng: np.random.Generator, pairs: float | None = None) -> int:
        alone = COUNTS[0] if pairs is None else 1 - pairs
        three = (1 - alone) * COUNTS[2] / (COUNTS[1] + COUNTS[2])
        return int(rng.choice((1, 2, 3), p=(alone, 1 - alone - three, three)))

    def draw_background(self, rng: np.random.Generator) -> Background:
        kind = rng.random()
        if kind < PLACE_SHARE:
            return Place(str(rng.choice(list(PLACES))))
        if kind < PLACE_SHARE + PATTERNED:
            return PatternedBackground(str(rng.choice(list(BACKGROUNDS))), pattern=str(rng.choice(PATTERNS)))
        return super().draw_background(rng)

    def arranged(self, identities: list[Identity], rng: np.random.Generator) -> EmojiScene:
        """Two objects in any relation; one, or three beside each other."""
        relation = "and"
        if len(identities) == 2:
            relation = str(rng.choice(list(RELATIONS), p=list(RELATIONS.values())))
        return EmojiScene(self.place(identities, rng, relation), self.draw_background(rng), relation)

    def place(self, identities: list[Identity], rng: np.random.Generator, relation: str = "and") -> tuple[Placed, ...]:
        """Objects in the order of the caption, each in either pose; what stands behind comes first."""
        if relation == "on":
            spots = self.stacked(rng)
        elif relation == "behind":
            spots = self.overlapping(rng)
        else:
            spots = self.beside(len(identities), rng)
        return tuple(
            Placed(identity, left, top, side, int(rng.integers(2)))
            for identity, (left, top, side) in zip(identities, spots, strict=True)
        )

    def beside(self, count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """(left, top, side) of objects from left to right, each inside its own share of the picture's width."""
        share = self.size // count
        sides = rng.integers(
            *((7 * self.size // 16, 11 * self.size // 16) if count == 1 else (3 * share // 4, share)), count
        )
        return [
            (number * share + int(rng.integers(share - side + 1)), int(rng.integers(1, self.size - side)), int(side))
            for number, side in enumerate(sides)
        ]

    def spots(self, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """One, four, nine or sixteen objects of any size that scenes have, wherever these fit."""
        side = int(rng.integers(self.size // 4, 11 * self.size // 16))
        fit = self.size // side
        left, top = (int(x) for x in rng.integers(self.size - fit * side + 1, size=2))
        return [(left + side * column, top + side * row, side) for row in range(fit) for column in range(fit)]

    def stacked(self, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """The first on top of the second, which stands near the lower edge."""
        upper, lower = (int(rng.integers(*bounds)) for bounds in self.sixteenths((5, 7), (7, 9)))
        left, top = int(rng.integers(2, self.size - lower - 1)), self.size - lower - int(rng.integers(1, 5))
        above = left + (lower - upper) // 2 + int(rng.integers(-3, 4))
        return [(min(max(above, 0), self.size - upper), top - upper + 2, upper), (left, top, lower)]

    def overlapping(self, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """The first partly hidden by the second, which stands lower and to one side."""
        back, front = (int(rng.integers(*bounds)) for bounds in self.sixteenths((7, 9), (6, 8)))
        aside, down = int(rng.integers(3 * back // 8, back // 2 + 1)), int(rng.integers(back // 4, 3 * back // 8))
        left = int(rng.integers(1, self.size - max(back, aside + front)))
        top = int(rng.integers(1, self.size - max(back, down + front)))
        spots = [(left, top, back), (left + aside, top + down, front)]
        if rng.random() < 0.5:
            spots = [(self.size - left - side, top, side) for left, top, side in spots]
        return spots

    def sixteenths(self, *bounds: tuple[int, int]) -> list[tuple[int, int]]:
        return [(low * self.size // 16, high * self.size // 16) for low, high in bounds]

    def canvas(self, background: Background) -> np.ndarray:
        if isinstance(background, Place):
            above, below = (np.array(colour, np.float32) / 255 for colour in PLACES[background.colour])
            rows = np.arange(self.size)[:, None] < HORIZON * self.size
            return np.repeat(np.where(rows, above, below)[:, None], self.size, 1).astype(np.float32)
        plain = super().canvas(background)
        if not isinstance(background, PatternedBackground):
            return plain
        rows, columns = np.mgrid[: self.size, : self.size] // (self.size // 8)
        if background.pattern == "striped":
            darker = columns % 2 == 1
        elif background.pattern == "checked":
            darker = (rows + columns) % 2 == 1
        else:
            spacing = self.size // 4
            offset = np.mgrid[: self.size, : self.size] % spacing - spacing / 2 + 0.5
            darker = np.hypot(*offset) < spacing / 4
        return plain * np.where(darker, 0.78, 1.0).astype(np.float32)[..., None]

    def crops(self, scene: EmojiScene) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each object its square and mask where every object of the scene is in its other pose."""
        turned = tuple(replace(placed, pose=1 - placed.pose) for placed in scene.objects)
        return super().crops(scene.edited(objects=turned))

    def reference(self, identity: Identity, pose: int = 1) -> np.ndarray:
        """An identity in its other pose on white; portraits and real pictures show the pose of the atlas, or either."""
        return super().reference(identity, pose)
