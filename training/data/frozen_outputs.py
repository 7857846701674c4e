"""What the frozen parts of Stable Diffusion make of images and captions: computed, or read beside the shards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .batch_stream import Batch


@torch.no_grad()
def latent_moments(vae: Any, images: Tensor) -> Tensor:
    """Images (b, 3, H, W) in -1 ... 1 -> mean and deviation of their latents, unscaled, (b, 2, 4, H/8, W/8) in the
    autoencoder's format. The tiny autoencoder's latents are exact: its deviation is 0."""
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latents"):
        return torch.stack([encoded.latents, torch.zeros_like(encoded.latents)], dim=1)
    posterior = encoded.latent_dist
    return torch.stack([posterior.mean, posterior.std], dim=1)


def joined(cached: Tensor | None, where: Tensor | None, computed: Tensor | None) -> Tensor:
    """Rows that were read, at the places that `where` (b,) marks, among those that were computed."""
    if cached is None or where is None:
        return computed
    if computed is None:
        return cached
    whole = cached.new_empty((len(where), *cached.shape[1:]))
    whole[where], whole[~where] = cached, computed.to(cached.dtype)
    return whole


@torch.no_grad()
def caption_states(clip: nn.Module, batch: Batch) -> Tensor:
    """CLIP's last hidden states (b, 77, 768) of a batch's captions, those that were read and the others."""
    where = batch.get("stated")
    if where is None:
        return clip(batch["clip_ids"]).last_hidden_state
    missing = batch["clip_ids"][~where]
    return joined(batch["states"], where, clip(missing).last_hidden_state if len(missing) else None)
