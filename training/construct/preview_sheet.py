"""A contact sheet of what was written: picture, caption with its entities marked, masks, crops on both backgrounds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .construct_config import ConstructConfig
from .preparation import resize

CELL = 192
GAP = 12
MARGIN = 24
TITLE, LINE = 18, 24  # heights of a sample's key and of a line of its caption
PAPER, INK, FAINT = (250, 250, 248), (32, 33, 36), (130, 132, 138)
# Okabe and Ito's palette: told apart by colour-blind readers too.
Colour = tuple[int, int, int]
Word = tuple[float, float, str, Colour | None]  # x, length, word, colour of the entity it belongs to
MARKS = [(213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0)]


def write_preview(config: ConstructConfig) -> Path:
    """Write `preview.png` with `config.preview` samples spread over the shards; returns its path.

    A row is a sample: the target with its masks, then each entity's crop with its background, and on white.
    """
    chosen = list(_spread(Path(config.output), config.preview))
    columns = 1 + 2 * max((len(about["entities"]) for _, about, _ in chosen), default=1)
    width = max(2 * MARGIN + columns * CELL + (columns - 1) * GAP, 720)
    captions = [_wrapped(about, width - 2 * MARGIN) for _, about, _ in chosen]
    heights = [TITLE + len(lines) * LINE + CELL + 3 * GAP for lines in captions]
    sheet = Image.new("RGB", (width, max(2 * MARGIN + sum(heights) - 2 * GAP, 120)), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for (key, about, parts), lines, height in zip(chosen, captions, heights, strict=True):
        if top > MARGIN:
            draw.line([(MARGIN, top - GAP), (width - MARGIN, top - GAP)], fill=(224, 224, 220))
        draw.text((MARGIN, top), f"{key}    {about['source']}"[: width // 7], font=_font(12), fill=FAINT)
        _draw_caption(draw, top + TITLE, lines)
        _draw_images(sheet, top + TITLE + len(lines) * LINE + GAP // 2, about, parts)
        top += height
    path = Path(config.output, "preview.png")
    partial = path.with_name(".preview.png.tmp")
    sheet.save(partial, "PNG")
    partial.replace(path)
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


def _colour(number: int) -> Colour:
    return MARKS[number % len(MARKS)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _wrapped(about: dict, width: int) -> list[list[Word]]:
    """The caption's words, line by line."""
    draw, font = ImageDraw.Draw(Image.new("L", (1, 1))), _font(17)
    space = draw.textlength(" ", font=font)
    lines: list[list[Word]] = [[]]
    x, position = 0.0, 0
    for word in about["caption"].split(" "):
        inside = [i for i, e in enumerate(about["entities"]) if e["span"][0] <= position < e["span"][1]]
        length = draw.textlength(word, font=font)
        if lines[-1] and x + length > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, length, word, _colour(inside[0]) if inside else None))
        x += length + space
        position += len(word) + 1
    return lines


def _draw_caption(draw: ImageDraw.ImageDraw, top: int, lines: list[list[Word]]) -> None:
    """The caption, each entity's words underlined in its colour."""
    for number, line in enumerate(lines):
        y = top + number * LINE
        for x, length, word, colour in line:
            draw.text((MARGIN + x, y), word, font=_font(17), fill=colour or INK)
            if colour:
                draw.line([(MARGIN + x, y + 21), (MARGIN + x + length, y + 21)], fill=colour, width=2)


def _draw_images(sheet: Image.Image, top: int, about: dict, parts: dict[str, bytes]) -> None:
    target = _fitted(parts["jpg"])
    for number, entity in enumerate(about["entities"]):
        _outline(target, entity, about["size"], parts[f"{number}.mask.png"], _colour(number))
    _paste(sheet, target, 0, top)
    for number, entity in enumerate(about["entities"]):
        crop = _fitted(parts[f"{number}.jpg"])
        mask = np.asarray(Image.open(io.BytesIO(parts[f"{number}.mask.png"])).resize((CELL, CELL)))[..., None]
        label = f"{entity['text']}  {entity['score']:.2f}"
        _paste(sheet, crop, 1 + 2 * number, top, _colour(number), label)
        _paste(sheet, np.where(mask, crop, 255).astype(np.uint8), 2 + 2 * number, top, _colour(number), "on white")


def _fitted(content: bytes) -> np.ndarray:
    return resize(np.array(Image.open(io.BytesIO(content)).convert("RGB")), CELL).copy()


def _outline(target: np.ndarray, entity: dict, size: int, mask: bytes, colour: Colour) -> None:
    """Tint the entity's mask in the target and draw its border."""
    left, top, side = (round(value * CELL / size) for value in entity["crop"])
    side = max(1, min(side, CELL - left, CELL - top))
    inside = np.zeros((CELL, CELL), dtype=bool)
    inside[top : top + side, left : left + side] = np.asarray(
        Image.open(io.BytesIO(mask)).convert("L").resize((side, side))
    ).astype(bool)
    core = inside.copy()
    for axis in (0, 1):
        for shift in (-1, 1, -2, 2):
            core &= np.roll(inside, shift, axis)
    tint = np.array(colour)
    target[inside] = (0.72 * target[inside] + 0.28 * tint).astype(np.uint8)
    target[inside & ~core] = tint


def _paste(
    sheet: Image.Image, pixels: np.ndarray, column: int, top: int, colour: Colour | None = None, label: str = ""
) -> None:
    left = MARGIN + column * (CELL + GAP)
    sheet.paste(Image.fromarray(pixels), (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle([left - 1, top - 1, left + CELL, top + CELL], outline=colour or (210, 210, 206))
    if label:
        font = _font(12)
        while len(label) > 4 and draw.textlength(label, font=font) > CELL - 12:
            label = label[:-5] + "..."
        draw.rectangle([left, top, left + draw.textlength(label, font=font) + 10, top + 17], fill=colour)
        draw.text((left + 5, top + 1), label, font=font, fill="white")
