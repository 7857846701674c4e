"""Stage 2, `align`: AlignerNet learns CLIP's text space, in the paper from captions alone (section 2.2).

Trained: both halves of AlignerNet. The frozen language model stays in train mode, as in the original: with its dropout
both AlignerNet's input and the target of the reconstruction are noisy. Beyond the paper, compositional samples can be
mixed in (`kind: compositional`): a prompt with pictures is aligned to CLIP's states of the whole caption.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from kosmos_core import KosmosG
from kosmos_core.diffusers.stable_diffusion import StableDiffusion

from ..base.rng import RowRng
from ..data.batch_stream import Batch, BatchStream, Stream
from ..data.cached_rows import Maker
from ..data.data_config import AlignData, HeldOutSource
from ..data.frozen_outputs import caption_states
from ..data.held_out import held_out_rows, held_out_stream, only_held_out
from ..weights.warm_start import start_model
from . import align_validation
from .align_config import Config
from .alignment_loss import loss, sample_losses, token_weights
from .frozen_diffusion import configured_stable_diffusion
from .held_out_images import RowValues
from .image_embeddings import embed_blank
from .losses import Losses
from .stage_config import StageConfig

__all__ = ["AlignStage", "build", "loss"]
TEXT_KINDS = frozenset(("text", "captions", "original-laion"))


@dataclass
class AlignStage:
    """The engine's view of stage 2."""

    model: KosmosG
    task: Config
    data: AlignData
    clip_tokenizer: Any
    notes: list[str]
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    images: bool = False  # whether some prompts may have pictures

    def __post_init__(self) -> None:
        self.caption_states = align_validation.CaptionStates(self.frozen.get("clip"))

    def set_trainable(self) -> None:
        self.model.train().requires_grad_(False)
        self.model.aligner.requires_grad_(True)

    def stream(self, stream: Stream) -> BatchStream:
        return self._stream(self.data, stream, self.maker)

    def _stream(self, data: AlignData, stream: Stream, maker: Maker | None = None) -> BatchStream:
        from ..data.streams import align_stream  # late, see there

        side = self.model.config.vision.image_size
        return align_stream(data, stream, self.model.tokenizer, self.clip_tokenizer, side, maker)

    @cached_property
    def maker(self) -> Maker:
        """Of the CLIP states that may lie beside the shards."""
        return Maker.of("states", self.frozen["clip"])

    def training_step(self, model: KosmosG, batch: Batch, rng: RowRng) -> Losses:
        target = caption_states(self.frozen["clip"], batch)
        if self.images and "pixels" not in batch:
            with torch.no_grad():
                embed_blank(model)
        images = {name: batch[name] for name in ("pixels", "image_mask") if name in batch}
        weights = token_weights(batch["clip_ids"], self.task.padding_weight)
        mse, rec = sample_losses(model, batch["token_ids"], target, rec=self.task.rec, weights=weights, **images)
        return Losses.of_rows(mse + rec, batch["sources"], mse=mse, rec=rec)

    def held_out(self, name: str, source: HeldOutSource, rows: int, size: int) -> Iterable[Batch]:
        data = replace(only_held_out(self.data, name, source), empty_captions=0.0)
        return held_out_rows(self._stream(data, held_out_stream(rows)), size)

    def metrics(self, images: bool) -> dict[str, str]:
        return align_validation.METRICS

    def validation_step(self, model: KosmosG, batch: Batch, images: bool) -> RowValues:
        if images and "pixels" not in batch:
            embed_blank(model)
        conditions = model(batch["token_ids"], batch.get("pixels"), batch.get("image_mask"))
        every = batch["every_caption"]
        states = self.caption_states.of(batch["sources"][0], every)
        return align_validation.caption_values(conditions, batch["clip_ids"], every, states)


def build(config: StageConfig, device: torch.device, model_device: torch.device) -> AlignStage:
    """The stage of a run's configuration; ValueError or OSError where a path or size does not fit."""
    diffusion = configured_stable_diffusion(config.task, device, config.precision)
    start = start_model(config, model_device, aligner_tables=config.task.aligner_tables)
    return assemble(config, diffusion, *start)


def assemble(config: StageConfig, diffusion: StableDiffusion, model: KosmosG, notes: list[str]) -> AlignStage:
    """The stage from a Stable Diffusion and a model that are there; `notes` say where the model's weights are from."""
    clip = diffusion.text_encoder(width=config.model.aligner.width)
    images = any(source.kind not in TEXT_KINDS for source in config.data.sources.values())
    return AlignStage(model, config.task, config.data, diffusion.tokenizer(), notes, {"clip": clip}, images)
