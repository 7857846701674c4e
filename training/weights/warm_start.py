"""The model that a run begins with: new, from a Kosmos-G file of any stage, or from a Kosmos-2 folder.

Weights that the stage does not need are left out, and weights that the source lacks are initialised; notes for the
user say which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import safetensors
import torch

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer
from kosmos_core.safetensors_file import Header, WeightsError
from kosmos_core.saved_clip import read_kosmos_header
from kosmos_core.weights import TOKENIZER_KEYS, read_config

from .foreign import Mapped, clip_vision, kosmos2, missing_weights

# What may differ between a weight file and a run: it changes no tensor that both have.
FREE_SIZES = ("decoder.dropout", "resampler.attention_dropout", "aligner.reconstruction")


class StartConfig(Protocol):
    """What a run's configuration says of the weights that it begins with; sentences of errors name its fields."""

    model: KosmosGConfig
    weights: str | None  # a Kosmos-G file or a Kosmos-2 folder
    tokenizer: str | None  # a folder
    seed: int


def start_model(
    config: StartConfig, device: torch.device | str, *, vision_weights: str | None = None, aligner_tables: float = 1.0
) -> tuple[KosmosG, list[str]]:
    """The model of a run, float32, with its tokenizer, and what to tell the user about where its weights come from.

    On the meta device only its shapes. `vision_weights` are CLIP's, for a start from scratch; `aligner_tables` is for
    an AlignerNet that the weights lack, as in `KosmosG.initialize`.

    Raises:
        ValueError: a file is missing or of another kind, or does not fit the run's sizes or tokenizer.
    """
    if config.weights and not Path(config.weights).exists():
        raise ValueError(f"weights: {missing_weights(Path(config.weights))}")
    if config.weights and not Path(config.weights).is_dir():
        _compare_sizes(config)
    tokenizer = find_tokenizer(config)
    with torch.device("meta"):
        model = KosmosG(config.model, tokenizer=tokenizer)
    if torch.device(device).type == "meta":
        return model, []
    model.to_empty(device=device).initialize(config.seed, aligner_tables)
    notes = []
    if config.weights:
        source = Path(config.weights)
        with _naming("weights"):
            mapped = kosmos2(source, config.model, tokenizer) if source.is_dir() else _kosmos_g(source, model)
        notes += _fill(model, mapped, f"weights: {source}")
    else:
        notes.append(f"weights: none given, initialised from seed {config.seed}")
    if vision_weights:
        with _naming("task.vision_weights"):
            mapped = clip_vision(Path(vision_weights), config.model.vision)
        notes += _fill(model, mapped, f"vision: {vision_weights}")
    return model, notes


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Say which key of the configuration an error of reading weights is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def find_tokenizer(config: StartConfig) -> Tokenizer:
    """The tokenizer of the `tokenizer` folder, else of the weights; ValueError where there is none that fits."""
    latents, source = config.model.resampler.latents, Path(config.weights) if config.weights else None
    stored = None
    if source is not None and source.is_dir():
        model = source / "sentencepiece.bpe.model"
        stored = Tokenizer.from_files(model, latents=latents) if model.is_file() else None
    elif source is not None and TOKENIZER_KEYS[0] in _header(source).shapes:
        with safetensors.safe_open(source, framework="pt") as file:
            stored = Tokenizer.from_bytes(*(file.get_tensor(k).numpy().tobytes() for k in TOKENIZER_KEYS), latents)
    tokenizer = _tokenizer_of_folder(Path(config.tokenizer), latents) if config.tokenizer else stored
    if tokenizer is None:
        raise ValueError(
            f"tokenizer: none given, and {source or 'a start from scratch'} holds none; give a folder with "
            "sentencepiece.bpe.model and dict.txt."
        )
    # A Kosmos-2 folder's pieces are matched by name, those of a Kosmos-G file by number.
    if stored is not None and source.is_file() and _pieces(stored) != _pieces(tokenizer):
        raise ValueError(f"tokenizer: {config.tokenizer} numbers other pieces than the one in {source}; leave it out.")
    if tokenizer.vocabulary != config.model.decoder.vocabulary:
        raise ValueError(
            f"model.decoder.vocabulary: {config.model.decoder.vocabulary}, but the tokenizer of "
            f"{config.tokenizer or source} has {tokenizer.vocabulary} entries; set model.decoder.vocabulary to that."
        )
    return tokenizer


def _pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(number) for number in range(tokenizer.vocabulary)]


def _tokenizer_of_folder(folder: Path, latents: int) -> Tokenizer:
    models = sorted(folder.glob("*.model"))
    if len(models) != 1:
        found = ", ".join(path.name for path in models) or "none"
        raise ValueError(
            f"tokenizer: {folder} must hold one SentencePiece model (*.model) and dict.txt; found: {found}."
        )
    dictionary = folder / "dict.txt"
    return Tokenizer.from_files(models[0], dictionary if dictionary.is_file() else None, latents)


def _header(path: Path) -> Header:
    try:
        return read_kosmos_header(path)[0]
    except (WeightsError, OSError) as error:
        raise ValueError(f"weights: {error}.") from error


def _compare_sizes(config: StartConfig) -> None:
    """ValueError that lists the sizes in which the file differs from the run."""
    try:
        stored, _ = read_config(config.weights)
    except WeightsError as error:
        raise ValueError(f"weights: {error}.") from error
    differences = []
    for part in dataclasses.fields(KosmosGConfig):
        ours, theirs = getattr(config.model, part.name), getattr(stored, part.name)
        if ours is None or theirs is None:
            continue
        for size in dataclasses.fields(ours):
            key, found = f"{part.name}.{size.name}", getattr(theirs, size.name)
            if key not in FREE_SIZES and found != getattr(ours, size.name):
                differences.append(f"--model.{key} {found}")
    if differences:
        raise ValueError(
            f"weights: {config.weights} has other sizes than this run; to train on from it, set "
            f"{' '.join(differences)}."
        )


def _kosmos_g(path: Path, model: KosmosG) -> Mapped:
    expected = model.state_dict()
    header, prefix = read_kosmos_header(path)
    names = [name for name in header.shapes if name not in TOKENIZER_KEYS]
    with safetensors.safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(prefix + name) for name in names if name in expected}
    return Mapped(weights, [name for name in names if name not in expected])


@torch.no_grad()
def _fill(model: KosmosG, mapped: Mapped, source: str) -> list[str]:
    """Copy what was mapped into the model; ValueError where a shape differs."""
    parameters = dict(model.state_dict(keep_vars=True))
    for name, tensor in mapped.weights.items():
        if tensor.shape != parameters[name].shape:
            raise ValueError(
                f"{source} has {name} of shape {tuple(tensor.shape)}, this run needs {tuple(parameters[name].shape)}; "
                "choose the preset and model sizes of those weights."
            )
        parameters[name].copy_(tensor)
    for name, (numbers, rows) in mapped.rows.items():
        if rows.shape[1:] != parameters[name].shape[1:]:
            raise ValueError(
                f"{source} has {name} of width {rows.shape[1]}, this run needs {parameters[name].shape[1]}."
            )
        parameters[name][numbers.to(parameters[name].device)] = rows.to(parameters[name])
    filled = mapped.weights.keys() | mapped.rows.keys()
    parts = sorted({name.split(".")[0] for name in filled})
    notes = [f"{source}: {len(filled)} tensors for {', '.join(parts)}", *mapped.notes]
    if mapped.unused:
        notes.append(f"{source}: {len(mapped.unused)} tensors not used, such as {mapped.unused[0]}")
    prefixes = tuple(f"{part}." for part in mapped.parts)
    fresh = [name for name in parameters if name.startswith(prefixes) and name not in filled]
    if fresh:
        groups = sorted({".".join(name.split(".")[:2]) for name in fresh})
        notes.append(f"{source}: {len(fresh)} tensors initialised anew: {', '.join(groups)}")
    return notes
