"""The contact sheet of a data set: some of its samples with their pictures and prompts, for a person to judge."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from PIL import Image

from kosmos_core.images import MAX_PIXELS

from ..base import contact_sheet as sheet
from .cookers import cook
from .decoding import decode, decode_mask, on_white
from .index import IndexedDataset
from .reader import Reader
from .sample_types import BadSample, CaptionSample, CompositionalSample, EditSample, InterleavedSample, one_bad_sample

COLUMNS, CARD, GAP, MARGIN = 4, 420, 20, 28
INSIDE = CARD - 2 * 16
LARGE, SMALL, MOST_SMALL = 300, 92, 8


@dataclass
class Card:
    """What is shown of one sample. words: pieces of its text, each with the colour of the image that it names."""

    key: str
    words: list[tuple[str, sheet.Colour | None]]
    large: list[Image.Image] = field(default_factory=list)
    small: list[Image.Image] = field(default_factory=list)


def dataset_sheet(dataset: IndexedDataset, kind: str, count: int, max_pixels: int = MAX_PIXELS) -> Image.Image | None:
    """`count` usable samples from all over the data set on one page; None where there is none."""
    reader = Reader(dataset, kind)
    cards: list[Card] = []
    tried: set[int] = set()
    for attempt in range(4):  # evenly spread places first, then the ones beside those that were unusable
        for place in range(count):
            index = place * len(reader) // count + attempt
            if len(cards) < count and index < len(reader) and index not in tried:
                tried.add(index)
                with contextlib.suppress(BadSample), one_bad_sample():
                    cards.append(_card(cook(kind, reader[index], max_pixels)))
    if not cards:
        return None
    width = COLUMNS * CARD + (COLUMNS - 1) * GAP
    told = f"{kind}, {len(dataset):,} samples in {len(dataset.shards):,} files"
    name = str(dataset.root.name or dataset.root)
    header = sheet.column([sheet.text(name, width, 26, lines=1), sheet.text(told, width, 17, sheet.FAINT)])
    rows = []
    for start in range(0, len(cards), COLUMNS):
        drawn = [_drawn(card) for card in cards[start : start + COLUMNS]]
        height = max(card.height for card in drawn)
        rows.append(sheet.row([sheet.framed(card, fill="white", height=height) for card in drawn], GAP))
    return sheet.page(sheet.column([header, *rows], GAP), MARGIN)


def _card(sample) -> Card:
    key = sample.__key__
    if isinstance(sample, CaptionSample):
        return Card(key, [(sample.caption, None)], [decode(sample.image)] if sample.image else [])
    if isinstance(sample, EditSample):
        words = [(f"{sample.caption}: " if sample.caption else "", None), (sample.instruction, sheet.mark(0))]
        return Card(key, words, [decode(image) for image in sample.pairs[0]])
    if isinstance(sample, CompositionalSample):
        small = []
        for entity in sample.entities:
            crop = decode(entity.crop)
            small.append(crop)
            if entity.mask is not None or entity.on_white is not None:
                alone = decode(entity.on_white) if entity.on_white else on_white(crop, decode_mask(entity.mask))
                small.append(alone)
        words = sheet.marked(sample.caption, [(entity.start, entity.end) for entity in sample.entities])
        return Card(key, words, [decode(sample.target)], small)
    if isinstance(sample, InterleavedSample):
        words, small = [], []
        for segment in sample.segments:
            if isinstance(segment, bytes):
                words.append((f"[{len(small) + 1}] ", sheet.mark(len(small))))
                small.append(decode(segment))
            else:
                words.append((segment.strip() + " ", None))
        return Card(key, words, small=small)
    return Card(key, [(sample.text, None)])


def _drawn(card: Card) -> sheet.Block:
    """A card as high as its content."""
    blocks = []
    if card.large:
        side = LARGE if len(card.large) == 1 else (INSIDE - 10) // 2
        images = sheet.row([sheet.thumbnail(image, side) for image in card.large], 10)
        blocks.append(sheet.padded(images, (INSIDE - images.width) // 2, 0))
    if card.small:
        small = [sheet.framed(sheet.thumbnail(image, SMALL)) for image in card.small[:MOST_SMALL]]
        blocks.append(sheet.grid(small, 4, 6))
    blocks.append(sheet.text(card.words, INSIDE, size=18, lines=7 if blocks else 14))
    blocks.append(sheet.text(card.key, INSIDE, size=13, colour=sheet.FAINT, lines=1))
    return sheet.padded(sheet.column(blocks, 8), 16, 14)
