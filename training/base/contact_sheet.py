"""Contact sheets: pictures and words on one page, to look at before believing a number.

A sheet is put together from blocks: `thumbnail`, `text` and `rule` make one, `row`, `column`, `grid`, `padded` and
`framed` make one from others, and `page` draws it. Lengths are in pixels.

    page(column([text("Two cats", 400, size=24), row([thumbnail(first, 192), thumbnail(second, 192)])]))
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

Colour = str | tuple[int, int, int]
PAPER, INK, FAINT, LINE = (250, 250, 248), (32, 33, 36), (130, 132, 138), (224, 224, 220)
# Okabe and Ito's palette: told apart by colour-blind readers too.
MARKS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0))


@dataclass(frozen=True)
class Block:
    """A part of a sheet. draw(canvas, left, top) draws it with its upper left corner there."""

    width: int
    height: int
    draw: Callable[[Image.Image, int, int], None]


def thumbnail(
    source: Image.Image, side: int, method: Image.Resampling = Image.Resampling.LANCZOS, cover: bool = False
) -> Block:
    """A square with the whole image in its middle or, with `cover`, with the image's centre square."""
    fit = ImageOps.fit if cover else ImageOps.contain
    shown = fit(source.convert("RGB"), (side, side), method)
    left, top = (side - shown.width) // 2, (side - shown.height) // 2
    return Block(side, side, lambda canvas, x, y: canvas.paste(shown, (x + left, y + top)))


def text(
    words: str | Sequence[tuple[str, Colour | None]],
    width: int,
    size: int = 12,
    colour: Colour = INK,
    lines: int | None = None,
) -> Block:
    """Words in lines of 1.5 times their size; what is wider than `width` or beyond `lines` ends with an ellipsis.

    words: a string, or pieces of it, each with a colour that its words are shown and underlined in, or None.
    """
    pieces = [(words, None)] if isinstance(words, str) else words
    whole, colours = "".join(piece for piece, _ in pieces), [own for piece, own in pieces for _ in piece]
    font, step = _font(size), size * 3 // 2
    blank = font.getlength(" ")
    placed: list[tuple[float, int, str, Colour | None]] = []  # x, number of the line, word, its colour
    x, line = 0.0, 0
    for found in re.finditer(r"\S+", whole):
        word = _shortened(found[0], width, font)
        if x and x + font.getlength(word) > width:
            x, line = 0.0, line + 1
        if line == lines:
            before, line, last, own = placed.pop()
            placed.append((before, line, _shortened(f"{last}\u2026", width - before, font), own))
            break
        placed.append((x, line, word, colours[found.start()]))
        x += font.getlength(word) + blank

    def draw(canvas: Image.Image, left: int, top: int) -> None:
        pen, previous = ImageDraw.Draw(canvas), None
        for x, line, word, own in placed:
            y = top + line * step
            pen.text((left + x, y), word, own or colour, font)
            if own:
                begin = left + x - (blank if previous == (line, own) else 0)
                y += size * 5 // 4
                pen.line((begin, y, left + x + font.getlength(word), y), own, 2)
            previous = line, own

    return Block(width, (line + 1) * step, draw)


def marked(caption: str, spans: Iterable[tuple[int, int]]) -> list[tuple[str, Colour | None]]:
    """A caption as the pieces that `text` takes; each of the spans (start, end), in order, has a colour of MARKS."""
    pieces, position = [], 0
    for number, (start, end) in enumerate(spans):
        pieces += [(caption[position:start], None), (caption[start:end], mark(number))]
        position = end
    return [*pieces, (caption[position:], None)]


def mark(number: int) -> Colour:
    """The colour of something by its number."""
    return MARKS[number % len(MARKS)]


def rule(width: int) -> Block:
    """A thin line across."""
    return Block(width, 1, lambda canvas, x, y: ImageDraw.Draw(canvas).line((x, y, x + width, y), LINE))


def space(width: int, height: int) -> Block:
    """Nothing."""
    return Block(width, height, lambda canvas, x, y: None)


def row(blocks: Iterable[Block], gap: int = 0, centred: bool = False) -> Block:
    """Blocks side by side, with their upper edges or, `centred`, their middles in one line."""
    blocks = list(blocks)
    height = max((block.height for block in blocks), default=0)

    def draw(canvas: Image.Image, left: int, top: int) -> None:
        for block in blocks:
            block.draw(canvas, left, top + (height - block.height) // 2 * centred)
            left += block.width + gap

    return Block(sum(block.width + gap for block in blocks) - gap * bool(blocks), height, draw)


def column(blocks: Iterable[Block], gap: int = 0, centred: bool = False) -> Block:
    """Blocks below each other, with their left edges or, `centred`, their middles in one line."""
    blocks = list(blocks)
    width = max((block.width for block in blocks), default=0)

    def draw(canvas: Image.Image, left: int, top: int) -> None:
        for block in blocks:
            block.draw(canvas, left + (width - block.width) // 2 * centred, top)
            top += block.height + gap

    return Block(width, sum(block.height + gap for block in blocks) - gap * bool(blocks), draw)


def grid(blocks: Sequence[Block], columns: int, gap: int = 0) -> Block:
    """Rows of `columns` blocks of one width, the last row as long as it comes."""
    return column((row(blocks[i : i + columns], gap) for i in range(0, len(blocks), columns)), gap)


def padded(block: Block, across: int, down: int) -> Block:
    """A block with space left and right of it, and above and below."""
    return Block(
        block.width + 2 * across, block.height + 2 * down, lambda canvas, x, y: block.draw(canvas, x + across, y + down)
    )


def framed(block: Block, colour: Colour = LINE, line: int = 1, fill: Colour | None = None, height: int = 0) -> Block:
    """A block, at least `height` high, on a ground of its own and with a frame drawn around it, outside its size."""
    height = max(height, block.height)

    def draw(canvas: Image.Image, left: int, top: int) -> None:
        box = left - line, top - line, left + block.width + line - 1, top + height + line - 1
        ImageDraw.Draw(canvas).rectangle(box, fill, colour, line)
        block.draw(canvas, left, top)

    return Block(block.width, height, draw)


def page(block: Block, margin: int = 24, paper: Colour = PAPER) -> Image.Image:
    """The drawn sheet."""
    sheet = Image.new("RGB", (block.width + 2 * margin, block.height + 2 * margin), paper)
    block.draw(sheet, margin, margin)
    return sheet


def _shortened(word: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """As much of the start of a word as fits the width."""
    if font.getlength(word) <= width:
        return word
    fitting = bisect_right(range(len(word)), width, key=lambda length: font.getlength(word[:length] + "\u2026"))
    return word[: max(fitting - 1, 0)] + "\u2026"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
