"""Stage 3, `instruct`: the frozen U-Net's diffusion loss trains the whole encoder (paper section 2.3).

Trained: language model, resampler, AlignerNet's half M, the vision tower's last block and post-norm. U-Net and VAE only
pass the gradient on. The null condition, which replaces 10 % of the conditions, trains with the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kosmos_core import KosmosG

from . import Batch
from .pictures import picture_tokens


def sample_losses(
    model: KosmosG, unet: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, timesteps: Tensor, drop: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise of each sample, (b,) float32."""
    token_ids, latents = batch["token_ids"], batch["latents"]
    features, anchor = picture_tokens(model, batch.get("pixels"))
    ids = model.config.ids
    # The null condition is one more row of the batch: one pass through the language model, and it learns too.
    null = torch.full_like(token_ids[:1], ids.pad)
    null[:, 0] = ids.bos
    mask = batch.get("image_mask")
    if mask is not None:
        mask = torch.cat([mask, torch.zeros_like(mask[:1])])
    conditions = model.encode_tokens(torch.cat([token_ids, null]), image_mask=mask, image_features=features) + anchor
    condition = torch.where(drop.to(conditions.device)[:, None, None], conditions[-1:], conditions[:-1])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy.to(unet.dtype), timesteps, encoder_hidden_states=condition.to(unet.dtype)).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    expected = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    return (predicted.float() - expected.float()).square().mean((1, 2, 3))


def loss(
    model: KosmosG, unet: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, timesteps: Tensor, drop: Tensor
) -> dict[str, Tensor]:
    """Diffusion loss, mean over samples.

    Args:
        scheduler: diffusers' DDPM scheduler of the model, or another that can add noise.
        batch: token_ids (b, s), image_mask (b, s), pixels (n, 3, S, S) or None, latents (b, 4, h, w) scaled.
        noise, timesteps: (b, 4, h, w) and (b,).
        drop: (b,) bool, True where the null condition takes the place of the sample's own.
    """
    return {"loss": sample_losses(model, unet, scheduler, batch, noise, timesteps, drop).mean()}
