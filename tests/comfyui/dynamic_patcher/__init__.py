"""A node pack for the tests alone: dynamic loading on a CPU, which ComfyUI does on NVIDIA cards only.

What needs a graphics driver is replaced: pinned memory by nothing, and the step that brings a layer's weight to the
device and patches it on the way by the same on the CPU. Who notes which patches where is ComfyUI's own.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import comfy.model_patcher
import comfy.ops
import torch

Dynamic = comfy.model_patcher.ModelPatcherDynamic


class NoMemory:
    """Stands for memory that a graphics driver would hand out."""

    size = 0

    def __init__(self, *_: Any) -> None:
        pass

    def truncate(self, *_: Any, **__: Any) -> None:
        pass


def put_back(patcher: Any, *_: Any, **__: Any) -> int:
    """`partially_unload` without a device to free: the original weights return to their places."""
    for key in list(patcher.backup):
        comfy.utils.set_attr_param(patcher.model, key, patcher.backup.pop(key).weight)
    return patcher.model_size()


plain_cast = comfy.ops.cast_bias_weight


def patching_cast(layer: torch.nn.Module, *arguments: Any, **options: Any) -> tuple[Any, ...]:
    """ComfyUI's cast of a layer's weights, with the patches that it leaves to the driver's copy on a card."""
    weight, bias, *rest = plain_cast(layer, *arguments, **options)
    patch_weight, patch_bias = (getattr(layer, f"{name}_lowvram_function", None) for name in ("weight", "bias"))
    weight = weight if patch_weight is None else patch_weight(weight.clone())
    bias = bias if patch_bias is None else patch_bias(bias.clone())
    return (weight, bias, *rest)


Dynamic.__new__ = lambda cls, *_, **__: object.__new__(cls)
Dynamic.partially_unload = put_back
comfy.model_patcher.CoreModelPatcher = Dynamic
comfy.ops.cast_bias_weight = patching_cast
with contextlib.suppress(ImportError):  # the first releases had no such buffer
    importlib.import_module("comfy_aimdo.host_buffer").HostBuffer = NoMemory

NODE_CLASS_MAPPINGS: dict[str, type] = {}
