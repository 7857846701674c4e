"""A tiny Stable Diffusion 1.5 (conditions of 768 channels) as diffusers has it: in parts, a folder, a single file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kosmos_core.diffusers.single_file import LATENT_SCALE
from kosmos_core.diffusers.stable_diffusion import ddpm_scheduler, pndm_scheduler

from .clip import VOCABULARY, letter_tokenizer

SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 8,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae": {
        "sample_size": 16,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "scaling_factor": LATENT_SCALE,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        **VOCABULARY,
    },
}


def tiny_unet(condition_width: int = 768) -> UNet2DConditionModel:
    """The U-Net alone, also for conditions of another width."""
    return UNet2DConditionModel(**SIZES["unet"] | {"cross_attention_dim": condition_width})


def tiny_parts(seed: int = 0) -> dict[str, Any]:
    """U-Net, VAE, text encoder and schedule, seeded."""
    torch.manual_seed(seed)
    return {
        "unet": tiny_unet(),
        "vae": AutoencoderKL(**SIZES["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**SIZES["text_encoder"])),
        "scheduler": ddpm_scheduler(),
    }


def save_stable_diffusion(folder: Path, seed: int = 0) -> Path:
    """Write everything that a whole pipeline needs as a diffusers folder, CLIP's tokenizer included."""
    parts = tiny_parts(seed) | {"scheduler": pndm_scheduler(), "tokenizer": letter_tokenizer(folder / "letters")}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **none).save_pretrained(folder)
    return folder


def save_folder(parts: Mapping[str, Any], folder: Path) -> Path:
    """Write these parts, and nothing else, as a diffusers folder."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


def save_single_file(parts: Mapping[str, nn.Module], path: Path) -> Path:
    """Write U-Net, VAE and text encoder under the names of the original Stable Diffusion files."""
    weights = {}
    for part in ("unet", "vae", "text_encoder"):
        weights |= single_file_names(part, parts[part].state_dict(), SIZES[part])
    if path.suffix == ".ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def single_file_names(part: str, weights: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """A part's state dict, from diffusers' names to those of a single file."""
    if part == "text_encoder":
        stem = "cond_stage_model.transformer.text_model."
        return {stem + name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    renamed = {}
    for name, tensor in weights.items():
        if part == "unet":
            renamed["model.diffusion_model." + _unet_name(name, sizes)] = tensor
            continue
        new = "first_stage_model." + _vae_name(name, len(sizes["block_out_channels"]))
        attention = ".attn_1." in new and new.endswith("weight") and tensor.ndim == 2
        renamed[new] = tensor[:, :, None, None] if attention else tensor  # there, 1 x 1 convolutions
    return renamed


def _replace(name: str, pairs: Mapping[str, str]) -> str:
    for old, new in pairs.items():
        name = re.sub(old, new, name)
    return name


def _unet_name(name: str, sizes: Mapping[str, Any]) -> str:
    layers = sizes.get("layers_per_block", 2)
    name = _replace(
        name,
        {
            r"^time_embedding\.linear_1": "time_embed.0",
            r"^time_embedding\.linear_2": "time_embed.2",
            r"^conv_in": "input_blocks.0.0",
            r"^conv_norm_out": "out.0",
            r"^conv_out": "out.2",
            r"^mid_block\.resnets\.0": "middle_block.0",
            r"^mid_block\.attentions\.0": "middle_block.1",
            r"^mid_block\.resnets\.1": "middle_block.2",
        },
    )
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", name):
        way, block, kind, index = found[1], int(found[2]), found[3], int(found[4])
        place = (layers + 1) * block + index
        if kind == "downsamplers":
            new = f"input_blocks.{(layers + 1) * (block + 1)}.0"
        elif kind == "upsamplers":
            kinds = sizes.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
            attends = kinds[block].startswith("CrossAttn")
            new = f"output_blocks.{(layers + 1) * block + layers}.{2 if attends else 1}"
        else:
            first, shift = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
            new = f"{first}.{place + shift}.{0 if kind == 'resnets' else 1}"
        name = new + name[found.end() :]
        name = name.replace(".0.conv.", ".0.op.") if kind == "downsamplers" else name
    inner = {r"\.norm1\.": ".in_layers.0.", r"\.conv1\.": ".in_layers.2.", r"\.norm2\.": ".out_layers.0."}
    inner |= {r"\.conv2\.": ".out_layers.3.", r"\.time_emb_proj\.": ".emb_layers.1."}
    inner |= {r"\.conv_shortcut\.": ".skip_connection."}
    return name if "transformer_blocks" in name else _replace(name, inner)


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    return _replace(
        name,
        {
            r"down_blocks\.": "down.",
            r"mid_block\.resnets\.0": "mid.block_1",
            r"mid_block\.resnets\.1": "mid.block_2",
            r"mid_block\.attentions\.0": "mid.attn_1",
            r"\.resnets\.": ".block.",
            r"downsamplers\.0": "downsample",
            r"upsamplers\.0": "upsample",
            r"conv_norm_out": "norm_out",
            r"conv_shortcut": "nin_shortcut",
            r"group_norm": "norm",
            r"to_q\.": "q.",
            r"to_k\.": "k.",
            r"to_v\.": "v.",
            r"to_out\.0\.": "proj_out.",
        },
    )
