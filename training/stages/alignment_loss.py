"""Stage 2's loss: how far conditions are from CLIP's states of captions, and what half N makes of them from the prompt.

Beyond the paper stage 3 can keep its first half.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kosmos_core import KosmosG

from ..data.batch_stream import Batch
from .align_config import Reconstruction


def squared_errors(found: Tensor, expected: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, (b,) float32, of (b, n, d); weights (b, n) of the tokens, 1 where None."""
    errors = (found.float() - expected.float()).square().mean(2)
    return errors.mean(1) if weights is None else (errors * weights).sum(1) / weights.sum(1)


def token_weights(clip_ids: Tensor, padding: float) -> Tensor | None:
    """1 for each token (b, 77) of a caption with its end, `padding` for those behind; None where all weigh the same."""
    if padding == 1:
        return None
    ended = (clip_ids == clip_ids[:, -1:]).cumsum(1)  # CLIP pads with the end of text
    return torch.where(ended <= 1, 1.0, padding)


def caption_errors(conditions: Tensor, clip: nn.Module, batch: Batch, padding: float = 1.0) -> Tensor:
    """Squared error of each condition to CLIP's states of its target's caption, (b,) float32; 0 where there is none."""
    errors = conditions.new_zeros(len(conditions), dtype=torch.float32)
    if "clip_ids" not in batch:
        return errors
    with torch.no_grad():
        states = clip(batch["clip_ids"]).last_hidden_state
    found = squared_errors(conditions[batch["captioned"]], states, token_weights(batch["clip_ids"], padding))
    return errors.masked_scatter(batch["captioned"], found)


def sample_losses(
    model: KosmosG,
    token_ids: Tensor,
    clip_target: Tensor,
    *,
    rec: Reconstruction = "original",
    pixels: Tensor | None = None,
    image_mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean squared errors of each sample, (b,) float32: of the condition, and of the reconstructed hidden states.

    weights (b, 77): of the condition's tokens. Pad tokens count in the reconstruction, as in the original: what the
    language model makes of them is a target too. A model without half N has no reconstruction to lose: zeros.
    """
    length = token_ids.shape[1]
    with torch.no_grad():
        hidden = model(token_ids, pixels, image_mask, output="hidden")
    padding = token_ids == model.config.ids.pad
    condition = model.align(hidden, padding)
    mse = squared_errors(condition, clip_target, weights)
    if not model.config.aligner.reconstruction:
        return mse, torch.zeros_like(mse)
    factor = condition.shape[1] / length if rec == "original" else 1.0
    return mse, squared_errors(model.reconstruct(condition, length), hidden) * factor


def loss(
    model: KosmosG,
    token_ids: Tensor,
    clip_target: Tensor,
    *,
    rec: Reconstruction = "original",
    pixels: Tensor | None = None,
    image_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Alignment and reconstruction loss, means over the batch.

    Args:
        token_ids, clip_target: (b, s), right-padded with 1; (b, 77, 768), CLIP's last hidden state of the captions.
        pixels, image_mask: as in `KosmosG.forward`, for prompts with pictures; the paper aligns on text only.
    Returns:
        mse, rec, and loss: their sum.
    """
    mse, restored = sample_losses(model, token_ids, clip_target, rec=rec, pixels=pixels, image_mask=image_mask)
    return {"mse": mse.mean(), "rec": restored.mean(), "loss": (mse + restored).mean()}
