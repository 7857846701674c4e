"""The `optim:` section of a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class OptimConfig:
    """How weights are updated."""

    name: Literal["adamw", "original", "adamw8bit"] = "adamw"
    """adamw is torch.optim.AdamW; original reproduces the Adam of the original's training, see `OriginalAdam`;
    adamw8bit keeps moments in 8 bits (needs torchao; single or ddp)."""
    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    """Decoupled, on every trained tensor, norms and biases included, as in the original."""
    warmup_steps: int = 375
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls from its peak to `final_lr` at the last step."""
    final_lr: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    """Factors of the rate by part of the model, such as {decoder: 0.1, vision: 0}. A name means all below it, of
    several that fit the longest counts, and what none fits has 1. Parts with 0 do not train at all."""
    clip_norm: float = 2.0
    """Largest norm of the gradient over all parameters; 0 switches clipping off."""
    ema: float = 0.0
    """Decay per step of a moving average of the trained weights, kept in float32; 0 keeps none."""
    nonfinite_limit: int = 10
    """Stop after this many steps in a row whose loss or gradient was not finite; each such step is skipped."""

    def __post_init__(self) -> None:
        for key, valid, expected in (
            ("lr", self.lr > 0, "above 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            ("eps", self.eps > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("final_lr", 0 <= self.final_lr <= self.lr, "from 0 to optim.lr"),
            ("clip_norm", self.clip_norm >= 0, "0 or more"),
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("nonfinite_limit", self.nonfinite_limit >= 1, "1 or more"),
        ):
            if not valid:
                raise ValueError(f"optim.{key}: {getattr(self, key)} must be {expected}.")
        for part, factor in self.rates.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"optim.rates.{part}: {factor} must be a factor of optim.lr, 0 or more.")
