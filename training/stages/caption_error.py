"""How far conditions are from CLIP's states of captions: stage 2's loss, and beyond the paper a part of stage 3's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import Batch


def squared_errors(conditions: Tensor, states: Tensor) -> Tensor:
    """Mean squared error of each sample, (b,) float32, of (b, 77, 768)."""
    return (conditions.float() - states.float()).square().mean((1, 2))


def caption_errors(conditions: Tensor, clip: nn.Module, batch: Batch) -> Tensor:
    """Squared error of each condition to CLIP's states of its target's caption, (b,) float32; 0 where there is none."""
    errors = conditions.new_zeros(len(conditions), dtype=torch.float32)
    if "clip_ids" not in batch:
        return errors
    with torch.no_grad():
        states = clip(batch["clip_ids"]).last_hidden_state
    return errors.masked_scatter(batch["captioned"], squared_errors(conditions[batch["captioned"]], states))
