"""Kosmos-G: text and pictures, interleaved, as the condition of Stable Diffusion 1.5.

>>> from kosmos_core import load_model
>>> model = load_model("kosmos-g.safetensors")
>>> condition = model.encode("a dog <i> at the beach", [picture])  # (1, 77, 768)
"""

from .config import KosmosGConfig
from .images import preprocess_image
from .model import KosmosG
from .prompt import Prompt, PromptError
from .safetensors_file import WeightsError
from .tokenizer import Tokenizer
from .weights import load_model, save_model

__all__ = [
    "KosmosG",
    "KosmosGConfig",
    "Prompt",
    "PromptError",
    "Tokenizer",
    "WeightsError",
    "load_model",
    "preprocess_image",
    "save_model",
]
