"""CLIP ViT patch features: a picture becomes 1 + patches unit vectors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import VisionConfig
from .layers import AttentionPattern, Block, matmul_dtype, normalise, rows


class VisionTower(nn.Module):
    """OpenAI's CLIP vision transformer without its projection, all tokens kept, each scaled to unit length.

    The unit length is the original's (a step between CLIP and its connector); without it every result differs.
    """

    def __init__(self, config: VisionConfig, *, device: Any = None, dtype: Any = None, operations: Any = nn) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.patch_embedding = operations.Conv2d(
            3, config.width, config.patch_size, stride=config.patch_size, bias=False, **factory
        )
        self.class_embedding = operations.Embedding(1, config.width, **factory)
        self.positions = operations.Embedding(config.tokens, config.width, **factory)
        self.norm_pre = operations.LayerNorm(config.width, **factory)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.ffn_width,
                sub_norm=False,
                quick=True,
                operations=operations,
                **factory,
            )
            for _ in range(config.layers)
        )
        self.norm_post = operations.LayerNorm(config.width, **factory)

    def forward(self, pixels: Tensor) -> Tensor:
        """CLIP-normalised pixels (n, 3, S, S) -> (n, tokens, width), unit vectors; ValueError for another size."""
        expected = (3, self.config.image_size, self.config.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}, expected (n, {', '.join(map(str, expected))}); "
                "prepare pictures with preprocess_image"
            )
        patches = self.patch_embedding(pixels.to(matmul_dtype(self.patch_embedding)))
        patches = rearrange(patches, "n d y x -> n (y x) d").float()
        first = rows(self.class_embedding, 0, 1, pixels.device).expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + rows(self.positions, 0, self.config.tokens, pixels.device)
        x = normalise(self.norm_pre, x)
        pattern = AttentionPattern()
        for block in self.blocks:
            x = block(x, pattern)
        return F.normalize(normalise(self.norm_post, x), dim=-1)
