"""Number formats of training: bfloat16, float16 with loss scaling, float32. Weights being trained stay float32.

Under fsdp2 parameters are gathered in the compute format and gradients reduced in float32; elsewhere autocast casts
the float32 weights where they are used.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context in which losses are computed."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


@dataclass
class LossScale:
    """Loss scaling for float16: halved when a gradient overflows, doubled after `interval` steps without overflow.

    The gradient norm of the whole model tells of an overflow, so that all processes decide alike.
    """

    value: float = 1.0
    dynamic: bool = False
    interval: int = 2000
    good_steps: int = 0

    @classmethod
    def of(cls, precision: Precision) -> LossScale:
        return cls(value=2.0**16, dynamic=True) if precision == "fp16" else cls()

    def update(self, finite: bool) -> bool:
        """Adapt after a step; True if the step's overflow is explained by the scale (a lower one may do)."""
        if not self.dynamic:
            return False
        if not finite:
            explained = self.value > 1.0
            self.value, self.good_steps = max(1.0, self.value / 2), 0
            return explained
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.value, self.good_steps = self.value * 2, 0
        return False
