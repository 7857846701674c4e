"""The micro-batch that a plan reckons with: the longest rows that a configuration lets through."""

from __future__ import annotations

import torch

from ..base.errors import ConfigError
from ..data.batch_stream import Batch
from ..data.data_config import AlignData
from ..engine.run_config import RunConfig

WORD, CLIP_LENGTH = 4, 77  # any piece of a text, in both vocabularies; tokens of CLIP's captions


def batch_shape(config: RunConfig, length: int | None, images: float | None) -> tuple[int, int]:
    """Tokens of a row and pictures of a micro-batch: as given, else the longest that the data allow."""
    latents = config.model.resampler.latents
    if images is None:
        images = 0 if config.stage == "align" else 1
    if length is None:
        length = getattr(config.data, "sequence_length", 0) or config.data.pad_to or config.data.max_tokens
        if config.stage != "lm" and not config.data.pad_to:
            length += round(images * (latents + 2))
    return length, round(images * config.batch.micro)


def longest_batch(config: RunConfig, length: int, images: int) -> Batch:
    """A micro-batch as `training.data.batches` describes it, of rows of `length` tokens with `images` in all.

    Raises:
        ConfigError: the pictures' tokens do not fit into the rows.
    """
    rows, latents, side = config.batch.micro, config.model.resampler.latents, config.model.vision.image_size
    most = -(-images // rows)
    if 1 + most * latents > length:
        raise ConfigError(
            f"--images: {most} pictures in a row are {most * latents} tokens, but a row has {length}; give a greater "
            f"--length or fewer --images."
        )
    image_mask = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        own = images // rows + (row < images % rows)
        image_mask[row, 1 : 1 + own * latents] = True
    batch: Batch = {"token_ids": torch.full((rows, length), WORD), "keys": [""] * rows, "sources": ["data"] * rows}
    if images or config.stage != "align":
        batch |= {"image_mask": image_mask, "pixels": torch.zeros(images, 3, side, side) if images else None}
    if config.stage == "lm":
        batch["loss_mask"] = ~image_mask
        if config.data.document_mask:
            batch["document_ids"] = torch.zeros(rows, length, dtype=torch.int64)
    else:
        captioned = config.stage == "align" or config.task.alignment > 0
        if captioned:
            batch["clip_ids"] = torch.full((rows, CLIP_LENGTH), WORD)
    if config.stage == "instruct":
        batch["target"] = torch.zeros(rows, 3, config.data.resolution, config.data.resolution)
        batch["captioned"] = torch.full((rows,), captioned)
        if replayed := config.task.replay.rows(rows):
            batch["replay_ids"] = torch.full((replayed, AlignData.max_tokens), WORD)
            batch["replay_clip_ids"] = torch.full((replayed, CLIP_LENGTH), WORD)
    return batch
