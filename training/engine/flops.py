"""Floating-point operations of training, from sizes alone: what the utilisation (MFU) is measured against.

Matrix products and convolutions only, two operations per multiply-add; causal attention counts whole and recomputed
activations do not count, as is usual for MFU. Per part of the model, backward costs one forward where only the gradient
passes through, two where weights are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kosmos_core import KosmosGConfig

FROZEN, PASSES_GRADIENT, TRAINED = 1, 2, 3  # forward passes that a step costs


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def attention(batch: int, queries: int, keys: int, width: int) -> int:
    """One attention layer with its four projections."""
    projections = linear(batch * queries, width, 2 * width) + linear(batch * keys, width, 2 * width)
    return projections + 4 * batch * queries * keys * width


def block(batch: int, length: int, width: int, ffn_width: int) -> int:
    """A transformer block without cross-attention."""
    return attention(batch, length, length, width) + 2 * linear(batch * length, width, ffn_width)


def vision_block(config: KosmosGConfig, images: int) -> int:
    return block(images, config.vision.tokens, config.vision.width, config.vision.ffn_width)


def resampler(config: KosmosGConfig, images: int) -> int:
    width, tokens, latents = config.decoder.width, config.vision.tokens, config.resampler.latents
    return linear(images * tokens, config.vision.width, width) + attention(images, latents, tokens + latents, width)


def patch_embedding(config: KosmosGConfig, images: int) -> int:
    return linear(images * (config.vision.tokens - 1), 3 * config.vision.patch_size**2, config.vision.width)


def decoder(config: KosmosGConfig, rows: int, length: int) -> int:
    sizes = config.decoder
    return sizes.layers * block(rows, length, sizes.width, sizes.ffn_width)


def positioned_encoder(config: KosmosGConfig, rows: int, length: int) -> int:
    """An AlignerNet encoder with the linear map between the language model's width and its own."""
    sizes = config.aligner
    outer = linear(rows * length, config.decoder.width, sizes.width)
    return outer + sizes.encoder_layers * block(rows, length, sizes.width, sizes.ffn_width)


def query_decoder(config: KosmosGConfig, rows: int, queries: int, memory: int) -> int:
    sizes = config.aligner
    layer = block(rows, queries, sizes.width, sizes.ffn_width) + attention(rows, queries, memory, sizes.width)
    return sizes.decoder_layers * layer


def align(config: KosmosGConfig, rows: int, length: int) -> int:
    """AlignerNet's half M."""
    queries = config.aligner.queries
    return positioned_encoder(config, rows, length) + query_decoder(config, rows, queries, length)


def reconstruct(config: KosmosGConfig, rows: int, length: int) -> int:
    """AlignerNet's half N."""
    return query_decoder(config, rows, length, config.aligner.queries) + positioned_encoder(config, rows, length)


def image_encoding(config: KosmosGConfig, count: int, last_block_trained: bool = True) -> int:
    """Vision tower and resampler with their backward passes; of the tower at most the last block trains."""
    blocks = FROZEN * (config.vision.layers - 1) + (TRAINED if last_block_trained else FROZEN)
    tower = patch_embedding(config, count) + blocks * vision_block(config, count)
    return tower + TRAINED * resampler(config, count)


def lm_step(config: KosmosGConfig, rows: int, length: int, images: int) -> int:
    """A micro-batch of stage `lm`; every position is scored, as is usual."""
    scores = linear(rows * length, config.decoder.width, config.decoder.vocabulary)
    return TRAINED * (decoder(config, rows, length) + scores) + image_encoding(config, images)


def align_step(config: KosmosGConfig, rows: int, length: int, clip: Any = None) -> int:
    """A micro-batch of stage `align`; `clip` is the text encoder's configuration."""
    trained = align(config, rows, length) + (reconstruct(config, rows, length) if config.aligner.reconstruction else 0)
    return FROZEN * decoder(config, rows, length) + TRAINED * trained + (clip_text(clip, rows) if clip else 0)


def instruct_step(
    config: KosmosGConfig, lengths: Sequence[int], images: int, latent_side: int, unet_config: Any, vae: Any = None
) -> int:
    """A micro-batch of stage `instruct`; `vae` is the configuration of the VAE where it encodes the targets.

    `lengths` are the rows' tokens without padding, on which no work is spent.
    """
    rows = len(lengths)
    # One row more: the null condition, a single token.
    trained = sum(decoder(config, 1, length) + align(config, 1, length) for length in (*lengths, 1))
    side = latent_side * 2 ** (len(vae.block_out_channels) - 1) if vae else 0
    tiny = vae is not None and "encoder_block_out_channels" in vae
    frozen = (tiny_vae_encoder if tiny else vae_encoder)(vae, rows, side) if vae else 0
    through = unet(unet_config, rows, latent_side, config.aligner.queries)
    return TRAINED * trained + PASSES_GRADIENT * through + frozen + image_encoding(config, images)


def of_batch(name: str, config: KosmosGConfig, frozen: Mapping[str, nn.Module], batch: Mapping[str, Any]) -> int:
    """What one micro-batch of stage `name` costs, forward and backward.

    Args:
        frozen: the stage's frozen modules: `clip` in align, `unet` and `vae` in instruct.
    """
    rows, length = batch["token_ids"].shape
    images = 0 if batch.get("pixels") is None else len(batch["pixels"])
    frozen_config = {key: module.config for key, module in frozen.items()}
    if name in ("lm", "toy"):
        return lm_step(config, rows, length, images)
    if name == "align":
        return align_step(config, rows, length, frozen_config.get("clip"))
    unet_config, vae = frozen_config["unet"], frozen_config.get("vae") if "latents" not in batch else None
    lengths = [length] * rows
    if not batch["token_ids"].is_meta:
        lengths = (batch["token_ids"] != config.ids.pad).sum(1).tolist()
    return instruct_step(config, lengths, images, unet_config.sample_size, unet_config, vae)


def clip_text(config: Any, rows: int) -> int:
    """transformers' CLIP text encoder, forward."""
    layer = block(rows, config.max_position_embeddings, config.hidden_size, config.intermediate_size)
    return config.num_hidden_layers * layer


def _convolution(pixels: int, inputs: int, outputs: int, kernel: int = 3) -> int:
    return linear(pixels, inputs * kernel**2, outputs)


def _resnet(rows: int, pixels: int, inputs: int, outputs: int, time: int = 0) -> int:
    shortcut = _convolution(rows * pixels, inputs, outputs, 1) if inputs != outputs else 0
    convolutions = _convolution(rows * pixels, inputs, outputs) + _convolution(rows * pixels, outputs, outputs)
    return convolutions + shortcut + linear(rows, time, outputs)


def vae_encoder(config: Any, rows: int, side: int) -> int:
    """The encoder of diffusers' AutoencoderKL on pictures of `side` pixels, forward."""
    widths, latents = config.block_out_channels, 2 * config.latent_channels
    total, before = _convolution(rows * side**2, config.in_channels, widths[0]), widths[0]
    for i, width in enumerate(widths):
        for _ in range(config.layers_per_block):
            total += _resnet(rows, side**2, before, width)
            before = width
        if i < len(widths) - 1:
            side //= 2
            total += _convolution(rows * side**2, width, width)
    total += 2 * _resnet(rows, side**2, before, before) + attention(rows, side**2, side**2, before)
    return total + _convolution(rows * side**2, before, latents) + _convolution(rows * side**2, latents, latents, 1)


def tiny_vae_encoder(config: Any, rows: int, side: int) -> int:
    """The encoder of diffusers' AutoencoderTiny on pictures of `side` pixels, forward."""
    widths = config.encoder_block_out_channels
    total = _convolution(rows * side**2, config.in_channels, widths[0])
    for i, (width, blocks) in enumerate(zip(widths, config.num_encoder_blocks, strict=True)):
        if i > 0:
            side //= 2
            total += _convolution(rows * side**2, width, width)
        total += 3 * blocks * _convolution(rows * side**2, width, width)
    return total + _convolution(rows * side**2, widths[-1], config.latent_channels)


def _spatial_transformer(rows: int, pixels: int, width: int, context: int, context_width: int, layers: int) -> int:
    own = attention(rows, pixels, pixels, width)
    cross = linear(rows * pixels, width, 2 * width) + linear(rows * context, context_width, 2 * width)
    cross += 4 * rows * pixels * context * width
    gated = linear(rows * pixels, width, 8 * width) + linear(rows * pixels, 4 * width, width)
    return 2 * linear(rows * pixels, width, width) + layers * (own + cross + gated)


def unet(config: Any, rows: int, side: int, context: int = 77) -> int:
    """diffusers' UNet2DConditionModel of the Stable Diffusion 1 family, forward.

    Args:
        side: height and width of the latents; context: length of the condition.
    """
    widths, layers, time = config.block_out_channels, config.layers_per_block, 4 * config.block_out_channels[0]
    depth = config.transformer_layers_per_block

    def transformer(pixels: int, width: int) -> int:
        return _spatial_transformer(rows, pixels, width, context, config.cross_attention_dim, depth)

    total = linear(rows, widths[0], time) + linear(rows, time, time)
    total += _convolution(rows * side**2, config.in_channels, widths[0])
    skips, before = [widths[0]], widths[0]
    for i, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
        for _ in range(layers):
            total += _resnet(rows, side**2, before, width, time)
            total += transformer(side**2, width) if "CrossAttn" in kind else 0
            skips.append(width)
            before = width
        if i < len(widths) - 1:
            side //= 2
            total += _convolution(rows * side**2, width, width)
            skips.append(width)
    total += 2 * _resnet(rows, side**2, before, before, time) + transformer(side**2, before)
    for i, (kind, width) in enumerate(zip(config.up_block_types, reversed(widths), strict=True)):
        for _ in range(layers + 1):
            total += _resnet(rows, side**2, before + skips.pop(), width, time)
            total += transformer(side**2, width) if "CrossAttn" in kind else 0
            before = width
        if i < len(widths) - 1:
            side *= 2
            total += _convolution(rows * side**2, width, width)
    return total + _convolution(rows * side**2, before, config.out_channels)
