"""Stage 1, `lm`: next-token prediction on text, captioned pictures and interleaved documents (paper section 2.1).

Trained: language model, resampler, the vision tower's last block and post-norm. A token counts as a target where the
data says so: text and the end of a document, never a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kosmos_core import KosmosG

from ..base.rng import RowRng
from ..data import LmData, lm_stream
from ..data.batch_stream import Batch, BatchStream, Stream
from ..weights.warm_start import start_model
from .image_embeddings import image_embeddings, train_vision_end
from .losses import Losses
from .stage_config import StageConfig

DataConfig = LmData
ROWS_OF_LOGITS = 1024  # scores for 64,007 pieces take 262 MB per 1,024 tokens: never all of a batch at once


@dataclass
class Config:
    """What the stage starts from and trains."""

    vision_weights: str | None = None
    """CLIP vision weights for a start from scratch: a transformers folder or an open_clip file (.safetensors, .pt)."""
    vision_last_block: Literal["trained", "frozen"] = "trained"
    """Whether the vision tower's last block trains; its post-norm always does."""


def token_losses(model: KosmosG, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target (t,) in nats and the row of the batch that it stands in (t,)."""
    token_ids, documents = batch["token_ids"], batch.get("document_ids")
    rows, length = token_ids.shape
    embeddings, anchor = image_embeddings(model, batch.get("pixels"))
    mask = batch.get("image_mask")
    if documents is None:
        hidden = model.hidden_states(token_ids, mask, embeddings)
    else:
        row = torch.arange(rows, device=token_ids.device)[:, None]
        _, lengths = torch.unique_consecutive(documents + row * (length + 1), return_counts=True)
        packed = None if mask is None else mask.reshape(1, -1)
        hidden = model.hidden_states(token_ids.reshape(1, -1), packed, embeddings, lengths.tolist())
        hidden = hidden.reshape(rows, length, -1)
    valid = batch["loss_mask"][:, 1:]
    states, targets = hidden[:, :-1][valid] + anchor, token_ids[:, 1:][valid]

    def cross_entropy(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(states[None])[0].float(), targets, reduction="none")

    parts = zip(states.split(ROWS_OF_LOGITS), targets.split(ROWS_OF_LOGITS), strict=True)
    if len(targets) <= ROWS_OF_LOGITS:
        losses = cross_entropy(states, targets)
    else:
        losses = torch.cat([checkpoint(cross_entropy, *part, use_reentrant=False) for part in parts])
    return losses, valid.nonzero()[:, 0]


def loss(model: KosmosG, batch: Batch) -> dict[str, Tensor]:
    """Mean next-token loss in nats over the batch's targets.

    Args:
        batch: token_ids (b, s); loss_mask (b, s), True where token_ids[:, t] is a target, predicted from what is before
            t; image_mask (b, s) and pixels (n, 3, S, S) where there are pictures; document_ids (b, s) for attention
            and positions that stay inside each document.
    Returns:
        loss, and tokens: the number of targets.
    """
    losses, _ = token_losses(model, batch)
    return {"loss": losses.sum() / max(1, len(losses)), "tokens": torch.tensor(len(losses))}


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
        return lm_stream(self.data, stream, self.model.tokenizer, self.model.config.vision.image_size)

    def training_step(self, model: KosmosG, batch: Batch, rng: RowRng) -> Losses:
        losses, rows = token_losses(model, batch)
        total = losses.new_zeros(len(batch["keys"])).index_add(0, rows, losses)
        return Losses.of_rows(total, batch["sources"], rows.bincount(minlength=len(total)))


def build(config: StageConfig, device: torch.device, model_device: torch.device) -> LmStage:
    """The stage of a run's configuration; ValueError or OSError where a path or size does not fit."""
    return assemble(config, None, *start_model(config, model_device, vision_weights=config.task.vision_weights))


def assemble(config: StageConfig, diffusion: None, model: KosmosG, notes: list[str]) -> LmStage:
    """The stage from a model that is there; `notes` say where its weights are from."""
    return LmStage(model, config.task, config.data, notes)
