"""What stages 1 and 3 share: picture tokens of a batch, and the end of the vision tower that trains."""

from __future__ import annotations

import torch
from torch import Tensor

from kosmos_core import KosmosG


def image_embeddings(model: KosmosG, pixels: Tensor | None) -> tuple[Tensor | None, Tensor | float]:
    """Picture tokens (n, latents, width) of a batch, and a zero to be added to what the loss is made of.

    A batch without pictures gives None, but sends a blank picture through the vision tower with weight 0: processes
    that train together gather weights and sum gradients together, so each of them has to touch every trained module.
    """
    if pixels is not None and len(pixels):
        return model.embed_images(pixels), 0.0
    if not torch.is_grad_enabled() or not model.resampler.dense.weight.requires_grad:
        return None, 0.0
    return None, 0.0 * embed_blank(model).sum()


def embed_blank(model: KosmosG) -> Tensor:
    """Picture tokens of a blank picture, for the sake of the modules that this touches."""
    size = model.config.vision.image_size
    return model.embed_images(torch.zeros(1, 3, size, size, device=model.device))


def train_vision_end(model: KosmosG, last_block: str) -> None:
    """Let the vision tower's post-norm train and, unless `last_block` is "frozen", its last block."""
    model.vision.norm_post.requires_grad_(True)
    model.vision.blocks[-1].requires_grad_(last_block != "frozen")
