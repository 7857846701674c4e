"""Stage 3, `instruct`: the frozen U-Net's diffusion loss trains the whole encoder (paper section 2.3).

Trained: language model, resampler, AlignerNet's half M, the vision tower's last block and post-norm, and with them the
null condition, which takes the place of 10 % of the conditions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from kosmos_core import KosmosG
from kosmos_core.diffusers.stable_diffusion import StableDiffusion

from ..base.rng import RowRng
from ..data.batch_stream import Batch, BatchStream, Stream
from ..data.cached_rows import Maker
from ..data.data_config import InstructData
from ..weights.warm_start import start_model
from .alignment_loss import caption_errors
from .caption_replay import ReplayStream, replay_errors
from .diffusion_loss import batch_latents, loss, sample_losses, snr_weights
from .frozen_diffusion import configured_stable_diffusion
from .image_embeddings import train_vision_end
from .instruct_config import Config
from .instruct_validation import InstructValidation
from .losses import Losses
from .preview import rows_to_show, sample_sheet
from .preview_figures import networks
from .stage_config import StageConfig

__all__ = ["InstructStage", "build", "loss"]


@dataclass
class InstructStage(InstructValidation):
    """The engine's view of stage 3."""

    model: KosmosG
    task: Config
    data: InstructData
    scheduler: Any
    notes: list[str]
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    clip_tokenizer: Any = None  # with `alignment`, `replay` or held-out sources only
    shown: Batch | None = None  # the prompts of `sample`, read once

    def set_trainable(self) -> None:
        model = self.model.train().requires_grad_(False)
        for part in (model.decoder, model.resampler, model.aligner.source_encoder, model.aligner.query_decoder):
            part.requires_grad_(True)
        train_vision_end(self.model, self.task.vision_last_block)

    def stream(self, stream: Stream) -> BatchStream:
        rows = self._stream(self.data, stream, self.clip_tokenizer if self.task.alignment else None, self.maker)
        if not self.task.replay.captions:
            return rows
        settings = self.task.replay, self.data, stream, self.model.tokenizer, self.clip_tokenizer
        return ReplayStream.beside(rows, *settings)

    def _stream(self, data: InstructData, stream: Stream, clip: Any, maker: Maker | None = None) -> BatchStream:
        from ..data.streams import instruct_stream  # late, see there

        return instruct_stream(data, stream, self.model.tokenizer, self.model.config.vision.image_size, clip, maker)

    @property
    def indexed(self) -> InstructData:
        return replace(self.data, sources=self.data.sources | self.task.replay.sources())

    @cached_property
    def maker(self) -> Maker:
        """Of the latents that may lie beside the shards."""
        return Maker.of("latents", self.frozen["vae"], self.data.resolution)

    def training_step(self, model: KosmosG, batch: Batch, rng: RowRng) -> Losses:
        latents = batch_latents(self.frozen["vae"], batch, rng)
        noise = rng.normal("noise", tuple(latents.shape), latents.device)
        timesteps = rng.integers("timestep", self.scheduler.config.num_train_timesteps, len(latents), latents.device)
        drop = rng.uniform("null", len(latents), latents.device) < self.task.null_probability
        batch, unet = batch | {"latents": latents}, self.frozen["unet"]
        losses, conditions = sample_losses(model, unet, self.scheduler, batch, noise, timesteps, drop)
        losses = losses * snr_weights(self.scheduler, self.task.snr_bounds).to(latents.device)[timesteps]
        if self.task.alignment:
            mse = caption_errors(conditions, self.frozen["clip"], batch, self.task.padding_weight)
            found = Losses.of_rows(losses + self.task.alignment * mse, batch["sources"], diffusion=losses, mse=mse)
        else:
            found = Losses.of_rows(losses, batch["sources"])
        if "replay_ids" not in batch:
            return found
        errors = replay_errors(model, self.frozen["clip"], batch, self.task.padding_weight)
        beside = self.task.replay.weight * errors.mean() * found.count  # the engine divides by the number of rows
        return replace(
            found, total=found.total + beside, parts={**found.parts, "replay": (errors.detach().sum(), len(errors))}
        )

    def sample(self, model: KosmosG) -> tuple[Image, dict[str, float]]:
        self.shown = self.shown or rows_to_show(self.task.preview, self.data, model)
        return sample_sheet(model, self.frozen, self.scheduler, self.shown, self.task.preview)


def build(config: StageConfig, device: torch.device, model_device: torch.device) -> InstructStage:
    """The stage of a run's configuration; ValueError or OSError where a path or size does not fit."""
    networks(config.task.preview.dino, config.task.preview.clip, device)  # what lacks is told now, not at a preview
    diffusion = configured_stable_diffusion(config.task, device, config.precision)
    return assemble(config, diffusion, *start_model(config, model_device))


def assemble(config: StageConfig, diffusion: StableDiffusion, model: KosmosG, notes: list[str]) -> InstructStage:
    """The stage from a Stable Diffusion and a model that are there; `notes` say where the model's weights are from."""
    task, width = config.task, config.model.aligner.width
    frozen, clip_tokenizer = {"unet": diffusion.unet(width), "vae": diffusion.vae()}, None
    if task.alignment or task.replay.captions or config.validate.sources:
        frozen["clip"], clip_tokenizer = diffusion.text_encoder(width), diffusion.tokenizer()
    return InstructStage(model, task, config.data, diffusion.scheduler(), notes, frozen, clip_tokenizer)
