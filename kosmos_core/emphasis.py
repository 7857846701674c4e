"""What a weight in a prompt does: the condition becomes a mean over several readings of the prompt.

A reading is one pass of AlignerNet that sees some of the tokens. Imagine a threshold that rises from 0 to the largest
weight: at each height AlignerNet sees the tokens whose weight reaches it, and the condition is the mean over all
heights. So a weight of 0.5 goes half of the way to the prompt in which the tokens are hidden, and a weight of 2 half of
the way to the prompt in which all others are. 0 hides, 1 is neutral, and a mean never leaves what the image model was
trained on. Weights on the attention itself do next to nothing, because most heads have decided already
(docs/prompt-weights.md; `python -m emoji_world.prompt_weights` measures it).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """One pass over a prompt: its share in the mean, and for each token whether it is seen."""

    share: float
    seen: tuple[bool, ...]


def readings(weights: Sequence[float]) -> list[Reading]:
    """The readings of a prompt whose tokens have these weights, one for each different weight above 0; shares sum to 1.

    The first token, the start of every prompt, is seen by all of them unless its weight is 0. Raises ValueError for a
    weight that is negative or not finite, and where all are 0.
    """
    wrong = next((weight for weight in weights if not 0 <= weight < math.inf), None)
    if wrong is not None:
        raise ValueError(f"a token's weight is {wrong:g}; expected a number of 0 or more")
    if not any(weights):
        raise ValueError("the weights of all tokens are 0, so nothing is left to read; give one a weight above 0")
    largest = max(weights)
    own = [largest if weights[0] else 0, *weights[1:]]
    levels = sorted({weight for weight in own if weight > 0})
    heights = (upper - lower for lower, upper in itertools.pairwise([0, *levels]))
    return [
        Reading(height / largest, tuple(weight >= level for weight in own))
        for level, height in zip(levels, heights, strict=True)
    ]


@dataclass(frozen=True)
class WeightedBatch:
    """The readings of all prompts of a batch: for each the row of its prompt, its share, and its tokens not seen."""

    rows: list[int]
    shares: list[float]
    hidden: list[Tensor]
    lengths: tuple[int, ...] | None

    @classmethod
    def of(
        cls, weights: Tensor, padding_mask: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> WeightedBatch:
        """From weights (b, s), or packed (1, total) with `lengths`; padding is seen by no reading."""
        if padding_mask is not None:
            weights = weights.masked_fill(padding_mask, 0)
        prompts = weights if lengths is None else weights[0].split(list(lengths))
        rows, shares, hidden = [], [], []
        for row, prompt in enumerate(prompts):
            for reading in readings(prompt.tolist()):
                rows.append(row)
                shares.append(reading.share)
                hidden.append(~torch.tensor(reading.seen, device=weights.device))
        return cls(rows, shares, hidden, None if lengths is None else tuple(lengths[row] for row in rows))

    def repeat(self, x: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """Each prompt of x (b, s, ...), or packed (1, total, ...), once for each of its readings."""
        if lengths is None:
            return x if self.rows == list(range(len(x))) else x[self.rows]
        if self.rows == list(range(len(lengths))):
            return x
        parts = x.split(list(lengths), dim=1)
        return torch.cat([parts[row] for row in self.rows], dim=1)

    def mask(self) -> Tensor | None:
        """Tokens not seen, (readings, s) or (1, total), True there; None where every reading sees all."""
        joined = torch.stack(self.hidden) if self.lengths is None else torch.cat(self.hidden)[None]
        return joined if bool(joined.any()) else None

    def mean(self, conditions: Tensor) -> Tensor:
        """The condition of each prompt, (b, slots, width), from those of its readings."""
        if all(share == 1 for share in self.shares):
            return conditions
        shares = torch.tensor(self.shares, device=conditions.device, dtype=conditions.dtype)
        rows = torch.tensor(self.rows, device=conditions.device)
        mixed = conditions.new_zeros(self.rows[-1] + 1, *conditions.shape[1:])
        return mixed.index_add(0, rows, conditions * shares[:, None, None])
