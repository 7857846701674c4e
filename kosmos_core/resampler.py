"""Attentive resampler: patch features become the image embeddings that the language model reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import ResamplerConfig
from .layers import Attention, AttentionPattern, matmul_dtype, rows


class Resampler(nn.Module):
    """One cross-attention from learned latents to [patch features, latents]; no residual, norm or feed-forward."""

    def __init__(
        self,
        config: ResamplerConfig,
        vision_width: int,
        width: int,
        *,
        device: Any = None,
        dtype: Any = None,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.dense = operations.Linear(vision_width, width, **factory)
        self.latents = operations.Embedding(config.latents, width, **factory)
        self.attention = Attention(
            width, config.heads, inner_norm=False, dropout=config.attention_dropout, operations=operations, **factory
        )

    def forward(self, features: Tensor) -> Tensor:
        """Patch features (n, tokens, vision width) -> image embeddings (n, latents, width) float32."""
        latents = rows(self.latents, 0, self.config.latents, features.device).expand(len(features), -1, -1)
        dense = self.dense(features.to(matmul_dtype(self.dense)))
        return self.attention(latents, torch.cat([dense, latents.to(dense.dtype)], dim=1), AttentionPattern()).float()
