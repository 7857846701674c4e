"""torchao's AdamW with moments of 8 bits: a quarter of the optimiser's memory, for other numbers than AdamW's.

Its moments are codes with one scale for each block of 256 values; those of tensors below 4,096 values, or of a number
that blocks do not divide, stay float32. Checkpoints hold codes and scales as plain tensors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import ConfigError

BLOCK, SMALLEST = 256, 4096
PARTS = ("codes", "scale")
WHOLE = ("single", "ddp")
State = dict[str, dict[str, Tensor]]


def check_8bit(sharding: str, package: bool = True) -> None:
    """ConfigError where moments of 8 bits cannot be had: where the sharding divides them, or without the package."""
    if sharding not in WHOLE:
        raise ConfigError(
            f"optim.name: adamw8bit works with parallel.sharding {' and '.join(WHOLE)}, where a process holds its "
            f"moments whole, not with {sharding}; use adamw."
        )
    if package and importlib.util.find_spec("torchao") is None:
        raise ConfigError("optim.name: adamw8bit needs the package torchao; pip install torchao, or use adamw.")


def build_8bit(parameters: list[nn.Parameter], options: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser over trained parameters."""
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters, block_size=BLOCK, **options)


def in_plain_tensors(state: Mapping[str, Mapping[str, Any]]) -> State:
    """An optimiser's state with codes and scales of their own names: `exp_avg.codes`, `exp_avg.scale`."""
    plain: State = {}
    for name, moments in state.items():
        plain[name] = {}
        for key, value in moments.items():
            if hasattr(value, "codes"):
                plain[name] |= {f"{key}.{part}": getattr(value, part) for part in PARTS}
            else:
                plain[name][key] = value
    return plain


def of_plain_tensors(own: Mapping[str, Mapping[str, Any]], plain: State) -> dict[str, dict[str, Any]]:
    """The reverse: an optimiser's own state, filled with codes and scales of `in_plain_tensors`."""
    filled: dict[str, dict[str, Any]] = {}
    for name, moments in own.items():
        filled[name] = {}
        for key, value in moments.items():
            if hasattr(value, "codes"):
                for part in PARTS:
                    getattr(value, part).copy_(plain[name][f"{key}.{part}"])
                filled[name][key] = value
            else:
                filled[name][key] = plain[name][key]
    return filled


class EightBitMoments(torch.optim.Optimizer):
    """The memory of torchao's optimiser for a plan, which needs no package and no numbers."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"] if not self.state[p]):
            for moment in ("exp_avg", "exp_avg_sq"):
                if p.numel() < SMALLEST or p.numel() % BLOCK:
                    self.state[p][moment] = torch.zeros_like(p)
                else:
                    self.state[p][f"{moment}.codes"] = torch.zeros_like(p, dtype=torch.uint8)
                    self.state[p][f"{moment}.scale"] = p.new_zeros(p.numel() // BLOCK)
