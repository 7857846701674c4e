"""Attention, feed-forward and the one transformer block that every part of the model is built from.

Axes: b batch, n queries, m keys, h heads, d width. The residual stream stays float32 whatever the weights are, so that
LayerNorm and the sums over dozens of layers lose nothing in bfloat16; only matrix products run in the weights' type.
`operations` is a namespace with Linear, LayerNorm, Embedding and Conv2d: torch.nn, or layers that cast their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

QUERIES_AT_ONCE = 128  # whose scores stay in the cache


@dataclass(frozen=True)
class AttentionPattern:
    """Which keys a query sees.

    Either dense, (b, n, d) with an optional additive `key_bias` (b, m), or packed: sequences of different length laid
    end to end in one row (1, total, d), `lengths` of the queries and `key_lengths` of the keys, `key_bias` (1, total).
    A packed row never mixes sequences and needs no mask tensor, so no work is spent on padding.
    """

    causal: bool = False
    key_bias: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    key_lengths: tuple[int, ...] | None = None


def matmul_dtype(layer: nn.Module) -> torch.dtype:
    """Type a linear layer computes in: its weights', or `compute_dtype` where a host application has set it."""
    return getattr(layer, "compute_dtype", None) or layer.weight.dtype


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm in the type of `x`, whatever the type of the norm's weights."""
    if type(norm) is not nn.LayerNorm:
        return norm(x)  # layers that cast their weights, and may move them as well, do so themselves
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, causal: bool) -> Tensor:
    """Scaled dot-product attention, (b, h, n, d) x (b, h, m, d) -> (b, h, n, d), by the fastest of three ways.

    On CPUs the fused kernel's gradient in half precision takes two to four times as long as plain products do (measured
    with 15 to 1,024 keys). Those keep n x m weights per head, so they are for sequences where these are small. Without
    gradient and in bfloat16 it takes 1.3 to 2.4 times as long as products in blocks (9 to 2,048 keys, AVX-512).
    """
    keys = key.shape[2]
    small = query.shape[2] * keys <= 1 << 20
    on_cpu = query.device.type == "cpu"
    graded = torch.is_grad_enabled()
    if on_cpu and query.dtype == torch.bfloat16 and not graded and bias is None and not dropout:
        return _attention_in_blocks(query, key, value, causal)
    if not on_cpu or query.dtype == torch.float32 or not graded or not small:
        return F.scaled_dot_product_attention(query, key, value, bias, dropout, is_causal=causal)
    scores = (query * query.shape[3] ** -0.5) @ _columns(key)
    if bias is not None:
        scores = scores + bias
    if causal:
        future = torch.ones(query.shape[2], keys, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout)
    return weights @ value


def _attention_in_blocks(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attention by plain products for a few queries at a time, which see no more keys than they may."""
    query, columns, value = query * query.shape[3] ** -0.5, _columns(key), value.contiguous()
    out, start = [], 0
    for own in query.chunk(-(-query.shape[2] // QUERIES_AT_ONCE), dim=2):
        count = own.shape[2]
        seen = start + count if causal else key.shape[2]
        scores = own @ columns[..., :seen]
        if causal:
            future = torch.ones(count, count, dtype=torch.bool, device=query.device).triu(1)
            scores[..., start:].masked_fill_(future, float("-inf"))
        # Softmax computes in float32; under autocast it also comes back so.
        out.append(scores.softmax(-1).to(value.dtype) @ value[:, :, :seen])
        start += count
    return torch.cat(out, dim=2)


def _columns(key: Tensor) -> Tensor:
    """Keys (b, h, m, d) -> (b, h, d, m). Copied while rows are rows: a product's own copy takes 20 times as long."""
    return key.contiguous().transpose(2, 3)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, pattern: AttentionPattern, dropout: float) -> Tensor:
    """Scaled dot-product attention, (b, n, d) x (b, m, d) -> (b, n, d)."""
    query, key, value = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (query, key, value))
    bias = None if pattern.key_bias is None else pattern.key_bias[:, None, None, :].to(query.dtype)
    if pattern.lengths is None:
        out = attention(query, key, value, bias, dropout, pattern.causal)
    else:
        key_lengths = pattern.key_lengths or pattern.lengths
        biases = [None] * len(key_lengths) if bias is None else bias.split(key_lengths, dim=-1)
        queries, keys, values = (
            x.split(lengths, dim=2)
            for x, lengths in ((query, pattern.lengths), (key, key_lengths), (value, key_lengths))
        )
        out = torch.cat(
            [
                attention(q, k, v, bias, dropout, pattern.causal)
                for q, k, v, bias in zip(queries, keys, values, biases, strict=True)
            ],
            dim=2,
        )
    return rearrange(out, "b h n d -> b n (h d)")


class Attention(nn.Module):
    """Multi-head attention with biases; `inner_norm` is Magneto's Sub-LN before the output projection."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        inner_norm: bool,
        dropout: float = 0.0,
        device: Any,
        dtype: Any,
        operations: Any,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.heads, self.dropout = heads, dropout
        self.q_proj = operations.Linear(width, width, **factory)
        self.k_proj = operations.Linear(width, width, **factory)
        self.v_proj = operations.Linear(width, width, **factory)
        self.inner_norm = operations.LayerNorm(width, **factory) if inner_norm else None
        self.out_proj = operations.Linear(width, width, **factory)

    def forward(self, x: Tensor, memory: Tensor | None, pattern: AttentionPattern) -> Tensor:
        """Queries from x (b, n, d), keys and values from memory (b, m, d), or from x where memory is None."""
        x = x.to(matmul_dtype(self.q_proj))
        memory = x if memory is None else memory.to(x.dtype)
        dropout = self.dropout if self.training else 0.0
        out = attend(self.q_proj(x), self.k_proj(memory), self.v_proj(memory), self.heads, pattern, dropout)
        if self.inner_norm is not None:
            out = normalise(self.inner_norm, out)
        return self.out_proj(out)


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


class FeedForward(nn.Module):
    """Two linear layers; `inner_norm` is Magneto's Sub-LN between the activation and the second."""

    def __init__(
        self, width: int, hidden: int, *, inner_norm: bool, quick: bool, device: Any, dtype: Any, operations: Any
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.activation = quick_gelu if quick else F.gelu
        self.fc1 = operations.Linear(width, hidden, **factory)
        self.inner_norm = operations.LayerNorm(hidden, **factory) if inner_norm else None
        self.fc2 = operations.Linear(hidden, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x.to(matmul_dtype(self.fc1))))
        if self.inner_norm is not None:
            x = normalise(self.inner_norm, x)
        return self.fc2(x)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, optional cross-attention, feed-forward.

    With `sub_norm` it is Magneto's block (arXiv 2210.06423), of the language model and of AlignerNet; without it and
    with `quick` it is CLIP's. Cross-attention has no inner norm, as in the original.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ffn_width: int,
        *,
        sub_norm: bool = True,
        cross: bool = False,
        quick: bool = False,
        dropout: float = 0.0,
        device: Any,
        dtype: Any,
        operations: Any,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        shared = {**factory, "operations": operations}
        self.dropout = dropout
        self.attention_norm = operations.LayerNorm(width, **factory)
        self.attention = Attention(width, heads, inner_norm=sub_norm, **shared)
        if cross:
            self.cross_attention_norm = operations.LayerNorm(width, **factory)
            self.cross_attention = Attention(width, heads, inner_norm=False, **shared)
        self.feed_forward_norm = operations.LayerNorm(width, **factory)
        self.feed_forward = FeedForward(width, ffn_width, inner_norm=sub_norm, quick=quick, **shared)

    def forward(
        self,
        x: Tensor,
        pattern: AttentionPattern,
        memory: Tensor | None = None,
        memory_pattern: AttentionPattern | None = None,
    ) -> Tensor:
        """x (b, n, d) float32 -> (b, n, d) float32; memory (b, m, d) feeds the cross-attention."""
        x = x + self._drop(self.attention(normalise(self.attention_norm, x), None, pattern))
        if memory is not None:
            x = x + self._drop(self.cross_attention(normalise(self.cross_attention_norm, x), memory, memory_pattern))
        return x + self._drop(self.feed_forward(normalise(self.feed_forward_norm, x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


def rows(table: nn.Module, start: int, stop: int, device: torch.device) -> Tensor:
    """Rows start..stop-1 of an embedding table, (stop - start, d) float32: learned queries and positions.

    They live in Embedding modules, not in bare parameters: what moves or casts weights layer by layer knows modules.
    """
    return table(torch.arange(start, stop, device=device)).float()
