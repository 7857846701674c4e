"""Small pictures of numbers: bars, labelled grids and heat over an image, as (h, w, 3) uint8 tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

BACKGROUND = (24, 26, 30)
INK = (220, 222, 226)
GRID = (70, 74, 82)
FIRST, SECOND = (98, 170, 255), (255, 170, 80)
WARM = ((0.0, (13, 8, 50)), (0.25, (90, 20, 110)), (0.5, (190, 50, 85)), (0.75, (245, 130, 35)), (1.0, (252, 250, 170)))


def heat(values: Tensor) -> Tensor:
    """Values 0..1 of any shape as colours, dark violet to yellow: (..., 3) uint8."""
    stops = torch.tensor([stop for stop, _ in WARM])
    colours = torch.tensor([colour for _, colour in WARM], dtype=torch.float32)
    values = values.float().clamp(0, 1)
    upper = torch.searchsorted(stops, values.contiguous()).clamp(1, len(WARM) - 1)
    part = ((values - stops[upper - 1]) / (stops[upper] - stops[upper - 1]))[..., None]
    return torch.lerp(colours[upper - 1], colours[upper], part).round().to(torch.uint8)


def overlay(image: Tensor, amounts: Tensor, label: str, opacity: Tensor | None = None) -> Tensor:
    """Heat of `amounts` (h, w), stretched over its own range, on the greyed picture (h, w, 3) uint8, with a caption.

    `opacity` (h, w) in 0..1 fades the heat: where it is 0 the greyed picture stays without any.
    """
    inside = amounts if opacity is None or not opacity.any() else amounts[opacity > 0]
    low, high = inside.min(), inside.max()
    spread = ((amounts - low) / (high - low).clamp(min=1e-12)).clamp(min=0)
    sized = F.interpolate(spread[None, None], size=image.shape[:2], mode="bilinear")[0, 0]
    grey = image.float().mean(-1, keepdim=True)
    mixed = 0.45 * grey + 0.55 * heat(sized).float()
    if opacity is not None and not bool((opacity == 1).all()):
        shown = F.interpolate(opacity[None, None].float(), size=image.shape[:2], mode="nearest")[0, 0, :, :, None]
        mixed = torch.lerp(grey.expand_as(mixed), mixed, shown)
    return with_caption(mixed.round().to(torch.uint8), label)


def with_caption(image: Tensor, label: str) -> Tensor:
    """The picture (h, w, 3) uint8 with a line of text under it."""
    height, width, _ = image.shape
    band = max(14, min(height, width) // 20)
    canvas = _canvas(width, height + band + 6)
    canvas.paste(_to_pillow(image), (0, 0))
    ImageDraw.Draw(canvas).text((4, height + 2), label, fill=INK, font=_font(band - 2))
    return _from_pillow(canvas)


def bars(rows: Sequence[tuple[str, Tensor]], title: str) -> Tensor:
    """One or two series of numbers as bars side by side, with the scale at the left."""
    left, top, step, height = 64, 40, 12, 240
    count = max(len(values) for _, values in rows)
    canvas = _canvas(left + step * count + 20, top + height + 40)
    draw, font = ImageDraw.Draw(canvas), _font(13)
    finite = [values[torch.isfinite(values)] for _, values in rows]
    highest = max([float(values.max()) for values in finite if len(values)] + [1e-12])
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        y = top + height * (1 - fraction)
        draw.line((left, y, canvas.width - 20, y), fill=GRID)
        draw.text((6, y - 8), f"{highest * fraction:.4g}", fill=INK, font=font)
    for place, ((_, values), colour) in enumerate(zip(rows, (FIRST, SECOND), strict=False)):
        wide = (step - 3) / len(rows)
        for index, value in enumerate(values.tolist()):
            if value == value and abs(value) != float("inf"):
                x = left + step * index + wide * place
                draw.rectangle((x, top + height * (1 - value / highest), x + wide, top + height), fill=colour)
    for index in range(0, count, 7):
        draw.text((left + step * index, top + height + 6), str(index), fill=INK, font=font)
    draw.text((6, 8), title, fill=INK, font=_font(15))
    x = canvas.width - 20
    for (name, _), colour in reversed(list(zip(rows, (FIRST, SECOND), strict=False))):
        x -= int(draw.textlength(name, font=font)) + 12
        draw.text((x, top + height + 22), name, fill=colour, font=font)
    return _from_pillow(canvas)


def grid(values: Tensor, labels: Sequence[str], title: str) -> Tensor:
    """values (columns, rows) as a heat grid, each row with its label; brightness is relative to the grid's highest."""
    cell, high, top, bottom = 9, 18, 40, 34
    font = _font(13)
    labels = [label if len(label) <= 24 else label[:23] + "…" for label in labels]
    probe = ImageDraw.Draw(_canvas(1, 1))
    left = 16 + max(int(probe.textlength(label, font=font)) for label in labels)
    columns, rows = values.shape
    canvas = _canvas(left + cell * columns + 20, top + high * rows + bottom)
    draw = ImageDraw.Draw(canvas)
    colours = heat(values / values.max().clamp(min=1e-12))
    for row, label in enumerate(labels):
        y = top + high * row
        draw.text((8, y + 1), label, fill=INK, font=font)
        for column in range(columns):
            box = (left + cell * column, y, left + cell * (column + 1) - 2, y + high - 3)
            draw.rectangle(box, fill=tuple(colours[column, row].tolist()))
    for column in range(0, columns, 7):
        draw.text((left + cell * column, top + high * rows + 4), str(column), fill=INK, font=font)
    draw.text((8, 8), title, fill=INK, font=_font(15))
    return _from_pillow(canvas)


def tiles(images: Sequence[Tensor]) -> Tensor:
    """Pictures of one size (h, w, 3) uint8 as one batch of floats 0..1, (b, h, w, 3)."""
    return torch.stack(list(images)).float() / 255


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _canvas(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (max(1, int(width)), max(1, int(height))), BACKGROUND)


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3)
