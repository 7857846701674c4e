"""Which number format the CPU multiplies faster, by measuring: what it has instructions for does not tell."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def cpu_rate(dtype: torch.dtype) -> float:
    """FLOP/s of this CPU at dense products in a format, measured by a few of them.

    A core with AMX reached 1,400 GFLOP/s in bfloat16 and 180 in float32; one with AVX2 alone reached 1 and 80.
    """
    best = 0.0
    for size, repeats in ((256, 2), (1024, 5)):
        ones = torch.ones(size, size, dtype=dtype)  # no draws: measuring leaves random numbers as they were
        for _ in range(repeats):
            start = time.perf_counter()
            ones @ ones
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
        if best < 1e10:  # a larger product would take seconds and say the same
            break
    return best


def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    return cpu_rate(torch.bfloat16) > cpu_rate(torch.float32)
