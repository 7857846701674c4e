"""Stage 3's loss: the noise that the frozen U-Net predicts under the encoder's conditions (paper section 2.3)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler
from torch import Tensor, nn

from kosmos_core import KosmosG

from ..base.rng import RowRng
from ..data.batch_stream import Batch
from ..data.frozen_outputs import joined, latent_moments
from .image_embeddings import image_embeddings
from .null_condition import encode_with_null


def sample_losses(
    model: KosmosG, unet: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, timesteps: Tensor, drop: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the predicted noise of each sample, (b,) float32, and their conditions (b, 77, 768)."""
    embeddings, anchor = image_embeddings(model, batch.get("pixels"))
    conditions, null = encode_with_null(model, batch["token_ids"], batch.get("image_mask"), embeddings)
    condition = torch.where(drop.to(null.device)[:, None, None], null, conditions) + anchor
    return noise_errors(unet, scheduler, batch, noise, timesteps, condition), conditions


def noise_errors(
    unet: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, timesteps: Tensor, condition: Tensor
) -> Tensor:
    """Mean squared error of the noise that the U-Net predicts under each condition (b, 77, 768); (b,) float32."""
    return squared_errors(unet, scheduler, batch["latents"], noise, timesteps, condition).mean((1, 2, 3))


def squared_errors(
    unet: nn.Module, scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, condition: Tensor
) -> Tensor:
    """The same of each latent, not averaged: (b, 4, h, w) float32."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy.to(unet.dtype), timesteps, encoder_hidden_states=condition.to(unet.dtype)).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    expected = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    return (predicted.float() - expected.float()).square()


def loss(
    model: KosmosG, unet: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, timesteps: Tensor, drop: Tensor
) -> dict[str, Tensor]:
    """Diffusion loss, mean over samples.

    batch holds token_ids (b, s), image_mask (b, s), pixels (n, 3, S, S) or None, latents (b, 4, h, w) scaled; drop (b,)
    is True where the null condition replaces the sample's; scheduler is diffusers' DDPM or another that can add noise.
    """
    return {"loss": sample_losses(model, unet, scheduler, batch, noise, timesteps, drop)[0].mean()}


def snr_weights(scheduler: DDPMScheduler, bounds: tuple[float, float] | None) -> Tensor:
    """clamp(SNR, *bounds) / SNR of each timestep, (timesteps,) float32; ones without bounds.

    With these weights of the predicted noise's error, the picture's own error counts `clamp(SNR, *bounds)`: min-SNR
    (arXiv 2303.09556) with a lower bound besides.
    """
    signal = scheduler.alphas_cumprod.float()
    ratio = signal / (1 - signal)
    return torch.ones_like(ratio) if bounds is None else ratio.clamp(*bounds) / ratio


@torch.no_grad()
def encode_images(vae: AutoencoderKL | AutoencoderTiny, images: Tensor, rng: RowRng) -> Tensor:
    """Pictures (b, 3, H, W) in -1 ... 1 -> scaled latents (b, 4, H/8, W/8) float32, one draw of the posterior each.

    The tiny autoencoder has no posterior: its latents are exact.
    """
    return drawn_latents(vae, latent_moments(vae, images), rng)


def drawn_latents(vae: AutoencoderKL | AutoencoderTiny, moments: Tensor, rng: RowRng) -> Tensor:
    """`latent_moments` of a batch -> scaled latents (b, 4, H/8, W/8) float32, one draw each."""
    mean, deviation = moments.float().unbind(1)
    if not isinstance(vae, AutoencoderTiny):
        mean = mean + deviation * rng.normal("latents", tuple(mean.shape), mean.device)
    return mean * vae.config.scaling_factor


def batch_latents(vae: AutoencoderKL | AutoencoderTiny, batch: Batch, rng: RowRng) -> Tensor:
    """Scaled latents of a batch's targets, of those that were read as `moments` and of the others."""
    computed = latent_moments(vae, batch["target"]) if "target" in batch else None
    return drawn_latents(vae, joined(batch.get("moments"), batch.get("cached"), computed), rng)
