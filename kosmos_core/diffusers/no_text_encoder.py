"""What diffusers would ask of CLIP's text encoder, in a pipeline where Kosmos-G has taken its place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from ..safetensors_file import WeightsError, read_header

logger = logging.getLogger(__name__)

WEIGHT_FILES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
UNET, TEXT_ENCODER = "unet.", ("text_encoder", "text_model.", "lora_te")  # how a LoRA's names begin
KOSMOS_G = ("text_encoders.model.decoder.", "text_encoders.model.aligner.")  # of `training.export --lora`, for ComfyUI


def refuse_text_encoder_options(pipeline: DiffusionPipeline, options: dict[str, Any]) -> None:
    """ValueError for an option of a call that works on CLIP's text encoder, or needs a part that was never loaded."""
    if options.get("clip_skip"):
        raise ValueError(
            f"clip_skip={options['clip_skip']} skips layers of CLIP's text encoder, whose place Kosmos-G takes; leave "
            "it out"
        )
    given = [name for name in ("ip_adapter_image", "ip_adapter_image_embeds") if options.get(name) is not None]
    if given and getattr(pipeline.unet, "encoder_hid_proj", None) is None:
        raise ValueError(
            f"{given[0]} is for an IP-Adapter, and none is loaded; load one by pipe.load_ip_adapter, or give the "
            "picture to Kosmos-G as images=, with <i> in the prompt"
        )
    if "ip_adapter_image" in given and getattr(pipeline, "image_encoder", None) is None:
        raise ValueError(
            "ip_adapter_image needs the IP-Adapter's image encoder, which is not loaded; give "
            "ip_adapter_image_embeds, or load the adapter with its image_encoder_folder"
        )


@contextlib.contextmanager
def without_text_encoder_scale(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Let cross_attention_kwargs={"scale": ...} reach the U-Net's LoRAs, and not a text encoder that is not there."""
    encode_prompt = getattr(pipeline, "encode_prompt", None)

    def unscaled(*arguments: Any, lora_scale: float | None = None, **options: Any) -> Any:
        return encode_prompt(*arguments, **options)

    with _replaced(pipeline, "encode_prompt", unscaled) if encode_prompt else contextlib.nullcontext():
        yield


def load_lora_weights(pipeline: DiffusionPipeline, source: str | Path | dict[str, Tensor], **options: Any) -> None:
    """Load a LoRA as diffusers does from every form of source, but for the layers of CLIP's text encoder.

    A warning says how many are left out, and whether anything is left. Raises WeightsError where there is no such file,
    and for a LoRA of Kosmos-G itself.
    """
    names: Iterable[str] = source
    if not isinstance(source, dict):
        path = _existing(source, options.get("subfolder"), options.get("weight_name"))
        file = Path(path, options.get("subfolder") or "", options.get("weight_name") or "")
        names = read_header(file).shapes if file.is_file() and file.suffix == ".safetensors" else ()
        source = str(path)
    if any(name.startswith(KOSMOS_G) for name in names):
        raise WeightsError(
            "this LoRA adds to Kosmos-G and not to the U-Net, which ComfyUI's Load LoRA does; here load a whole file "
            "with the additions merged, from `python -m training.export RUN FILE` without --lora, as the weights"
        )
    with _replaced(pipeline, "load_lora_into_text_encoder", _say_what_is_left_out):
        pipeline.load_lora_weights(source, **options)


def _say_what_is_left_out(tensors: dict[str, Tensor], *_: Any, **__: Any) -> None:
    text = sum(name.startswith(TEXT_ENCODER) for name in tensors)
    if not any(name.startswith(UNET) for name in tensors):
        what = "belong to CLIP's text encoder, whose place Kosmos-G takes" if text else "are for another kind of model"
        logger.warning("The LoRA has no effect: its %d tensors %s", len(tensors), what)
    elif text:
        logger.warning(
            "%d of the LoRA's %d tensors belong to CLIP's text encoder, whose place Kosmos-G takes; they are left out",
            text,
            len(tensors),
        )


def _existing(source: str | Path, subfolder: str | None, weight_name: str | None) -> str | Path:
    """The file or folder, or a name for the hub; WeightsError for a file that is not there."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        file = Path(path, subfolder or "", weight_name or "")
        if not file.exists():
            files = ", ".join(sorted(x.name for x in file.parent.glob("*") if x.suffix in WEIGHT_FILES)[:5])
            raise WeightsError(f"the LoRA {file} does not exist; {file.parent} holds {files or 'no weights'}")
        return path
    if path.suffix in WEIGHT_FILES or path.is_absolute() or isinstance(source, Path):
        raise WeightsError(f"the LoRA {path} does not exist; give a file, a folder or tensors by name")
    return source


@contextlib.contextmanager
def _replaced(pipeline: DiffusionPipeline, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """`function` in place of the pipeline's own method for as long as the block lasts."""
    attributes = vars(pipeline)
    before = {name: attributes[name]} if name in attributes else {}  # a method that its user has put there
    attributes[name] = function
    try:
        yield
    finally:
        del attributes[name]
        attributes |= before
