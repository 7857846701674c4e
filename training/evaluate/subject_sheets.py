"""Contact sheets: everything of one subject on one PNG, to look at before believing a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .subjects import open_image

PAPER, INK, FAINT, LINE, ALARM = "#ffffff", "#1c1c1e", "#77777d", "#e3e3e8", "#c2410c"
MARGIN, GAP, THUMBNAIL, HEADER = 32, 6, 152, 176
COLUMNS = 2  # of prompts


def contact_sheet(
    title: str, shown: Sequence[Path], records: Sequence[Mapping[str, Any]], root: Path, copy_threshold: float | None
) -> Image.Image:
    """The shown pictures on top, then every prompt with its results and their DINO and CLIP-T; likely copies stand out.

    `records` are the scored pictures of one subject, with paths relative to `root`.
    """
    prompts: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["path"]):
        prompts.setdefault(record["prompt"], []).append(record)
    across = max(map(len, prompts.values()))
    block_width = max(across, 3) * (THUMBNAIL + GAP) - GAP
    block_height = 28 + THUMBNAIL + 18 + 20
    columns = min(COLUMNS, len(prompts))
    rows = -(-len(prompts) // columns)
    width = 2 * MARGIN + columns * block_width + (columns - 1) * MARGIN
    sheet = Image.new("RGB", (width, MARGIN + HEADER + 24 + rows * block_height + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _header(sheet, draw, shown)
    draw.text((left, MARGIN + 18), title, fill=INK, font=_font(30))
    draw.text((left, MARGIN + 62), _summary(records), fill=FAINT, font=_font(17))
    note = "below each picture: DINO / CLIP-T"
    if copy_threshold is not None:
        note += f"; orange: foreground alike above {copy_threshold:.2f}, a likely copy"
    for line, text in enumerate(_wrapped(draw, note, _font(14), width - MARGIN - left)):
        draw.text((left, MARGIN + 92 + 19 * line), text, fill=FAINT, font=_font(14))
    rule = MARGIN + HEADER
    draw.line((MARGIN, rule, width - MARGIN, rule), fill=LINE, width=1)
    for number, (prompt, found) in enumerate(prompts.items()):
        x = MARGIN + number % columns * (block_width + MARGIN)
        y = MARGIN + HEADER + 24 + number // columns * block_height
        draw.text((x, y), _shortened(draw, prompt, _font(16), block_width), fill=INK, font=_font(16))
        for place, record in enumerate(found):
            left = x + place * (THUMBNAIL + GAP)
            sheet.paste(_square(root / record["path"], THUMBNAIL), (left, y + 26))
            likely_copy = copy_threshold is not None and record.get("copy", 0) > copy_threshold
            if likely_copy:
                box = (left - 2, y + 24, left + THUMBNAIL + 1, y + 27 + THUMBNAIL)
                draw.rectangle(box, outline=ALARM, width=3)
            if record.get("dino") is not None:
                caption = f"{record['dino']:.2f} / {record['clip_t']:.2f}"
                colour = ALARM if likely_copy else FAINT
                draw.text((left, y + 30 + THUMBNAIL), caption, fill=colour, font=_font(13))
    return sheet


def _header(sheet: Image.Image, draw: ImageDraw.ImageDraw, shown: Sequence[Path]) -> int:
    """Paste the shown pictures; returns where text may begin."""
    left, size = MARGIN, HEADER - 24
    for path in shown:
        sheet.paste(_square(path, size), (left, MARGIN))
        draw.rectangle((left, MARGIN, left + size - 1, MARGIN + size - 1), outline=LINE)
        left += size + GAP
    return left + 18


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for name, metric in (("DINO", "dino"), ("CLIP-I", "clip_i"), ("CLIP-T", "clip_t")):
        values = [record[metric] for record in records if record.get(metric) is not None]
        if values:
            parts.append(f"{name} {sum(values) / len(values):.3f}")
    return "   ".join([*parts, f"{len(records)} pictures"])


def _square(path: Path, size: int) -> Image.Image:
    """The picture's centre square, resized."""
    image = open_image(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
