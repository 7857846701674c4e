"""Stable Diffusion 1.5 as diffusers reads it, from a folder or a single file, without any network.

diffusers asks its hub for the configuration of a single file. Here the sizes are read from the tensors instead, so that
a smaller U-Net with the same key names loads as well. Imported on demand only: the nodes never need diffusers.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .safetensors_file import WeightsError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

UNET, VAE, CONTROLNET = "model.diffusion_model.", "first_stage_model.", "control_model."
ATTENTION_HEADS = 8  # of every SD1.5 transformer; no tensor tells it
LATENT_SCALE = 0.18215  # of SD1.5's autoencoder
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "prediction_type": "epsilon",
}  # fmt: skip


def load_stable_diffusion(
    path: str | Path, dtype: torch.dtype = torch.float32, *, text_encoder: bool = False
) -> StableDiffusionPipeline:
    """SD1.5 from a diffusers folder, a `.safetensors` or `.ckpt` file, or a name in the local hub cache.

    Never downloads. Kosmos-G takes the text encoder's place, so it is read only with `text_encoder=True`, and never
    from a single file, which lacks the tokenizer that belongs to it.
    Raises WeightsError, in one sentence, where the path holds no Stable Diffusion 1.5.
    """
    from diffusers import StableDiffusionPipeline

    path = Path(path).expanduser()
    if path.is_file():
        parts: dict[str, Any] = dict(_read_single_file(path, dtype), text_encoder=None, tokenizer=None)
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    if path.exists() and not (path / "model_index.json").is_file():
        raise WeightsError(
            f"{path} is no diffusers folder (it has no model_index.json); give the folder that holds "
            "model_index.json, unet and vae, or a single .safetensors file"
        )
    left_out = {} if text_encoder else {"text_encoder": None, "tokenizer": None}
    try:
        return StableDiffusionPipeline.from_pretrained(
            str(path), torch_dtype=dtype, local_files_only=True, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, **left_out,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise WeightsError(
            f"no Stable Diffusion 1.5 at {path}: {reason}; give a diffusers folder or a single .safetensors file "
            "that lies on this machine (nothing is downloaded)"
        ) from error


def load_controlnet(path: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """A ControlNet for SD1.5 from a diffusers folder or a single file (WeightsError where there is none)."""
    from diffusers import ControlNetModel

    path = Path(path).expanduser()
    if not path.is_file():
        try:
            return ControlNetModel.from_pretrained(str(path), torch_dtype=dtype, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise WeightsError(f"no ControlNet at {path}: {reason}; give a diffusers folder or a file") from error
    tensors = _tensors(path)
    prefix = CONTROLNET if any(name.startswith(CONTROLNET) for name in tensors) else ""
    if f"{prefix}input_hint_block.0.weight" not in tensors:
        raise WeightsError(f"{path} holds no ControlNet (input_hint_block...); give a ControlNet for SD1.5")
    with tempfile.TemporaryDirectory() as folder:
        _write_config(folder, "controlnet", "ControlNetModel", _unet_config(tensors, prefix, path))
        return ControlNetModel.from_single_file(
            tensors, config=folder, subfolder="controlnet", torch_dtype=dtype, local_files_only=True
        )


def _read_single_file(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The U-Net, autoencoder and scheduler of a checkpoint in the layout of Stability's own release."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    tensors = _tensors(path)
    if f"{UNET}input_blocks.0.0.weight" not in tensors:
        raise WeightsError(f"{path} holds no Stable Diffusion U-Net ({UNET}...); give a full SD1.5 checkpoint")
    if not any(name.startswith(VAE) for name in tensors):
        raise WeightsError(f"{path} holds no autoencoder ({VAE}...); give a full SD1.5 checkpoint")
    unet = UNet2DConditionModel.from_single_file
    with tempfile.TemporaryDirectory() as folder:
        common = {"config": folder, "torch_dtype": dtype, "local_files_only": True}
        _write_config(folder, "unet", "UNet2DConditionModel", _unet_config(tensors, UNET, path))
        parts = {"unet": unet(_under(tensors, UNET), subfolder="unet", **common)}
        if any("taesd_decoder." in name for name in tensors):
            parts["vae"] = _tiny_autoencoder(tensors, path, dtype)
        else:
            _write_config(folder, "vae", "AutoencoderKL", _vae_config(tensors))
            parts["vae"] = AutoencoderKL.from_single_file(_under(tensors, VAE), subfolder="vae", **common)
    return {**parts, "scheduler": PNDMScheduler(**SCHEDULER)}


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content.get("state_dict", content)
    except Exception as error:  # safetensors, pickle and zip each raise errors of their own
        reason = str(error).split("\n")[0]
        raise WeightsError(f"{path} cannot be read as a checkpoint: {reason}; copy or convert it again") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_config(folder: str, part: str, kind: str, sizes: dict[str, Any]) -> None:
    target = Path(folder, part)
    target.mkdir()
    (target / "config.json").write_text(json.dumps({"_class_name": kind, **sizes}))


def _unet_config(tensors: dict[str, Tensor], prefix: str, path: Path) -> dict[str, Any]:
    """Sizes of a U-Net, or of a ControlNet, as the keys and shapes of its first half tell them."""
    first = f"{prefix}input_blocks."
    blocks = 1 + max(int(name.removeprefix(first).split(".")[0]) for name in tensors if name.startswith(first))
    widths, attention, residual_blocks = [], [], []
    new_level = True
    for index in range(1, blocks):
        block = f"{first}{index}."
        if f"{block}0.op.weight" in tensors:
            new_level = True
            continue
        if new_level:
            widths.append(tensors[f"{block}0.in_layers.2.weight"].shape[0])
            attention.append(f"{block}1.norm.weight" in tensors)
            residual_blocks.append(0)
            new_level = False
        residual_blocks[-1] += 1
    context = next((x.shape[1] for name, x in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
    if tensors[f"{first}0.0.weight"].shape[1] != 4 or not context or len(set(residual_blocks)) != 1:
        raise WeightsError(
            f"{path} holds a diffusion model of another kind (an inpainting model, or no text conditioning); give a "
            "plain Stable Diffusion 1.5 checkpoint, or load it with diffusers and pass the pipeline to KosmosGPipeline"
        )
    flat = any(x.ndim == 2 for name, x in tensors.items() if name.endswith("1.proj_in.weight"))
    sizes = {
        "cross_attention_dim": context, "attention_head_dim": ATTENTION_HEADS, "use_linear_projection": flat,
        "block_out_channels": widths, "layers_per_block": residual_blocks[0],
        "down_block_types": ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in attention],
    }  # fmt: skip
    if prefix == UNET:
        sizes["up_block_types"] = ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(attention)]
        sizes["sample_size"] = 64
    return sizes


def _vae_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes of the autoencoder as the keys and shapes of its encoder tell them."""
    places = [re.match(rf"{re.escape(VAE)}encoder\.down\.(\d+)\.block\.(\d+)\.", name) for name in tensors]
    levels = 1 + max(int(place[1]) for place in places if place)
    layers = 1 + max(int(place[2]) for place in places if place)
    widths = [tensors[f"{VAE}encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "block_out_channels": widths, "layers_per_block": layers, "scaling_factor": LATENT_SCALE, "sample_size": 512,
        "latent_channels": tensors[f"{VAE}decoder.conv_in.weight"].shape[1], "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
    }  # fmt: skip


def _tiny_autoencoder(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype) -> Any:
    """A TAESD inside a checkpoint (`taesd_encoder.*`, `taesd_decoder.*`), which ComfyUI takes for the VAE as well."""
    from diffusers import AutoencoderTiny

    scale = float(tensors.get(f"{VAE}vae_scale", torch.tensor(1.0)))
    if float(tensors.get(f"{VAE}vae_shift", torch.tensor(0.0))):
        raise WeightsError(f"{path} holds a TAESD whose latents are shifted, which is not an SD1.5 autoencoder")
    renamed = {}
    for name, tensor in _under(tensors, f"{VAE}taesd_").items():
        half, layer, rest = name.removeprefix(f"{VAE}taesd_").split(".", 2)
        # TAESD's decoder begins with a clamp that diffusers does outside of the numbered layers.
        renamed[f"{half}.layers.{int(layer) - (half == 'decoder')}.{rest}"] = tensor
    autoencoder = AutoencoderTiny(scaling_factor=LATENT_SCALE / scale)
    missing, unexpected = autoencoder.load_state_dict(renamed, strict=False)
    if missing or unexpected:
        raise WeightsError(f"{path} holds a TAESD of another layout: {[*missing, *unexpected][:3]}")
    return autoencoder if dtype == torch.float32 else autoencoder.to(dtype)
