"""The frozen parts of any Stable Diffusion 1.5 model: U-Net, VAE, CLIP text encoder, noise schedule.

From a diffusers folder, or from the single .safetensors or .ckpt file that ComfyUI users have. Nothing is downloaded,
but for CLIP's tokenizer, which a single file does not hold, where none is named and none is in the local cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kosmos_core.diffusers.stable_diffusion import SCHEDULER, SingleFile
from kosmos_core.safetensors_file import WeightsError

from ..base.precision import DTYPES, Precision
from ..base.rng import RowRng

CLIP = "cond_stage_model."  # where a single file has the text encoder
CLIP_HEAD_WIDTH = 64  # of every CLIP text encoder; no tensor tells it
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"


class StableDiffusion:
    """Where a Stable Diffusion 1.5 model lies, and its parts on demand: frozen, in evaluation mode.

    Every method raises ValueError with a sentence where the part is missing, damaged or of another model family.
    """

    def __init__(
        self,
        path: str,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        clip_tokenizer: str | None = None,
    ) -> None:
        self.path, self.device, self.dtype = Path(path).expanduser(), torch.device(device), DTYPES[precision]
        self.clip_tokenizer = clip_tokenizer
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
        self.file = None if self.path.is_dir() else SingleFile(self.path)

    def unet(self, width: int = 768) -> UNet2DConditionModel:
        """The U-Net; `width` is that of the condition it has to take."""
        unet = self._part("unet", UNet2DConditionModel, self.file and self.file.unet)
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
        return self._part("vae", AutoencoderTiny if tiny else AutoencoderKL, self.file and self.file.vae)

    def text_encoder(self, width: int = 768) -> CLIPTextModel:
        """CLIP's text encoder; its last hidden state, after the final norm, is what stage 2 aligns to."""
        clip = self._part("text_encoder", CLIPTextModel, self.file and self._single_clip)
        if clip.config.hidden_size != width:
            raise ValueError(
                f"task.stable_diffusion: the text encoder of {self.path} has width {clip.config.hidden_size}, but "
                f"{width} is needed; give a model of the Stable Diffusion 1.x family."
            )
        return clip

    def scheduler(self) -> DDPMScheduler:
        """The noise schedule of training."""
        if self.file is None:
            return DDPMScheduler.from_pretrained(self._folder("scheduler"), subfolder="scheduler")
        return DDPMScheduler(
            beta_start=SCHEDULER["beta_start"],
            beta_end=SCHEDULER["beta_end"],
            clip_sample=False,
            beta_schedule=SCHEDULER["beta_schedule"],
            steps_offset=SCHEDULER["steps_offset"],
            prediction_type=self.file.prediction_type,
        )

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

    def _part(self, part: str, kind: type[nn.Module], of_file: Callable[[torch.dtype], nn.Module] | None) -> Any:
        try:
            module = of_file(self.dtype) if of_file else self._from_folder(part, kind)
        except WeightsError as error:
            raise ValueError(f"task.stable_diffusion: {error}.") from error
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

    def _single_clip(self, dtype: torch.dtype) -> CLIPTextModel:
        """CLIP's text encoder of a single file; which parts of its names there are depends on who wrote the file."""
        found = {name.rpartition("text_model.")[2]: tensor for name, tensor in self.file.tensors(CLIP).items()}
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
        )
        # The library's own names have the part in some of its versions.
        names = {name.removeprefix("text_model."): name for name in model.state_dict()}
        if missing := sorted(names.keys() - found.keys()):
            raise WeightsError(
                f"{self.path} lacks tensors of its text encoder ({len(missing)}, such as {missing[0]}); give a "
                "complete Stable Diffusion 1.x model"
            )
        model.load_state_dict({name: found[key] for key, name in names.items()})
        return model.to(dtype)


def snr_weights(scheduler: DDPMScheduler, bounds: tuple[float, float] | None) -> Tensor:
    """clamp(SNR, *bounds) / SNR of each timestep, (timesteps,) float32; ones without bounds.

    With these weights of the predicted noise's error, the picture's own error counts `clamp(SNR, *bounds)`: min-SNR
    (arXiv 2303.09556) with a lower bound besides.
    """
    signal = scheduler.alphas_cumprod.float()
    ratio = signal / (1 - signal)
    return torch.ones_like(ratio) if bounds is None else ratio.clamp(*bounds) / ratio


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@torch.no_grad()
def encode_images(vae: AutoencoderKL | AutoencoderTiny, images: Tensor, rng: RowRng) -> Tensor:
    """Pictures (b, 3, H, W) in -1 ... 1 -> scaled latents (b, 4, H/8, W/8) float32, one draw of the posterior each.

    The tiny autoencoder has no posterior: its latents are exact.
    """
    if isinstance(vae, AutoencoderTiny):
        return vae.encode(images.to(vae.dtype)).latents.float() * vae.config.scaling_factor
    posterior = vae.encode(images.to(vae.dtype)).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    return (mean + deviation * rng.normal("latents", tuple(mean.shape), mean.device)) * vae.config.scaling_factor
