"""Number formats of training: bfloat16, float16 with loss scaling, float32. Weights being trained stay float32.

Under fsdp2 parameters are gathered in the compute format and gradients reduced in float32; elsewhere autocast casts
the float32 weights where they are used.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from kosmos_core import cpu_formats

from .number_formats import Choice, Precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def name_of(dtype: torch.dtype) -> Precision:
    """The name of a number format of training."""
    return next(name for name, own in DTYPES.items() if own == dtype)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context in which losses are computed."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def faster_on_cpu() -> Precision:
    """bf16 where this CPU multiplies it faster than float32, else fp32."""
    return "bf16" if cpu_formats.bfloat16_is_faster() else "fp32"


def choose_precision(choice: Choice, device: torch.device) -> Precision:
    """The format itself; `auto` is bf16 on GPUs that have it, else fp16, and on a CPU what that multiplies faster."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return faster_on_cpu() if device.type == "cpu" else "fp32"


def slow_format(precision: Precision, device: torch.device) -> str | None:
    """A sentence where the device is a CPU that multiplies float32 faster than the format that was chosen."""
    if device.type != "cpu" or precision == "fp32":
        return None
    chosen, full = cpu_formats.cpu_rate(DTYPES[precision]), cpu_formats.cpu_rate(torch.float32)
    if chosen > 0.9 * full:
        return None
    return (
        f"precision: this CPU multiplies {precision} at {chosen / 1e9:.3g} GFLOP/s and fp32 at {full / 1e9:.3g}; "
        f"--precision fp32 is faster here."
    )


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
