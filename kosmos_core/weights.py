"""The one-file format: model, SentencePiece model, dictionary, config and provenance in one safetensors file.

A file is recognised by its content, never by its name. Reading maps the file into memory and unpickles nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .config import KosmosGConfig
from .model import KosmosG
from .safetensors_file import Header, WeightsError, write
from .saved_clip import read_kosmos_header
from .tokenizer import Tokenizer
from .weight_file import WeightFile

FORMAT = "kosmos-g"
FORMAT_VERSION = "1"
STAGES = ("lm", "align", "instruct")
TOKENIZER_KEYS = ("tokenizer.sentencepiece", "tokenizer.dictionary")
TRAINING_HALF = "aligner.reconstruction_"
LISTED = 10  # names shown of a long list
READ_TOGETHER = 1 << 24  # numbers of the tensors that are read through one map of the file
# Numbers that are at hand in both forms; below the 128 KiB from which on glibc asks the system for memory each time.
IN_CACHE = 30_000

# What a file of another kind is recognised by: the first entry whose every fragment occurs in some key.
OTHER_KINDS = (
    ("an original Kosmos-G checkpoint; convert it with `python -m kosmos_core.convert`", ("gpt_model.decoder.",)),
    ("a LoRA", ("lora_up",)),
    ("a LoRA", ("lora_A",)),
    ("a LoRA", ("hada_w1_a",)),
    (
        "a Kosmos-2 model; training can start from it, but it encodes no prompts for Stable Diffusion",
        ("image_to_text_projection.",),
    ),
    ("a ControlNet", ("control_model.",)),
    ("a ControlNet", ("controlnet_cond_embedding.",)),
    ("a Stable Diffusion checkpoint; load it as one, beside the Kosmos-G file", ("model.diffusion_model.",)),
    (
        "a Kosmos-G encoder that an earlier release let ComfyUI save without its tokenizer; save it again",
        ("model.resampler.", "model.aligner."),
    ),
    ("a Stable Diffusion U-Net", ("down_blocks.", "mid_block.")),
    ("an IP-Adapter", ("image_proj.", "ip_adapter.")),
    ("a T5 text encoder", ("encoder.block.", "SelfAttention")),
    ("a CLIP model; Kosmos-G needs its own encoder", ("text_model.encoder.layers.",)),
    ("a CLIP vision model; Kosmos-G carries its own", ("vision_model.encoder.layers.",)),
    ("a CLIP model; Kosmos-G needs its own encoder", ("transformer.resblocks.",)),
    ("a VAE", ("decoder.conv_in.",)),
)


def identify(path: str | os.PathLike) -> str | None:
    """None where the file's content is Kosmos-G's, else a phrase that says what it seems to be.

    Reads the header only; WeightsError where it is no complete safetensors file.
    """
    return _other_kind(read_kosmos_header(path)[0])


def _other_kind(header: Header) -> str | None:
    if header.metadata.get("format") == FORMAT:
        return None
    for kind, fragments in OTHER_KINDS:
        if all(any(fragment in name for name in header.shapes) for fragment in fragments):
            return kind
    return "something unknown"


def read_config(path: str | os.PathLike) -> tuple[KosmosGConfig, dict[str, Any]]:
    """Config and description (stage, dtype, provenance) of a Kosmos-G file; WeightsError where it is none."""
    return _describe(path, read_kosmos_header(path)[0])


def _describe(path: str | os.PathLike, header: Header) -> tuple[KosmosGConfig, dict[str, Any]]:
    if kind := _other_kind(header):
        raise WeightsError(f"{path} is not a Kosmos-G file: it seems to be {kind}")
    version = header.metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {version!r:.40}, this release reads version {FORMAT_VERSION}; "
            "update Kosmos-G, or convert the original checkpoint again"
        )
    try:
        config = KosmosGConfig.from_dict(json.loads(header.metadata["config"]))
        provenance = json.loads(header.metadata.get("provenance", "{}"))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} has unreadable metadata ({error!s:.200}); export or convert it again") from error
    _check_sizes(path, config, header)
    description = {key: header.metadata.get(key) for key in ("stage", "dtype")} | {"provenance": provenance}
    return config, description


def _check_sizes(path: str | os.PathLike, config: KosmosGConfig, header: Header) -> None:
    """Refuse a config that is larger than the tensors beside it, before anything of its size is made."""
    longest = max((size for shape in header.shapes.values() for size in shape), default=0)
    for part, sizes in config.to_dict().items():
        for name, value in (sizes or {}).items():
            # The side of an image is no tensor's; the number of its patches is.
            size = config.vision.tokens if name == "image_size" else value
            layers = name.endswith("layers")
            if type(size) is int and size > (len(header.shapes) if layers else longest):
                held = f"{len(header.shapes)} tensors" if layers else f"no tensor with an axis longer than {longest}"
                raise WeightsError(
                    f"{path} says that its {part}.{name} is {value!r:.40}, but holds {held}; export or convert it again"
                )


def load_model(
    path: str | os.PathLike,
    device: Any = "cpu",
    dtype: torch.dtype | None = torch.float32,
    operations: Any = nn,
    *,
    training_half: bool = True,
) -> KosmosG:
    """Model of a Kosmos-G file in evaluation mode; on the CPU in the file's own type the weights stay memory-mapped.

    `dtype` None keeps the file's type. `training_half` False leaves out AlignerNet's half N, which only training uses.
    Raises WeightsError: another kind of file, cut short, wrong version, missing or extra tensors, wrong shapes, broken
    tokenizer; ValueError for a `dtype` that is no floating-point type.
    """
    _check_dtype(dtype)
    header, prefix = read_kosmos_header(path)
    config, _ = _describe(path, header)
    with torch.device("meta"), _NoInitialisation():
        # Layers of `operations` may get their weights only when they are loaded; torch's have them from the beginning.
        expected = {name: tuple(tensor.shape) for name, tensor in KosmosG(config).state_dict().items()}
        model = KosmosG(config if training_half else _without_training_half(config), operations=operations)
    _compare(path, expected, {k: v for k, v in header.shapes.items() if k not in TOKENIZER_KEYS})
    wanted = {
        name: prod(shape) for name, shape in expected.items() if training_half or not name.startswith(TRAINING_HALF)
    }
    try:
        weights = _read(path, prefix, wanted, torch.device(device), dtype)
        with safetensors.safe_open(path, framework="pt") as file:
            files = [file.get_tensor(name) for name in TOKENIZER_KEYS if name in header.shapes]
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}); copy it again") from error
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False)
    if files:
        model.tokenizer = _tokenizer(path, files, config.resampler.latents)
    model.file = WeightFile(path)
    return model.train(False)  # not .eval(): security scanners take the word for Python's own


class _NoInitialisation(TorchFunctionMode):
    """Layers that are made inside draw no first weights: on the meta device torch imports its compiler for that, which
    takes more than a second."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", *args[:1])
        return function(*args, **(kwargs or {}))


def _read(
    path: str | os.PathLike, prefix: str, sizes: Mapping[str, int], device: torch.device, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Tensors by name, of whom `sizes` tells the numbers that they hold; those that stay as they are remain mapped."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        groups[-1].append(name)
        held += size
        if held > READ_TOGETHER:
            groups.append([])
            held = 0

    def read(names: list[str]) -> dict[str, Tensor]:
        # Through a map of its own, which goes when all its tensors are converted: pages that have been read count as
        # memory of the process as long as they are mapped.
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: _cast(file.get_tensor(prefix + name), dtype).to(device) for name in names}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {name: tensor for group in pool.map(read, groups) for name, tensor in group.items()}


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor.to(dtype)`, which torch 2.13 computes number by number from float16 to bfloat16: 3.5 times as long as by
    way of float32, which holds every float16 exactly."""
    if (tensor.dtype, dtype) != (torch.float16, torch.bfloat16):
        return tensor.to(dtype or tensor.dtype)
    made, wide = torch.empty_like(tensor, dtype=dtype), torch.empty(min(IN_CACHE, tensor.numel()))
    for source, target in zip(tensor.view(-1).split(IN_CACHE), made.view(-1).split(IN_CACHE), strict=True):
        target.copy_(wide[: len(source)].copy_(source))
    return made


def read_tokenizer(path: str | os.PathLike) -> Tokenizer | None:
    """The tokenizer of a Kosmos-G file, read without its weights; None where it has none, WeightsError if broken."""
    header, _ = read_kosmos_header(path)
    config, _ = _describe(path, header)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            files = [file.get_tensor(name) for name in TOKENIZER_KEYS if name in header.shapes]
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}); copy it again") from error
    return _tokenizer(path, files, config.resampler.latents) if files else None


def _tokenizer(path: Any, files: list[Tensor], latents: int) -> Tokenizer:
    """The tokenizer that a file carries; WeightsError where half of it is missing or it is broken."""
    if len(files) != len(TOKENIZER_KEYS):
        raise WeightsError(f"{path} holds only one of {' and '.join(TOKENIZER_KEYS)}; export or convert it again")
    try:
        return Tokenizer.from_bytes(*(tensor.numpy().tobytes() for tensor in files), latents=latents)
    except (ValueError, TypeError) as error:  # the latter of numbers that NumPy does not know, such as fp8
        raise WeightsError(f"{path} carries a broken tokenizer ({error}); export or convert it again") from error


def _check_dtype(dtype: Any) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}, expected torch.float32, torch.bfloat16, torch.float16 or None")


def _without_training_half(config: KosmosGConfig) -> KosmosGConfig:
    if config.aligner is None:
        return config
    return replace(config, aligner=replace(config.aligner, reconstruction=False))


def _compare(path: Any, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    problems = []
    for label, names in (("missing", expected.keys() - found.keys()), ("extra", found.keys() - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:LISTED]) + (", ..." if len(names) > LISTED else "")
            problems.append(f"{len(names)} {label} tensor(s): {shown}")
    wrong = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    if wrong:
        shown = sorted(wrong)[:LISTED]
        width = max(map(len, shown))
        table = [f"{name:<{width}}  {expected[name]!s:>16}  {found[name]!s:>16}" for name in shown]
        head = f"{'name':<{width}}  {'expected':>16}  {'found':>16}"
        problems.append("\n".join([f"{len(wrong)} tensor(s) of another shape than the config says:", head, *table]))
    if problems:
        raise WeightsError(
            f"{path} does not hold the model that its own config describes; export or convert it again\n"
            + "\n".join(problems)
        )


def save_model(
    model: KosmosG,
    path: str | os.PathLike,
    *,
    stage: str = "instruct",
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model and its tokenizer as one file, atomically; `dtype` None keeps the weights' type."""
    save_weights(
        path, model.state_dict(), model.config, model.tokenizer, stage=stage, provenance=provenance, dtype=dtype
    )


def save_weights(
    path: str | os.PathLike,
    weights: Mapping[str, Tensor],
    config: KosmosGConfig,
    tokenizer: Tokenizer | None,
    *,
    stage: str,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """`save_model` for a state dict: tensors are converted and written one after the other, so they may be mapped."""
    _check_dtype(dtype)
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}, expected one of {', '.join(STAGES)}")
    entries = [(name, tensor, dtype or tensor.dtype) for name, tensor in weights.items()]
    entries += [(name, tensor, torch.uint8) for name, tensor in tokenizer_tensors(tokenizer).items()]
    kinds = {kind for name, _, kind in entries if name not in TOKENIZER_KEYS}
    write(path, entries, file_metadata(config, stage, kinds, provenance))


def file_metadata(
    config: KosmosGConfig, stage: str, dtypes: Iterable[torch.dtype], provenance: Mapping[str, Any] | None
) -> dict[str, str]:
    """What a Kosmos-G file says of itself."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": json.dumps(config.to_dict()),
        "stage": stage,
        "dtype": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
        "provenance": json.dumps(provenance or {}, default=str),
    }


def tokenizer_tensors(tokenizer: Tokenizer | None) -> dict[str, Tensor]:
    """A tokenizer's two files as tensors of bytes, under the names that they have in a Kosmos-G file."""
    contents = () if tokenizer is None else tokenizer.to_bytes()
    return {
        name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for name, content in zip(TOKENIZER_KEYS, contents, strict=False)
    }
