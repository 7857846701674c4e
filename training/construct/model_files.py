"""Where a model's files are, and what goes wrong without them. Nothing here ever downloads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError


def find_model(model: str, option: str) -> str:
    """The folder of a model: a local one, or a complete snapshot in the hub cache.

    Raises:
        ConfigError: naming the model, the folders looked in and the command that fetches it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{option}: the folder {model} holds no config.json; give the folder of a model.")
        return str(folder)
    try:
        snapshot = Path(snapshot_download(model, local_files_only=True))
        if (snapshot / "config.json").is_file():
            return str(snapshot)
    except Exception:  # not in the cache, or not a valid name: the sentence below serves both
        pass
    cached = Path(HF_HUB_CACHE, "models--" + model.replace("/", "--"))
    raise ConfigError(
        f"{option}: the model {model} is neither a folder here nor complete in the hub cache (looked for {cached}); "
        f"fetch it with `hf download {model}` where there is network, or name its folder with --{option} DIR."
    )


def load(loader: Any, folder: str, option: str, **choices: Any) -> Any:
    """`loader.from_pretrained(folder)` from local files alone; ConfigError with the loader's reason where it fails."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would tear up the bars of the stages
    try:
        return loader.from_pretrained(folder, local_files_only=True, **choices)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"{option}: {folder} cannot be loaded as {loader.__name__}: {' '.join(str(error).split())[:400]}"
        ) from error


def device_and_dtype(dtype: str) -> tuple[torch.device, torch.dtype]:
    """The GPU that this process was given and the configured format; without one the CPU and float32."""
    if torch.cuda.is_available():
        return torch.device("cuda"), getattr(torch, dtype)
    return torch.device("cpu"), torch.float32


def custom_class(kind: str, option: str) -> type:
    """The class that `package.module:Class` names.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, name = kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{option}: {kind} cannot be imported ({error}); expected package.module:Class.") from error
