"""Pictures from conditions, by the world's U-Net and autoencoder."""

import numpy as np
import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from kosmos_core.diffusers.sampler import sample_latents
from kosmos_core.diffusers.stable_diffusion import NOISE_SCHEDULE
from training.base.precision import Precision, autocast


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    vae: AutoencoderTiny,
    conditions: torch.Tensor,
    null: torch.Tensor,
    size: int,
    seed: int = 0,
    guidance: float = 4.0,
    steps: int = 20,
    batch: int = 32,
    precision: Precision = "fp32",
) -> np.ndarray:
    """uint8 pictures (n, size, size, 3) for conditions (n, 77, 768) and the null condition (1, 77, 768).

    The U-Net cannot tell `size`, the side in pixels: one from a single file always names 512.
    The noise of picture i depends on (seed, i) only, so that rows of different conditions can be compared.
    """
    unet.set_attn_processor(AttnProcessor())
    side = size // 8
    noise = torch.stack(
        [
            torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed * 1_000_003 + i))
            for i in range(len(conditions))
        ]
    )
    images = []
    for start in range(0, len(conditions), batch):
        latents, condition = noise[start : start + batch], conditions[start : start + batch].float()
        scheduler = DPMSolverMultistepScheduler(**NOISE_SCHEDULE)
        with autocast(precision, latents.device):
            latents = sample_latents(unet, scheduler, latents, condition, null.float(), steps=steps, guidance=guidance)
        made = vae.decode(latents).sample.clamp(-1, 1)
        images.append(((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(images)
