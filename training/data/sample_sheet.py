"""A contact sheet: some samples of a data set with their pictures and prompts, for a person to judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .cookers import COOKERS
from .decoding import decode, decode_mask, on_white
from .index import IndexedDataset
from .reader import Reader
from .sample_types import BadSample, CaptionSample, CompositionalSample, EditSample, InterleavedSample

COLUMNS, CARD, GAP, MARGIN = 4, 420, 20, 28
IMAGE, SMALL = 300, 92
PAPER, INK, FAINT, LINE = "#f4f2ee", "#22211f", "#8b8780", "#dcd8d0"
MARKS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#b45309")


Words = list[tuple[str, int | None]]


@dataclass
class Card:
    """What is shown of one sample. words: (text, number of the picture that it names or None)."""

    key: str
    words: Words
    large: list[Image.Image] = field(default_factory=list)
    small: list[Image.Image] = field(default_factory=list)


def contact_sheet(dataset: IndexedDataset, kind: str, count: int) -> Image.Image | None:
    """`count` usable samples from all over the data set on one page; None where there is none."""
    reader, cook = Reader(dataset, kind), COOKERS[kind]
    cards: list[Card] = []
    tried: set[int] = set()
    for attempt in range(4):  # evenly spread places first, then the ones beside those that were unusable
        for place in range(count):
            index = place * len(reader) // count + attempt
            if len(cards) < count and index < len(reader) and index not in tried:
                tried.add(index)
                try:
                    cards.append(_card(cook(reader[index])))
                except BadSample:
                    continue
    if not cards:
        return None
    drawn = [_draw(card) for card in cards]
    rows = [drawn[start : start + COLUMNS] for start in range(0, len(drawn), COLUMNS)]
    heights = [max(card.height for card in row) for row in rows]
    width = 2 * MARGIN + COLUMNS * CARD + (COLUMNS - 1) * GAP
    head = 64
    page = Image.new("RGB", (width, head + MARGIN + sum(heights) + GAP * (len(rows) - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, 24), f"{dataset.root.name or dataset.root}", INK, _font(26))
    told = f"{kind}, {len(dataset):,} samples in {len(dataset.shards):,} files"
    draw.text((width - MARGIN, 32), told, FAINT, _font(17), anchor="ra")
    top = head + MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            framed = Image.new("RGB", (CARD, height), "white")
            framed.paste(card)
            ImageDraw.Draw(framed).rectangle((0, 0, CARD - 1, height - 1), outline=LINE)
            page.paste(framed, (MARGIN + column * (CARD + GAP), top))
        top += height + GAP
    return page


def _card(sample) -> Card:
    key = sample.__key__
    if isinstance(sample, CaptionSample):
        return Card(key, [(sample.caption, None)], [decode(sample.image)] if sample.image else [])
    if isinstance(sample, EditSample):
        words = [(f"{sample.caption}: " if sample.caption else "", None), (sample.instruction, 0)]
        return Card(key, words, [decode(image) for image in sample.pairs[0]])
    if isinstance(sample, CompositionalSample):
        words, small, position = [], [], 0
        for number, entity in enumerate(sample.entities):
            words += [
                (sample.caption[position : entity.start], None),
                (sample.caption[entity.start : entity.end], number),
            ]
            position = entity.end
            crop = decode(entity.crop)
            small.append(crop)
            if entity.mask is not None or entity.on_white is not None:
                alone = decode(entity.on_white) if entity.on_white else on_white(crop, decode_mask(entity.mask))
                small.append(alone)
        return Card(key, [*words, (sample.caption[position:], None)], [decode(sample.target)], small)
    if isinstance(sample, InterleavedSample):
        words, small = [], []
        for segment in sample.segments:
            if isinstance(segment, bytes):
                words.append((f"[{len(small) + 1}] ", len(small)))
                small.append(decode(segment))
            else:
                words.append((segment.strip() + " ", None))
        return Card(key, words, small=small)
    return Card(key, [(sample.text, None)])


def _draw(card: Card) -> Image.Image:
    """A card as high as its content."""
    image = Image.new("RGB", (CARD, 1400), "white")
    draw, inner, top = ImageDraw.Draw(image), CARD - 2 * 16, 16
    if card.large:
        side = IMAGE if len(card.large) == 1 else (inner - 10) // 2
        left = 16 + (inner - side * len(card.large) - 10 * (len(card.large) - 1)) // 2
        for source in card.large:
            shown = ImageOps.contain(source, (side, side), Image.Resampling.LANCZOS)
            image.paste(shown, (left + (side - shown.width) // 2, top + (side - shown.height) // 2))
            left += side + 10
        top += side + 14
    for start in range(0, min(len(card.small), 8), 4):
        for column, source in enumerate(card.small[start : start + 4]):
            shown = ImageOps.contain(source, (SMALL, SMALL), Image.Resampling.LANCZOS)
            left = 16 + column * (SMALL + 6)
            image.paste(shown, (left + (SMALL - shown.width) // 2, top + (SMALL - shown.height) // 2))
            draw.rectangle((left - 1, top - 1, left + SMALL, top + SMALL), outline=LINE)
        top += SMALL + 8
    top = _write(draw, card.words, 16, top + 4, inner, lines=7 if card.large or card.small else 14)
    draw.text((16, top + 8), _shortened(card.key, inner, _font(13)), FAINT, _font(13))
    return image.crop((0, 0, CARD, top + 36))


def _write(draw: ImageDraw.ImageDraw, words: Words, left: int, top: int, width: int, lines: int) -> int:
    """Write words in lines, those that name a picture in its colour and underlined; returns the lower edge."""
    font, x, line, step = _font(18), 0, 0, 26
    space = font.getlength(" ")
    for text, mark in words:
        follows = False
        for word in text.split():
            word = _shortened(word, width, font)
            if x and x + font.getlength(word) > width:
                x, line, follows = 0, line + 1, False
            if line == lines:
                draw.text((left, top + line * step - 8), "\u2026", FAINT, font)
                return top + line * step + 12
            colour = INK if mark is None else MARKS[mark % len(MARKS)]
            draw.text((left + x, top + line * step), word, colour, font)
            if mark is not None:
                begin, end = left + x - space * follows, left + x + font.getlength(word)
                draw.line((begin, top + line * step + 22, end, top + line * step + 22), colour, 2)
            x, follows = x + font.getlength(word) + space, True
    return top + (line + 1) * step


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text, or as much of its start as fits the width."""
    while text and font.getlength(text) > width:
        text = text[: max(len(text) - 2 - len(text) // 8, 0)].rstrip("\u2026") + "\u2026" if len(text) > 2 else ""
    return text


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
