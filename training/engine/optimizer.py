"""Optimisers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import ConfigError
from .adamw_8bit import build_8bit
from .optim_config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of the update with 0-based number `step` of `steps`.

    `original` counts the warm-up from 0, as the original's trainer does, so that its first update has rate 0.
    """
    if step < config.warmup_steps:
        return config.lr * (step if config.name == "original" else step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    left = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[config.schedule]
    return config.final_lr + (config.lr - config.final_lr) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next update, in each group by its factor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's compiled updates read it there
            group["lr"].fill_(rate * group["rate_factor"])
        else:
            group["lr"] = rate * group["rate_factor"]


def rate_factor(name: str, rates: dict[str, float]) -> float:
    """The factor of a parameter's rate: that of the longest part of `OptimConfig.rates` that it belongs to, else 1."""
    own = [part for part in rates if f"{name}.".startswith(f"{part}.")]
    return rates[max(own, key=len)] if own else 1.0


def freeze_parts(model: nn.Module, rates: dict[str, float]) -> None:
    """Stop the parts whose factor is 0 from training.

    Raises:
        ConfigError: a part is none of what trains, or nothing would be left.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for part in rates:
        if not any(f"{name}.".startswith(f"{part}.") for name in trained):
            known = ", ".join(sorted({name.split(".")[0] for name in trained}))
            raise ConfigError(
                f"optim.rates: {part!r} is no part of what this stage trains; expected {known} or a longer name below "
                f"one of them, as weight files have it."
            )
    still = [p for name, p in trained.items() if rate_factor(name, rates) == 0]
    if len(still) == len(trained):
        raise ConfigError("optim.rates: all that this stage trains has 0, so nothing would learn; leave a part out.")
    for p in still:
        p.requires_grad_(False)


def parameter_groups(parameters: dict[str, nn.Parameter], rates: dict[str, float]) -> list[dict[str, Any]]:
    """The optimiser's groups: the parameters of each factor, in the order in which the factors come first."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in parameters.items():
        groups.setdefault(rate_factor(name, rates), []).append(p)
    return [{"params": members, "rate_factor": factor} for factor, members in groups.items()]


class OriginalAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay in the form in which the original was trained.

    p <- p (1 - lr wd);  p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps). Epsilon is added before the bias
    correction: torch.optim.AdamW adds it after, which makes a difference in the first some hundred steps.
    """

    def __init__(
        self, params: Iterable, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            lr, (beta1, beta2), eps = float(group["lr"]), group["betas"], group["eps"]
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            grads = [p.grad for p in params]
            means = [self.state[p]["exp_avg"] for p in params]
            squares = [self.state[p]["exp_avg_sq"] for p in params]
            torch._foreach_add_([self.state[p]["step"] for p in params], 1)
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            denominators = torch._foreach_sqrt(squares)
            torch._foreach_add_(denominators, eps)
            counts = [int(self.state[p]["step"]) for p in params]
            sizes = [-lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) for t in counts]
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_addcdiv_(params, means, denominators, sizes)


def build_optimizer(config: OptimConfig, parameters: list, fused: bool = True) -> torch.optim.Optimizer:
    """The optimiser over trained parameters, or over `parameter_groups` of them."""
    options = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.name == "original":
        return OriginalAdam(parameters, **options)
    if config.name == "adamw8bit":
        return build_8bit(parameters, options)
    return torch.optim.AdamW(parameters, **options, fused=fused)


class MovingAverage:
    """Exponential moving average of named parameters: float32 copies of what this process holds (its shards)."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = parameters
        self.restart()

    def restart(self) -> None:
        """Begin anew at the weights as they are."""
        self.average: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - self.decay)
