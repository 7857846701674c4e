"""How near the pictures of a preview are to their references (DINO, CLIP-I) and to their words (CLIP-T)."""

from __future__ import annotations

from functools import cache

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from kosmos_core import KosmosG
from kosmos_core.images import CLIP_MEAN, CLIP_STD

from ..data.batch_stream import Batch
from ..evaluate.feature_networks import FeatureNets
from .instruct_config import Preview


@cache
def networks(dino: str, clip: str, device: torch.device) -> FeatureNets | None:
    """DINO and CLIP of `task.preview`, read once; None without names, ConfigError where one of them is not there."""
    if not dino:
        return None
    return FeatureNets(dino, clip, device, names=("task.preview.dino", "task.preview.clip"))


def preview_figures(batch: Batch, images: Tensor, model: KosmosG, preview: Preview) -> dict[str, float]:
    """preview/dino, preview/clip_i, preview/clip_t: mean cosines over the samples, as `training.evaluate` has them.

    {} where the preview names no networks.

    Args:
        batch: the prompts, with the pictures as the vision tower sees them.
        images: what was sampled of them, (rows, samples, 3, size, size) in 0 ... 1.
    """
    nets = networks(preview.dino, preview.clip, model.device)
    if nets is None:
        return {}
    used = [marked // model.config.resampler.latents for marked in batch["image_mask"].sum(1).tolist()]
    found: dict[str, list[Tensor]] = {"clip_t": []}
    references = () if batch["pixels"] is None else as_seen(batch["pixels"]).split(used)
    for number, samples in enumerate(images):
        drawn = nets.of_images(as_images(samples))
        words = model.tokenizer.decode(batch["token_ids"][number].tolist()).replace("<i>", "")
        found["clip_t"].append((drawn.clip @ nets.of_texts([words]).T).mean())
        if used[number]:
            real = nets.of_images(as_images(references[number]))
            found.setdefault("dino", []).append((drawn.dino @ real.dino.T).mean())
            found.setdefault("clip_i", []).append((drawn.clip @ real.clip.T).mean())
    return {f"preview/{name}": float(torch.stack(values).mean()) for name, values in found.items()}


def as_seen(pixels: Tensor) -> Tensor:
    """Pictures as the vision tower takes them, (n, 3, side, side), in 0 ... 1."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return pixels.cpu() * deviation + mean


def as_images(pixels: Tensor) -> list[Image.Image]:
    """Pictures (n, 3, height, width) in 0 ... 1."""
    arrays = (rearrange(pixels.float().cpu().clamp(0, 1), "n c y x -> n y x c") * 255).round().byte().numpy()
    return [Image.fromarray(array) for array in arrays]
