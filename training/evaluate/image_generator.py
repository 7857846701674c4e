"""Models that generate pictures: Kosmos-G files, and Stable Diffusion with its own text encoder beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kosmos_core import load_model
from kosmos_core.diffusers.pipeline import KosmosGPipeline
from kosmos_core.diffusers.sampler import named_scheduler
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.reference import Reference
from kosmos_core.safetensors_file import WeightsError

from ..base.errors import ConfigError
from ..base.precision import DTYPES, Precision
from .jobs import Job
from .subjects import open_image
from .tuned import SUFFIX, opened

SD_ROW = "sd15"  # in place of a weight file: Stable Diffusion with its own text encoder


@dataclass(frozen=True)
class Sampling:
    """How latents are sampled, and the size of the pictures in pixels."""

    scheduler: str
    steps: int
    guidance: float
    size: int = 512


class ImageGenerator:
    """Generates the pictures of jobs with one model.

    Each picture's noise is fixed by its job and drawn on the CPU, so that it depends neither on the device nor on which
    jobs share a batch.

    weights: a Kosmos-G file, or `sd15` for Stable Diffusion's own text encoder, which reads a job's plain words.
    sd: a diffusers folder or a single file; with the latter `sd15` needs `clip_tokenizer`, a folder with vocab.json
    and merges.txt.
    Raises WeightsError where a model is not there or is something else, ConfigError where the size does not fit it.
    """

    def __init__(
        self,
        weights: str,
        sd: str | Path,
        sampling: Sampling,
        *,
        device: torch.device,
        dtype: Precision = "fp32",
        clip_tokenizer: str | None = None,
    ) -> None:
        self.sampling = sampling
        model = StableDiffusion(
            sd, DTYPES[dtype], clip_tokenizer=clip_tokenizer, option="--sd", tokenizer_option="--clip-tokenizer"
        )
        self.diffusion = model.pipeline(text_encoder=weights == SD_ROW)
        self.diffusion.scheduler = named_scheduler(sampling.scheduler, self.diffusion.scheduler)
        self.pipe = None
        if weights != SD_ROW:
            try:
                encoder = load_model(weights, dtype=DTYPES[dtype])
            except WeightsError as error:
                raise WeightsError(f"--weights: {error}") from error
            self.pipe = KosmosGPipeline(encoder, self.diffusion)
        (self.pipe or self.diffusion).to(device)
        self.diffusion.set_progress_bar_config(disable=True)
        if sampling.size % self.diffusion.vae_scale_factor:
            raise ConfigError(f"--size: {sampling.size} must be a multiple of {self.diffusion.vae_scale_factor}")
        self._images: dict[Path, Image.Image | Reference] = {}

    @torch.no_grad()
    def generate(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """One picture for each job, made in one batch; equal prompts are encoded once."""
        wordings = list(dict.fromkeys((job.prompt, job.text, job.shown) for job in jobs))
        place = {wording: index for index, wording in enumerate(wordings)}
        rows = [place[job.prompt, job.text, job.shown] for job in jobs]
        embeds = {name: value[rows] for name, value in self._encode(wordings).items()}
        noise = torch.stack([self._noise(job) for job in jobs]).to(self.diffusion.unet.dtype)
        size = self.sampling.size
        return self.diffusion(
            **embeds,
            latents=noise.to(self.diffusion.unet.device),
            height=size,
            width=size,
            num_inference_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance,
        ).images

    def _encode(self, wordings: list[tuple[str, str, tuple[Path, ...]]]) -> dict[str, Tensor]:
        guidance = self.sampling.guidance > 1
        if self.pipe is not None:
            images = [[self._image(path) for path in conditions] for _, _, conditions in wordings]
            return self.pipe.encode_prompt([prompt for prompt, _, _ in wordings], images, guidance=guidance)
        texts = [text for _, text, _ in wordings]
        device = self.diffusion.unet.device
        positive, negative = self.diffusion.encode_prompt(texts, device, 1, guidance)
        return {"prompt_embeds": positive} | ({"negative_prompt_embeds": negative} if guidance else {})

    def _image(self, path: Path) -> Image.Image | Reference:
        if path not in self._images:
            if len(self._images) > 64:
                self._images.clear()
            self._images[path] = opened(path) if path.suffix == SUFFIX else open_image(path)
        return self._images[path]

    def _noise(self, job: Job) -> Tensor:
        """Latent noise (4, h, w): one row of a block, as if the whole block had been drawn at once."""
        side = self.sampling.size // self.diffusion.vae_scale_factor
        channels = self.diffusion.unet.config.in_channels
        generator = torch.Generator().manual_seed(job.seed)
        return torch.randn((job.rows, channels, side, side), generator=generator)[job.row]
