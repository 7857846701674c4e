"""Stage 3 on held-out samples: the U-Net's loss at fixed noise and timesteps, with images, others' images and none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kosmos_core import KosmosG

from ..base.rng import RowRng
from ..data.batch_stream import Batch
from ..data.data_config import HeldOutSource
from ..data.held_out import held_out_rows, held_out_stream, only_held_out
from .align_validation import METRICS as CAPTION_METRICS
from .align_validation import CaptionStates, caption_values
from .diffusion_loss import encode_images, noise_errors
from .held_out_images import RowValues, gap, shuffled, without_images
from .image_embeddings import embed_blank

GOLDEN = 0.6180339887498949  # its multiples fill 0 ... 1 evenly, however many of them there are
READ = (
    "images that are not read: an AlignerNet that was not aligned before (weights of stage 2), too few samples with "
    "images (data.sources), words that tell all that the images do (data.drop_entity), or too low a learning rate"
)
KEPT = "language that is forgotten: task.alignment above 0 keeps stage 2's loss beside the U-Net's; lower optim.lr"
METRICS = {
    "diffusion": "a learning rate that is too high (look at gradient_norm), or weights of stage 2 that were not taken "
    "(the first lines say which were)"
}
IMAGE_METRICS = {
    "diffusion_shuffled": METRICS["diffusion"],
    "diffusion_no_images": METRICS["diffusion"],
    "diffusion_text": KEPT,
    "gap_shuffled": READ,
    "gap_no_images": READ,
    "gap_text": READ,
}


def metrics(images: bool) -> dict[str, str]:
    """The names of the metrics of a source with or without images, each with what usually keeps it from its goal."""
    kept = dict.fromkeys(CAPTION_METRICS, KEPT)
    return METRICS | kept | (IMAGE_METRICS if images else {})


def prepare(batch: Batch, first_row: int, vae: nn.Module, timesteps: int) -> Batch:
    """A held-out micro-batch as `row_values` takes it: latents, noise and timestep of each row in place of its target.

    Args:
        batch: besides a training batch's entries `words`, token ids (b, s) of the same rows with all their words and no
            images.
        first_row: the place of the batch's first row in its source, which alone decides noise and timestep.
        timesteps: of the noise schedule.
    """
    rng, device = RowRng(seed=0, step=0, first_row=first_row), next(vae.parameters()).device
    latents = encode_images(vae, batch["target"].to(device), rng).cpu()
    places = torch.arange(first_row, first_row + len(latents), dtype=torch.float64) + 0.5
    rest = {name: value for name, value in batch.items() if name != "target"}
    return rest | {
        "latents": latents,
        "noise": rng.normal("noise", tuple(latents.shape)),
        "timesteps": (places * GOLDEN % 1 * timesteps).long(),
    }


def row_values(
    model: KosmosG, frozen: Mapping[str, nn.Module], scheduler: Any, batch: Batch, images: bool, states: CaptionStates
) -> RowValues:
    """The metrics of each row; images: whether the source has any, so that all processes use the same modules."""
    token_ids, mask, pixels = batch["token_ids"], batch.get("image_mask"), batch.get("pixels")
    embeddings = None
    if images:
        embedded = embed_blank(model) if pixels is None else model.embed_images(pixels)
        embeddings = None if pixels is None else embedded

    def encoded(token_ids: Tensor, mask: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        return model.encode_tokens(token_ids, image_mask=mask, image_features=embeddings)

    def errors(conditions: Tensor) -> tuple[Tensor, Tensor]:
        found = noise_errors(frozen["unet"], scheduler, batch, batch["noise"], batch["timesteps"], conditions)
        return found, torch.ones_like(found)

    text = encoded(batch["words"])
    values: RowValues = {}
    if images:
        others = None if embeddings is None else shuffled(embeddings)
        values["diffusion"] = errors(encoded(token_ids, mask, embeddings))
        values["diffusion_shuffled"] = errors(encoded(token_ids, mask, embeddings if others is None else others))
        values["diffusion_no_images"] = errors(encoded(*without_images(token_ids, model.config.ids)))
        values["diffusion_text"] = errors(text)
        seen = mask.any(1)
        values["gap_shuffled"] = gap(values, "diffusion_shuffled", "diffusion", seen & (others is not None))
        values["gap_no_images"] = gap(values, "diffusion_no_images", "diffusion", seen)
        values["gap_text"] = gap(values, "diffusion_text", "diffusion", seen)
    else:
        values["diffusion"] = errors(text)
    if "clip_ids" in batch:
        every = batch["every_caption"]
        of_captions = caption_values(
            text[batch["captioned"]], batch["clip_ids"], every, states.of(batch["sources"][0], every)
        )
        for name, parts in of_captions.items():
            whole = [torch.zeros(len(text), device=text.device) for _ in parts]
            values[name] = tuple(w.masked_scatter(batch["captioned"], p) for w, p in zip(whole, parts, strict=True))
    return values


class InstructValidation:
    """What the engine asks of stage 3 for held-out rows; `InstructStage` has the rest."""

    @cached_property
    def caption_states(self) -> CaptionStates:
        return CaptionStates(self.frozen.get("clip"))

    def held_out(self, name: str, source: HeldOutSource, rows: int, size: int) -> Iterable[Batch]:
        data = only_held_out(self.data, name, source)
        in_words = replace(data, drop_entity=0.0, drop_caption=0.0)
        first, second = (
            held_out_rows(self._stream(settings, held_out_stream(rows), self.clip_tokenizer), size)
            for settings in (data, in_words)
        )
        for batch, words in zip(first, second, strict=True):
            yield batch | {"words": without_images(words["token_ids"], self.model.config.ids)[0]}

    def prepared(self, batch: Batch, first_row: int) -> Batch:
        steps = self.scheduler.config.num_train_timesteps
        return prepare(batch, first_row, self.frozen["vae"], steps)

    def metrics(self, images: bool) -> dict[str, str]:
        return metrics(images)

    def validation_step(self, model: KosmosG, batch: Batch, images: bool) -> RowValues:
        return row_values(model, self.frozen, self.scheduler, batch, images, self.caption_states)
