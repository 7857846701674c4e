"""What each stage makes of samples: which layouts it reads (`kinds`), the row of a sample, the batch of rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from kosmos_core.config import AlignerConfig, VisionConfig
from kosmos_core.images import preprocess_image
from kosmos_core.tokenizer import Tokenizer

from ..base.text import TEXT_ENDINGS
from .batch_stream import Batch
from .batches import PromptRow, align_batch, instruct_batch, lm_batch
from .cached_rows import CachedRows, Maker, content_key
from .data_config import AlignData, InstructData, LmData
from .decoding import decode, image_size, target_pixels
from .lanes import Lane
from .packing import PackingUnit, document_units
from .sample_types import BadSample, CaptionSample, CompositionalSample, EditSample, Filtered, TextSample
from .sequences import caption_sequence, compositional_sequence, edit_sequence, encode

TEXT_PARTS = frozenset((*TEXT_ENDINGS, "json"))
CLIP_LENGTH = AlignerConfig.queries  # the condition has a token for each of Stable Diffusion's CLIP


class Task(Protocol):
    """A stage's use of data. Picklable: every worker gets a copy."""

    stage: str
    kinds: frozenset[str]  # the layouts that it reads
    maker: Maker | None  # of what it would read beside the shards

    def needed(self, kind: str) -> Callable[[str], bool] | None:
        """A test of the names of a sample's parts: which are read in this layout; None for all."""

    def row(self, lane: Lane) -> tuple[str, Any]:
        """The next row of a lane: the keys of its samples, joined by commas, and what `batch` needs of it."""

    def batch(self, rows: list[Any]) -> Batch:
        """Rows as a micro-batch, see `batches.py`."""


def _only_text(part: str) -> bool:
    return part in TEXT_PARTS


def clip_ids(caption: str, clip_tokenizer: Any, most: int) -> list[int]:
    """The caption's ids in CLIP's vocabulary, padded. Raises Filtered above `most` tokens or what CLIP takes."""
    clip = clip_tokenizer(caption, verbose=False).input_ids  # else it warns of every long caption
    if len(clip) - 2 > min(most, CLIP_LENGTH - 2):
        raise Filtered("caption too long for CLIP")
    return clip + [clip_tokenizer.pad_token_id] * (CLIP_LENGTH - len(clip))


def caption_ids(sample: CaptionSample | TextSample | CompositionalSample, clip_tokenizer: Any) -> list[int]:
    """The ids in CLIP's vocabulary that stage 2 asks CLIP's states of. Raises Filtered where CLIP takes fewer."""
    caption = sample.text if isinstance(sample, TextSample) else sample.caption
    return clip_ids(caption, clip_tokenizer, CLIP_LENGTH)


def _cached(cached: CachedRows, sample: Any, made_from: bytes | list[int]) -> Tensor:
    """What lies beside the shard for an encoded image or a caption's ids. Raises BadSample for a broken image, which
    has nothing there, and DataError for anything else that has not."""
    row = cached.row(sample.__restore_key__[1], content_key(made_from))
    if row is None:
        if isinstance(made_from, bytes):
            decode(made_from)
        raise cached.stale(sample.__key__)
    return row


@dataclass
class LmTask:
    """Stage 1: packed sequences. image_size: side of the vision tower's pictures in pixels."""

    config: LmData
    tokenizer: Tokenizer
    image_size: int = VisionConfig.image_size
    stage: str = "lm"
    kinds: frozenset[str] = frozenset(("text", "captions", "interleaved", "original-laion"))
    maker: Maker | None = None

    def __post_init__(self):
        least = self.tokenizer.latents + 6
        if self.config.sequence_length < least:
            raise ValueError(
                f"sequence_length {self.config.sequence_length} is too short for a picture of "
                f"{self.tokenizer.latents} latents: at least {least}."
            )

    def needed(self, kind: str) -> Callable[[str], bool] | None:
        return _only_text if kind == "text" else None

    def row(self, lane: Lane) -> tuple[str, Any]:
        packed = lane.pack(self.config.sequence_length, self._units)
        return ",".join(packed.keys), packed

    def _units(self, sample: Any, rng: random.Random) -> list[PackingUnit]:
        if isinstance(sample, CaptionSample) and sample.image is None:
            raise BadSample("missing picture")
        units = document_units(sample, self.tokenizer, self.config.sequence_length, self.image_size)
        if not units:
            raise BadSample("empty document")
        return units

    def batch(self, rows: list[Any]) -> Batch:
        return lm_batch(rows, self.tokenizer, self.config.sequence_length, self.config.document_mask)


@dataclass
class AlignTask:
    """Stage 2: captions, also with pictures in the place of words. clip_tokenizer: Stable Diffusion's."""

    config: AlignData
    tokenizer: Tokenizer
    clip_tokenizer: Any
    image_size: int = VisionConfig.image_size
    stage: str = "align"
    kinds: frozenset[str] = frozenset(("text", "captions", "compositional", "original-laion"))
    maker: Maker | None = None

    def needed(self, kind: str) -> Callable[[str], bool] | None:
        return _only_text if kind in ("text", "captions") else None

    def row(self, lane: Lane) -> tuple[str, Any]:
        return lane.next(partial(self._row, lane.source.cached))

    def _row(
        self, cached: CachedRows | None, sample: CaptionSample | TextSample | CompositionalSample, rng: random.Random
    ) -> PromptRow:
        empty = self.config.empty_captions > 0 and rng.random() < self.config.empty_captions
        caption = sample.text if isinstance(sample, TextSample) else sample.caption
        caption = "" if empty else caption
        ids = encode(caption, self.tokenizer)
        if len(ids) > self.config.max_tokens:
            raise Filtered("caption too long")
        clip = clip_ids(caption, self.clip_tokenizer, self.config.max_clip_tokens)
        states = None if cached is None else _cached(cached, sample, clip)
        if empty or not isinstance(sample, CompositionalSample):
            return PromptRow([self.tokenizer.ids.bos, *ids], clip_ids=clip, states=states)
        config = self.config
        sequence = compositional_sequence(
            sample, self.tokenizer, rng, config.drop_entity, config.keep_background, config.drop_scope
        )
        images = [preprocess_image(image, self.image_size) for image in sequence.images]
        return PromptRow(sequence.token_ids[:-1], sequence.image_mask[:-1], images, clip_ids=clip, states=states)

    def batch(self, rows: list[Any]) -> Batch:
        return align_batch(rows, self.config.pad_to)


@dataclass
class InstructTask:
    """Stage 3: prompts with pictures and the picture to generate. image_size: of the vision tower's, in pixels.

    With a `clip_tokenizer` a row also holds the caption of the picture to generate, where the data set has one.
    """

    config: InstructData
    tokenizer: Tokenizer
    image_size: int = VisionConfig.image_size
    clip_tokenizer: Any = None
    stage: str = "instruct"
    kinds: frozenset[str] = frozenset(
        ("captions", "compositional", "edit", "original-laion", "original-instructpix2pix", "original-openimage")
    )
    maker: Maker | None = None

    def needed(self, kind: str) -> Callable[[str], bool] | None:
        return None

    def row(self, lane: Lane) -> tuple[str, Any]:
        return lane.next(partial(self._row, lane.source.cached))

    def _row(
        self, cached: CachedRows | None, sample: CaptionSample | CompositionalSample | EditSample, rng: random.Random
    ) -> PromptRow:
        config, caption = self.config, sample.edited if isinstance(sample, EditSample) else sample.caption
        described = self.clip_tokenizer is not None and caption is not None
        clip = clip_ids(caption, self.clip_tokenizer, CLIP_LENGTH) if described else []
        # With latents beside the shard the target stays as it is encoded: decoding is most of the work of a row.
        target = decode if cached is None else bytes
        if isinstance(sample, CaptionSample):
            if sample.image is None:
                raise BadSample("missing picture")
            if min(sample.width or config.min_side, sample.height or config.min_side) < config.min_side:
                raise Filtered("picture too small")
            sequence = caption_sequence(sample, self.tokenizer, target)
            size = sequence.target.size if cached is None else image_size(sequence.target)
            if min(size) < config.min_side and sample.width is None:
                raise Filtered("picture too small")
            if len(sequence.token_ids) - 2 > config.max_tokens:
                raise Filtered("caption too long")
        elif isinstance(sample, EditSample):
            sequence = edit_sequence(sample, self.tokenizer, rng, config.drop_caption, target)
        else:
            if 0 < config.max_images < len(sample.entities):
                raise Filtered("too many entities")
            sequence = compositional_sequence(
                sample,
                self.tokenizer,
                rng,
                config.drop_entity,
                config.keep_background,
                config.drop_scope,
                target=target,
            )
        return PromptRow(
            sequence.token_ids[:-1],  # without </s>: generation ends the prompt without it too
            sequence.image_mask[:-1],
            [preprocess_image(image, self.image_size) for image in sequence.images],
            clip_ids=clip,
            target=target_pixels(sequence.target, config.resolution) if cached is None else None,
            moments=None if cached is None else _cached(cached, sample, sequence.target),
        )

    def batch(self, rows: list[Any]) -> Batch:
        return instruct_batch(rows, self.config.pad_to)
