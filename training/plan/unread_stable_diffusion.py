"""Stable Diffusion as a plan needs it: parts of the right sizes, from no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from kosmos_core.diffusers.single_file import UNET, VAE, SingleFile, unet_config, vae_config
from kosmos_core.diffusers.stable_diffusion import SIZES, StableDiffusion


class UnreadStableDiffusion(StableDiffusion):
    """Parts without values, sized as the diffusers folder or checkpoint `path` says, else as Stable Diffusion 1.5's.

    To be made before a simulation begins, for the libraries have to load outside of it. With `text_encoder_only` the
    one that loads longest stays away.
    """

    def __init__(self, path: str, dtype: torch.dtype, *, text_encoder_only: bool) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        self.path, self.dtype, self.device = Path(path or "/nonexistent"), dtype, torch.device("cpu")
        self.option = "task.stable_diffusion"
        self.makers = {"text_encoder": lambda **sizes: CLIPTextModel(CLIPTextConfig(**sizes))}
        if not text_encoder_only:
            from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel

            tiny = "encoder_block_out_channels" in self._sizes("vae")
            self.makers["vae"] = AutoencoderTiny if tiny else AutoencoderKL
            self.makers |= {"unet": UNet2DConditionModel, "scheduler": DDPMScheduler}

    def scheduler(self) -> Any:
        """The noise schedule of training."""
        return self.makers["scheduler"].from_config(self._sizes("scheduler"))

    def tokenizer(self) -> None:
        """None: a plan reads no captions."""

    def _load(self, part: str) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)  # fake parameters cannot be converted afterwards
        try:
            return self.makers[part](**self._sizes(part)).eval()
        finally:
            torch.set_default_dtype(before)

    def _sizes(self, part: str) -> dict[str, Any]:
        if self.path.is_file() and part in ("unet", "vae"):
            return self._sizes_in_file(part)
        file = self.path / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        found = json.loads(file.read_text()) if file.is_file() else SIZES[part]
        return {key: value for key, value in found.items() if not key.startswith("_")}

    def _sizes_in_file(self, part: str) -> dict[str, Any]:
        file = SingleFile(self.path)
        if part == "unet":
            return unet_config(file.shapes(UNET), UNET, self.path)
        shapes = file.shapes(VAE)
        # A TAESD inside a checkpoint has one size.
        tiny = any(name.startswith(f"{VAE}taesd_decoder.") for name in shapes)
        return SIZES["vae"] if tiny else vae_config(shapes)
