"""Stage 1's loss: the next token's cross-entropy, over packed sequences of text and images (paper section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kosmos_core import KosmosG

from ..data.batch_stream import Batch
from .image_embeddings import image_embeddings

ROWS_OF_LOGITS = 1024  # scores for 64,007 pieces take 262 MB per 1,024 tokens: never all of a batch at once


def token_losses(
    model: KosmosG, batch: Batch, images: tuple[Tensor | None, Tensor | float] | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target (t,) in nats and the row of the batch that it stands in (t,).

    images: in place of what `image_embeddings` makes of the batch's.
    """
    token_ids, documents = batch["token_ids"], batch.get("document_ids")
    rows, length = token_ids.shape
    embeddings, anchor = images or image_embeddings(model, batch.get("pixels"))
    mask = batch.get("image_mask")
    if documents is None:
        hidden = model.hidden_states(token_ids, mask, embeddings)
    else:
        row = torch.arange(rows, device=token_ids.device)[:, None]
        _, lengths = torch.unique_consecutive(documents + row * (length + 1), return_counts=True)
        packed = None if mask is None else mask.reshape(1, -1)
        hidden = model.hidden_states(token_ids.reshape(1, -1), packed, embeddings, lengths.tolist())
        hidden = hidden.reshape(rows, length, -1)
    valid = batch["loss_mask"][:, 1:]
    states, targets = hidden[:, :-1][valid] + anchor, token_ids[:, 1:][valid]

    def cross_entropy(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(states[None])[0].float(), targets, reduction="none")

    parts = zip(states.split(ROWS_OF_LOGITS), targets.split(ROWS_OF_LOGITS), strict=True)
    if len(targets) <= ROWS_OF_LOGITS:
        losses = cross_entropy(states, targets)
    else:
        losses = torch.cat([checkpoint(cross_entropy, *part, use_reentrant=False) for part in parts])
    return losses, valid.nonzero()[:, 0]


def loss(model: KosmosG, batch: Batch) -> dict[str, Tensor]:
    """Mean next-token loss in nats over the batch's targets.

    Args:
        batch: token_ids (b, s); loss_mask (b, s), True where token_ids[:, t] is a target, predicted from what is before
            t; image_mask (b, s) and pixels (n, 3, S, S) where there are pictures; document_ids (b, s) for attention
            and positions that stay inside each document.
    Returns:
        loss, and tokens: the number of targets.
    """
    losses, _ = token_losses(model, batch)
    return {"loss": losses.sum() / max(1, len(losses)), "tokens": torch.tensor(len(losses))}
