"""Stage 1, `lm`: next-token prediction on text, captioned pictures and interleaved documents (paper section 2.1).

Trained: language model, resampler, the vision tower's last block and post-norm. A token counts as a target where the
data says so: text and the end of a document, never a picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from kosmos_core import KosmosG

from ..base.rng import RowRng
from ..data.batch_stream import Batch, BatchStream, Stream
from ..data.data_config import HeldOutSource, LmData
from ..data.held_out import held_out_rows, held_out_stream, only_held_out
from ..weights.warm_start import start_model
from . import lm_validation
from .held_out_images import RowValues
from .image_embeddings import train_vision_end
from .lm_config import Config
from .lm_loss import loss, token_losses
from .losses import Losses
from .stage_config import StageConfig

__all__ = ["LmStage", "build", "loss"]


@dataclass
class LmStage:
    """The engine's view of stage 1."""

    model: KosmosG
    task: Config
    data: LmData
    notes: list[str]
    frozen: dict[str, nn.Module] = field(default_factory=dict)

    def set_trainable(self) -> None:
        self.model.train().requires_grad_(False)
        self.model.decoder.requires_grad_(True)
        self.model.resampler.requires_grad_(True)
        train_vision_end(self.model, self.task.vision_last_block)

    def stream(self, stream: Stream) -> BatchStream:
        return self._stream(self.data, stream)

    def _stream(self, data: LmData, stream: Stream) -> BatchStream:
        from ..data.streams import lm_stream  # late, see there

        return lm_stream(data, stream, self.model.tokenizer, self.model.config.vision.image_size)

    def training_step(self, model: KosmosG, batch: Batch, rng: RowRng) -> Losses:
        losses, rows = token_losses(model, batch)
        total = losses.new_zeros(len(batch["keys"])).index_add(0, rows, losses)
        return Losses.of_rows(total, batch["sources"], rows.bincount(minlength=len(total)))

    def held_out(self, name: str, source: HeldOutSource, rows: int, size: int) -> Iterable[Batch]:
        return held_out_rows(self._stream(only_held_out(self.data, name, source), held_out_stream(rows)), size)

    def metrics(self, images: bool) -> dict[str, str]:
        return lm_validation.metrics(images)

    def validation_step(self, model: KosmosG, batch: Batch, images: bool) -> RowValues:
        return lm_validation.row_values(model, batch, images)


def build(config: StageConfig, device: torch.device, model_device: torch.device) -> LmStage:
    """The stage of a run's configuration; ValueError or OSError where a path or size does not fit."""
    return assemble(config, None, *start_model(config, model_device, vision_weights=config.task.vision_weights))


def assemble(config: StageConfig, diffusion: None, model: KosmosG, notes: list[str]) -> LmStage:
    """The stage from a model that is there; `notes` say where its weights are from."""
    return LmStage(model, config.task, config.data, notes)
