"""Kosmos-G: text and pictures, interleaved, as the condition of Stable Diffusion 1.5.

>>> from kosmos_core import load_model
>>> model = load_model("kosmos-g.safetensors")
>>> condition = model.encode("a dog <i> at the beach", [picture])  # (1, 77, 768)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import KosmosGConfig
    from .images import preprocess_image
    from .model import KosmosG
    from .prompt import Prompt, PromptError
    from .reference import Reference
    from .safetensors_file import WeightsError
    from .tokenizer import Tokenizer
    from .weights import load_model, save_model

# Loaded at first use, so that the prompt grammar can be had without torch.
_HOMES = {
    "KosmosG": "model",
    "KosmosGConfig": "config",
    "Prompt": "prompt",
    "PromptError": "prompt",
    "Reference": "reference",
    "Tokenizer": "tokenizer",
    "WeightsError": "safetensors_file",
    "load_model": "weights",
    "preprocess_image": "images",
    "save_model": "weights",
}

__all__ = [
    "KosmosG",
    "KosmosGConfig",
    "Prompt",
    "PromptError",
    "Reference",
    "Tokenizer",
    "WeightsError",
    "load_model",
    "preprocess_image",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
