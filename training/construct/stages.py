"""What is done to a chunk at each stage, without Ray: every function here takes a chunk and changes it in place.

prepare -> caption -> name_entities -> segment -> finish. Whatever cannot be used is left out with its reason; nothing a
picture, a caption or a model's answer contains ends the run.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .captions import Captioner
from .config import ConstructConfig, FilterConfig
from .crops import Crop, find_crop
from .entities import Extractor
from .pictures import decode_square, perceptual_hash, resize, square_side
from .records import Chunk, Picture, Unusable
from .samples import Cut, Sample, encode
from .segments import Segmenter
from .sources import DamagedShard, InputShard, read_shard
from .spans import place

HASH_DECODE_SIDE = 64


def read_chunks(
    shard: InputShard, number: int, config: ConstructConfig, duplicates: frozenset[int] = frozenset()
) -> Iterator[Chunk]:
    """A shard as chunks of `config.chunk` pictures; the last one says so, and carries what is wrong with the shard.

    Args:
        duplicates: positions in the shard of pictures that repeat an earlier one.
    """
    chunk = Chunk(number, 0, [])
    try:
        for position, picture in enumerate(read_shard(shard, config)):
            if len(chunk.pictures) + len(chunk.skipped) == config.chunk:
                yield chunk
                chunk = Chunk(number, chunk.number + 1, [])
            problem = picture.problem or ("picture: near-duplicate" if position in duplicates else "")
            if problem:
                chunk.skip(picture.key, problem)
            else:
                chunk.pictures.append(picture)
    except DamagedShard as damage:
        if config.salvage:
            chunk.note("shard: read up to its damage")
        else:
            chunk.problem = str(damage)
    chunk.last = True
    yield chunk


def hash_shard(shard: InputShard, config: ConstructConfig) -> tuple[np.ndarray, np.ndarray]:
    """(positions, hashes) of the pictures of a shard that can be decoded, int64 and uint64."""
    positions, hashes = [], []
    try:
        for position, picture in enumerate(read_shard(shard, config)):
            if picture.problem:
                continue
            try:
                pixels = decode_square(picture.content, config.filters, picture.rotation, HASH_DECODE_SIDE)
            except Unusable:
                continue
            positions.append(position)
            hashes.append(perceptual_hash(pixels))
    except DamagedShard:
        pass  # said when the shard is read for good
    return np.array(positions, dtype=np.int64), np.array(hashes, dtype=np.uint64)


def prepare(chunk: Chunk, config: ConstructConfig) -> None:
    """Judge and decode every picture, and give it the small view that models see."""
    kept = []
    for picture in chunk.pictures:
        try:
            pixels = decode_square(picture.content, config.filters, picture.rotation, config.model_side)
        except Unusable as reason:
            chunk.skip(picture.key, str(reason))
            continue
        picture.view = resize(pixels, config.model_side)
        kept.append(picture)
    chunk.pictures = kept


def caption(chunk: Chunk, captioner: Captioner, filters: FilterConfig) -> None:
    """Caption every picture; keep those whose caption has a reasonable length."""
    if not chunk.pictures:
        return
    kept = []
    for picture, text in zip(chunk.pictures, captioner(chunk.pictures), strict=True):
        words = len(text.split())
        if words == 0:
            chunk.skip(picture.key, "caption: empty")
        elif words < filters.min_words:
            chunk.skip(picture.key, "caption: too short")
        elif words > filters.max_words:
            chunk.skip(picture.key, "caption: too long")
        else:
            picture.caption = text
            kept.append(picture)
    chunk.pictures = kept


def name_entities(chunk: Chunk, extractor: Extractor, filters: FilterConfig) -> None:
    """Find the spans of every caption's entities."""
    if not chunk.pictures:
        return
    kept = []
    for picture, tags in zip(chunk.pictures, extractor([p.caption for p in chunk.pictures]), strict=True):
        if tags is None:
            chunk.skip(picture.key, "entities: the answer is not a list")
            continue
        picture.spans, missing = place(picture.caption, tags)
        chunk.note("entity: not in the caption", missing)
        if len(picture.spans) < filters.min_entities:
            chunk.skip(picture.key, "entities: too few in the caption")
        elif len(picture.spans) > filters.max_entities:
            chunk.skip(picture.key, "entities: too many")
        else:
            kept.append(picture)
    chunk.pictures = kept


def segment(chunk: Chunk, segmenter: Segmenter) -> None:
    """A region, or None, for every entity; the views are no longer needed then."""
    pairs = [(picture, span.of(picture.caption)) for picture in chunk.pictures for span in picture.spans]
    regions = iter(segmenter(pairs) if pairs else [])
    for picture in chunk.pictures:
        picture.regions = [next(regions) for _ in picture.spans]
        picture.view = None


def finish(chunk: Chunk, config: ConstructConfig) -> list[Sample]:
    """Find each entity's place, then decode the pictures that have some in full, cut out, and encode the samples."""
    samples = []
    for picture in chunk.pictures:
        side = square_side(picture.content)
        cuts = _cuts(chunk, picture, (side, side), config)
        if len(cuts) < config.filters.min_entities:
            chunk.skip(picture.key, "entities: too few found in the picture")
            continue
        try:
            pixels = decode_square(picture.content, config.filters, picture.rotation)
        except Unusable as reason:
            chunk.skip(picture.key, str(reason))
        else:
            samples.append(encode(picture, pixels, cuts, config.crops))
    chunk.pictures = []
    return samples


def _cuts(chunk: Chunk, picture: Picture, size: tuple[int, int], config: ConstructConfig) -> list[Cut]:
    cuts = []
    for span, region in zip(picture.spans, picture.regions, strict=True):
        crop = region and find_crop(region, size, config.segment.threshold, config.crops.dilation)
        if not crop:
            chunk.note("entity: not found in the picture")
        elif not _fits(crop, config.filters):
            small = 100 * crop.share < config.filters.min_share
            chunk.note(f"entity: mask too {'small' if small else 'large'}")
        else:
            cuts.append(Cut(span, crop, region.score))
    return cuts


def _fits(crop: Crop, filters: FilterConfig) -> bool:
    return filters.min_share <= 100 * crop.share <= filters.max_share
