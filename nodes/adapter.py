"""Kosmos-G as a ComfyUI CLIP: the one place where the two meet.

`load_clip` returns a genuine comfy.sd.CLIP whose tokenizer and text encoder are the classes here. Offloading, partial
loading, hooks, cloning and every node that takes a CLIP are therefore ComfyUI's own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..kosmos_core import load_model
from ..kosmos_core.attention_maps import recorded
from ..kosmos_core.reference import Source, image_embeddings, model_fingerprint
from ..kosmos_core.remembered import computation_state, weight_sample
from ..kosmos_core.saved_clip import read_kosmos_header
from ..kosmos_core.weights import WeightsError, file_metadata, read_config
from .connections import tell
from .number_format import faster_dtype
from .operations import Operations
from .saving import into_checkpoint
from .tokens import KEY, NotClipError, PromptTokenizer, Section, check_tokens, warn_once

VISION_WEIGHTS = ("model.vision.", "model.resampler.")  # beginnings of the names of what turns pictures into embeddings
CACHED_TEXTS = 64  # a quarter of a megabyte each


class TextEncoder(torch.nn.Module):
    """The `cond_stage_model` of the CLIP: sections to conditions, on whatever device ComfyUI says."""

    def __init__(self, path: str, *, device: torch.device, dtype: torch.dtype, model_options: dict[str, Any]) -> None:
        super().__init__()
        operations = model_options.get("custom_operations") or Operations
        self.model = load_model(path, device, dtype, operations, training_half=False)
        self.path = path
        _, described = read_config(path)
        provenance = {**described["provenance"], "saved": f"by ComfyUI, from {Path(path).name}"}
        self.description = file_metadata(self.model.config, described["stage"], {dtype}, provenance)
        self._vision_sample = weight_sample(self.model.vision, self.model.resampler)
        self.dtypes = {dtype}
        self.device = device  # where the layers compute; ComfyUI's model patcher changes it
        self.execution_device: torch.device | None = None
        self.applied: frozenset[str] = frozenset()  # weights that are not the file's, as of ComfyUI's latest loading
        self.hooked: Mapping[str, Any] = {}  # weights that a hook has replaced since then
        self.injected = False  # whether another pack's code is in the modules: it may change any of them
        self.explained: Any = None  # the state of the patches that the log has a line on
        self.on_block: Callable[[], None] | None = None
        self._cached_texts: OrderedDict[tuple, Tensor] = OrderedDict()
        self._cached_state: bytes | None = None  # under which all of them were computed
        # ComfyUI stores text encoders in a small type and computes in float32: so here, unless a type was chosen.
        self.compute_dtype = model_options.get("kosmos_g_compute_dtype", torch.float32)
        self.casting = [module for module in self.model.modules() if hasattr(module, "comfy_cast_weights")]
        for module in self.casting:
            module.compute_dtype = self.compute_dtype
        # Weak: ComfyUI takes an encoder that refers to itself for a memory leak.
        count = weakref.WeakMethod(self._count_block)
        for block in self.blocks():
            block.register_forward_hook(lambda *_: count()())

    def blocks(self) -> list[torch.nn.Module]:
        """Every transformer block, for progress."""
        model = self.model
        stacks = [model.vision, model.decoder, model.aligner.source_encoder, model.aligner.query_decoder]
        return [block for stack in stacks for block in stack.blocks]

    def _count_block(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.on_block is not None:
            self.on_block()

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)
        if options.get("layer") is not None:
            logging.warning("Kosmos-G has no layers to skip: CLIP Set Last Layer does not apply to it.")
        if options.get("projected_pooled") is False:  # as GLIGEN's nodes ask for it
            warn_once("Kosmos-G has no pooled output: a node that needs one, such as GLIGEN's, gets zeros.")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            raise NotClipError(f"the encoder's {name!r}") from None

    def encode_token_weights(self, tokens: dict[str, list[Section]]) -> tuple[Tensor, Tensor]:
        """Condition (1, 77 per section, 768) and a pooled output of zeros, which Stable Diffusion 1.5 does not read."""
        sections = check_tokens(tokens, self.model.config.decoder.vocabulary)
        device = self.execution_device or self.device
        state = None if self.patched() else computation_state(device, self.model)
        condition = torch.cat([self._cached(section, state) for section in sections], dim=1)
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

        shape = self.model.config.resampler.latents, self.model.config.decoder.width
        return image_embeddings(source, size, embed, self.fingerprint, shape)

    def patched(self) -> bool:
        """Whether other weights than the file's are in place, from a merge or a hook: nothing is cached then."""
        return bool(self.applied or self.hooked or self.injected)

    def fingerprint(self, whole: bool = False) -> str:
        """Hash of the parts of the loaded file that turn pictures into embeddings, or of the `whole` encoder.

        A LoRA on the language model or AlignerNet changes none of that: it is an artist's wish on top of the file.
        Raises ValueError where other weights than the file's are in place there: they have no file to be known by.
        """
        if not self.model.file.unchanged:
            raise ValueError(
                f"{self.path} was replaced or removed after it was loaded, so that saved references cannot be told to "
                "belong to it or not: run the graph again, which loads the file anew."
            )
        patched = any(name.startswith(VISION_WEIGHTS) for name in (*self.applied, *self.hooked))
        # Other packs also write into the weights without a word to ComfyUI's patcher.
        sample = weight_sample(self.model.vision, self.model.resampler)
        if patched or self.injected or sample != self._vision_sample:
            raise ValueError(
                "This CLIP's picture part is not that of a Kosmos-G file any more: a merge or a hook changed it, and "
                "saved references belong to one file. Save and load references with the CLIP of Load Kosmos-G itself; "
                "with this one connect the picture (Load Image or Kosmos-G Reference)."
            )
        return model_fingerprint(self.path, whole)

    def slot_attention(self, section: Section) -> tuple[Tensor, Tensor]:
        """Condition (77, 768) of one section, and which of its tokens fill which slot, (77, tokens), on the CPU."""
        with recorded(self.model.aligner.query_decoder) as attention:
            condition = self._encode(section)
        return condition[0].cpu(), attention.of_prompt(self._weights(section))

    def _cached(self, section: Section, state: bytes | None) -> Tensor:
        """`_encode`, whose result is cached where the section is text alone, such as the negative prompt."""
        if state is None or any(isinstance(entry, dict) for entry, *_ in section):
            return self._encode(section)
        if state != self._cached_state:
            self._cached_texts.clear()
            self._cached_state = state
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
        token_ids, image_mask, embeddings, weights = [], [], [], self._weights(section)
        for entry, *_ in section:
            if isinstance(entry, dict):
                embeddings.append(self.image_embeddings(entry["data"], device).to(device))
                token_ids += latent_ids
                image_mask += latent_places
            else:
                token_ids.append(entry)
                image_mask.append(False)
        weighted = any(weight != 1 for weight in weights)
        return model.encode_tokens(
            torch.tensor([token_ids], device=device),
            image_mask=torch.tensor([image_mask], device=device) if embeddings else None,
            key_weights=torch.tensor([weights], device=device) if weighted else None,
            image_features=torch.stack(embeddings) if embeddings else None,
        )

    def _weights(self, section: Section) -> list[float]:
        """The weight of each token that the model reads."""
        latents = self.model.config.resampler.latents
        return [weight for entry, weight, *_ in section for _ in range(latents if isinstance(entry, dict) else 1)]

    def memory_estimation_function(self, tokens: Any, device: torch.device | None = None) -> int:
        """Bytes of activations for one picture and one prompt, asked by ComfyUI 0.8 and later before it makes room."""
        config = self.model.config
        vision = config.vision.tokens * (config.vision.ffn_width + 6 * config.vision.width)
        longest = max((len(section) for section in tokens.get(KEY, [])), default=0) + 8 * config.resampler.latents
        decoder = longest * (config.decoder.ffn_width + 6 * config.decoder.width)
        # AlignerNet reads a prompt once for each of its different weights, in one batch.
        readings = max((len({weight for _, weight, *_ in section}) for section in tokens.get(KEY, [])), default=1)
        aligner = readings * longest * (config.aligner.ffn_width + 6 * config.aligner.width)
        return 4 * 2 * max(vision, decoder, aligner)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        """As in torch; empty where a checkpoint of an image model is saved, in which nothing would read it."""
        if not into_checkpoint():
            return super().state_dict(*arguments, **options)
        tell(
            "Kosmos-G is left out of this checkpoint: nothing would read it there. Save its CLIP with CLIPSave, and "
            "load that file with Load Kosmos-G beside the checkpoint."
        )
        return {}

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """Load a state dict of the model, as ComfyUI's own encoders do."""
        return self.model.load_state_dict(sd, strict=False)


def load_clip(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    *,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """Load a Kosmos-G file as a ComfyUI CLIP; None leaves the type or the device to ComfyUI.

    A chosen type is also computed in, except float16 on a CPU, which is slow there. None stands for bfloat16 where
    `faster_dtype` says so. `disable_dynamic` loads the weights as a whole where ComfyUI would bring them to the device
    when they are needed. Raises WeightsError.
    """
    config, _ = read_config(path)
    if config.aligner is None:
        raise WeightsError(
            f"{path} was trained up to the first stage only: it has no AlignerNet and cannot condition an image model; "
            "train stage 2, or load a file of stage 2 or 3"
        )
    header, _ = read_kosmos_header(path)
    parameters = sum(torch.Size(shape).numel() for shape in header.shapes.values())
    asked = dtype
    dtype = dtype or faster_dtype(parameters, device)
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
        return PromptTokenizer(built[0].model, built[0].description)

    target = SimpleNamespace(params={}, clip=encoder, tokenizer=tokenizer)
    # Only a ComfyUI that has dynamic loading knows the word.
    loading = {"disable_dynamic": True} if disable_dynamic else {}
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options=options, **loading)
    kinds = comfy.patcher_extension.CallbacksMP
    note = functools.partial(_note_patches, clean=clip.patcher.patches_uuid)
    clip.patcher.add_callback_with_key(kinds.ON_LOAD, KEY, note)
    for kind, injected in ((kinds.ON_INJECT_MODEL, True), (kinds.ON_EJECT_MODEL, False)):
        clip.patcher.add_callback_with_key(kind, KEY, functools.partial(_note_injection, injected=injected))
    # How ComfyUI makes a second copy of the weights: for another device, or one that is not loaded dynamically.
    clip.patcher.cached_patcher_init = (load_patcher, (path, asked, device))
    return clip


def load_patcher(
    path: str | Path, dtype: torch.dtype | None, device: torch.device | None, disable_dynamic: bool = False
) -> Any:
    """The model patcher of `load_clip`, as ComfyUI asks for one through `cached_patcher_init`."""
    return load_clip(path, dtype, device, disable_dynamic=disable_dynamic).patcher


def _note_patches(patcher: Any, *_: Any, clean: Any) -> None:
    """Tell the text encoder, whenever ComfyUI loads it, which of its weights are not its file's.

    Only the patcher that loads it knows: clones with other patches share the encoder, and where ComfyUI keeps the
    originals says nothing, as it also puts unpatched weights there. `clean` is the state of a CLIP fresh from its file.
    """
    encoder = patcher.model
    replaced = (name for name in patcher.object_patches if name.startswith("model."))
    encoder.applied = frozenset((*patcher.patches, *patcher.weight_wrapper_patches, *replaced))
    encoder.hooked = patcher.hook_backup
    if patcher.patches_uuid not in (clean, encoder.explained) and not encoder.applied:
        encoder.explained = patcher.patches_uuid
        logging.info("Kosmos-G: a LoRA's U-Net part applies, its text encoder keys do not: they belong to CLIP.")


def _note_injection(patcher: Any, *_: Any, injected: bool) -> None:
    """Tell the text encoder that another pack's code has been put into its modules, or was taken out again."""
    patcher.model.injected = injected


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
