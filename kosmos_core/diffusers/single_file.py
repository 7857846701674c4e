"""Stable Diffusion 1.x in one file, `.safetensors` or `.ckpt`, read without any network.

diffusers asks its hub for the configuration of a single file. Here the sizes are read from the tensors instead, so that
a smaller U-Net with the same key names loads as well. diffusers and transformers are imported when a part is asked for.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..safetensors_file import WeightsError, read_header
from .checkpoint_file import first_line, read_tensors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."  # how the parts' names begin
CONTROLNET = "control_model."
HINT = "controlnet_cond_embedding."  # how the names of a ControlNet's own first layers begin in diffusers
ATTENTION_HEADS = 8  # of every SD1.5 transformer; no tensor tells it
CLIP_HEAD_WIDTH = 64  # of every CLIP text encoder; no tensor tells it
LATENT_SCALE = 0.18215  # of SD1.5's autoencoder


class SingleFile:
    """A checkpoint in the layout of Stability's own releases, `.safetensors` or `.ckpt`, told apart by their content.

    Sizes come from names and shapes; of a safetensors file only the part that is asked for is read. Every method raises
    WeightsError, in one sentence, where the file is damaged or lacks what it should hold.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @functools.cached_property
    def _pickled(self) -> dict[str, Tensor] | None:
        """The tensors of a `.ckpt` file; None for a safetensors file."""
        with self.path.open("rb") as file:
            if file.read(9)[8:] == b"{":
                return None
        return read_tensors(self.path)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        if self._pickled is not None:
            return frozenset(self._pickled)
        try:
            with safe_open(self.path, framework="pt") as file:
                return frozenset(file.keys())
        except SafetensorError as error:
            raise WeightsError(
                f"{self.path} cannot be read as a checkpoint ({first_line(error)}); copy or download it again"
            ) from error

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix`, under their whole names."""
        names = sorted(name for name in self.names if name.startswith(prefix))
        if self._pickled is not None:
            return {name: self._pickled[name] for name in names}
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def shapes(self, prefix: str) -> dict[str, Tensor]:
        """The same without values, on the meta device: nothing but names and shapes is read where the file allows."""
        if self._pickled is not None:
            return {name: tensor.to("meta") for name, tensor in self.tensors(prefix).items()}
        told = read_header(self.path).shapes
        return {name: torch.empty(shape, device="meta") for name, shape in told.items() if name.startswith(prefix)}

    @property
    def prediction_type(self) -> str:
        """What the U-Net was trained to predict; velocity models say so by an empty tensor."""
        return "v_prediction" if "v_pred" in self.names else "epsilon"

    def unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """The U-Net; of any number of levels and channels."""
        from diffusers import UNet2DConditionModel

        tensors = self.tensors(UNET)
        if f"{UNET}input_blocks.0.0.weight" not in tensors:
            raise WeightsError(
                f"{self.path} holds no unet (no tensor named {UNET}...); give a whole Stable Diffusion 1.x checkpoint, "
                "not a LoRA, a VAE or a model of another family"
            )
        return self._module(UNet2DConditionModel, tensors, lambda: unet_config(tensors, UNET, self.path), dtype)

    def vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL | AutoencoderTiny:
        """The picture autoencoder, or the TAESD in its place."""
        from diffusers import AutoencoderKL

        tensors = self.tensors(VAE)
        if any(name.startswith(f"{VAE}taesd_decoder.") for name in tensors):
            return _tiny_autoencoder(tensors, self.path, dtype)
        if f"{VAE}encoder.conv_in.weight" not in tensors or f"{VAE}decoder.conv_in.weight" not in tensors:
            raise WeightsError(
                f"{self.path} holds no vae (no tensor named {VAE}...); give a whole Stable Diffusion 1.x checkpoint"
            )
        return self._module(AutoencoderKL, tensors, lambda: vae_config(tensors), dtype)

    def text_encoder(self, dtype: torch.dtype = torch.float32) -> CLIPTextModel:
        """CLIP's text encoder; which parts of its names there are depends on the program that wrote the file."""
        from transformers import CLIPTextConfig, CLIPTextModel

        found = {name.rpartition("text_model.")[2]: tensor for name, tensor in self.tensors(CLIP).items()}
        words = found.get("embeddings.token_embedding.weight")
        if words is None:
            raise WeightsError(
                f"{self.path} holds no text_encoder like Stable Diffusion 1.x's (no tensor named {CLIP}transformer..."
                "token_embedding.weight); give a whole Stable Diffusion 1.x checkpoint"
            )
        model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words.shape[0],
                hidden_size=words.shape[1],
                hidden_act="quick_gelu",
                num_attention_heads=max(1, words.shape[1] // CLIP_HEAD_WIDTH),
                intermediate_size=found["encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=len({name.split(".")[2] for name in found if name.startswith("encoder.layers.")}),
                max_position_embeddings=found["embeddings.position_embedding.weight"].shape[0],
            )
        ).eval()
        # Some versions of transformers begin the names with "text_model.", others do not.
        names = {name.removeprefix("text_model."): name for name in model.state_dict()}
        if missing := sorted(names.keys() - found.keys()):
            raise WeightsError(
                f"{self.path} lacks tensors of its text encoder ({len(missing)}, such as {missing[0]}); give a "
                "complete Stable Diffusion 1.x model"
            )
        model.load_state_dict({name: found[key] for key, name in names.items()})
        return model.to(dtype)

    def controlnet(self, dtype: torch.dtype = torch.float32) -> ControlNetModel:
        """The ControlNet, in a file of its own: under the names of its first code or under those of diffusers."""
        from diffusers import ControlNetModel

        if f"{HINT}conv_in.weight" in self.names:
            tensors = self.tensors("")
            return self._module(ControlNetModel, tensors, lambda: controlnet_config(tensors, self.path), dtype)
        prefix = CONTROLNET if any(name.startswith(CONTROLNET) for name in self.names) else ""
        tensors = self.tensors(prefix)
        if f"{prefix}input_hint_block.0.weight" not in tensors:
            raise WeightsError(
                f"{self.path} holds no ControlNet (no tensor named input_hint_block... or {HINT}...); give a "
                "ControlNet for SD1.5"
            )
        return self._module(ControlNetModel, tensors, lambda: unet_config(tensors, prefix, self.path), dtype)

    def _module(
        self, kind: Any, tensors: dict[str, Tensor], sizes: Callable[[], dict[str, Any]], dtype: torch.dtype
    ) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            try:
                Path(folder, "config.json").write_text(json.dumps({"_class_name": kind.__name__, **sizes()}))
                return kind.from_single_file(tensors, config=folder, torch_dtype=dtype, local_files_only=True)
            except WeightsError:
                raise
            except NotImplementedError as error:  # a tensor that the file has not filled
                raise WeightsError(
                    f"{self.path} lacks tensors of its {kind.__name__}; give a complete Stable Diffusion 1.x model"
                ) from error
            except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise WeightsError(
                    f"the {kind.__name__} of {self.path} cannot be loaded ({first_line(error)}); it is damaged or not "
                    "of the Stable Diffusion 1.x family"
                ) from error


def unet_config(tensors: dict[str, Tensor], prefix: str, path: Path) -> dict[str, Any]:
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
        "cross_attention_dim": context,
        "attention_head_dim": ATTENTION_HEADS,
        "use_linear_projection": flat,
        "block_out_channels": widths,
        "layers_per_block": residual_blocks[0],
        "down_block_types": ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in attention],
    }
    if prefix == UNET:
        sizes["up_block_types"] = ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(attention)]
        sizes["sample_size"] = 64
    return sizes


def controlnet_config(tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Sizes of a ControlNet as keys and shapes tell them, under diffusers' names."""
    levels = _count(tensors, "down_blocks.{}.resnets.0.conv1.weight")
    layers = {_count(tensors, f"down_blocks.{level}.resnets.{{}}.conv1.weight") for level in range(levels)}
    context = next((x.shape[1] for name, x in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
    if not levels or not context or len(layers) != 1:
        raise WeightsError(f"{path} holds a ControlNet of another family; give a ControlNet for SD1.5")
    hint = [tensors[f"{HINT}conv_in.weight"]]
    hint += [
        tensors[f"{HINT}blocks.{index}.weight"] for index in range(1, _count(tensors, HINT + "blocks.{}.weight"), 2)
    ]
    attention = [f"down_blocks.{level}.attentions.0.norm.weight" in tensors for level in range(levels)]
    flat = any(x.ndim == 2 for name, x in tensors.items() if name.endswith("attentions.0.proj_in.weight"))
    return {
        "cross_attention_dim": context,
        "attention_head_dim": ATTENTION_HEADS,
        "use_linear_projection": flat,
        "block_out_channels": [tensors[f"down_blocks.{x}.resnets.0.conv1.weight"].shape[0] for x in range(levels)],
        "layers_per_block": layers.pop(),
        "down_block_types": ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in attention],
        "conditioning_channels": hint[0].shape[1],
        "conditioning_embedding_out_channels": [x.shape[0] for x in hint],
    }


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many numbers from 0 on, in the place of `{}`, give the name of a tensor."""
    return next(number for number in itertools.count() if pattern.format(number) not in tensors)


def vae_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes of the autoencoder as the keys and shapes of its encoder tell them."""
    places = [re.match(rf"{re.escape(VAE)}encoder\.down\.(\d+)\.block\.(\d+)\.", name) for name in tensors]
    levels = 1 + max(int(place[1]) for place in places if place)
    layers = 1 + max(int(place[2]) for place in places if place)
    widths = [tensors[f"{VAE}encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "block_out_channels": widths,
        "layers_per_block": layers,
        "scaling_factor": LATENT_SCALE,
        "sample_size": 512,
        "latent_channels": tensors[f"{VAE}decoder.conv_in.weight"].shape[1],
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _tiny_autoencoder(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype) -> Any:
    """A TAESD inside a checkpoint (`taesd_encoder.*`, `taesd_decoder.*`), which others take for the VAE as well."""
    from diffusers import AutoencoderTiny

    scale = float(tensors.get(f"{VAE}vae_scale", torch.tensor(1.0)))
    if float(tensors.get(f"{VAE}vae_shift", torch.tensor(0.0))):
        raise WeightsError(f"{path} holds a TAESD whose latents are shifted, which is not an SD1.5 autoencoder")
    renamed = {}
    for name, tensor in tensors.items():
        if not name.startswith(f"{VAE}taesd_"):
            continue
        half, layer, rest = name.removeprefix(f"{VAE}taesd_").split(".", 2)
        # TAESD's decoder begins with a clamp that diffusers does outside of the numbered layers.
        renamed[f"{half}.layers.{int(layer) - (half == 'decoder')}.{rest}"] = tensor
    autoencoder = AutoencoderTiny(scaling_factor=LATENT_SCALE / scale)
    missing, unexpected = autoencoder.load_state_dict(renamed, strict=False)
    if missing or unexpected:
        raise WeightsError(f"{path} holds a TAESD of another layout: {[*missing, *unexpected][:3]}")
    return autoencoder if dtype == torch.float32 else autoencoder.to(dtype)
