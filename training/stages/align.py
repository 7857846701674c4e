"""Stage 2, `align`: AlignerNet learns CLIP's text space from captions alone (paper section 2.2).

Trained: both halves of AlignerNet. The frozen language model stays in train mode, as in the original: with its dropout
both AlignerNet's input and the target of the reconstruction are noisy.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kosmos_core import KosmosG

Reconstruction = Literal["original", "paper"]


def sample_losses(
    model: KosmosG, token_ids: Tensor, clip_target: Tensor, *, rec: Reconstruction = "original",
    pixels: Tensor | None = None, image_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean squared errors of each sample, (b,) float32: of the condition, and of the reconstructed hidden states.

    Pad tokens count in the reconstruction, as in the original: what the language model makes of them is a target too.
    """
    length = token_ids.shape[1]
    with torch.no_grad():
        hidden = model(token_ids, pixels, image_mask, output="hidden")
    padding = token_ids == model.config.ids.pad
    condition = model.align(hidden, padding)
    restored = model.reconstruct(condition, length)
    factor = condition.shape[1] / length if rec == "original" else 1.0
    alignment = (condition.float() - clip_target.float()).square().mean((1, 2))
    return alignment, (restored.float() - hidden.float()).square().mean((1, 2)) * factor


def loss(
    model: KosmosG, token_ids: Tensor, clip_target: Tensor, *, rec: Reconstruction = "original",
    pixels: Tensor | None = None, image_mask: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Alignment and reconstruction loss, means over the batch.

    Args:
        token_ids: (b, s), right-padded with 1.
        clip_target: (b, 77, 768), CLIP's last hidden state of the same captions.
        pixels, image_mask: as in `KosmosG.forward`, for prompts with pictures; the paper aligns on text only.
    Returns:
        mse, rec, and loss: their sum.
    """
    mse, restored = sample_losses(model, token_ids, clip_target, rec=rec, pixels=pixels, image_mask=image_mask)
    return {"mse": mse.mean(), "rec": restored.mean(), "loss": (mse + restored).mean()}
