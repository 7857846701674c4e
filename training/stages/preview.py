"""What stage 3 shows while it trains: the same prompts sampled again and again, beside their reference pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn

from kosmos_core import KosmosG, Tokenizer, preprocess_image
from kosmos_core.diffusers.sampler import sample_latents
from kosmos_core.images import ImageError, open_image

from ..base import contact_sheet as sheet
from ..base.rng import RowRng
from ..data.batch_stream import Batch, Stream
from ..data.batches import padded
from ..data.data_config import InstructData
from .instruct_config import Preview, PreviewPrompt
from .null_condition import encode_with_null
from .preview_figures import as_images, as_seen, preview_figures

CELL = 192  # pixels of a side in the grid
LINE = 18  # pixels of a line of text


def prompt_batch(prompts: list[PreviewPrompt], tokenizer: Tokenizer, image_size: int) -> Batch:
    """Prompts as a batch; ValueError names a prompt whose pictures are missing or do not match its marks."""
    layouts, pixels = [], []
    for prompt in prompts:
        layout = tokenizer.layout(prompt.text)
        if len(layout.image_slots) != len(prompt.images):
            raise ValueError(
                f"task.preview.prompts: {prompt.text!r} has {len(layout.image_slots)} <i> marks and "
                f"{len(prompt.images)} pictures; give one picture for each mark."
            )
        layouts.append(layout)
        for path in prompt.images:
            try:
                pixels.append(preprocess_image(open_image(path), size=image_size))
            except ImageError as error:
                raise ValueError(f"task.preview.prompts: {error}") from error
    return {
        "token_ids": padded([layout.token_ids for layout in layouts], tokenizer.ids.pad, torch.int64),
        "image_mask": padded([layout.image_mask for layout in layouts], False, torch.bool),
        "pixels": torch.stack(pixels) if pixels else None,
    }


def rows_to_show(preview: Preview, data: InstructData, model: KosmosG) -> Batch:
    """The prompts of a preview as a batch; without prompts the first rows of the data."""
    tokenizer, image_size = model.tokenizer, model.config.vision.image_size
    if preview.prompts:
        return prompt_batch(preview.prompts, tokenizer, image_size)
    from ..data.streams import instruct_stream  # late, see there

    rows = Stream(seed=0, index=0, streams=1, micro_batch=preview.rows, micro_batches=1)
    return next(instruct_stream(replace(data, workers=0), rows, tokenizer, image_size))


@torch.no_grad()
def sample_images(
    model: KosmosG, frozen: Mapping[str, nn.Module], scheduler: DDPMScheduler, batch: Batch, preview: Preview
) -> Tensor:
    """Pictures (rows, samples, 3, size, size) in 0 ... 1, by guidance against the null condition.

    `frozen` holds `unet` and `vae`.
    """
    unet, vae, device = frozen["unet"], frozen["vae"], model.device
    training = model.training
    model.eval()
    try:
        features = None if batch["pixels"] is None else model.embed_images(batch["pixels"].to(device))
        ids, mask = batch["token_ids"].to(device), batch["image_mask"].to(device)
        conditions, null = encode_with_null(model, ids, mask, features)
    finally:
        model.train(training)
    side = preview.size // 2 ** (len(vae.config.block_out_channels) - 1)
    noise = RowRng(seed=0, step=0).normal("preview", (preview.samples, unet.config.in_channels, side, side), device)
    rows = []
    for condition in conditions:
        latents = sample_latents(
            unet,
            DPMSolverMultistepScheduler.from_config(scheduler.config),
            noise,
            condition.expand(preview.samples, -1, -1),
            null,
            steps=preview.steps,
            guidance=preview.guidance,
        )
        decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()
        rows.append((decoded / 2 + 0.5).clamp(0, 1))
    return torch.stack(rows)


def sample_sheet(
    model: KosmosG, frozen: Mapping[str, nn.Module], scheduler: DDPMScheduler, batch: Batch, preview: Preview
) -> tuple[Image.Image, dict[str, float]]:
    """A preview's batch, sampled, as one sheet, and its figures where it asks for them."""
    images = sample_images(model, frozen, scheduler, batch, preview)
    return grid(batch, images, model), preview_figures(batch, images, model, preview)


def grid(batch: Batch, images: Tensor, model: KosmosG) -> Image.Image:
    """What `sample_pictures` took and gave as one sheet: per prompt its text, its reference pictures, the target where
    the data has one, the samples."""
    used = [marked // model.config.resampler.latents for marked in batch["image_mask"].sum(1).tolist()]
    references = iter([] if batch["pixels"] is None else as_seen(batch["pixels"]))
    targets = batch.get("target")
    headings = [*["reference"] * max(used), *["target"] * (targets is not None), *["sample"] * images.shape[1]]
    width = len(headings) * CELL
    blocks = [sheet.row([_line(heading, CELL, sheet.FAINT) for heading in headings])]
    for number, samples in enumerate(images):
        cells = [next(references) for _ in range(used[number])] + [None] * (max(used) - used[number])
        cells += [] if targets is None else [targets[number] / 2 + 0.5]
        prompt = model.tokenizer.decode(batch["token_ids"][number].tolist())
        blocks += [_line(prompt, width, sheet.INK), sheet.row([_cell(pixels) for pixels in [*cells, *samples]])]
    return sheet.page(sheet.column(blocks), margin=0, paper="white")


def _line(words: str, width: int, colour: sheet.Colour) -> sheet.Block:
    return sheet.padded(sheet.text(words, width - 6, LINE * 2 // 3, colour, lines=1), 3, 0)


def _cell(pixels: Tensor | None) -> sheet.Block:
    if pixels is None:
        return sheet.space(CELL, CELL)
    return sheet.thumbnail(as_images(pixels[None])[0], CELL)
