"""The frozen parts of any Stable Diffusion 1.5 model: U-Net, VAE, CLIP text encoder, noise schedule.

From a diffusers folder, or from the single .safetensors or .ckpt file that ComfyUI users have. Nothing is downloaded,
but for CLIP's tokenizer, which a single file does not hold, where none is named and none is in the local cache.
"""

from __future__ import annotations

import functools
import json
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .draws import Draws
from .precision import DTYPES, Precision

# Sizes that a single file does not state. What is not listed is the library's default.
SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
    },
    "vae": {
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    "scheduler": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    },
}
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"


class StableDiffusion:
    """Where a Stable Diffusion 1.5 model lies, and its parts on demand: frozen, in evaluation mode.

    Every method raises ValueError with a sentence where the part is missing, damaged or of another model family.
    """

    def __init__(
        self, path: str, device: torch.device | str = "cpu", precision: Precision = "fp32",
        clip_tokenizer: str | None = None, sizes: Mapping[str, Mapping[str, Any]] = SIZES,
    ) -> None:  # fmt: skip
        self.path, self.device, self.dtype = Path(path).expanduser(), torch.device(device), DTYPES[precision]
        self.clip_tokenizer, self.sizes = clip_tokenizer, sizes
        if not path:
            raise ValueError(
                "task.stable_diffusion: no model given; give a Stable Diffusion 1.5 model as a diffusers folder or as "
                "a single .safetensors or .ckpt file."
            )
        if not self.path.exists():
            raise ValueError(
                f"task.stable_diffusion: {path} does not exist; give a diffusers folder or a single .safetensors or "
                ".ckpt file of a Stable Diffusion 1.5 model."
            )

    def unet(self, width: int = 768) -> UNet2DConditionModel:
        """The U-Net; `width` is that of the condition it has to take."""
        unet = self._part("unet", UNet2DConditionModel)
        found = unet.config.cross_attention_dim
        if found != width or unet.config.in_channels != 4:
            raise ValueError(
                f"task.stable_diffusion: the U-Net of {self.path} takes {unet.config.in_channels} latent channels and "
                f"conditions of width {found}, but 4 and {width} are needed; give a text-to-image model of the "
                "Stable Diffusion 1.x family."
            )
        if self.device.type == "cpu" and unet.config.sample_size <= 16:
            unet.set_attn_processor(AttnProcessor())  # at such sizes plain products beat the fused kernel on CPUs
        return unet

    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The picture autoencoder; a folder may hold the tiny one instead."""
        config = self.path / "vae" / "config.json"
        tiny = config.is_file() and json.loads(config.read_text()).get("_class_name") == "AutoencoderTiny"
        return self._part("vae", AutoencoderTiny if tiny else AutoencoderKL)

    def text_encoder(self, width: int = 768) -> CLIPTextModel:
        """CLIP's text encoder; its last hidden state, after the final norm, is what stage 2 aligns to."""
        clip = self._part("text_encoder", CLIPTextModel)
        if clip.config.hidden_size != width:
            raise ValueError(
                f"task.stable_diffusion: the text encoder of {self.path} has width {clip.config.hidden_size}, but "
                f"{width} is needed; give a model of the Stable Diffusion 1.x family."
            )
        return clip

    def scheduler(self) -> DDPMScheduler:
        """The noise schedule of training."""
        if self.path.is_dir():
            return DDPMScheduler.from_pretrained(self._folder("scheduler"), subfolder="scheduler")
        velocity = "v_pred" in self._names  # how single files of velocity models tell
        return DDPMScheduler(**self.sizes["scheduler"], prediction_type="v_prediction" if velocity else "epsilon")

    def tokenizer(self) -> CLIPTokenizer:
        """CLIP's tokenizer: `clip_tokenizer`, else the folder's own, else CLIP's from the local cache or the hub."""
        own = self.path / "tokenizer"
        source = self.clip_tokenizer or (str(own) if own.is_dir() else CLIP_TOKENIZER)
        if self.clip_tokenizer and not Path(source).is_dir():
            raise ValueError(f"task.clip_tokenizer: {source} is no folder; give one with vocab.json and merges.txt.")
        try:
            return CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"task.clip_tokenizer: CLIP's tokenizer cannot be read from {source} ({_first_line(error)}); give a "
                "folder with vocab.json and merges.txt, such as comfy/sd1_tokenizer of a ComfyUI installation."
            ) from error

    def _format(self, kind: type[nn.Module]) -> dict[str, torch.dtype]:
        # transformers has renamed the argument; its models are cast afterwards.
        return {} if kind is CLIPTextModel else {"torch_dtype": self.dtype}

    def _folder(self, part: str) -> Path:
        if not (self.path / part).is_dir():
            raise ValueError(
                f"task.stable_diffusion: {self.path} has no folder '{part}'; give a whole diffusers folder (with "
                "model_index.json) or a single .safetensors or .ckpt file."
            )
        return self.path

    def _part(self, part: str, kind: type[nn.Module]) -> Any:
        try:
            module = self._from_folder(part, kind) if self.path.is_dir() else self._from_file(part, kind)
        except NotImplementedError as error:  # a tensor that no file has filled
            raise ValueError(
                f"task.stable_diffusion: {self.path} lacks tensors of the {part}; give a complete Stable Diffusion 1.x "
                "model."
            ) from error
        except (OSError, RuntimeError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"task.stable_diffusion: the {part} of {self.path} cannot be loaded ({_first_line(error)}); it is "
                "damaged or not of the Stable Diffusion 1.x family."
            ) from error
        module = module.to(self.device)
        return (module.to(self.dtype) if module.dtype != self.dtype else module).requires_grad_(False).eval()

    def _from_folder(self, part: str, kind: type[nn.Module]) -> nn.Module:
        folder = self._folder(part)
        halves = not any((folder / part).glob("*model.safetensors")) and any((folder / part).glob("*.fp16.*"))
        variant = {"variant": "fp16"} if halves else {}
        return kind.from_pretrained(folder, subfolder=part, local_files_only=True, **variant, **self._format(kind))

    def _from_file(self, part: str, kind: type[nn.Module]) -> nn.Module:
        weights = self._weights(PREFIXES[part])
        if not weights:
            raise ValueError(
                f"task.stable_diffusion: {self.path} holds no {part} (no tensor named {PREFIXES[part]}...); give a "
                "whole Stable Diffusion 1.x checkpoint, not a LoRA, a VAE or a model of another family."
            )
        if part == "text_encoder":
            return _clip(weights, self.sizes[part], self.path)
        with tempfile.TemporaryDirectory() as folder:
            config = {"_class_name": kind.__name__, **self.sizes[part]}
            (Path(folder) / "config.json").write_text(json.dumps(config))
            return kind.from_single_file(weights, config=folder, local_files_only=True, **self._format(kind))

    @functools.cached_property
    def _pickled(self) -> dict[str, Tensor] | None:
        """The tensors of a .ckpt file; None for a safetensors file."""
        with self.path.open("rb") as file:
            if file.read(9)[8:] == b"{":
                return None
        try:
            content = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"task.stable_diffusion: {self.path} cannot be read safely ({_first_line(error)}); give the "
                ".safetensors form of the model."
            ) from error
        return content.get("state_dict", content)

    @functools.cached_property
    def _names(self) -> set[str]:
        if self._pickled is not None:
            return set(self._pickled)
        with safetensors.safe_open(self.path, framework="pt") as file:
            return set(file.keys())

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self._names if name.startswith(prefix)]
        if self._pickled is not None:
            return {name: self._pickled[name] for name in names}
        with safetensors.safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}


def _clip(weights: dict[str, Tensor], sizes: Mapping[str, Any], path: Path) -> CLIPTextModel:
    """CLIP's text encoder of a single file, whose names lack or have parts that depend on the library's version."""
    model = CLIPTextModel(CLIPTextConfig(**sizes))
    expected = model.state_dict()
    short = {name.removeprefix("text_model."): name for name in expected}
    found = {name.rpartition("text_model.")[2]: tensor for name, tensor in weights.items()}
    if missing := sorted(short.keys() - found.keys()):
        raise ValueError(
            f"task.stable_diffusion: the text encoder of {path} lacks {len(missing)} tensors, such as {missing[0]}; "
            "it is not CLIP's as Stable Diffusion 1.x has it."
        )
    model.load_state_dict({name: found[key] for key, name in short.items()})
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL | AutoencoderTiny, pictures: Tensor, draws: Draws) -> Tensor:
    """Pictures (b, 3, H, W) in -1 ... 1 -> scaled latents (b, 4, H/8, W/8) float32, one draw of the posterior each.

    The tiny autoencoder has no posterior: its latents are exact.
    """
    if isinstance(vae, AutoencoderTiny):
        return vae.encode(pictures.to(vae.dtype)).latents.float() * vae.config.scaling_factor
    posterior = vae.encode(pictures.to(vae.dtype)).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    return (mean + deviation * draws.normal("latents", tuple(mean.shape), mean.device)) * vae.config.scaling_factor
