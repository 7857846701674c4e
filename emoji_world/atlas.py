"""Sprites of the emoji world: one small picture per noun and look, with names and licences.

Rebuild the committed atlas (needs `npm` and the PyPI package `resvg-py`):
    python -m emoji_world.atlas
Make the held-out OpenMoji look, which is share-alike and therefore never committed:
    python -m emoji_world.atlas --openmoji .cache/world/openmoji
"""

import argparse
import importlib.util
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from kosmos_core.atomic import atomic_write, write_file

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "world"
SPRITE = 64

# Code point -> noun as captions say it. The noun must occur in emojibase's label or tags (checked when building).
NOUNS = {
    "1f34e": "apple", "1f34c": "banana", "1f353": "strawberry", "1f955": "carrot", "1f355": "pizza", "1f354":
    "hamburger", "1f369": "donut", "1f349": "watermelon", "1f431": "cat", "1f436": "dog", "1f438": "frog",
    "1f98a": "fox", "1f437": "pig", "1f981": "lion", "1f420": "fish", "1f98b": "butterfly", "1f419": "octopus",
    "1f422": "turtle", "1f41d": "bee", "1f697": "car", "1f68c": "bus", "1f680": "rocket", "26f5": "sailboat",
    "1f3e0": "house", "1f333": "tree", "1f335": "cactus", "1f344": "mushroom", "1f33b": "sunflower", "1f388":
    "balloon", "1f3b8": "guitar", "2764": "heart", "2b50": "star", "1f451": "crown", "1f381": "gift", "1f34b":
    "lemon", "1f980": "crab",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Where the pictures of one style come from, and the word by which captions call the style."""

    word: str
    package: str
    license: str
    credit: str


LOOKS = {
    "noto": Look("painted", "@iconify-json/noto@1.2.9", "Apache-2.0", "Noto Emoji by Google Inc."),
    "fluent-3d": Look(
        "glossy", "@lobehub/fluent-emoji-3d@1.1.0", "MIT", "Fluent Emoji by Microsoft, packed by LobeHub"
    ),
    "fluent-flat": Look("flat", "@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Fluent Emoji Flat by Microsoft"),
    "twemoji": Look(
        "sticker", "@twemoji/svg@15.0.0", "CC-BY-4.0", "Twemoji graphics, copyright Twitter, Inc and other contributors"
    ),
}
OPENMOJI = Look("outlined", "openmoji@17.0.0", "CC-BY-SA-4.0", "OpenMoji, the open-source emoji and icon project")
EMOJIBASE = "emojibase-data@17.0.0"


class Atlas:
    """Sprites by noun and look: straight (not premultiplied) alpha, uint8 (64, 64, 4); `poses` are other drawings."""

    def __init__(
        self,
        sprites: dict[tuple[str, str], np.ndarray],
        words: dict[str, str],
        poses: dict[tuple[str, str], np.ndarray] | None = None,
    ):
        self.sprites, self.words, self.poses = sprites, words, poses or {}

    @property
    def nouns(self) -> list[str]:
        return sorted({noun for noun, _ in self.sprites})

    @property
    def looks(self) -> list[str]:
        return sorted({look for _, look in self.sprites})

    @classmethod
    def load(cls, folder: str | Path = ASSETS, module: str = "emoji_world.atlas") -> "Atlas":
        """Read atlas.json and its sheet. Raises FileNotFoundError with the command that makes them."""
        folder = Path(folder)
        if not (folder / "atlas.json").exists():
            raise FileNotFoundError(f"{folder} holds no atlas.json; make it with `python -m {module}`")
        table = json.loads((folder / "atlas.json").read_text())
        sheet = np.asarray(Image.open(folder / table.get("sheet", "atlas.png")).convert("RGBA"))
        size = table["sprite"]
        sprites, poses = {}, {}
        for entry in table["sprites"]:
            row, column = entry["row"] * size, entry["column"] * size
            found = poses if "pose" in entry else sprites
            found[entry["noun"], entry["look"]] = sheet[row : row + size, column : column + size]
        return cls(sprites, {name: look["word"] for name, look in table["looks"].items()}, poses)


def check_tools() -> None:
    """Asked before anything is fetched. Raises SystemExit where a sprite could not be drawn in the end."""
    if shutil.which("npm") is None:
        raise SystemExit("The sprites come in npm packages, and there is no npm on this machine: install Node.js.")
    if importlib.util.find_spec("resvg_py") is None:
        raise SystemExit('Drawing SVG files needs resvg-py: pip install -e ".[train,world]".')


def fetch(package: str, folder: Path) -> Path:
    """Unpack one npm package below `folder` and return its root."""
    name = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    root = folder / name.removesuffix(".tgz")
    with tarfile.open(folder / name.split("\n")[-1]) as archive:
        archive.extractall(root, filter="data")
    return root / "package"


def source_image(root: Path, look: str, code: str) -> Image.Image:
    """The emoji as its package draws it, RGBA at 256 pixels or the package's own size."""
    if look == "fluent-3d":
        names = [f"{code}.webp", f"{code}-fe0f.webp"]
        path = next(root / "assets" / name for name in names if (root / "assets" / name).exists())
        return Image.open(path).convert("RGBA")
    if look == "twemoji":
        svg = (root / f"{code}.svg").read_text()
    elif look == "openmoji":
        names = [f"{code.upper()}.svg", f"{code.upper()}-FE0F.svg"]
        svg = next(root / "color/svg" / n for n in names if (root / "color/svg" / n).exists()).read_text()
    else:
        return icon_image(root, read_json(root / "chars.json")[code])
    return svg_image(svg)


def icon_image(root: Path, name: str) -> Image.Image | None:
    """An icon of an Iconify package by its name, RGBA at 256 pixels; None where there is none of that name."""
    icons = read_json(root / "icons.json")
    icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
    if icon is None:
        return None
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    return svg_image(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>')


@lru_cache(maxsize=16)
def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def svg_image(svg: str) -> Image.Image:
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256)))).convert("RGBA")


def sprite(image: Image.Image, size: int = SPRITE) -> Image.Image:
    """Crop to what is visible, pad to a square, resize. Straight alpha in and out: Pillow weighs by alpha itself."""
    alpha = np.asarray(image)[..., 3] > 8
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    image = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    side = max(image.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def render(looks: dict[str, Look], folder: Path) -> None:
    """Write atlas.png, atlas.json and ATTRIBUTION.md of the given looks into `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        emoji = json.loads((fetch(EMOJIBASE, scratch) / "en/data.json").read_text())
        data = {entry["hexcode"].lower().replace("-fe0f", ""): entry for entry in emoji}
        for code, noun in NOUNS.items():
            known = data[code]["label"].split() + data[code]["tags"]
            if noun not in known:
                raise ValueError(f"{code} is called {noun!r} here, but emojibase knows it only as {', '.join(known)}")
        sheet = Image.new("RGBA", (len(looks) * SPRITE, len(NOUNS) * SPRITE), (0, 0, 0, 0))
        entries = []
        for column, (look, source) in enumerate(looks.items()):
            root = fetch(source.package, scratch)
            for row, (code, noun) in enumerate(NOUNS.items()):
                sheet.paste(sprite(source_image(root, look, code)), (column * SPRITE, row * SPRITE))
                entries.append(entry_of(noun, look, data[code]) | {"row": row, "column": column})
    table = {
        "sprite": SPRITE,
        "names": {"package": EMOJIBASE, "license": "MIT"},
        "looks": {name: vars(look) for name, look in looks.items()},
        "sprites": entries,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "atlas.png") as file:
        sheet.save(file, "PNG", optimize=True)
    write_file(folder / "atlas.json", json.dumps(table, indent=1) + "\n")
    write_file(folder / "ATTRIBUTION.md", attribution("atlas.png", looks))


def entry_of(noun: str, look: str, emoji: dict) -> dict:
    """What the table says of a sprite, beside its place."""
    code = emoji["hexcode"].lower().replace("-fe0f", "")
    return {"noun": noun, "look": look, "code": code, "label": emoji["label"]}


def attribution(sheet: str, looks: dict[str, Look], more: Sequence[str] = ()) -> str:
    """The page that stands beside a sheet: whose pictures it holds, under which licences, and what was changed."""
    lines = [f"# Pictures in {sheet}", "", "Cropped to what is visible and resized to 64 x 64.", ""]
    lines += [f"- {look}: {x.credit} (npm package `{x.package}`), {x.license}" for look, x in looks.items()]
    lines += [
        *more,
        "",
        "Names and tags: emojibase-data 17.0.0, MIT.",
        "Licence texts: <https://www.apache.org/licenses/LICENSE-2.0>, <https://opensource.org/license/mit>,",
        "<https://creativecommons.org/licenses/by/4.0/>. Changes: cropped, resized; scenes shift hues.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openmoji", type=Path, metavar="FOLDER", help="make only the held-out look, into FOLDER")
    arguments = parser.parse_args()
    check_tools()
    if arguments.openmoji:
        render({"openmoji": OPENMOJI}, arguments.openmoji)
    else:
        render(LOOKS, ASSETS)


if __name__ == "__main__":
    main()
