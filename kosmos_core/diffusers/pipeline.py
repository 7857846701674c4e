"""Kosmos-G in diffusers: text and pictures, interleaved, in the place of a Stable Diffusion 1.5 pipeline's text.

    from kosmos_core.pipeline import KosmosGPipeline

    pipe = KosmosGPipeline.from_files("kosmos-g.safetensors", "stable-diffusion-v1-5", dtype=torch.float16).to("cuda")
    pipe("a dog <i> at the beach", images=[dog], guidance_scale=6, num_inference_steps=50).images[0]

Any diffusers pipeline for SD1.5 can be inside, so ControlNet, img2img and inpainting work as they do in diffusers:

    KosmosGPipeline(pipe.encoder, StableDiffusionInpaintPipeline.from_pipe(pipe.diffusion))

This module needs diffusers and is imported on demand only.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, StableDiffusionControlNetPipeline
from torch import Tensor, nn

from ..model import KosmosG
from ..prompt import Prompt
from ..tokenizer import Layout
from ..weights import load_model
from .no_text_encoder import load_lora_weights, refuse_text_encoder_options, without_text_encoder_scale
from .sampler import named_scheduler
from .stable_diffusion import StableDiffusion, load_controlnet

logger = logging.getLogger(__name__)

AnyPrompt = str | Prompt | Layout
OWN = ("encoder", "diffusion", "_offload")  # of the pipeline itself; all else is diffusers'
DEPRECATED = ("callback", "callback_steps")  # diffusers still takes them, without naming them


class KosmosGPipeline:
    """A Kosmos-G encoder in front of a diffusers pipeline for Stable Diffusion 1.5.

    `encoder` turns prompts and pictures into the condition; `diffusion` is any diffusers pipeline that takes
    `prompt_embeds` (text to image, ControlNet, img2img, inpainting). Whatever is not defined here, such as `unet`,
    `vae`, `scheduler` or `enable_attention_slicing`, is the diffusers pipeline's own, to be read and to be set.
    Raises ValueError where the two do not fit together.
    """

    def __init__(self, encoder: KosmosG, diffusion: DiffusionPipeline) -> None:
        self._offload: torch.device | None = None
        self.encoder = encoder
        self.diffusion = diffusion

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
        """Choose a sampler of `sampler.SCHEDULERS`; for any other set `pipe.scheduler`, as in diffusers."""
        self.scheduler = named_scheduler(name, self.scheduler)

    def encode_prompt(
        self,
        prompt: AnyPrompt | Sequence[AnyPrompt] | None = None,
        images: Any = None,
        negative_prompt: AnyPrompt | Sequence[AnyPrompt] | None = None,
        guidance: bool = True,
        *,
        negative_images: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Conditions (b, 77, 768) under the names that every diffusers pipeline takes, in the U-Net's type.

        images: the pictures of the `<i>` marks, as one list for all prompts in order, or as one list for each prompt.
        negative_prompt, negative_images: the same for what guidance leads away from, as one prompt for all or one for
        each; left out, it is the null condition.
        guidance: without it there is no negative condition.
        prompt_embeds, negative_prompt_embeds: conditions made before, in place of a prompt or a negative prompt.
        Raises ValueError where something is given twice, or prompts, pictures and conditions do not match in number.
        """
        _check_fit(self.encoder, self.diffusion)  # whatever has been registered with diffusers in the meantime
        if prompt is None and prompt_embeds is None:
            raise ValueError("give a prompt, or prompt_embeds made by encode_prompt")
        images, negative_images = _as_images(images), _as_images(negative_images)
        _refuse_both("prompt", prompt, "images", images, prompt_embeds)
        _refuse_both("negative_prompt", negative_prompt, "negative_images", negative_images, negative_prompt_embeds)
        given = any(x is not None for x in (negative_prompt or None, negative_images, negative_prompt_embeds))
        if given and not guidance:
            logger.warning("Guidance is off (a guidance_scale of at most 1): what is given as negative has no effect")
        width = self.encoder.config.aligner.width
        if prompt_embeds is not None:
            _check_embeds("prompt_embeds", prompt_embeds, (), None, width)
        with self._encoder_on_its_device():
            if prompt_embeds is None:
                prompt_embeds = self.encoder.encode(_as_list(prompt), images)
            count, length = prompt_embeds.shape[:2]
            embeds = {"prompt_embeds": prompt_embeds}
            if guidance:
                if negative_prompt_embeds is None:
                    negative_prompt_embeds = self._encode_negative(negative_prompt, negative_images, count)
                _check_embeds("negative_prompt_embeds", negative_prompt_embeds, (1, count), length, width)
                embeds["negative_prompt_embeds"] = negative_prompt_embeds.expand(count, -1, -1)
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
        negative_images: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        guidance_scale: float = 6.0,
        **options: Any,
    ) -> Any:
        """Pictures for prompts, as the diffusers pipeline inside returns them (`.images`).

        `images` are the reference pictures of the marks, `negative_images` those of the negative prompt's (see
        `encode_prompt`). All other options are diffusers' own: num_inference_steps, generator, num_images_per_prompt
        (pictures of one prompt stand together), latents, `image` for the hint of a ControlNet or the start of img2img,
        and so on. A guidance_scale of at most 1 turns guidance off; there is still one picture per prompt, where the
        original returns two.
        Raises ValueError for an option that the pipeline inside does not know or that CLIP's text encoder would need.
        """
        parameters = inspect.signature(self.diffusion.__call__).parameters
        known = {*parameters, *(DEPRECATED if "kwargs" in parameters else ())}
        for name in options:
            if name not in known:
                hint = "; reference pictures go to images=" if name == "image" else ""
                raise ValueError(f"{type(self.diffusion).__name__} has no option '{name}'{hint}")
        refuse_text_encoder_options(self.diffusion, options)
        options |= self.encode_prompt(
            prompt,
            images,
            negative_prompt,
            guidance_scale > 1,
            negative_images=negative_images,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        with without_text_encoder_scale(self.diffusion):
            return self.diffusion(guidance_scale=guidance_scale, **options)

    def load_lora_weights(self, source: str | Path | dict[str, Tensor], **options: Any) -> None:
        """Load a LoRA by diffusers' own loader; layers for CLIP's text encoder are left out with a warning.

        `source` and `options` are diffusers' own: a file, a folder with or without weight_name, tensors by name, a
        model of the hub; adapter_name, hotswap and so on. Raises WeightsError where there is no such file.
        """
        load_lora_weights(self.diffusion, source, **options)

    def load_textual_inversion(self, *_: Any, **__: Any) -> None:
        """Raises ValueError: a textual inversion is a word of CLIP's text encoder, whose place Kosmos-G takes."""
        raise ValueError(
            "a textual inversion is a word of CLIP's text encoder, whose place Kosmos-G takes; show the subject in a "
            'picture instead: pipe("a photo of <i>", images=[picture])'
        )

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Save the Stable Diffusion as diffusers does; Kosmos-G stays in its own file, which a warning says."""
        self.diffusion.save_pretrained(folder, **options)
        logger.warning(
            "%s holds the Stable Diffusion alone: Kosmos-G stays in its own file. KosmosGPipeline.from_files(weights, "
            "folder) brings both together again",
            folder,
        )

    def to(self, *args: Any, **kwargs: Any) -> KosmosGPipeline:
        """Move encoder and diffusion model to a device or type, as in diffusers; returns the pipeline."""
        self.diffusion.to(*args, **kwargs)
        kwargs.pop("silence_dtype_warnings", None)  # diffusers' own
        self.encoder.to(*args, **kwargs)
        return self

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda", **options: Any
    ) -> None:
        """Keep every model on the CPU and bring it to `device` only while it runs, Kosmos-G included."""
        self._offload_to(gpu_id, device)
        self.diffusion.enable_model_cpu_offload(device=self._offload, **options)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda", **options: Any
    ) -> None:
        """Bring the U-Net and the autoencoder to `device` layer by layer, and Kosmos-G, which runs once, as a whole."""
        self._offload_to(gpu_id, device)
        self.diffusion.enable_sequential_cpu_offload(device=self._offload, **options)

    def __getattr__(self, name: str) -> Any:
        if name in OWN:  # not set yet, as while unpickling: asking for them again would not end
            raise AttributeError(name)
        return getattr(self.diffusion, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "encoder":
            _check_fit(value, self.__dict__.get("diffusion"))
            value = value.eval()
        elif name == "diffusion":
            _check_fit(self.__dict__.get("encoder"), value)
        elif name not in OWN and not hasattr(type(self), name):
            self._set_in_diffusion(name, value)
            return
        object.__setattr__(self, name, value)

    def _set_in_diffusion(self, name: str, value: Any) -> None:
        parts = self.diffusion.components
        if isinstance(value, nn.Module | SchedulerMixin) and name not in parts:
            raise ValueError(
                f"{type(self.diffusion).__name__} has no component '{name}', so this {type(value).__name__} would have "
                f"no effect; its components are {', '.join(parts)}"
            )
        if name == "unet":
            _check_width(value, self.encoder.config.aligner.width, "U-Net")
        if name in ("text_encoder", "tokenizer") and value is not None:
            logger.warning("%s has no effect on prompts: Kosmos-G takes the place of CLIP's text encoder", name)
        setattr(self.diffusion, name, value)

    @contextlib.contextmanager
    def _encoder_on_its_device(self) -> Iterator[None]:
        """The encoder on the device of the offloading, where there is one, for as long as the block lasts."""
        home = self.encoder.device
        if self._offload is not None:
            self.encoder.to(self._offload)
        try:
            yield
        finally:
            if self._offload is not None:
                self.encoder.to(home)

    def _offload_to(self, gpu_id: int | None, device: str | torch.device) -> None:
        device = torch.device(device)
        self._offload = device if gpu_id is None else torch.device(device.type, gpu_id)
        self.encoder.to("cpu")

    def _encode_negative(self, prompt: Any, images: Any, count: int) -> Tensor:
        negatives = _as_list("" if prompt is None else prompt)
        if len(negatives) not in (1, count):
            raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one for each")
        try:
            return self.encoder.encode(negatives, _as_images(images))
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"negative_prompt with negative_images: {error}") from error


def _check_fit(encoder: KosmosG | None, diffusion: DiffusionPipeline | None) -> None:
    """ValueError where the one gives no condition, the other takes none, or they differ in width."""
    if diffusion is not None and "prompt_embeds" not in inspect.signature(diffusion.__call__).parameters:
        raise ValueError(f"{type(diffusion).__name__} takes no prompt_embeds, so Kosmos-G cannot stand in for CLIP")
    if encoder is not None and encoder.config.aligner is None:
        raise ValueError(
            "these weights are of the first training stage (no AlignerNet) and give no condition; use a file of stage "
            "2 or 3"
        )
    if encoder is None or diffusion is None:
        return
    _check_width(diffusion.unet, encoder.config.aligner.width, "U-Net")
    controlnets = getattr(diffusion, "controlnet", None)
    for controlnet in getattr(controlnets, "nets", [controlnets] if controlnets is not None else []):
        _check_width(controlnet, encoder.config.aligner.width, "ControlNet")


def _check_width(module: Any, width: int, kind: str) -> None:
    expected = module.config.cross_attention_dim
    if width != expected:
        raise ValueError(
            f"Kosmos-G gives conditions of width {width}, but this {kind} expects {expected}; "
            f"use a Stable Diffusion 1.5 {kind} (768), not SD 2 (1024) or SDXL (2048)"
        )


def _refuse_both(name: str, prompt: Any, images_name: str, images: Any, embeds: Tensor | None) -> None:
    if embeds is None:
        return
    if prompt is not None:
        raise ValueError(f"give either a {name} or {name}_embeds, not both")
    if images is not None:
        raise ValueError(
            f"{images_name} are the pictures of a prompt's marks, and {name}_embeds are encoded already; give the "
            f"{name} in their place, or leave out {images_name}"
        )


def _check_embeds(name: str, embeds: Any, rows: tuple[int, ...], length: int | None, width: int) -> None:
    """ValueError where a condition made before is no tensor (b, length, width)."""
    shape = tuple(getattr(embeds, "shape", ()))
    fits = len(shape) == 3 and (not rows or shape[0] in rows) and length in (None, shape[1]) and shape[2] == width
    if not isinstance(embeds, Tensor) or not fits or 0 in shape:
        expected = " or ".join(f"({count or 'b'}, {length or 77}, {width})" for count in dict.fromkeys(rows or (0,)))
        raise ValueError(f"{name} have shape {shape}, expected {expected}")


def _as_list(prompt: AnyPrompt | Sequence[AnyPrompt]) -> list[AnyPrompt]:
    return [prompt] if isinstance(prompt, str | Prompt | Layout) else list(prompt)


def _as_images(images: Any) -> Any:
    """A list of pictures; one may come without a list, and none as an empty one."""
    if images is None or isinstance(images, list | tuple):
        return images or None
    return [images]
