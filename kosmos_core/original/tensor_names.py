"""Parameter names of the original implementation, what they become here, and which are left out and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..config import AlignerConfig, DecoderConfig, KosmosGConfig, ResamplerConfig, VisionConfig
from ..safetensors_file import WeightsError

# What is left out, with the reason that the report prints.
IGNORED = (
    (r"gpt_model\.decoder\.self_attn_sope\.scale", "rotary positions, configured but never applied"),
    (r".*\._float_tensor", "placeholder of the computed positions"),
    (r"gpt_model\.decoder\.output_projection\.weight", "tied to the token embedding"),
    (r"img_model\..*\.attn\.(in_proj_weight|in_proj_bias|out_proj\..*)", "unused twin of ts_attn"),
    (r"img_model\.(?!visual\.).*", "CLIP's text side, not used"),
    (r"aligner\.clip_encoder\..*", "Stable Diffusion's own text encoder"),
    (r"diffusion_unet\..*", "Stable Diffusion's own U-Net"),
    (r"vae\..*", "Stable Diffusion's own autoencoder"),
)
TRAINING_HALF = (r"aligner\.decoder_query", r"aligner\.decoder\..*", r"aligner\.decoder_proj\..*")

# Patterns over the whole name, tried in this order. Magneto's blocks are named alike in four places, hence two steps.
MAGNETO_BLOCK = {
    "self_attn.inner_attn_ln": "attention.inner_norm",
    "self_attn_layer_norm": "attention_norm",
    "self_attn": "attention",
    "encoder_attn_layer_norm": "cross_attention_norm",
    "encoder_attn": "cross_attention",
    "ffn.ffn_layernorm": "feed_forward.inner_norm",
    "ffn": "feed_forward",
    "final_layer_norm": "feed_forward_norm",
}
VISION_BLOCK = {
    "ts_attn": "attention",
    "ln_1": "attention_norm",
    "mlp.c_fc": "feed_forward.fc1",
    "mlp.c_proj": "feed_forward.fc2",
    "ln_2": "feed_forward_norm",
}
STACKS = {
    "gpt_model.decoder": "decoder",
    "aligner.encoder_proj": "aligner.source_encoder",
    "aligner.encoder": "aligner.query_decoder",
    "aligner.decoder_proj": "aligner.reconstruction_encoder",
    "aligner.decoder": "aligner.reconstruction_decoder",
}
STACK_PARTS = {"embed_positions": "positions", "output_projection": "output", "layer_norm": "norm"}
SINGLE = {
    "aligner.encoder_query": "aligner.query_decoder.queries.weight",
    "aligner.decoder_query": "aligner.reconstruction_decoder.queries.weight",
    "img_model.visual.class_embedding": "vision.class_embedding.weight",
    "img_model.visual.positional_embedding": "vision.positions.weight",
    "img_model.visual.conv1.weight": "vision.patch_embedding.weight",
    "img_connector.latent_query": "resampler.latents.weight",
}
PREFIXES = {
    "img_model.visual.ln_pre": "vision.norm_pre",
    "img_model.visual.ln_post": "vision.norm_post",
    "img_connector.dense": "resampler.dense",
    "img_connector.x_attn": "resampler.attention",
}


def ignored_reason(name: str, *, training_half: bool) -> str | None:
    """Why an original parameter is left out, or None where it is read."""
    patterns = IGNORED if training_half else (*IGNORED, *((p, "training half of AlignerNet") for p in TRAINING_HALF))
    return next((reason for pattern, reason in patterns if re.fullmatch(pattern, name)), None)


def new_name(name: str) -> str | None:
    """Name here of an original parameter, or None where the original has no such parameter."""
    if name in SINGLE:
        return SINGLE[name]
    for old, new in PREFIXES.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    if match := re.fullmatch(r"img_model\.visual\.transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", name):
        return _in_block("vision", match, VISION_BLOCK)
    for old, new in STACKS.items():
        if match := re.fullmatch(re.escape(old) + r"\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            return _in_block(new, match, MAGNETO_BLOCK)
        if match := re.fullmatch(re.escape(old) + r"\.(\w+)\.(weight|bias)", name):
            part, leaf = match.groups()
            if part == "embed_tokens":
                part = "embedding" if new == "decoder" else "input"
            return f"{new}.{STACK_PARTS.get(part, part)}.{leaf}"
    return None


def _in_block(stack: str, match: re.Match, parts: Mapping[str, str]) -> str | None:
    index, part, leaf = match.groups()
    for old, new in parts.items():
        if part == old or part.startswith(old + "."):
            return f"{stack}.blocks.{index}.{new}{part[len(old) :]}.{leaf}"
    return None


def deduce_config(state: Mapping[str, Tensor], told_heads: int | None, *, training_half: bool) -> KosmosGConfig:
    """Sizes read from the tensors; the language model's heads, which the resampler shares, as told,
    else 64 per head.

    Raises WeightsError where the vision tower, the resampler or the language model is not there.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise WeightsError(f"the checkpoint has no tensor '{name}', so it is no Kosmos-G checkpoint of any stage")
        return state[name].shape

    def layers(stack: str) -> int:
        return len({match[1] for name in state if (match := re.match(re.escape(stack) + r"\.(\d+)\.", name))})

    def sizes(name: str, axes: int) -> torch.Size:
        if len(shape(name)) != axes:
            raise WeightsError(f"the checkpoint's '{name}' has shape {tuple(shape(name))}, expected {axes} axes")
        return shape(name)

    vocabulary, width = sizes("gpt_model.decoder.embed_tokens.weight", 2)
    vision_width, _, patch, _ = sizes("img_model.visual.conv1.weight", 4)
    side = round((shape("img_model.visual.positional_embedding")[0] - 1) ** 0.5) * patch
    heads = told_heads or _heads(width)
    config = KosmosGConfig(
        VisionConfig(
            image_size=side,
            patch_size=patch,
            width=vision_width,
            layers=layers("img_model.visual.transformer.resblocks"),
            heads=_heads(vision_width),
            ffn_width=shape("img_model.visual.transformer.resblocks.0.mlp.c_fc.weight")[0],
        ),
        ResamplerConfig(latents=shape("img_connector.latent_query")[0], heads=heads),
        DecoderConfig(
            vocabulary=vocabulary,
            width=width,
            layers=layers("gpt_model.decoder.layers"),
            heads=heads,
            ffn_width=shape("gpt_model.decoder.layers.0.ffn.fc1.weight")[0],
        ),
        None,
    )
    if "aligner.encoder_query" not in state:
        return config
    queries, aligner_width = sizes("aligner.encoder_query", 2)
    return replace(
        config,
        aligner=AlignerConfig(
            width=aligner_width,
            heads=_heads(aligner_width),
            ffn_width=shape("aligner.encoder.layers.0.ffn.fc1.weight")[0],
            encoder_layers=layers("aligner.encoder_proj.layers"),
            decoder_layers=layers("aligner.encoder.layers"),
            queries=queries,
            positions=shape("aligner.encoder_proj.embed_positions.weight")[0],
            reconstruction=training_half,
        ),
    )


def _heads(width: int) -> int:
    """64 per head; one head where that does not divide (then --override says the true number)."""
    return width // 64 if width % 64 == 0 else 1
