"""AlignerNet: the language model's hidden states become Stable Diffusion's text condition (half M), and back (half N).

Paper section 2.3. Half M is an encoder over the hidden states and a decoder whose 77 learned queries read it; half N,
used in training only, is a decoder whose queries read the 77 vectors and an encoder that ends in the model's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import AlignerConfig
from .emphasis import WeightedBatch
from .layers import AttentionPattern, Block, matmul_dtype, normalise, rows

FIRST_POSITION = 2  # rows 0 and 1 of the tables of positions were never used by the original


class PositionedEncoder(nn.Module):
    """Bidirectional encoder with learned positions, between two optional linear maps."""

    def __init__(
        self,
        config: AlignerConfig,
        *,
        input_width: int | None = None,
        output_width: int | None = None,
        device: Any,
        dtype: Any,
        operations: Any,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.input = operations.Linear(input_width, config.width, **factory) if input_width else None
        self.positions = operations.Embedding(config.positions, config.width, **factory)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.ffn_width, operations=operations, **factory)
            for _ in range(config.encoder_layers)
        )
        self.norm = operations.LayerNorm(config.width, **factory)
        self.output = operations.Linear(config.width, output_width, **factory) if output_width else None

    @property
    def longest(self) -> int:
        """The number of tokens that there are positions for."""
        return self.positions.num_embeddings - FIRST_POSITION

    def forward(self, x: Tensor, pattern: AttentionPattern, padding_mask: Tensor | None = None) -> Tensor:
        """(b, s, d) -> (b, s, d'); ValueError where a sequence is longer than the table of positions."""
        lengths = pattern.lengths or (x.shape[1],)
        if max(lengths) > self.longest:
            raise ValueError(
                f"the prompt has {max(lengths)} tokens, but this model's aligner takes at most {self.longest}; "
                "shorten the text or give fewer pictures"
            )
        if self.input is not None:
            x = self.input(x.to(matmul_dtype(self.input))).float()
        table = rows(self.positions, FIRST_POSITION, FIRST_POSITION + max(lengths), x.device)
        x = x + torch.cat([table[:length] for length in lengths])
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[..., None], 0)
        for block in self.blocks:
            x = block(x, pattern)
        x = normalise(self.norm, x)
        return x if self.output is None else self.output(x.to(matmul_dtype(self.output))).float()


class QueryDecoder(nn.Module):
    """Learned queries that attend to each other and to a memory."""

    def __init__(self, config: AlignerConfig, queries: int, *, device: Any, dtype: Any, operations: Any) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.queries = operations.Embedding(queries, config.width, **factory)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.ffn_width, cross=True, operations=operations, **factory)
            for _ in range(config.decoder_layers)
        )
        self.norm = operations.LayerNorm(config.width, **factory)

    def forward(self, memory: Tensor, count: int, pattern: AttentionPattern) -> Tensor:
        """Memory (b, m, d), or packed with `pattern`'s key_lengths -> the first `count` queries, (b, count, d)."""
        queries = rows(self.queries, 0, count, memory.device)
        packed = pattern.key_lengths
        x = queries.repeat(1, len(packed), 1) if packed else queries.expand(len(memory), -1, -1)
        own = AttentionPattern(lengths=pattern.lengths)
        for block in self.blocks:
            x = block(x, own, memory, pattern)
        x = normalise(self.norm, x)
        return x.reshape(len(packed), count, -1) if packed else x


class AlignerNet(nn.Module):
    """Half M (`source_encoder`, `query_decoder`) and, where the config says so, half N (`reconstruction_*`)."""

    def __init__(
        self, config: AlignerConfig, width: int, *, device: Any = None, dtype: Any = None, operations: Any = nn
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype, "operations": operations}
        self.config = config
        self.source_encoder = PositionedEncoder(config, input_width=width, **factory)
        self.query_decoder = QueryDecoder(config, config.queries, **factory)
        if config.reconstruction:
            self.reconstruction_decoder = QueryDecoder(config, config.positions, **factory)
            self.reconstruction_encoder = PositionedEncoder(config, output_width=width, **factory)

    def forward(
        self,
        hidden: Tensor,
        padding_mask: Tensor | None = None,
        key_weights: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Half M: hidden states (b, s, width) -> condition (b, queries, aligner width) float32.

        padding_mask (b, s) is True at pad tokens. key_weights (b, s), 0 or more, emphasise tokens as `emphasis` says: 1
        is neutral, 0 hides the token. Every different weight of a prompt costs one more row of half M, all of them in
        one batch. With `lengths`, hidden is packed (1, total, d).
        """
        lengths = None if lengths is None else tuple(lengths)
        if key_weights is None:
            return self._read(hidden, padding_mask, padding_mask, lengths)
        weighted = WeightedBatch.of(key_weights.float(), padding_mask, lengths)
        hidden = weighted.repeat(hidden, lengths)
        padding_mask = None if padding_mask is None else weighted.repeat(padding_mask, lengths)
        return weighted.mean(self._read(hidden, padding_mask, weighted.mask(), weighted.lengths))

    def _read(
        self, hidden: Tensor, padding_mask: Tensor | None, unseen: Tensor | None, lengths: tuple[int, ...] | None
    ) -> Tensor:
        """Half M once for each row, where the tokens that `unseen` (b, s) marks are no keys."""
        bias = None
        if unseen is not None:
            bias = torch.zeros_like(unseen, dtype=torch.float32).masked_fill(unseen, float("-inf"))
        memory = self.source_encoder(hidden, AttentionPattern(key_bias=bias, lengths=lengths), padding_mask)
        count = self.config.queries
        answers = None if lengths is None else (count,) * len(lengths)
        reading = AttentionPattern(key_bias=bias, lengths=answers, key_lengths=lengths)
        return self.query_decoder(memory, count, reading)

    def reconstruct(self, condition: Tensor, length: int) -> Tensor:
        """Half N: condition (b, queries, aligner width) -> estimate of the hidden states (b, length, width) float32."""
        if not self.config.reconstruction:
            raise ValueError("this model has no training half of AlignerNet; build it with aligner.reconstruction=true")
        restored = self.reconstruction_decoder(condition, length, AttentionPattern())
        return self.reconstruction_encoder(restored, AttentionPattern())
