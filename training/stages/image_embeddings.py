"""What stages 1 and 3 share: the image embeddings of a batch, and which end of the vision tower trains."""

from __future__ import annotations

import torch
from torch import Tensor

from kosmos_core import KosmosG


def image_embeddings(model: KosmosG, pixels: Tensor | None) -> tuple[Tensor | None, Tensor | float]:
    """Image embeddings (n, latents, width) of a batch, and a zero to be added to what the loss is computed from.

    A batch without pictures gives None, but a blank picture goes through vision tower and resampler and into that zero:
    processes gather weights and sum gradients together, so each of them has to use every trained module in each batch.
    """
    if pixels is not None and len(pixels):
        return model.embed_images(pixels), 0.0
    trained = any(p.requires_grad for part in (model.vision, model.resampler) for p in part.parameters())
    if not torch.is_grad_enabled() or not trained:
        return None, 0.0
    return None, 0.0 * embed_blank(model).sum()


def embed_blank(model: KosmosG) -> Tensor:
    """Image embeddings (1, latents, width) of a blank picture, where only the use of the modules matters."""
    size = model.config.vision.image_size
    return model.embed_images(torch.zeros(1, 3, size, size, device=model.device))


def train_vision_end(model: KosmosG, last_block: str) -> None:
    """Let the vision tower's post-norm train and, unless `last_block` is "frozen", its last block."""
    model.vision.norm_post.requires_grad_(True)
    model.vision.blocks[-1].requires_grad_(last_block != "frozen")
