"""Stage 1 on held-out sequences: nats per token with their own images, with others' and with none."""

from __future__ import annotations

from torch import Tensor

from kosmos_core import KosmosG

from ..data.batch_stream import Batch
from .held_out_images import RowValues, gap, shuffled, without_images
from .image_embeddings import embed_blank
from .lm_loss import token_losses

METRICS = {
    "nats": "a learning rate that does not suit the batch (look at loss and gradient_norm), weights that were not "
    "taken (the first lines say which were), or held-out text of another kind than what is trained on"
}
IMAGE_METRICS = {
    "nats_shuffled": METRICS["nats"],
    "nats_no_images": METRICS["nats"],
    "gap_shuffled": "images that are not read: vision weights that were not given (task.vision_weights), too few "
    "captioned images in the batch (data.sources), or captions that do not tell what their images show",
    "gap_no_images": "images that are not read: vision weights that were not given (task.vision_weights), or too few "
    "captioned images in the batch (data.sources)",
}


def metrics(images: bool) -> dict[str, str]:
    """The names of the metrics of a source with or without images, each with what usually keeps it from its goal."""
    return METRICS | IMAGE_METRICS if images else METRICS


def row_values(model: KosmosG, batch: Batch, images: bool) -> RowValues:
    """The metrics of each row; images: whether the source has any, so that all processes use the same modules."""
    if not images:
        return {"nats": _row_losses(model, batch, None)}
    pixels = batch.get("pixels")
    embeddings = embed_blank(model) if pixels is None else model.embed_images(pixels)
    own = None if pixels is None else embeddings
    values = {"nats": _row_losses(model, batch, own)}
    others = None if own is None else shuffled(own)
    values["nats_shuffled"] = _row_losses(model, batch, own if others is None else others)
    names = ["loss_mask", *(["document_ids"] if "document_ids" in batch else [])]
    shortened = without_images(batch["token_ids"], model.config.ids, *(batch[name] for name in names))
    words = batch | dict(zip(["token_ids", *names], shortened, strict=True)) | {"image_mask": None}
    values["nats_no_images"] = _row_losses(model, words, None)
    seen = batch["image_mask"].any(1)
    values["gap_shuffled"] = gap(values, "nats_shuffled", "nats", seen & (others is not None))
    values["gap_no_images"] = gap(values, "nats_no_images", "nats", seen)
    return values


def _row_losses(model: KosmosG, batch: Batch, embeddings: Tensor | None) -> tuple[Tensor, Tensor]:
    losses, rows = token_losses(model, batch, (embeddings, 0.0))
    total = losses.new_zeros(len(batch["keys"])).index_add(0, rows, losses)
    return total, rows.bincount(minlength=len(total))
