"""Stable Diffusion 1.5 from a diffusers folder or a single file: its parts one by one, or a whole diffusers pipeline.

No weights are downloaded. diffusers and transformers are imported when a part is asked for.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from ..safetensors_file import WeightsError
from .checkpoint_file import first_line
from .single_file import ATTENTION_HEADS, LATENT_SCALE, SingleFile

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        ControlNetModel,
        DDPMScheduler,
        PNDMScheduler,
        SchedulerMixin,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
SMALL = 16  # latents of a side up to which a CPU computes attention faster by plain products than by torch's fused one
# Numbers above these stand in no configuration of the family's parts; building what they ask for takes all memory.
MOST, MOST_LAYERS = 100_000, 100
# A weight file of a diffusers folder, or one of several that hold the weights together.
WEIGHTS_NAME = re.compile(
    r"(?:diffusion_pytorch_|pytorch_)?model(?:-\d+-of-\d+)?(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?P<format>safetensors|bin)"
)
NOISE_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
# Configurations of the parts, by the names of a diffusers folder. What is not listed is the library's default.
SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": ATTENTION_HEADS,
        "block_out_channels": [320, 640, 1280, 1280],
    },
    "vae": {
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": LATENT_SCALE,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    "scheduler": {**NOISE_SCHEDULE, "clip_sample": False},
}


def ddpm_scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    """Stable Diffusion 1.5's noise schedule as training takes it: any timestep, no sampling."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(**SIZES["scheduler"], prediction_type=prediction_type)


def pndm_scheduler(prediction_type: str = "epsilon") -> PNDMScheduler:
    """The sampler that Stable Diffusion 1.5 was released with."""
    from diffusers import PNDMScheduler

    options = {"set_alpha_to_one": False, "skip_prk_steps": True, "prediction_type": prediction_type}
    return PNDMScheduler(**NOISE_SCHEDULE, **options)


class StableDiffusion:
    """Where a Stable Diffusion 1.5 model lies, and what can be made of it.

    path: a diffusers folder, a `.safetensors` or `.ckpt` file, or the name of a model in the hub's local cache.
    clip_tokenizer: folder with CLIP's vocab.json and merges.txt; a single file holds none.
    option, tokenizer_option: what the user calls `path` and `clip_tokenizer`; error messages begin with it.

    The constructor and every method raise WeightsError, in one sentence, where there is no such model, or where a part
    is missing, damaged or of another family.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        clip_tokenizer: str | Path | None = None,
        option: str = "Stable Diffusion",
        tokenizer_option: str = "clip_tokenizer",
    ) -> None:
        self.dtype, self.device, self.clip_tokenizer = dtype, torch.device(device), clip_tokenizer
        self.option, self.tokenizer_option = option, tokenizer_option
        self.path = _existing_path(path, option, "a Stable Diffusion 1.5 model")
        self.file = SingleFile(self.path) if self.path.is_file() else None

    def unet(self, width: int = 768) -> UNet2DConditionModel:
        """The U-Net, frozen and in evaluation mode; `width` is that of the condition it has to take."""
        from diffusers.models.attention_processor import AttnProcessor

        unet = self._load("unet").requires_grad_(False)
        found = unet.config.cross_attention_dim
        if found != width or unet.config.in_channels != 4:
            raise WeightsError(
                f"{self.option}: the U-Net of {self.path} takes {unet.config.in_channels} latent channels and "
                f"conditions of width {found}, but 4 and {width} are needed; give a text-to-image model of the "
                "Stable Diffusion 1.x family."
            )
        if self.device.type == "cpu" and unet.config.sample_size <= SMALL:
            unet.set_attn_processor(AttnProcessor())
        return unet

    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The picture autoencoder, frozen and in evaluation mode; a model may hold the tiny one (TAESD) instead."""
        return self._load("vae").requires_grad_(False)

    def text_encoder(self, width: int = 768) -> CLIPTextModel:
        """CLIP's text encoder, frozen and in evaluation mode; its last hidden state, after the final norm, is what the
        U-Net was trained on."""
        clip = self._load("text_encoder").requires_grad_(False)
        if clip.config.hidden_size != width:
            raise WeightsError(
                f"{self.option}: the text encoder of {self.path} has width {clip.config.hidden_size}, but "
                f"{width} is needed; give a model of the Stable Diffusion 1.x family."
            )
        return clip

    def tokenizer(self) -> CLIPTokenizer:
        """CLIP's tokenizer: `clip_tokenizer`, else the model's own, else CLIP's from the hub or its local cache."""
        from transformers import CLIPTokenizer

        own = self.path / "tokenizer"
        source = str(self.clip_tokenizer or (own if own.is_dir() else CLIP_TOKENIZER))
        if self.clip_tokenizer and not Path(source).is_dir():
            raise WeightsError(
                f"{self.tokenizer_option}: {source} is no folder; give one with vocab.json and merges.txt."
            )
        try:
            return CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{self.tokenizer_option}: CLIP's tokenizer cannot be read from {source} ({first_line(error)}); give a "
                "folder with vocab.json and merges.txt (a model that shares it has them in its folder tokenizer)."
            ) from error

    def scheduler(self) -> DDPMScheduler:
        """The model's noise schedule for training."""
        from diffusers import DDPMScheduler

        with self._named("scheduler"):
            if self.file:
                return ddpm_scheduler(self.file.prediction_type)
            return DDPMScheduler.from_pretrained(self._folder("scheduler"))

    def sampler(self) -> SchedulerMixin:
        """The sampler that comes with the model."""
        import diffusers

        with self._named("scheduler"):
            if self.file:
                return pndm_scheduler(self.file.prediction_type)
            folder = self._folder("scheduler")
            kind = json.loads((folder / "scheduler_config.json").read_text())["_class_name"]
            found = getattr(diffusers, str(kind), None)
            # diffusers has classes beside the samplers that import code from the folder that they read.
            if not isinstance(found, type) or not issubclass(found, diffusers.SchedulerMixin):
                raise ValueError(f"its scheduler_config.json names {kind!r:.80}, which is no sampler of diffusers")
            return found.from_pretrained(folder)

    def pipeline(self, *, text_encoder: bool = False) -> StableDiffusionPipeline:
        """A text-to-image pipeline, without safety checker.

        Kosmos-G takes the text encoder's place, so it and its tokenizer are read only if asked for.
        """
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            unet=self._load("unet"),
            vae=self._load("vae"),
            scheduler=self.sampler(),
            text_encoder=self._load("text_encoder") if text_encoder else None,
            tokenizer=self.tokenizer() if text_encoder else None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _load(self, part: str) -> Any:
        with self._named(part):
            module = getattr(self.file, part)(self.dtype) if self.file else self._from_folder(part)
            module = module.to(self.device).eval()
            return module if module.dtype == self.dtype else module.to(self.dtype)

    def _from_folder(self, part: str) -> Any:
        import diffusers
        import transformers

        folder = self._folder(part)
        options: dict[str, Any] = {"local_files_only": True, "variant": _variant(folder)}
        if part == "text_encoder":  # transformers has renamed the argument for the type; its models are cast afterwards
            return transformers.CLIPTextModel.from_pretrained(folder, **options)
        config = folder / "config.json"
        tiny = config.is_file() and json.loads(config.read_text()).get("_class_name") == "AutoencoderTiny"
        name = "UNet2DConditionModel" if part == "unet" else "AutoencoderTiny" if tiny else "AutoencoderKL"
        return getattr(diffusers, name).from_pretrained(folder, torch_dtype=self.dtype, **options)

    def _folder(self, part: str) -> Path:
        folder = self.path / part
        if not folder.is_dir():
            raise WeightsError(
                f"{self.path} has no folder '{part}', so it is no diffusers folder of a whole model; give the one that "
                "holds model_index.json, unet and vae, or a single .safetensors or .ckpt file"
            )
        _refuse_sizes(folder)
        return folder

    def _named(self, part: str) -> contextlib.AbstractContextManager[None]:
        return _refusing(self.option, f"the {part} of {self.path}")


def load_controlnet(
    path: str | Path, dtype: torch.dtype = torch.float32, *, option: str = "controlnet"
) -> ControlNetModel:
    """A ControlNet for SD1.5 from a diffusers folder or a single file; WeightsError, in one sentence, for all else."""
    from diffusers import ControlNetModel

    path = _existing_path(path, option, "a ControlNet for Stable Diffusion 1.5")
    with _refusing(option, f"the ControlNet {path}"):
        if path.is_file():
            return SingleFile(path).controlnet(dtype)
        _refuse_sizes(path)
        return ControlNetModel.from_pretrained(path, torch_dtype=dtype, local_files_only=True, variant=_variant(path))


def _refuse_sizes(folder: Path) -> None:
    """WeightsError where a part's configuration asks for more than any model of the family has."""
    for path in (folder / "config.json", folder / "scheduler_config.json"):
        for name, number in _numbers("", json.loads(path.read_bytes())) if path.is_file() else ():
            most = MOST_LAYERS if "layers" in name else MOST
            if number > most:
                raise WeightsError(
                    f"{path} has {name} {number:g}, which no model of the Stable Diffusion 1.x family has (at most "
                    f"{most:,} is read); fetch the model anew"
                )


def _numbers(name: str, value: Any) -> Iterator[tuple[str, int | float]]:
    """The numbers of a JSON value, each with the key that it, or its list, stands under."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(key, item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, int | float):
        yield name, value


def _variant(folder: Path) -> str | None:
    """The variant, such as fp16, in which a diffusers folder has its weights; None for plain names.

    Plain safetensors come first, then half precision, plain `.bin` files and whatever else there is.
    """
    found = set()
    for file in folder.iterdir():
        if named := WEIGHTS_NAME.fullmatch(file.name):
            found.add((named["variant"], named["format"]))
    variants = sorted(variant for variant, _ in found if variant)
    if (None, "safetensors") in found:
        return None
    if "fp16" in variants:
        return "fp16"
    return None if (None, "bin") in found or not variants else variants[0]


def _existing_path(path: str | Path, option: str, what: str) -> Path:
    """The file or folder, or the hub cache's folder of that name."""
    expected = f"give {what} as a diffusers folder or as a single .safetensors or .ckpt file"
    if not str(path):
        raise WeightsError(f"{option}: no model given; {expected}.")
    found = Path(path).expanduser()
    if found.exists():
        return found
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), local_files_only=True))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{option}: {path} does not exist: there is no such file or folder, nor a model of that name in the hub's "
            f"local cache; {expected} (nothing is downloaded)."
        ) from error


@contextlib.contextmanager
def _refusing(option: str, what: str) -> Iterator[None]:
    """Turn whatever is raised by loading into one sentence that begins with the option."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{option}: {error}.") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise WeightsError(
            f"{option}: {what} cannot be loaded ({first_line(error)}); it is damaged or not of the Stable Diffusion "
            "1.x family."
        ) from error
