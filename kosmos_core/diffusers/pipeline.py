"""Kosmos-G in diffusers: text and pictures, interleaved, in the place of a Stable Diffusion 1.5 pipeline's text.

    from kosmos_core.pipeline import KosmosGPipeline

    pipe = KosmosGPipeline.from_files("kosmos-g.safetensors", "stable-diffusion-v1-5", dtype=torch.float16).to("cuda")
    pipe("a dog <i> at the beach", images=[dog], guidance_scale=6, num_inference_steps=50).images[0]

Any diffusers pipeline for SD1.5 can be inside, so ControlNet, img2img and inpainting work as they do in diffusers:

    KosmosGPipeline(pipe.encoder, StableDiffusionInpaintPipeline.from_pipe(pipe.diffusion))

This module needs diffusers and is imported on demand only.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionControlNetPipeline
from safetensors.torch import load_file
from torch import Tensor

from ..model import KosmosG
from ..prompt import Prompt
from ..tokenizer import Layout
from ..weights import load_model
from .sampler import named_scheduler
from .stable_diffusion import StableDiffusion, load_controlnet

logger = logging.getLogger(__name__)

TEXT_ENCODER_LORA = ("lora_te", "text_encoder.", "text_model.")  # kohya's and diffusers' names
AnyPrompt = str | Prompt | Layout


class KosmosGPipeline:
    """A Kosmos-G encoder in front of a diffusers pipeline for Stable Diffusion 1.5.

    `encoder` turns prompts and pictures into the condition; `diffusion` is any diffusers pipeline that takes
    `prompt_embeds` (text to image, ControlNet, img2img, inpainting). Whatever is not defined here, such as `unet`,
    `vae`, `load_lora_weights` or `enable_attention_slicing`, is the diffusers pipeline's own.
    Raises ValueError where the two do not fit together.
    """

    def __init__(self, encoder: KosmosG, diffusion: DiffusionPipeline) -> None:
        parameters = inspect.signature(diffusion.__call__).parameters
        if "prompt_embeds" not in parameters:
            raise ValueError(f"{type(diffusion).__name__} takes no prompt_embeds, so Kosmos-G cannot stand in for CLIP")
        if encoder.config.aligner is None:
            raise ValueError(
                "these weights are of the first training stage (no AlignerNet) and give no condition; "
                "use a file of stage 2 or 3"
            )
        width, expected = encoder.config.aligner.width, diffusion.unet.config.cross_attention_dim
        if width != expected:
            raise ValueError(
                f"Kosmos-G gives conditions of width {width}, but this U-Net expects {expected}; "
                "use a Stable Diffusion 1.5 U-Net (768), not SD 2 (1024) or SDXL (2048)"
            )
        self.encoder = encoder.eval()
        self.diffusion = diffusion
        self._offload: torch.device | None = None

    @classmethod
    def from_files(
        cls,
        weights: str | Path,
        sd: str | Path,
        *,
        controlnet: str | Path | Any | Sequence[Any] | None = None,
        scheduler: str | None = "dpmsolver++",
        dtype: torch.dtype = torch.float32,
    ) -> KosmosGPipeline:
        """Pipeline from a Kosmos-G file and SD1.5 as a diffusers folder or a single file; nothing is downloaded.

        `controlnet` is one ControlNet or several, each a loaded model, a diffusers folder or a single file.
        `scheduler` is a name of `sampler.SCHEDULERS`, or None for the one that comes with `sd`.
        """
        diffusion: DiffusionPipeline = StableDiffusion(sd, dtype, option="sd").pipeline()
        if controlnet is not None:
            several = isinstance(controlnet, list | tuple)
            sources = controlnet if several else [controlnet]
            loaded = [load_controlnet(x, dtype) if isinstance(x, str | Path) else x for x in sources]
            diffusion = StableDiffusionControlNetPipeline(
                **diffusion.components, controlnet=loaded if several else loaded[0], requires_safety_checker=False
            )
        pipe = cls(load_model(weights, dtype=dtype), diffusion)
        if scheduler is not None:
            pipe.use_scheduler(scheduler)
        return pipe

    def use_scheduler(self, name: str) -> None:
        """Choose a sampler of `sampler.SCHEDULERS`; for any other set `pipe.scheduler`."""
        self.scheduler = named_scheduler(name, self.scheduler)

    def encode_prompt(
        self,
        prompt: AnyPrompt | Sequence[AnyPrompt],
        images: Any = None,
        negative_prompt: AnyPrompt | Sequence[AnyPrompt] | None = None,
        guidance: bool = True,
    ) -> dict[str, Tensor]:
        """Conditions (b, 77, 768) under the names that every diffusers pipeline takes, in the U-Net's type.

        images: the pictures of the `<i>` marks, as one list for all prompts in order, or as one list for each prompt.
        negative_prompt: text only, encoded by Kosmos-G; left out, it is the null condition.
        guidance: without it there is no negative condition.
        Raises ValueError where prompts, pictures and negative prompts do not match in number.
        """
        prompts = _as_list(prompt)
        if images is not None and not isinstance(images, list | tuple):
            images = [images]
        home = self.encoder.device
        if self._offload is not None:
            self.encoder.to(self._offload)
        try:
            embeds = {"prompt_embeds": self.encoder.encode(prompts, images)}
            if guidance:
                embeds["negative_prompt_embeds"] = self._negative(negative_prompt, len(prompts))
        finally:
            if self._offload is not None:
                self.encoder.to(home)
        unet = self.diffusion.unet
        device = self._offload or unet.device
        return {name: condition.to(device, unet.dtype) for name, condition in embeds.items()}

    @torch.no_grad()
    def __call__(
        self,
        prompt: AnyPrompt | Sequence[AnyPrompt] | None = None,
        images: Any = None,
        *,
        negative_prompt: AnyPrompt | Sequence[AnyPrompt] | None = None,
        guidance_scale: float = 6.0,
        **options: Any,
    ) -> Any:
        """Pictures for prompts, as the diffusers pipeline inside returns them (`.images`).

        `images` are the reference pictures of the marks (see `encode_prompt`). All other options are diffusers' own:
        num_inference_steps, generator, num_images_per_prompt (pictures of one prompt stand together), latents,
        `image` for the hint of a ControlNet or the start of img2img, and so on. A guidance_scale of at most 1 turns
        guidance off; there is still one picture per prompt, where the original returns two.
        Raises ValueError for an option that the pipeline inside does not know.
        """
        known = inspect.signature(self.diffusion.__call__).parameters
        for name in options:
            if name not in known:
                hint = "; reference pictures go to images=" if name == "image" else ""
                raise ValueError(f"{type(self.diffusion).__name__} has no option '{name}'{hint}")
        if prompt is None and options.get("prompt_embeds") is None:
            raise ValueError("give a prompt, or prompt_embeds made by encode_prompt")
        if prompt is not None:
            if options.get("prompt_embeds") is not None:
                raise ValueError("give either a prompt or prompt_embeds, not both")
            options |= self.encode_prompt(prompt, images, negative_prompt, guidance=guidance_scale > 1)
        return self.diffusion(guidance_scale=guidance_scale, **options)

    @property
    def scheduler(self) -> Any:
        """The sampler; any scheduler of diffusers may be set."""
        return self.diffusion.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.diffusion.scheduler = scheduler

    def load_lora_weights(self, source: str | Path | dict[str, Tensor], **options: Any) -> None:
        """Load a LoRA by diffusers' own loader; layers for CLIP's text encoder are left out with a warning.

        Kosmos-G stands in that encoder's place, and diffusers would fail on them. A source that is neither tensors nor
        a file goes to diffusers as it is.
        """
        if not isinstance(source, dict):
            path = Path(source, options.get("weight_name", ""))
            if not path.is_file():
                self.diffusion.load_lora_weights(str(source), **options)
                return
            options.pop("weight_name", None)
            source = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        unet = {name: tensor for name, tensor in source.items() if not name.startswith(TEXT_ENCODER_LORA)}
        if len(unet) < len(source):
            logger.warning(
                "%d of the LoRA's %d tensors belong to CLIP's text encoder, whose place Kosmos-G takes; they are left "
                "out",
                len(source) - len(unet),
                len(source),
            )
        self.diffusion.load_lora_weights(unet, **options)

    def to(self, *args: Any, **kwargs: Any) -> KosmosGPipeline:
        """Move encoder and diffusion model to a device or type, as in torch; returns the pipeline."""
        self.encoder.to(*args, **kwargs)
        self.diffusion.to(*args, **kwargs)
        return self

    def enable_model_cpu_offload(self, *, device: str | torch.device = "cuda", **options: Any) -> None:
        """Keep every model on the CPU and bring it to `device` only while it runs, Kosmos-G included."""
        self._offload = torch.device(device)
        self.encoder.to("cpu")
        self.diffusion.enable_model_cpu_offload(device=self._offload, **options)

    def enable_sequential_cpu_offload(self, *, device: str | torch.device = "cuda", **options: Any) -> None:
        """Bring the U-Net and the autoencoder to `device` layer by layer, and Kosmos-G, which runs once, as a whole."""
        self._offload = torch.device(device)
        self.encoder.to("cpu")
        self.diffusion.enable_sequential_cpu_offload(device=self._offload, **options)

    def __getattr__(self, name: str) -> Any:
        if name in ("diffusion", "encoder"):  # not set yet, as while unpickling: asking for them again would not end
            raise AttributeError(name)
        return getattr(self.diffusion, name)

    def _negative(self, negative_prompt: AnyPrompt | Sequence[AnyPrompt] | None, count: int) -> Tensor:
        negatives = _as_list("" if negative_prompt is None else negative_prompt)
        if len(negatives) not in (1, count):
            raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one for each")
        condition = self.encoder.encode(negatives)
        return condition.expand(count, -1, -1) if len(negatives) == 1 else condition


def _as_list(prompt: AnyPrompt | Sequence[AnyPrompt]) -> list[AnyPrompt]:
    return [prompt] if isinstance(prompt, str | Prompt | Layout) else list(prompt)
