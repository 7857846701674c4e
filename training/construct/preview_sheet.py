"""A contact sheet of what was written: picture, caption with its entities marked, masks, crops on both backgrounds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from kosmos_core.atomic import atomic_write
from kosmos_core.images import open_image

from ..base import contact_sheet as sheet
from .construct_config import ConstructConfig
from .square_images import resize

CELL, GAP, MARGIN = 192, 12, 24
TITLE, LINE = 18, 24  # heights of a sample's key and of a line of its caption


def write_preview(config: ConstructConfig) -> Path:
    """Write `preview.png` with `config.preview` samples spread over the shards; returns its path.

    A row is a sample: the target with its masks, then each entity's crop with its background, and on white.
    """
    chosen = list(_spread(Path(config.output), config.preview))
    columns = 1 + 2 * max((len(about["entities"]) for _, about, _ in chosen), default=1)
    width = max(columns * (CELL + GAP) - GAP, 720)
    blocks = []
    for key, about, parts in chosen:
        title = sheet.text(f"{key}, {about['source']}", width, TITLE * 2 // 3, sheet.FAINT, lines=1)
        words = sheet.marked(about["caption"], [entity["span"] for entity in about["entities"]])
        caption, images = sheet.text(words, width, LINE * 2 // 3), sheet.row(_cells(about, parts), GAP)
        blocks += [sheet.rule(width), sheet.column([title, caption, sheet.padded(images, 0, GAP // 2)])]
    samples = sheet.column(blocks[1:] or [sheet.text("No sample was written.", width)], GAP)
    path = Path(config.output, "preview.png")
    with atomic_write(path) as file:
        sheet.page(samples, MARGIN).save(file, "PNG")
    return path


def _spread(folder: Path, count: int) -> Iterator[tuple[str, dict, dict[str, bytes]]]:
    """(key, what the json says, members) of up to `count` samples, evenly spread over all."""
    shards = sorted(path for path in folder.rglob("*.tar.idx") if ".work" not in path.parts)
    offsets = [np.fromfile(path, dtype="<u8") for path in shards]
    sizes = [len(one) - 1 for one in offsets]
    total = sum(sizes)
    for number in sorted({int(i * total / min(count, total)) for i in range(min(count, total))}):
        shard = 0
        while number >= sizes[shard]:
            number -= sizes[shard]
            shard += 1
        begin, end = (int(offset) for offset in offsets[shard][number : number + 2])
        with shards[shard].with_suffix("").open("rb") as file:
            file.seek(begin)
            stretch = io.BytesIO(file.read(end - begin))
        with tarfile.open(fileobj=stretch) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        key = next(iter(members)).partition(".")[0]
        parts = {name.partition(".")[2]: content for name, content in members.items()}
        yield key, json.loads(parts["json"]), parts


def _cells(about: dict, parts: dict[str, bytes]) -> Iterator[sheet.Block]:
    target = _fitted(parts["jpg"])
    for number, entity in enumerate(about["entities"]):
        _outline(target, entity, about["size"], parts[f"{number}.mask.png"], sheet.mark(number))
    yield sheet.framed(sheet.thumbnail(Image.fromarray(target), CELL))
    for number, entity in enumerate(about["entities"]):
        crop = _fitted(parts[f"{number}.jpg"])
        inside = np.asarray(Image.open(io.BytesIO(parts[f"{number}.mask.png"]), formats=["PNG"]).resize((CELL, CELL)))[
            ..., None
        ]
        alone = np.where(inside, crop, 255).astype(np.uint8)
        for pixels, label in ((crop, f"{entity['text']} {entity['score']:.2f}"), (alone, "on white")):
            image = sheet.framed(sheet.thumbnail(Image.fromarray(pixels), CELL), sheet.mark(number))
            yield sheet.column([image, sheet.text(label, CELL, colour=sheet.mark(number), lines=1)], 2)


def _fitted(content: bytes) -> np.ndarray:
    return resize(np.array(open_image(content)), CELL).copy()


def _outline(target: np.ndarray, entity: dict, size: int, mask: bytes, colour: sheet.Colour) -> None:
    """Tint the entity's mask in the target and draw its border."""
    left, top, side = (round(value * CELL / size) for value in entity["crop"])
    side = max(1, min(side, CELL - left, CELL - top))
    inside = np.zeros((CELL, CELL), dtype=bool)
    inside[top : top + side, left : left + side] = np.asarray(
        Image.open(io.BytesIO(mask), formats=["PNG"]).convert("L").resize((side, side))
    ).astype(bool)
    core = inside.copy()
    for axis in (0, 1):
        for shift in (-1, 1, -2, 2):
            core &= np.roll(inside, shift, axis)
    tint = np.array(colour)
    target[inside] = (0.72 * target[inside] + 0.28 * tint).astype(np.uint8)
    target[inside & ~core] = tint
