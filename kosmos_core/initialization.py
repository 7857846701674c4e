"""Magneto initialisation (arXiv 2210.06423), with the constants that the original uses for each stack."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .aligner import PositionedEncoder, QueryDecoder
from .decoder import Decoder
from .layers import Block
from .resampler import Resampler
from .vision import VisionTower


@torch.no_grad()
def initialize(model: nn.Module, seed: int, aligner_tables: float = 1.0) -> None:
    """Fill every parameter of a Kosmos-G model from a seed, in place.

    Linear layers are PyTorch's uniform +-1/sqrt(inputs); in the Magneto stacks the weights and biases of the value and
    output projections and of both feed-forward layers (not of cross-attention) are scaled by the stack's gamma.
    AlignerNet's queries and positions are normal with deviation `aligner_tables`; 1 is the original's.
    """
    random = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            module.weight.uniform_(-bound, bound, generator=random)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=random)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(generator=random)
    for module in model.modules():
        if isinstance(module, Decoder):
            module.embedding.weight.mul_(module.config.width**-0.5)
            module.embedding.weight[module.ids.pad] = 0
            _scale(module.blocks, math.sqrt(math.log(2 * len(module.blocks))))
        elif isinstance(module, VisionTower):
            for table in (module.class_embedding, module.positions):
                table.weight.mul_(module.config.width**-0.5)
        elif isinstance(module, Resampler):
            _xavier(module, random)
        elif isinstance(module, QueryDecoder):
            module.queries.weight.mul_(aligner_tables)
            _scale(module.blocks, math.sqrt(math.log(3 * len(module.blocks))))
        elif isinstance(module, PositionedEncoder):
            module.positions.weight.mul_(aligner_tables)
            if module.output is not None:
                _scale(module.blocks, math.sqrt(math.log(2 * len(module.blocks))))  # half N's is an encoder on its own
    if aligner := getattr(model, "aligner", None):
        encoder, decoder = aligner.source_encoder.blocks, aligner.query_decoder.blocks
        _scale(encoder, math.sqrt(math.log(3 * len(decoder)) * math.log(2 * len(encoder)) / 3))


def _scale(blocks: nn.ModuleList, gamma: float) -> None:
    for block in blocks:
        assert isinstance(block, Block)
        for layer in (block.attention.v_proj, block.attention.out_proj, block.feed_forward.fc1, block.feed_forward.fc2):
            layer.weight.mul_(gamma)
            layer.bias.mul_(gamma)


def _xavier(resampler: Resampler, random: torch.Generator) -> None:
    """The resampler's attention follows fairseq's: smaller inputs, a full-size output without bias."""
    attention = resampler.attention

    def fill(weight: Tensor, gain: float) -> None:
        bound = gain * math.sqrt(6 / sum(weight.shape))
        weight.uniform_(-bound, bound, generator=random)

    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        fill(layer.weight, 1 / math.sqrt(2))
    fill(attention.out_proj.weight, 1)
    attention.out_proj.bias.zero_()
