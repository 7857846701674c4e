"""The same rows with other images or without any: what validation compares to see whether images are read at all."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from kosmos_core.special_tokens import SpecialTokens

# By the metric's name, for each row of a micro-batch: a sum and the number of things that it sums.
RowValues: TypeAlias = dict[str, tuple[Tensor, Tensor]]


def shuffled(embeddings: Tensor) -> Tensor | None:
    """Image embeddings (n, latents, width) of a micro-batch, each in another's place; None for fewer than two."""
    return embeddings.roll(len(embeddings) // 2, 0) if len(embeddings) > 1 else None


def without_images(token_ids: Tensor, ids: SpecialTokens, *others: Tensor) -> list[Tensor]:
    """Token ids (b, s) without the places of images and their ends, padded on the right, and `others` (b, s) alike.

    The others are padded with -1, or False.
    """
    kept = (token_ids != ids.image_start) & (token_ids != ids.image_end)
    length = int(kept.sum(1).amax())
    shortened = []
    for number, tensor in enumerate((token_ids, *others)):
        fill = ids.pad if number == 0 else False if tensor.dtype == torch.bool else -1
        short = tensor.new_full((len(tensor), length), fill)
        for row, (values, own) in enumerate(zip(tensor, kept, strict=True)):
            values = values[own]
            short[row, : len(values)] = values
        shortened.append(short)
    return shortened


def gap(values: RowValues, other: str, own: str, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How much higher a metric is than another one, row by row; of the `rows` (b,) that are marked alone."""
    total, count = values[other][0] - values[own][0], values[own][1]
    return (total, count) if rows is None else (total * rows, count * rows)
