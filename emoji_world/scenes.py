"""Scenes of the emoji world: one or two objects on a plain or shaded background, with captions and exact masks.

Objects have one size and lie on the autoencoder's grid of 8 pixels, so that a latent means the same thing wherever the
object is: two cores are to learn the world in hours.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from .atlas import Atlas

GRID = 8
HELD_OUT_NOUNS = ("crab", "sunflower")  # nothing is ever trained on them


@dataclass(frozen=True)
class WorldSettings:
    """How large a world's pictures are and what they show."""

    size: int  # side of the pictures in pixels
    nouns: tuple[str, ...]
    instruct_held_out: tuple[str, ...]  # more nouns, which the U-Net and stages 1 and 2 see but stage 3 does not
    probed: tuple[str, ...] = ()  # and more of these, by which settings are chosen: no result is of them
    pairs: float = 0.4  # share of the pictures with two objects

    @property
    def unseen(self) -> tuple[str, ...]:
        """The nouns that stage 3 never shows."""
        return self.instruct_held_out + self.probed

    @property
    def known(self) -> tuple[str, ...]:
        return self.nouns + self.unseen


FIRST = (
    "apple", "banana", "strawberry", "carrot", "pizza", "cat", "frog", "fish", "octopus", "car", "rocket",
    "house", "tree", "mushroom", "heart", "star",
)  # fmt: skip
MORE = (
    "hamburger", "watermelon", "dog", "fox", "pig", "lion", "butterfly", "bee", "bus", "sailboat", "cactus",
    "balloon", "guitar", "crown", "gift", "lemon",
)  # fmt: skip
# Six nouns held out and two to choose by: donut, turtle, and those whose SHA-256 comes first.
ZERO_SHOT, PROBED = ("donut", "turtle", "balloon", "bus", "crown", "car"), ("watermelon", "apple")
WORLDS = {
    "full": WorldSettings(64, FIRST + MORE, ("donut", "turtle")),
    "zero-shot": WorldSettings(
        64, tuple(noun for noun in FIRST + MORE if noun not in ZERO_SHOT + PROBED), ZERO_SHOT, PROBED
    ),
    "half": WorldSettings(64, FIRST, ("donut", "turtle")),
    "test": WorldSettings(32, ("apple", "banana", "car", "heart"), ("star",)),
}
OPEN_WORLDS = {"open": 1000, "middle": 160}  # worlds of `open_scenes`, with the most nouns that they take of the atlas
WORLD_NAMES = (*WORLDS, *OPEN_WORLDS)
HUES = (0, 120)
ALL_HUES = tuple(range(0, 360, 30))  # in which stage 1 sees objects, too
SHARES = (0.0, 0.5, 1.0)  # how often a caption's phrases name look and colour: never, as it comes, always
BACKGROUNDS = {
    "red": (214, 92, 92),
    "green": (110, 178, 110),
    "blue": (100, 140, 212),
    "yellow": (232, 212, 110),
    "purple": (160, 116, 196),
    "orange": (232, 160, 96),
    "grey": (150, 150, 150),
    "white": (244, 244, 244),
}
COLOURS = (
    (25, "red"),
    (45, "orange"),
    (72, "yellow"),
    (160, "green"),
    (195, "teal"),
    (255, "blue"),
    (295, "purple"),
    (340, "pink"),
    (361, "red"),
)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, order=True)
class Identity:
    """What a reference picture can tell and its noun cannot: the look, and the rotation of all hues in degrees.

    `hue` is None for the object drawn in greys, which occurs in edited pictures only.
    """

    noun: str
    look: str
    hue: int | None = 0


@dataclass(frozen=True)
class Background:
    colour: str
    shaded: bool = False

    @property
    def phrase(self) -> str:
        words = f"shaded {self.colour}" if self.shaded else self.colour
        return f"on {'an' if words[0] in 'aeiou' else 'a'} {words} background"


@dataclass(frozen=True)
class Placed:
    identity: Identity
    left: int
    top: int
    size: int
    pose: int = 0  # 1: in another pose, or mirrored where the atlas has none

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of its square in a picture (h, w) or (h, w, 3)."""
        return np.s_[self.top : self.top + self.size, self.left : self.left + self.size]


@dataclass(frozen=True)
class EmojiScene:
    objects: tuple[Placed, ...]
    background: Background
    relation: str = "and"  # what a caption says between its objects

    def joined(self, phrases: Iterable[str]) -> str:
        return f" {self.relation} ".join(phrases)

    def edited(self, **changes) -> "EmojiScene":
        return replace(self, **changes)


def in_held_out_share(identity: Identity, share: float = 0.2) -> bool:
    """True for about `share` of the identities, by a fixed hash: those that stage 3 never sees."""
    digest = hashlib.sha256(f"{identity.noun}/{identity.look}/{identity.hue}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


class EmojiWorld:
    """The sprites of some nouns, ready to be placed; every draw comes from the caller's generator."""

    def __init__(self, atlas: Atlas, settings: WorldSettings, hues: tuple[int, ...] = HUES):
        missing = [noun for noun in settings.known if noun not in atlas.nouns]
        if missing:
            raise ValueError(f"the atlas has no sprite of {', '.join(missing)}; it has {', '.join(atlas.nouns)}")
        self.atlas, self.settings, self.size, self.hues = atlas, settings, settings.size, hues
        self.nouns, self.looks = settings.known, atlas.looks
        self.sprite = lru_cache(maxsize=8192)(self._sprite)

    @classmethod
    def named(cls, name: str, hues: tuple[int, ...] = HUES) -> "EmojiWorld":
        """A world of WORLD_NAMES with its committed atlas; `hues` are those of its identities."""
        if name in OPEN_WORLDS:
            from .open_scenes import OpenWorld  # which builds on this module

            return OpenWorld.named(name, hues)
        return cls(Atlas.load(), WORLDS[name], hues)

    def held_out_of_instruct(self, identity: Identity) -> bool:
        return identity.noun in self.settings.unseen or in_held_out_share(identity)

    @property
    def groups(self) -> dict[str, list[Identity]]:
        """The identities by what stage 3 shows of them; the last group, where there is one, is for choosing alone."""
        of = self.settings
        members = {
            "seen": lambda x: not self.held_out_of_instruct(x),
            "held-out identities": lambda x: x.noun in of.nouns and in_held_out_share(x),
            "held-out nouns": lambda x: x.noun in of.instruct_held_out,
            "probed nouns": lambda x: x.noun in of.probed,
        }
        found = {name: [x for x in self.identities if inside(x)] for name, inside in members.items()}
        return {name: group for name, group in found.items() if group}

    @property
    def identities(self) -> list[Identity]:
        return [Identity(n, look, hue) for n in self.nouns for look in self.looks for hue in self.hues]

    def _sprite(self, identity: Identity, size: int, pose: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Straight-alpha resize, then premultiplied: float32 colour (size, size, 3) and alpha (size, size, 1), 0..1."""
        key = identity.noun, identity.look
        pixels = self.atlas.sprites[key]
        image = Image.fromarray(self.atlas.poses.get(key, pixels[:, ::-1]) if pose else pixels)
        rgba = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
        alpha = rgba[..., 3:]
        return rotate_hue(rgba[..., :3], identity.hue) * alpha, alpha

    def colour(self, identity: Identity) -> str:
        """The colour word of an identity: the mean colour of its coloured pixels, named."""
        if identity.hue is None:
            return "grey"
        colour, alpha = self.sprite(identity, 32)
        pixels = (colour / np.maximum(alpha, 1e-3))[alpha[..., 0] > 0.5]
        chroma = pixels.max(1) - pixels.min(1)
        if chroma.mean() < 0.12:
            return "grey"
        red, green, blue = (pixels * chroma[:, None]).sum(0)
        angle = math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
        return next(name for limit, name in COLOURS if angle < limit)

    def draw_background(self, rng: np.random.Generator) -> Background:
        return Background(str(rng.choice(list(BACKGROUNDS))), bool(rng.random() < 0.3))

    @property
    def object_size(self) -> int:
        """Side of every object in pixels: half of the picture's, so that one and two objects look alike."""
        return self.size // 2

    def place(self, identities: list[Identity], rng: np.random.Generator) -> tuple[Placed, ...]:
        """One object about the middle, or two side by side, all on the grid."""
        half, steps = self.object_size, self.size // GRID
        tops = [int(x) * GRID for x in rng.integers(steps // 8, steps // 2 - steps // 8 + 1, 2)]
        if len(identities) == 1:
            left = int(rng.integers(steps // 8, steps // 2 - steps // 8 + 1)) * GRID
            return (Placed(identities[0], left, tops[0], half),)
        return tuple(Placed(x, half * i, tops[i], half) for i, x in enumerate(identities))

    def spots(self, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """(left, top, side) of as many objects as fit beside each other; here always the same."""
        side = self.object_size
        starts = range(0, self.size - side + 1, side)
        return [(left, top, side) for top in starts for left in starts]

    def draw(
        self, rng: np.random.Generator, identities: list[Identity] | None = None, pairs: float | None = None
    ) -> EmojiScene:
        """A scene of the given identities, or of one or two drawn ones (natural hue six times in ten).

        pairs: how often two are drawn, where it is not the world's own share.
        """
        if identities is None:
            nouns = rng.choice(self.nouns, self.draw_count(rng, pairs), replace=False)
            identities = [self.draw_identity(str(noun), rng) for noun in nouns]
        return self.arranged(identities, rng)

    def draw_count(self, rng: np.random.Generator, pairs: float | None = None) -> int:
        """How many objects a scene shows."""
        return 2 if rng.random() < (self.settings.pairs if pairs is None else pairs) else 1

    def arranged(self, identities: list[Identity], rng: np.random.Generator) -> EmojiScene:
        return EmojiScene(self.place(identities, rng), self.draw_background(rng))

    def draw_identity(self, noun: str, rng: np.random.Generator) -> Identity:
        hue = 0 if rng.random() < 0.6 else int(rng.choice(HUES[1:]))
        return Identity(noun, str(rng.choice(self.looks)), hue)

    def render(self, scene: EmojiScene) -> tuple[np.ndarray, list[np.ndarray]]:
        """uint8 pixels (size, size, 3), and per object the mask (size, size) bool of what is visible of it."""
        canvas, masks = self.canvas(scene.background), []
        for placed in scene.objects:
            colour, alpha = self.sprite(placed.identity, placed.size, placed.pose)
            canvas[placed.box] = canvas[placed.box] * (1 - alpha) + colour
            mask = np.zeros((self.size, self.size), bool)
            mask[placed.box] = alpha[..., 0] > 0.5
            masks = [other & ~mask for other in masks] + [mask]
        return np.rint(canvas.clip(0, 1) * 255).astype(np.uint8), masks

    def canvas(self, background: Background) -> np.ndarray:
        """A background without objects, float32 (size, size, 3) from 0 to 1."""
        canvas = np.full((self.size, self.size, 3), BACKGROUNDS[background.colour], np.float32) / 255
        if background.shaded:
            canvas = canvas * np.linspace(1.0, 0.72, self.size, dtype=np.float32)[:, None, None]
        return canvas

    def crops(self, scene: EmojiScene) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each object the square that it was placed in and its mask there, as training data shows it."""
        pixels, masks = self.render(scene)
        return [(pixels[x.box], mask[x.box]) for x, mask in zip(scene.objects, masks, strict=True)]

    def close_up(self, scene: EmojiScene) -> tuple[np.ndarray, EmojiScene]:
        """The first object of a scene, filling the picture as references do, and the scene that this shows."""
        placed = scene.objects[0]
        return self.render(scene)[0][placed.box], scene.edited(objects=(placed,))

    def reference(self, identity: Identity, pose: int = 0) -> np.ndarray:
        """An identity on white, filling the picture as the crops of the training samples do: uint8 (s, s, 3)."""
        alone = Placed(identity, 0, 0, self.object_size, pose)
        return self.close_up(EmojiScene((alone,), Background("white")))[0]

    def phrase(self, identity: Identity, rng: np.random.Generator | None = None, share: float = 0.5) -> str:
        """ "a cat", and with a generator its look and its colour in `share` of the cases: "a glossy purple cat"."""
        words = []
        if rng is not None:
            if rng.random() < share:
                words.append(self.atlas.words[identity.look])
            if rng.random() < share:
                words.append(self.colour(identity))
        words.append(identity.noun)
        return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"

    def caption(self, scene: EmojiScene, rng: np.random.Generator | None = None, share: float = 0.5) -> str:
        phrases = (self.phrase(placed.identity, rng, share) for placed in scene.objects)
        return f"{scene.joined(phrases)} {scene.background.phrase}"


def rotate_hue(colour: np.ndarray, degrees: int | None) -> np.ndarray:
    """Turn all hues while keeping the luma; None takes the colour away."""
    if degrees == 0:
        return colour
    luma = (colour @ LUMA)[..., None]
    if degrees is None:
        return np.broadcast_to(luma, colour.shape)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    axis = 1 / math.sqrt(3)
    cross = np.array([[0, -axis, axis], [axis, 0, -axis], [-axis, axis, 0]])
    turn = c * np.eye(3) + (1 - c) / 3 * np.ones((3, 3)) + s * cross
    turned = colour @ turn.T.astype(np.float32)
    return (turned + luma - (turned @ LUMA)[..., None]).clip(0, 1)
