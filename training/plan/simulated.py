"""A training step on fake tensors: the engine's own code at the real sizes, without memory or arithmetic.

What is simulated is the model's blocks, the frozen modules, the engine's sharding and the optimiser. The lookups
between them, whose shapes depend on the data's values, are left out: they weigh little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kosmos_core import KosmosG, KosmosGConfig
from kosmos_core.layers import AttentionPattern

from ..base.precision import DTYPES, Precision
from ..stages.image_embeddings import train_vision_end
from ..stages.lm import ROWS_OF_LOGITS


def frozen_modules(stage: str, sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[[], nn.Module]]:
    """What makes a stage's frozen modules. To be called before the simulation: the libraries must load as they are.

    Args:
        sizes: configurations of the modules, by the names of a diffusers folder.
    """
    if stage == "align":
        from transformers import CLIPTextConfig, CLIPTextModel

        return {"clip": partial(CLIPTextModel, CLIPTextConfig(**sizes["text_encoder"]))}
    if stage == "instruct":
        from diffusers import AutoencoderKL, UNet2DConditionModel  # loads twice as long as another stage's plan takes

        return {"unet": partial(UNet2DConditionModel, **sizes["unet"]), "vae": partial(AutoencoderKL, **sizes["vae"])}
    return {}


class SimulatedStage:
    """A stage of fixed shapes.

    Args:
        rows, length, images: size of the micro-batch: sequences, tokens of each, pictures in all.
        frozen: what makes the frozen modules.
    """

    def __init__(
        self,
        name: str,
        config: KosmosGConfig,
        precision: Precision,
        frozen: Mapping[str, Callable[[], nn.Module]],
        rows: int,
        length: int,
        images: int,
    ) -> None:
        self.name, self.rows, self.length, self.images = name, rows, length, images
        self.model = KosmosG(config)
        side = config.vision.image_size
        self.pixels = torch.zeros(images, 3, side, side)
        torch.set_default_dtype(DTYPES[precision])  # fake parameters cannot be converted afterwards
        self.frozen: dict[str, nn.Module] = {key: make() for key, make in frozen.items()}
        torch.set_default_dtype(torch.float32)
        for module in self.frozen.values():
            module.requires_grad_(False).eval()

    def set_trainable(self) -> None:
        self.model.train().requires_grad_(False)
        if self.name == "align":
            self.model.aligner.requires_grad_(True)
            return
        self.model.decoder.requires_grad_(True)
        self.model.resampler.requires_grad_(True)
        train_vision_end(self.model, "trained")
        if self.name == "instruct":
            self.model.aligner.requires_grad_(True)

    def training_step(self, model: KosmosG) -> Tensor:
        return getattr(self, f"_{self.name}")(model)

    def _hidden(self, model: KosmosG, rows: int) -> Tensor:
        width = model.config.decoder.width
        token_ids = torch.zeros(rows, self.length, dtype=torch.long)
        x = model.decoder.embedding(token_ids).float()
        if self.images:
            mask = torch.zeros(rows, self.length, dtype=torch.bool)
            x = x.masked_scatter(mask[..., None], model.embed_images(self.pixels))
        x = F.dropout(x * width**0.5 + torch.zeros(rows, self.length, width), model.config.decoder.dropout)
        for block in model.decoder.blocks:
            x = block(x, AttentionPattern(causal=True))
        return model.decoder.norm(x)

    def _lm(self, model: KosmosG) -> Tensor:
        states = self._hidden(model, self.rows).flatten(0, 1) + 0.0  # picking the targets' states copies them

        def cross_entropy(states: Tensor) -> Tensor:
            targets = torch.zeros(len(states), dtype=torch.long)
            return F.cross_entropy(model.logits(states[None])[0].float(), targets, reduction="none")

        parts = states.split(ROWS_OF_LOGITS)
        if len(parts) == 1:
            return cross_entropy(states).sum()
        return torch.cat([checkpoint(cross_entropy, part, use_reentrant=False) for part in parts]).sum()

    def _align(self, model: KosmosG) -> Tensor:
        with torch.no_grad():
            hidden = self._hidden(model, self.rows)
            target = self.frozen["clip"](torch.zeros(self.rows, 77, dtype=torch.long)).last_hidden_state
        condition = model.align(hidden)
        errors = (condition - target.float()).square().mean()
        if not model.config.aligner.reconstruction:
            return errors
        return errors + (model.reconstruct(condition, self.length) - hidden).square().mean()

    def _instruct(self, model: KosmosG) -> Tensor:
        unet, vae = self.frozen["unet"], self.frozen["vae"]
        side = vae.config.sample_size
        with torch.no_grad():
            latents = vae.encode(torch.zeros(self.rows, 3, side, side, dtype=vae.dtype)).latent_dist.mean.float()
        condition = model.align(self._hidden(model, self.rows + 1))[1:]  # the null condition is one row more
        timesteps = torch.zeros(self.rows, dtype=torch.long)
        noise = torch.zeros_like(latents)
        out = unet(latents.to(unet.dtype), timesteps, encoder_hidden_states=condition.to(unet.dtype)).sample
        return (out.float() - noise).square().mean((1, 2, 3)).sum()
