"""The causal Magneto language model that reads text and image embeddings in one sequence."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import DecoderConfig
from .layers import AttentionPattern, Block, matmul_dtype, normalise
from .special_tokens import SpecialTokens

TABLE_STEP = 256  # the table of positions grows in steps, so that few sizes are ever built


@functools.lru_cache(maxsize=16)
def sinusoidal_positions(count: int, width: int, padding: int, device: torch.device) -> Tensor:
    """Rows 0..count-1 of fairseq's sinusoidal table, (count, width) float32: sines, then cosines; the pad row is 0."""
    with torch.inference_mode(False):  # a cached inference tensor would break a later training step
        half = width // 2
        frequency = torch.exp(torch.arange(half, device=device, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
        angle = torch.arange(count, device=device, dtype=torch.float32)[:, None] * frequency
        table = torch.cat([angle.sin(), angle.cos()], dim=1)
        table[padding] = 0
        return table


class Decoder(nn.Module):
    """Language model with absolute sinusoidal positions and a tied output projection.

    The original is configured for xPos rotary embeddings but never applies them; neither does this.
    """

    def __init__(self, config: DecoderConfig, *, device: Any = None, dtype: Any = None, operations: Any = nn) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.ids = SpecialTokens.of_vocabulary(config.vocabulary)
        self.embedding = operations.Embedding(config.vocabulary, config.width, padding_idx=self.ids.pad, **factory)
        self.blocks = nn.ModuleList(
            Block(
                config.width, config.heads, config.ffn_width, dropout=config.dropout, operations=operations, **factory
            )
            for _ in range(config.layers)
        )
        self.norm = operations.LayerNorm(config.width, **factory)

    def embed(
        self,
        token_ids: Tensor,
        image_mask: Tensor | None,
        image_embeddings: Tensor | None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Input of the first block, (b, s, width) float32: token and image embeddings, scaled alike, plus positions."""
        x = self.embedding(token_ids).float()
        # Counting the places makes the CPU wait for an accelerator. Training does not: its data has laid out both.
        countable = not self.training or token_ids.device.type == "cpu"
        if image_embeddings is not None:
            given = image_embeddings.shape[:-1].numel()
            wanted = 0 if image_mask is None else int(image_mask.sum()) if countable else given
            if wanted != given:
                raise ValueError(
                    f"image_mask marks {wanted} places for image embeddings, but image_features hold {given}; "
                    "give as many pictures as the prompt has marks"
                )
            x = x.masked_scatter(image_mask[..., None], image_embeddings.to(x.dtype))
        elif image_mask is not None and countable and bool(image_mask.any()):
            raise ValueError(f"image_mask marks {int(image_mask.sum())} places for pictures, but no pictures came")
        return x * math.sqrt(self.config.width) + self._positions(token_ids, lengths)

    def _positions(self, token_ids: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """What is added to each token for its place, (b, s, width).

        The tokens of a sequence take the table's rows from 2 on, in order. Padding takes row 1, which is 0, and is not
        counted: the tokens after it have the rows they would have without it.
        """
        pad = self.ids.pad
        real = token_ids != pad
        count = real.cumsum(1)
        if lengths is not None:  # packed sequences start anew
            starts = torch.tensor([0, *lengths[:-1]], device=token_ids.device).cumsum(0)
            before = torch.where(starts > 0, count[0, (starts - 1).clamp(min=0)], 0)
            count = count - torch.repeat_interleave(before, torch.tensor(lengths, device=token_ids.device))[None]
        size = token_ids.shape[1] + pad + 1
        table = sinusoidal_positions(-(-size // TABLE_STEP) * TABLE_STEP, self.config.width, pad, token_ids.device)
        return table[count * real + pad]

    def forward(
        self,
        token_ids: Tensor,
        image_mask: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """See `KosmosG.hidden_states`."""
        x = self.embed(token_ids, image_mask, image_embeddings, lengths)
        if self.training and self.config.dropout:
            x = nn.functional.dropout(x, self.config.dropout)
        pattern = AttentionPattern(causal=True, lengths=None if lengths is None else tuple(lengths))
        for block in self.blocks:
            x = block(x, pattern)
        return normalise(self.norm, x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores (b, s, vocabulary) through the tied embedding."""
        rows = rearrange(hidden, "b s d -> (b s) d").to(matmul_dtype(self.embedding))
        return rearrange(nn.functional.linear(rows, self.embedding.weight), "(b s) v -> b s v", b=len(hidden))
