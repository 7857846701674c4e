"""Kosmos-G as a ComfyUI CLIP: the one place where the two meet.

`load_clip` returns a genuine comfy.sd.CLIP whose tokenizer and text encoder are the classes here. Offloading, partial
loading, hooks, cloning and every node that takes a CLIP are therefore ComfyUI's own. The tests run it on ComfyUI
0.3.75; for 0.8 and later, where CLIP also announces the execution device and asks for a memory estimate, it was written
after their source code.

A prompt's tokens are {"kosmos_g": [section, ...]}, a section being a list of (entry, weight). An entry is a token id
or, where a picture's embeddings go, {"type": "image", "data": source}, as in ComfyUI's own encoders that read pictures.
The source is a prepared picture (3, S, S) or the source of a reference.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..kosmos_core import KosmosG, Prompt, load_model
from ..kosmos_core.attention_maps import recorded
from ..kosmos_core.reference import Source, image_embeddings, model_fingerprint
from ..kosmos_core.weights import WeightsError, read_config, read_header
from .operations import Operations

KEY = "kosmos_g"
VISION_WEIGHTS = ("model.vision.", "model.resampler.")  # beginnings of the names of what turns pictures into embeddings
CACHED_TEXTS = 64  # a quarter of a megabyte each
Section = list[tuple[Any, ...]]


class PromptTokenizer:
    """The `tokenizer` of the CLIP: prompts in the node grammar to sections of entries."""

    def __init__(self, model: KosmosG) -> None:
        self.model = model

    def tokenize_with_weights(
        self, text: str | Prompt, return_word_ids: bool = False, images: Sequence[Tensor | Source] = (), **_: Any
    ) -> dict[str, list[Section]]:
        """Tokens of `text`; `images` are prepared pictures (3, S, S) or sources, one for each slot of the prompt.

        Raises PromptError for a prompt that cannot be read or has marks without pictures.
        """
        prompt = Prompt.parse(text, images=len(images)) if isinstance(text, str) else text
        if "embedding:" in prompt.normalised().replace("\\:", ":"):
            logging.warning("Kosmos-G reads 'embedding:...' as plain text: textual inversions belong to CLIP.")
        tokenizer = self.model.required_tokenizer()
        layout = tokenizer.layout(prompt)
        weights = layout.key_weights or [1.0] * len(layout.token_ids)
        section: Section = []
        slots = iter(layout.image_slots)
        word = 0
        inside_image = False
        for token, is_image, weight in zip(layout.token_ids, layout.image_mask, weights, strict=True):
            if is_image and inside_image:  # one entry stands for all embeddings of a picture
                continue
            inside_image = is_image
            if not is_image and (token == tokenizer.ids.image_start or tokenizer.piece(token).startswith("▁")):
                word += 1
            entry = {"type": "image", "data": images[next(slots)]} if is_image else token
            section.append((entry, weight, word) if return_word_ids else (entry, weight))
        return {KEY: [section]}

    def untokenize(self, section: Section) -> list[tuple[Any, str]]:
        """Each entry with the piece of text it stands for."""
        tokenizer = self.model.required_tokenizer()
        pieces = ("<i>" if isinstance(entry[0], dict) else tokenizer.piece(entry[0]) for entry in section)
        return list(zip(section, pieces, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing beyond the model's own weights."""
        return {}


class TextEncoder(torch.nn.Module):
    """The `cond_stage_model` of the CLIP: sections to conditions, on whatever device ComfyUI says."""

    def __init__(self, path: str, *, device: torch.device, dtype: torch.dtype, model_options: dict[str, Any]) -> None:
        super().__init__()
        operations = model_options.get("custom_operations") or Operations
        self.model = load_model(path, device, dtype, operations, training_half=False)
        self.path = path
        self.dtypes = {dtype}
        self.device = device  # where the layers compute; ComfyUI's model patcher changes it
        self.execution_device: torch.device | None = None
        self.clean_patches: Any = None
        self.replaced: Sequence[dict[str, Any]] = ()
        self.on_block: Callable[[], None] | None = None
        self._cached_texts: OrderedDict[tuple, Tensor] = OrderedDict()
        # ComfyUI stores text encoders in a small type and computes in float32: so here, unless a type was chosen.
        compute_dtype = model_options.get("kosmos_g_compute_dtype", torch.float32)
        self.casting = [module for module in self.model.modules() if hasattr(module, "comfy_cast_weights")]
        for module in self.casting:
            module.compute_dtype = compute_dtype
        vision = {*self.model.vision.modules(), *self.model.resampler.modules()}
        self._casting_vision = [module for module in self.casting if module in vision]
        for block in self.blocks():
            block.register_forward_hook(self._count_block)

    def blocks(self) -> list[torch.nn.Module]:
        """Every transformer block, for progress."""
        model = self.model
        stacks = [model.vision, model.decoder, model.aligner.source_encoder, model.aligner.query_decoder]
        return [block for stack in stacks for block in stack.blocks]

    def _count_block(self, *_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.on_block is not None:
            self.on_block()

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)
        if options.get("layer") is not None:
            logging.warning("Kosmos-G has no layers to skip: CLIP Set Last Layer does not apply to it.")

    def encode_token_weights(self, tokens: dict[str, list[Section]]) -> tuple[Tensor, Tensor]:
        """Condition (1, 77 per section, 768) and a pooled output of zeros, which Stable Diffusion 1.5 does not read."""
        if KEY not in tokens:
            raise ValueError(f"These tokens are for {', '.join(tokens)}, not for Kosmos-G: tokenize with its own CLIP.")
        self._explain_patches()
        condition = torch.cat([self._cached(section) for section in tokens[KEY]], dim=1)
        condition = condition.to(comfy.model_management.intermediate_device())
        return condition, condition.new_zeros(len(condition), condition.shape[-1])

    def image_embeddings(self, source: Tensor | Source, device: torch.device | None = None) -> Tensor:
        """Image embeddings (latents, width) on the CPU, of a prepared picture (3, S, S) or of a reference's source."""
        device = device or self.execution_device or self.device
        size = self.model.config.vision.image_size

        def embed(pixels: Tensor) -> Tensor:
            if self.patched():
                return self.model.embed_images(pixels[None].to(device))[0].cpu()
            return self.model.image_embeddings(pixels, device)

        return image_embeddings(source, size, embed, self.fingerprint)

    def patched(self) -> bool:
        """Whether other weights than the file's are in place, from a merge or a hook: nothing is cached then."""
        return any(self.replaced) or any(module.weight_function for module in self.casting)

    def fingerprint(self) -> str:
        """Hash of the parts of the loaded file that turn pictures into embeddings.

        Raises ValueError where other weights than the file's are in place there: they have no file to be known by.
        """
        names = (name for replaced in self.replaced for name in replaced)
        if any(name.startswith(VISION_WEIGHTS) for name in names) or any(
            module.weight_function for module in self._casting_vision
        ):
            raise ValueError(
                "This CLIP's picture part is not that of a Kosmos-G file any more: a merge or a hook changed it, and "
                "saved references belong to one file. Save and load references with the CLIP of Load Kosmos-G itself; "
                "with this one connect the picture (Load Image or Kosmos-G Reference)."
            )
        return model_fingerprint(self.path)

    def slot_attention(self, section: Section) -> tuple[Tensor, Tensor]:
        """Condition (77, 768) of one section, and which of its tokens fill which slot, (77, tokens), on the CPU."""
        with recorded(self.model.aligner.query_decoder) as attention:
            condition = self._encode(section)
        return condition[0].cpu(), attention.mean()[0]

    def _cached(self, section: Section) -> Tensor:
        """`_encode`, whose result is cached where the section is text alone, such as the negative prompt."""
        if self.patched() or any(isinstance(entry, dict) for entry, *_ in section):
            return self._encode(section)
        key = tuple((entry, weight) for entry, weight, *_ in section)
        if key not in self._cached_texts:
            self._cached_texts[key] = self._encode(section).cpu()
            if len(self._cached_texts) > CACHED_TEXTS:
                self._cached_texts.popitem(last=False)
        self._cached_texts.move_to_end(key)
        return self._cached_texts[key]

    def _encode(self, section: Section) -> Tensor:
        model, device = self.model, self.execution_device or self.device
        # An image's start and end are entries of their own: only the places between them are written here.
        latent_ids, latent_places = (part[1:-1] for part in model.config.ids.image(model.config.resampler.latents))
        token_ids, image_mask, weights, embeddings = [], [], [], []
        for entry, weight, *_ in section:
            if isinstance(entry, dict):
                embeddings.append(self.image_embeddings(entry["data"], device).to(device))
                token_ids += latent_ids
                image_mask += latent_places
                weights += [weight] * len(latent_ids)
            else:
                token_ids.append(entry)
                image_mask.append(False)
                weights.append(weight)
        weighted = any(weight != 1 for weight in weights)
        return model.encode_tokens(
            torch.tensor([token_ids], device=device),
            image_mask=torch.tensor([image_mask], device=device) if embeddings else None,
            key_weights=torch.tensor([weights], device=device) if weighted else None,
            image_features=torch.stack(embeddings) if embeddings else None,
        )

    def _explain_patches(self) -> None:
        """One line when a LoRA was applied: its U-Net part works, but CLIP's names are not Kosmos-G's."""
        current = getattr(self, "current_weight_patches_uuid", None)
        if self.clean_patches is not None and current not in (None, self.clean_patches):
            self.clean_patches = current
            logging.info("Kosmos-G: a LoRA's U-Net part applies, its text encoder keys do not: they belong to CLIP.")

    def memory_estimation_function(self, tokens: Any, device: torch.device | None = None) -> int:
        """Bytes of activations for one picture and one prompt, asked by ComfyUI 0.8 and later before it makes room."""
        config = self.model.config
        vision = config.vision.tokens * (config.vision.ffn_width + 6 * config.vision.width)
        longest = max((len(section) for section in tokens.get(KEY, [])), default=0) + 8 * config.resampler.latents
        decoder = longest * (config.decoder.ffn_width + 6 * config.decoder.width)
        return 4 * 2 * max(vision, decoder)

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """Load a state dict of the model, as ComfyUI's own encoders do."""
        self._cached_texts.clear()
        return self.model.load_state_dict(sd, strict=False)


def load_clip(path: str | Path, dtype: torch.dtype | None = None, device: torch.device | None = None) -> comfy.sd.CLIP:
    """Load a Kosmos-G file as a ComfyUI CLIP; None leaves the type or the device to ComfyUI.

    A chosen type is also computed in, except float16 on a CPU, which is slow there. Raises WeightsError.
    """
    config, _ = read_config(path)
    if config.aligner is None:
        raise WeightsError(
            f"{path} was trained up to the first stage only: it has no AlignerNet and cannot condition an image model; "
            "train stage 2, or load a file of stage 2 or 3"
        )
    options: dict[str, Any] = {}
    if device is not None:
        options["load_device"] = options["offload_device"] = device
    if dtype is not None:
        load_device = device or comfy.model_management.text_encoder_device()
        slow = dtype == torch.float16 and comfy.model_management.is_device_cpu(load_device)
        options |= {"dtype": dtype, "kosmos_g_compute_dtype": torch.float32 if slow else dtype}
    built: list[TextEncoder] = []

    def encoder(**arguments: Any) -> TextEncoder:
        built.append(TextEncoder(str(path), **arguments))
        return built[0]

    def tokenizer(**_: Any) -> PromptTokenizer:
        return PromptTokenizer(built[0].model)

    target = SimpleNamespace(params={}, clip=encoder, tokenizer=tokenizer)
    parameters = sum(torch.Size(shape).numel() for shape in read_header(path).shapes.values())
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options=options)
    built[0].clean_patches = clip.patcher.patches_uuid
    # Where ComfyUI keeps the weights that it replaced; every clone of the CLIP has the same two dictionaries.
    built[0].replaced = (clip.patcher.backup, clip.patcher.hook_backup)
    return clip


def encoder_of(clip: Any) -> TextEncoder:
    """The text encoder behind a CLIP; ValueError for a CLIP that is not Kosmos-G's."""
    encoder = getattr(clip, "cond_stage_model", None)
    if not isinstance(encoder, TextEncoder):
        what = "nothing" if clip is None else f"an ordinary text encoder ({type(encoder).__name__})"
        raise ValueError(
            f"The input clip got {what}, but pictures in a prompt need Kosmos-G: connect the CLIP of Load Kosmos-G."
        )
    return encoder


@contextlib.contextmanager
def progress(encoder: TextEncoder, prompts: int, images: int) -> Iterator[None]:
    """Show the progress of encoding `prompts` prompts and `images` pictures on the running node, block by block.

    ComfyUI's progress bar also raises when the user has pressed interrupt.
    """
    vision = len(encoder.model.vision.blocks)
    bar = comfy.utils.ProgressBar(prompts * (len(encoder.blocks()) - vision) + images * vision)
    encoder.on_block = lambda: bar.update(1)
    try:
        yield
        bar.update_absolute(bar.total)  # cached pictures take no steps
    finally:
        encoder.on_block = None
