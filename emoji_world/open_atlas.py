"""Sprites of the open world: over 600 nouns in four looks, 400 of them in a fifth, and other poses where they exist.

Rebuild the committed atlas (needs `npm`, the PyPI package `resvg-py` and 1 GB for the animated emoji):
    python -m emoji_world.open_atlas

Nouns are what emojibase calls the emoji of concrete groups, in one or two words. The fifth look is held out from all
training; share-alike sets are left out.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from kosmos_core.atomic import atomic_write, write_file

from .atlas import (
    EMOJIBASE,
    LOOKS,
    SPRITE,
    Look,
    attribution,
    check_tools,
    entry_of,
    fetch,
    icon_image,
    source_image,
    sprite,
)

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "open-world"
HELD_OUT_LOOK = "emojione"
OPEN_LOOKS = LOOKS | {
    HELD_OUT_LOOK: Look("vintage", "@iconify-json/emojione@1.2.3", "CC-BY-4.0", "EmojiOne 2 by JoyPixels, Inc.")
}
ANIMATED = tuple(f"@lobehub/fluent-emoji-anim-{part}@1.0.0" for part in range(1, 5))
ANIMATED_LOOK = "fluent-3d"
# Mean change of a sprite's premultiplied values, 0..1, within which a frame is another pose; what changes more is
# another thing, such as a bomb's flash.
MOVED = (0.06, 0.2)
AREA_CHANGE, FRAMES_APART = 0.3, 3

GROUPS = ("animals & nature", "food & drink", "travel & places", "activities", "objects")
# Subgroups that show times, directions or the same globe and hotel bell in many ways.
SUBGROUPS_LEFT_OUT = ("time", "hotel", "globes & maps", "geographic locations")
# Labels that tell a state or an action, name no thing, or are drawn as the same thing under two labels.
LABELS_LEFT_OUT = {
    "airplane arrival", "airplane departure", "bookmark tabs", "bowling", "construction", "cooking", "e-mail",
    "fog", "foggy", "high voltage", "incoming envelope", "knot", "level slider", "linked paperclips", "locked",
    "low battery", "motorway", "muted speaker", "oncoming automobile", "oncoming bus", "oncoming taxi",
    "performing arts", "pouring liquid", "reminder ribbon", "round pushpin", "sunrise", "sunset", "tennis",
    "unlocked", "wind face", "x-ray",
}  # fmt: skip
COLUMNS = 30  # sprites in a row of the sheet: WebP pictures have at most 16,383 pixels a side


def concrete_nouns(root: Path) -> dict[str, dict]:
    """Emojibase's entries of things by their label in lower case; labels of three words and more are left out."""
    messages = json.loads((root / "en/messages.json").read_text())
    group, subgroup = ({x["order"]: x["message"] for x in messages[kind]} for kind in ("groups", "subgroups"))
    found = {}
    for entry in json.loads((root / "en/data.json").read_text()):
        label = entry["label"].lower()
        if entry.get("group") is None or group[entry["group"]] not in GROUPS:
            continue
        if subgroup[entry["subgroup"]] in SUBGROUPS_LEFT_OUT or label in LABELS_LEFT_OUT:
            continue
        if re.fullmatch(r"[a-z][a-z-]*( [a-z-]+)?", label):
            found[label] = entry
    return dict(sorted(found.items()))


def look_of(root: Path, look: str, entry: dict) -> Image.Image | None:
    """An emoji as the look's package draws it; None where the package has none of that name or code point."""
    code = entry["hexcode"].lower()
    if look == HELD_OUT_LOOK:  # whose package gives names alone; its cricket is the game
        return (
            None
            if entry["label"] == "cricket"
            else icon_image(root, re.sub(r"[^a-z0-9]+", "-", entry["label"].lower()))
        )
    for known in dict.fromkeys((code.replace("-fe0f", ""), code)):
        try:
            return source_image(root, look, known)
        except (FileNotFoundError, KeyError, StopIteration):
            continue
    return None


def other_pose(path: Path, still: Image.Image) -> Image.Image | None:
    """The frame of an animated emoji that differs most from its still, as a sprite; None where none differs enough.

    Frames that show much more or less of it than the still are left out: it appears, flies off or bursts there.
    """
    with Image.open(path) as animation:
        numbers = range(0, getattr(animation, "n_frames", 1), FRAMES_APART)
        frames = [frame_of(animation, number) for number in numbers]
    visible = premultiplied(still)[..., 3].mean()
    frames = [sprite(frame) for frame in frames if np.asarray(frame)[..., 3].max() > 8]
    flat = [premultiplied(frame) for frame in frames]
    alike = [abs(frame[..., 3].mean() / visible - 1) < AREA_CHANGE for frame in flat]
    moved = [np.abs(frame - premultiplied(still)).mean() for frame in flat]
    moved = [change * (own and change <= MOVED[1]) for change, own in zip(moved, alike, strict=True)]
    return frames[int(np.argmax(moved))] if max(moved, default=0) >= MOVED[0] else None


def frame_of(animation: Image.Image, number: int) -> Image.Image:
    animation.seek(number)
    return animation.convert("RGBA")


def premultiplied(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image, np.float32) / 255
    return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)


def drawn(scratch: Path) -> Iterator[tuple[Image.Image, dict]]:
    """Every sprite with its entry in the table, noun by noun; a noun without all four looks is left out."""
    nouns = concrete_nouns(fetch(EMOJIBASE, scratch))
    roots = {look: fetch(source.package, scratch) for look, source in OPEN_LOOKS.items()}
    animated = {path.stem: path for package in ANIMATED for path in fetch(package, scratch).glob("assets/*.webp")}
    for noun, entry in nouns.items():
        found = {look: look_of(root, look, entry) for look, root in roots.items()}
        if any(found[look] is None for look in LOOKS):
            continue
        stills = {look: sprite(image) for look, image in found.items() if image is not None}
        for look, still in stills.items():
            yield still, entry_of(noun, look, entry)
        path = animated.get(entry["hexcode"].lower())
        pose = other_pose(path, stills[ANIMATED_LOOK]) if path else None
        if pose:
            yield pose, entry_of(noun, ANIMATED_LOOK, entry) | {"pose": 1}


def render(folder: Path) -> dict:
    """Write atlas.webp, atlas.json and ATTRIBUTION.md into `folder`; returns the table."""
    with tempfile.TemporaryDirectory() as scratch:
        sprites = list(drawn(Path(scratch)))
    rows = -(-len(sprites) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE), (0, 0, 0, 0))
    entries = []
    for number, (image, entry) in enumerate(sprites):
        row, column = divmod(number, COLUMNS)
        sheet.paste(image, (column * SPRITE, row * SPRITE))
        entries.append(entry | {"row": row, "column": column})
    table = {
        "sheet": "atlas.webp",
        "sprite": SPRITE,
        "names": {"package": EMOJIBASE, "license": "MIT"},
        "looks": {name: vars(look) for name, look in OPEN_LOOKS.items()},
        "sprites": entries,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "atlas.webp") as file:
        sheet.save(file, "WEBP", quality=80, method=6, alpha_quality=100)
    lines = [json.dumps(entry) for entry in entries]  # a line each, so that a change is read line by line
    head = json.dumps({key: value for key, value in table.items() if key != "sprites"}, indent=1)
    write_file(folder / "atlas.json", head[:-2] + ',\n "sprites": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")
    poses = f"- poses of {ANIMATED_LOOK}: one frame each of `{ANIMATED[0]}` to `-4`, MIT, packed by LobeHub"
    write_file(folder / "ATTRIBUTION.md", attribution("atlas.webp", OPEN_LOOKS, [poses]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder of the atlas")
    output = parser.parse_args().output
    check_tools()
    table = render(output)
    counts = {name: len({x["noun"] for x in table["sprites"] if x["look"] == name}) for name in OPEN_LOOKS}
    poses = sum("pose" in x for x in table["sprites"])
    print(f"{len({x['noun'] for x in table['sprites']})} nouns; looks: {counts}; {poses} other poses")


if __name__ == "__main__":
    main()
