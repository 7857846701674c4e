"""The micro-batches that stages read, made of rows.

b rows, s tokens of the longest row, n pictures of all rows, S pixels of a side of the vision tower's pictures, m rows
with a caption, c captions that are replayed (`training.stages.caption_replay`).

| entry          | shape, type          | stage         |                                                              |
| -------------- | -------------------- | ------------- | ------------------------------------------------------------ |
| `token_ids`    | (b, s) int64         | all           | padded on the right                                          |
| `image_mask`   | (b, s) bool          | all           | positions that image embeddings fill                         |
| `pixels`       | (n, 3, S, S) f32     | all           | pictures of all rows, CLIP-normalised; without any None, or  |
|                |                      |               | in align no entry, nor an `image_mask`                       |
| `loss_mask`    | (b, s) bool          | lm            | where `token_ids[t]` is a target: text and `</s>`            |
| `document_ids` | (b, s) int64         | lm, optional  | number of the document within its row, -1 on padding         |
| `clip_ids`     | (b, 77) int64        | align         | the caption in CLIP's vocabulary, with CLIP's own padding    |
|                | (m, 77) int64        | instruct, opt.| the target's caption, of those rows that have one            |
| `captioned`    | (b,) bool            | instruct, opt.| the rows that `clip_ids` belong to                           |
| `replay_ids`   | (c, s) int64         | instruct, opt.| captions beside the rows, padded on the right                |
| `replay_clip_ids` | (c, 77) int64     | instruct, opt.| the same in CLIP's vocabulary                                |
| `target`       | (b, 3, H, W) f32     | instruct      | the picture to generate, in -1 ... 1                         |
| `moments`      | (k, 2, 4, ...) | instruct, opt.| mean and deviation of the latents of those k rows that have  |
|                |                |               | them beside their shards, in the place of `target`           |
| `cached`       | (b,) bool            | instruct, opt.| the rows that `moments` belong to                            |
| `states`       | (k, 77, 768)         | align, opt.   | CLIP's states of those captions that have them               |
| `stated`       | (b,) bool            | align, opt.   | the rows that `states` belong to                             |
| `keys`         | b str                | all           | names of the samples in each row                             |
| `sources`      | b str                | all           | the source of each row                                       |
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kosmos_core.special_tokens import SpecialTokens
from kosmos_core.tokenizer import Tokenizer

from .batch_stream import Batch
from .decoding import centred
from .packing import PackedRow


@dataclass
class PromptRow:
    """A row of a micro-batch of stages 2 and 3, not padded yet; target is (3, H, W) uint8."""

    token_ids: list[int]
    image_mask: list[bool] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    clip_ids: list[int] = field(default_factory=list)
    target: Tensor | None = None
    moments: Tensor | None = None  # (2, 4, r / 8, r / 8), in the place of a target: mean and deviation of its latents
    states: Tensor | None = None  # (77, 768), of `clip_ids`


def padded(rows: list[list], value: int | bool, dtype: torch.dtype, length: int = 0) -> Tensor:
    """Rows of different lengths as one tensor (rows, longest), at least `length` long, filled up with `value`."""
    length = max([length, *map(len, rows)])
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=dtype)


def lm_batch(rows: list[PackedRow], tokenizer: Tokenizer, length: int, document_mask: bool) -> Batch:
    """Stage 1: packed sequences, padded to `length`."""
    token_ids = padded([row.token_ids for row in rows], SpecialTokens.pad, torch.int64, length)
    image_mask = padded([row.image_mask for row in rows], False, torch.bool, length)
    # The loss leaves out padding, <s>, and pictures, whose positions all hold the begin-of-image id.
    ids = tokenizer.ids
    special = (token_ids < ids.eos) | (token_ids == ids.image_start) | (token_ids == ids.image_end)
    batch = {
        "token_ids": token_ids,
        "image_mask": image_mask,
        "loss_mask": ~special,
        "pixels": _images([row.pixels for row in rows]),
    }
    if document_mask:
        batch["document_ids"] = padded([row.documents for row in rows], -1, torch.int64, length)
    return batch


def align_batch(rows: list[PromptRow], pad_to: int) -> Batch:
    """Stage 2: prompts, their captions in CLIP's vocabulary; `pixels`, `image_mask` only where there are pictures."""
    batch = {
        "token_ids": padded([row.token_ids for row in rows], SpecialTokens.pad, torch.int64, pad_to),
        "clip_ids": torch.tensor([row.clip_ids for row in rows], dtype=torch.int64),
    }
    batch |= _known("states", "stated", [row.states for row in rows])
    pixels = _images([row.pixels for row in rows])
    if pixels is not None:
        mask = padded([row.image_mask for row in rows], False, torch.bool, batch["token_ids"].shape[1])
        batch |= {"image_mask": mask, "pixels": pixels}
    return batch


def instruct_batch(rows: list[PromptRow], pad_to: int) -> Batch:
    """Stage 3: prompts with pictures, and targets; `clip_ids` and `captioned` only where a row has a caption."""
    batch = {
        "token_ids": padded([row.token_ids for row in rows], SpecialTokens.pad, torch.int64, pad_to),
        "image_mask": padded([row.image_mask for row in rows], False, torch.bool, pad_to),
        "pixels": _images([row.pixels for row in rows]),
    }
    if targets := [row.target for row in rows if row.target is not None]:
        batch["target"] = centred(targets)
    batch |= _known("moments", "cached", [row.moments for row in rows])
    captions = [row.clip_ids for row in rows if row.clip_ids]
    if captions:
        batch |= {
            "clip_ids": torch.tensor(captions, dtype=torch.int64),
            "captioned": torch.tensor([bool(row.clip_ids) for row in rows]),
        }
    return batch


def _images(rows: list[list[Tensor]]) -> Tensor | None:
    pixels = [image for row in rows for image in row]
    return torch.stack(pixels) if pixels else None


def _known(name: str, where: str, rows: list[Tensor | None]) -> Batch:
    """What was read beside the shards, and the rows that it belongs to; nothing where no row has it."""
    known = [row for row in rows if row is not None]
    marks = torch.tensor([row is not None for row in rows])
    return {name: torch.stack(known), where: marks} if known else {}
