"""The null condition: what a prompt without words becomes, which guidance and its training need."""

from __future__ import annotations

import torch
from torch import Tensor

from kosmos_core import KosmosG


def encode_with_null(
    model: KosmosG, token_ids: Tensor, image_mask: Tensor | None, image_embeddings: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Conditions (b, 77, 768) of a batch and the null condition (1, 77, 768), in one pass through the language model.

    The null prompt, bos alone, is one more row of the batch, so that it trains with the rest.
    """
    null = torch.full_like(token_ids[:1], model.config.ids.pad)
    null[:, 0] = model.config.ids.bos
    if image_mask is not None:
        image_mask = torch.cat([image_mask, torch.zeros_like(image_mask[:1])])
    token_ids = torch.cat([token_ids, null])
    conditions = model.encode_tokens(token_ids, image_mask=image_mask, image_features=image_embeddings)
    return conditions[:-1], conditions[-1:]
