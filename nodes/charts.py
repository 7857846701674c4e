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
LEAST_WIDTH = 256  # pixels of a picture with a caption
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
    """The picture (h, w, 3) uint8 with a line of text under it; a narrow one is enlarged, so that the text has room."""
    factor = -(-LEAST_WIDTH // image.shape[1])
    image = image.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    height, width, _ = image.shape
    band = max(18, min(height, width) // 20)
    canvas = _canvas(width, height + band + 6)
    canvas.paste(_to_pillow(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    size = next((size for size in range(band - 4, 9, -1) if draw.textlength(label, font=_font(size)) <= width - 8), 9)
    draw.text((4, height + 2), fitting(label, width - 8, size), fill=INK, font=_font(size))
    return _from_pillow(canvas)


def fitting(label: str, width: int, size: int) -> str:
    """The label, or as much of its beginning and of its last word, the number, as `width` pixels take."""
    draw, font = ImageDraw.Draw(_canvas(1, 1)), _font(size)
    start, _, number = label.rpartition(" ")
    shown = label
    while start and draw.textlength(shown, font=font) > width:
        start = start[:-1]
        shown = f"{start}… {number}"
    return shown


def bars(rows: Sequence[tuple[str, Tensor]], title: str) -> Tensor:
    """One or two series of numbers as bars side by side, with the scale at the left.

    The scale begins below the lowest number, not at 0, where all are far from it: their differences are what is told.
    """
    left, top, step, height, foot = 64, 52, 12, 240, 48
    count = max(len(values) for _, values in rows)
    canvas = _canvas(left + step * count + 20, top + height + foot)
    draw, font = ImageDraw.Draw(canvas), _font(13)
    lowest, highest = scale_of([values for _, values in rows])
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        y = top + height * (1 - fraction)
        draw.line((left, y, canvas.width - 20, y), fill=GRID)
        draw.text((6, y - 8), f"{lowest + (highest - lowest) * fraction:.4g}", fill=INK, font=font)
    for place, ((_, values), colour) in enumerate(zip(rows, (FIRST, SECOND), strict=False)):
        wide = (step - 3) / len(rows)
        for index, value in enumerate(values.tolist()):
            if value == value and abs(value) != float("inf"):
                x = left + step * index + wide * place
                y = top + height * (1 - (value - lowest) / (highest - lowest))
                draw.rectangle((x, y, x + wide, top + height), fill=colour)
    for index in range(0, count, 7):
        draw.text((left + step * index, top + height + 6), str(index), fill=INK, font=font)
    draw.text((6, 8), title, fill=INK, font=_font(15))
    base = "the scale begins at 0" if not lowest else f"the scale begins at {lowest:.4g}, not at 0"
    draw.text((6, 29), base, fill=INK, font=font)
    x = canvas.width - 20
    for (name, _), colour in reversed(list(zip(rows, (FIRST, SECOND), strict=False))):
        x -= int(draw.textlength(name, font=font)) + 12
        draw.text((x, top + height + 28), name, fill=colour, font=font)
    return _from_pillow(canvas)


def scale_of(rows: Sequence[Tensor]) -> tuple[float, float]:
    """Lowest and highest number of a scale for all finite values; 0 is the lowest unless they lie far above it."""
    finite = torch.cat([values[torch.isfinite(values)].flatten() for values in rows])
    if not len(finite) or finite.max() <= 0:
        return 0.0, 1e-12
    least, most = float(finite.min()), float(finite.max())
    room = 0.15 * (most - least)
    # Equal numbers stand at half of the height; below a third of the highest, 0 is near enough to be shown.
    lowest = least - room if least > most / 3 else 0.0
    return (lowest, most + room) if most > least else (0.0, 2 * most)


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
