"""Rounding to fp8 that is right on average.

Rounding to the nearest number takes back what a training at a low rate moves in weights that were fp8 before: less than
half a step. Up or down by chance, movements are kept in the sum. Weights that never were fp8 lose less by the nearest.
"""

import zlib

import torch
from torch import Tensor

FORMAT = torch.float8_e4m3fn
MANTISSA_BITS, SMALLEST_EXPONENT = 3, -6  # of e4m3; numbers below 2**-6 have the steps of the last exponent


def unbiased_fp8(name: str, tensor: Tensor) -> Tensor:
    """`tensor` in e4m3, each number one of its two neighbours there, the nearer one the more often.

    What fp8 can hold stays as it is. The draws depend on `name` alone, so that a file is the same each time.
    """
    size = tensor.float().abs().clamp(max=torch.finfo(FORMAT).max)
    exponent = torch.frexp(size).exponent.clamp(min=SMALLEST_EXPONENT + 1) - 1
    step = torch.exp2(exponent.float() - MANTISSA_BITS)
    draws = torch.rand(size.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    whole = torch.floor(size / step + draws.to(size.device))
    return torch.copysign(whole * step, tensor.float()).to(FORMAT)
