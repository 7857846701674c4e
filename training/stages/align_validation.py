"""Stage 2 on held-out captions: how far conditions are from CLIP's states, and whether the nearest are their own.

Stage 3 keeps the same figures of its prompts in words.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .alignment_loss import token_weights
from .held_out_images import RowValues

METRICS = {
    "mse_words": "a learning rate that does not suit the batch (look at loss and gradient_norm), or a language model "
    "whose weights were not taken (the first lines say which were)",
    "mse_padding": "a run that is too short or a learning rate that is too low: what stands behind a caption's end "
    "changes little from caption to caption and is learned first",
    "retrieval": "an AlignerNet that does not tell prompts apart yet: new tables that are large beside the words in a "
    "short run (task.aligner_tables 0.03), a learning rate that does not suit the batch, or a language model whose "
    "weights were not taken",
}
AT_ONCE = 8  # captions through CLIP: always the same number, so that they give the same states in every process


@dataclass
class CaptionStates:
    """CLIP's states of held-out captions, computed once for each source, kept on the CPU."""

    clip: nn.Module
    known: dict[str, Tensor] = field(default_factory=dict)

    def of(self, source: str, clip_ids: Tensor) -> Tensor:
        """States (n, 77, 768) float32 of all captions (n, 77) of a source."""
        if source not in self.known:
            parts = [self.clip(part).last_hidden_state.float().cpu() for part in clip_ids.split(AT_ONCE)]
            self.known[source] = torch.cat(parts)
        return self.known[source]


def caption_values(conditions: Tensor, clip_ids: Tensor, every: Tensor, states: Tensor) -> RowValues:
    """The metrics of each condition (b, 77, 768) of captions (b, 77).

    every: all captions (n, 77) of the source, `states` (n, 77, 768) CLIP's states of them; the own are among them. A
    condition is right too where the nearest states are of the same words in another place.
    """
    with torch.autocast(conditions.device.type, enabled=False):
        found, targets = conditions.float().flatten(1), states.to(conditions.device).flatten(1)
        distances = targets.square().sum(1) - 2 * found @ targets.T
        right = (every[distances.argmin(1)] == clip_ids).all(1)
        own = (every[None] == clip_ids[:, None]).all(2).int().argmax(1)
        errors = (conditions.float() - states.to(conditions.device)[own]).square().mean(2)
        words = token_weights(clip_ids, 0.0)
    behind = 1 - words
    return {
        "mse_words": ((errors * words).sum(1), words.sum(1)),
        "mse_padding": ((errors * behind).sum(1), behind.sum(1)),
        "retrieval": (right.float(), torch.ones_like(right, dtype=torch.float32)),
    }
