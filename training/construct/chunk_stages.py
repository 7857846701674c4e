"""What is done to a chunk at each stage, without Ray: every function here takes a chunk and changes it in place.

prepare -> caption -> name_entities -> segment -> finish. Whatever cannot be used is left out with its reason; nothing a
picture, a caption or a model's answer contains ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from .caption_spans import place
from .caption_words import word_count
from .captioners import Captioner
from .chunks import Chunk, SourceImage, UnusableImage
from .construct_config import ConstructConfig, FilterConfig
from .duplicates import perceptual_hash
from .entity_extractors import Extractor
from .input_shards import InputShard, read_shard
from .masks import EntityCrop, find_crop
from .sample_encoding import EncodedSample, FoundEntity, encode, encode_mask
from .segmenters import Segmenter
from .square_images import decode_square, read_header, resize
from .tar_members import DamagedShard

HASH_DECODE_SIDE = 64
Made = TypeVar("Made")


def read_chunks(
    shard: InputShard, number: int, config: ConstructConfig, duplicates: frozenset[int] = frozenset()
) -> Iterator[Chunk]:
    """A shard as chunks of `config.chunk` pictures; the last one says so, and carries what is wrong with the shard.

    Args:
        duplicates: positions in the shard of pictures that repeat an earlier one.
    """
    chunk = Chunk(number, 0, [])
    try:
        for position, image in enumerate(read_shard(shard, config)):
            if len(chunk.images) + len(chunk.skipped) == config.chunk:
                yield chunk
                chunk = Chunk(number, chunk.number + 1, [])
            problem = image.problem or ("picture: near-duplicate" if position in duplicates else "")
            if problem:
                chunk.skip(image.key, problem)
            else:
                chunk.images.append(image)
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
        for position, image in enumerate(read_shard(shard, config)):
            if image.problem:
                continue
            try:
                pixels = decode_square(image.content, config.filters, image.rotation, HASH_DECODE_SIDE)
            except UnusableImage:
                continue
            positions.append(position)
            hashes.append(perceptual_hash(pixels))
    except DamagedShard:
        pass  # said when the shard is read for good
    return np.array(positions, dtype=np.int64), np.array(hashes, dtype=np.uint64)


def prepare(chunk: Chunk, config: ConstructConfig) -> None:
    """Judge and decode every picture, and give it the small view that models see."""
    kept = []
    for image in chunk.images:
        try:
            image.header = read_header(image.content, config.filters, image.rotation)
            pixels = decode_square(image.content, config.filters, image.rotation, config.model_side, image.header)
        except UnusableImage as reason:
            chunk.skip(image.key, str(reason))
            continue
        image.view = np.ascontiguousarray(resize(pixels, config.model_side))
        kept.append(image)
    chunk.images = kept


def caption(chunk: Chunk, captioner: Captioner, filters: FilterConfig) -> None:
    """Caption every picture; keep those whose caption has a reasonable length."""
    if not chunk.images:
        return
    kept = []
    for image, text in zip(chunk.images, captioner(chunk.images), strict=True):
        words = word_count(text)
        if not text.strip():
            chunk.skip(image.key, "caption: empty")
        elif words < filters.min_words:
            chunk.skip(image.key, "caption: too short")
        elif words > filters.max_words:
            chunk.skip(image.key, "caption: too long")
        else:
            image.caption = text
            kept.append(image)
    chunk.images = kept


def name_entities(chunk: Chunk, extractor: Extractor, filters: FilterConfig) -> None:
    """Find the spans of every caption's entities."""
    if not chunk.images:
        return
    kept = []
    for image, tags in zip(chunk.images, extractor([p.caption for p in chunk.images]), strict=True):
        if tags is None:
            chunk.skip(image.key, "entities: the answer is not a list")
            continue
        image.spans, missing = place(image.caption, tags)
        chunk.note("entity: not in the caption", missing)
        if len(image.spans) < filters.min_entities:
            chunk.skip(image.key, "entities: too few in the caption")
        elif len(image.spans) > filters.max_entities:
            chunk.skip(image.key, "entities: too many")
        else:
            kept.append(image)
    chunk.images = kept


def segment(chunk: Chunk, segmenter: Segmenter) -> None:
    """A region, or None, for every entity; the views are no longer needed then."""
    pairs = [(image, span.of(image.caption)) for image in chunk.images for span in image.spans]
    regions = iter(segmenter(pairs) if pairs else [])
    for image in chunk.images:
        image.regions = [next(regions) for _ in image.spans]
        image.view = None


def finish(chunk: Chunk, config: ConstructConfig) -> list[EncodedSample]:
    """Find each entity's place, then decode the pictures that have some in full, cut out, and encode the samples."""
    samples = []
    # All places first: decoding and encoding take the processor's caches, in which the many short steps of a place
    # then have to come back; by turns they take half as long again.
    found = [_attempt(_found_entities, chunk, image, config) for image in chunk.images]
    for image, entities in zip(chunk.images, found, strict=True):
        sample = entities if isinstance(entities, str) else _attempt(_sample, image, entities, config)
        if isinstance(sample, str):
            chunk.skip(image.key, sample)
        else:
            samples.append(sample)
    chunk.images = []
    return samples


def _attempt(step: Callable[..., Made], *arguments: Any) -> Made | str:
    """What the step makes, or why there is none: one odd picture, caption or mask is one sample less."""
    try:
        return step(*arguments)
    except UnusableImage as reason:
        return str(reason)
    except Exception as error:  # whatever it raises
        return f"sample: {type(error).__name__}"


def _sample(image: SourceImage, found: list[FoundEntity], config: ConstructConfig) -> EncodedSample:
    pixels = decode_square(image.content, config.filters, image.rotation, header=image.header)
    return encode(image, pixels, found, config.crops)


def _found_entities(chunk: Chunk, image: SourceImage, config: ConstructConfig) -> list[FoundEntity]:
    """Raises UnusableImage where there are too few."""
    image.header = image.header or read_header(image.content, config.filters, image.rotation)
    size = (image.header.side,) * 2
    crops = []
    for span, region in zip(image.spans, image.regions, strict=True):
        crop = region and find_crop(region, size, config.segment.threshold, config.crops.dilation)
        if not crop:
            chunk.note("entity: not found in the picture")
        elif not _fits(crop, config.filters):
            small = 100 * crop.share < config.filters.min_share
            chunk.note(f"entity: mask too {'small' if small else 'large'}")
        else:
            crops.append((span, crop, region.score))
    if len(crops) < config.filters.min_entities:
        raise UnusableImage("entities: too few found in the picture")
    # Of each mask only its file is kept: those of a whole chunk in pixels could be more than the memory holds.
    return [
        FoundEntity(span, crop.box, crop.square, encode_mask(crop, config.crops), score) for span, crop, score in crops
    ]


def _fits(crop: EntityCrop, filters: FilterConfig) -> bool:
    return filters.min_share <= 100 * crop.share <= filters.max_share
