"""ComfyUI's layers that cast their weights, without the cost of casting where nothing has to be cast.

Such a layer asks at every call for streams, devices and whether the user has interrupted: together a few per cent of a
small encoder's time. Where its weights already have the type and device of its input and no patch waits to be applied,
plain computation gives the same, bit for bit. In partial loading, with another compute type and under LoRA hooks
ComfyUI's own way is taken.
"""

from __future__ import annotations

import comfy.ops
import torch.nn.functional as F
from torch import Tensor, nn


def is_ready(layer: nn.Module, x: Tensor) -> bool:
    """Whether the weights can be used as they are for an input `x`."""
    weight = layer.weight
    return (
        weight is not None  # newest ComfyUI's layers have none before they are loaded
        and weight.dtype == x.dtype
        and weight.device == x.device
        and not layer.weight_function
        and not layer.bias_function
        # Where newer ComfyUI keeps the patches of a layer that it brings to the device when it is needed.
        and getattr(layer, "weight_lowvram_function", None) is None
        and getattr(layer, "bias_lowvram_function", None) is None
    )


class Operations(comfy.ops.manual_cast):
    """`comfy.ops.manual_cast` for the layers that are called hundreds of times; the others are inherited."""

    class Linear(comfy.ops.manual_cast.Linear):
        """x (..., in) -> (..., out)."""

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias) if is_ready(self, x) else super().forward(x)

    class LayerNorm(comfy.ops.manual_cast.LayerNorm):
        """x (..., width) -> (..., width)."""

        def forward(self, x: Tensor) -> Tensor:
            if not is_ready(self, x):
                return super().forward(x)
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
