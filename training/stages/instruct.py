"""Stage 3, `instruct`: the frozen U-Net's diffusion loss trains the whole encoder (paper section 2.3).

Trained: language model, resampler, AlignerNet's half M, the vision tower's last block and post-norm, and with them the
null condition, which takes the place of 10 % of the conditions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn

from kosmos_core import KosmosG

from ..data import InstructData, instruct_stream
from ..draws import Draws
from ..preview import Preview, rows_to_show, sample_sheet
from ..stable_diffusion import StableDiffusion, encode_pictures, snr_weights
from ..warm_start import start_model
from . import Batch, BatchStream, Losses, Stream
from .null_condition import encode_with_null
from .pictures import picture_tokens, train_vision_end

if TYPE_CHECKING:
    from ..config import RunConfig

DataConfig = InstructData


@dataclass
class Config:
    """What the stage trains through."""

    stable_diffusion: str = ""
    """Any Stable Diffusion 1.5 model: a diffusers folder or a single file."""
    null_probability: float = 0.1
    """Share of the samples whose condition is replaced by the null condition, for classifier-free guidance."""
    vision_last_block: Literal["trained", "frozen"] = "trained"
    """frozen reproduces the original, whose activation checkpointing kept the last block from learning."""
    snr_bounds: tuple[float, float] | None = None
    """Weighs a sample's loss by clamp(SNR, low, high) / SNR of its timestep: min-SNR (arXiv 2303.09556) with a lower
    bound, since the condition decides where noise hides the picture, and there errors are small. Empty: 1 (paper)."""
    preview: Preview = field(default_factory=Preview)
    """The prompts that are sampled every log.sample_every steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.null_probability <= 1:
            raise ValueError(f"task.null_probability: {self.null_probability} must be from 0 to 1.")


def sample_losses(
    model: KosmosG, unet: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, timesteps: Tensor, drop: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise of each sample, (b,) float32."""
    features, anchor = picture_tokens(model, batch.get("pixels"))
    conditions, null = encode_with_null(model, batch["token_ids"], batch.get("image_mask"), features)
    condition = torch.where(drop.to(null.device)[:, None, None], null, conditions) + anchor
    noisy = scheduler.add_noise(batch["latents"], noise, timesteps)
    predicted = unet(noisy.to(unet.dtype), timesteps, encoder_hidden_states=condition.to(unet.dtype)).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    expected = scheduler.get_velocity(batch["latents"], noise, timesteps) if velocity else noise
    return (predicted.float() - expected.float()).square().mean((1, 2, 3))


def loss(
    model: KosmosG, unet: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, timesteps: Tensor, drop: Tensor
) -> dict[str, Tensor]:
    """Diffusion loss, mean over samples.

    batch holds token_ids (b, s), image_mask (b, s), pixels (n, 3, S, S) or None, latents (b, 4, h, w) scaled; drop (b,)
    is True where the null condition replaces the sample's; scheduler is diffusers' DDPM or another that can add noise.
    """
    return {"loss": sample_losses(model, unet, scheduler, batch, noise, timesteps, drop).mean()}


@dataclass
class InstructStage:
    """The engine's view of stage 3."""

    model: KosmosG
    task: Config
    data: InstructData
    scheduler: Any
    notes: list[str]
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    shown: Batch | None = None  # the prompts of `sample`, read once

    def set_trainable(self) -> None:
        model = self.model.train().requires_grad_(False)
        for part in (model.decoder, model.resampler, model.aligner.source_encoder, model.aligner.query_decoder):
            part.requires_grad_(True)
        train_vision_end(self.model, self.task.vision_last_block)

    def stream(self, stream: Stream) -> BatchStream:
        return instruct_stream(self.data, stream, self.model.tokenizer, self.model.config.vision.image_size)

    def training_step(self, model: KosmosG, batch: Batch, draws: Draws) -> Losses:
        latents = encode_pictures(self.frozen["vae"], batch["target"], draws)
        rows, device, scheduler = len(latents), latents.device, self.scheduler
        noise = draws.normal("noise", tuple(latents.shape), device)
        timesteps = draws.integers("timestep", scheduler.config.num_train_timesteps, rows, device)
        drop = draws.uniform("null", rows, device) < self.task.null_probability
        batch, weights = batch | {"latents": latents}, snr_weights(scheduler, self.task.snr_bounds).to(device)
        losses = sample_losses(model, self.frozen["unet"], scheduler, batch, noise, timesteps, drop)
        return Losses.of_rows(losses * weights[timesteps], batch["sources"])

    def sample(self, model: KosmosG) -> Image:
        self.shown = self.shown or rows_to_show(self.task.preview, self.data, model)
        return sample_sheet(model, self.frozen, self.scheduler, self.shown, self.task.preview)


def build(config: RunConfig, device: torch.device, model_device: torch.device) -> InstructStage:
    """The stage of a run's configuration; ValueError or OSError where a path or size does not fit."""
    model, notes = start_model(config, model_device)
    diffusion = StableDiffusion(config.task.stable_diffusion, device, config.precision)
    frozen = {"unet": diffusion.unet(config.model.aligner.width), "vae": diffusion.vae()}
    return InstructStage(model, config.task, config.data, diffusion.scheduler(), notes, frozen)
