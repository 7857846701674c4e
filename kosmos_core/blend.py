"""Mix two conditions: CLIP's with Kosmos-G's, and a prompt's with that of the same prompt without its pictures.

Conditions are (b, slots, width). An amount of 0 always gives the first and 1 the second, bit for bit.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Mode = Literal["lerp", "slerp per slot", "keep slot 0", "concat", "hand-off at percent"]
MODES: tuple[str, ...] = get_args(Mode)
SLOTS = 77  # of one CLIP window
LARGEST_REPEAT = 4  # conditions are repeated to a common length up to this many times


def likeness(text_only: Tensor, full: Tensor, amount: float) -> Tensor:
    """text_only + amount (full - text_only): 0 is the text alone, 1 `full` itself, above 1 overdraws the pictures.

    ValueError for an amount that is no finite number.
    """
    if not math.isfinite(amount):
        raise ValueError(f"likeness is {amount}; expected a number from 0 to 2.")
    return full if amount == 1 else text_only if amount == 0 else text_only + amount * (full - text_only)


def blend(first: Tensor, second: Tensor, amount: float, mode: str) -> Tensor:
    """Mix two conditions with `amount` (0..1) of the second; ValueError where they do not fit or the mode is unknown.

    lerp: straight line. slerp per slot: along the arc between the slots' directions, norms on a straight line.
    keep slot 0: lerp, slot 0 always the first's. concat: slots of both, one after the other; up to an amount of 0.5
    all of the first's and a growing number of the second's, above it all of the second's and ever fewer of the first's.
    Slots are left out from the back.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount is {amount}; expected 0 to 1.")
    if amount == 0 or amount == 1:
        return second if amount else first
    _check(first, second)
    if len(first) != len(second):
        rows = max(len(first), len(second))
        first, second = first.expand(rows, -1, -1), second.expand(rows, -1, -1)
    second = second.to(first.device, torch.float32)
    first = first.float()
    if mode == "concat":
        share = min(1.0, 2 * (1 - amount)), min(1.0, 2 * amount)
        counts = [max(1, round(part * x.shape[1])) for part, x in zip(share, (first, second), strict=True)]
        return torch.cat([first[:, : counts[0]], second[:, : counts[1]]], dim=1)
    first, second = _same_length(first, second)
    if mode == "slerp per slot":
        return slerp(first, second, amount)
    if mode not in ("lerp", "keep slot 0"):
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")
    mixed = torch.lerp(first, second, amount)
    if mode == "keep slot 0":
        mixed[:, 0] = first[:, 0]
    return mixed


def slerp(first: Tensor, second: Tensor, amount: float) -> Tensor:
    """Each slot along the great circle between two directions, its norm on a straight line between the two norms."""
    norms = first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True)
    one, other = (x / norm.clamp(min=1e-12) for x, norm in zip((first, second), norms, strict=True))
    angle = torch.acos((one * other).sum(-1, keepdim=True).clamp(-1, 1))
    sine = torch.sin(angle)
    arc = (torch.sin((1 - amount) * angle) * one + torch.sin(amount * angle) * other) / sine
    # Parallel or opposite slots have no single arc between them: the straight line stands in.
    direction = torch.where(sine.abs() < 1e-4, torch.lerp(one, other, amount), arc)
    return direction * torch.lerp(norms[0], norms[1], amount)


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"The conditionings are {first.shape[-1]} and {second.shape[-1]} wide: they belong to different image "
            "models. Kosmos-G is for Stable Diffusion 1.5, whose CLIP gives 768."
        )
    if 1 not in (len(first), len(second)) and len(first) != len(second):
        raise ValueError(
            f"The conditionings are batches of {len(first)} and {len(second)}: give the same number, or one of them 1."
        )


def _same_length(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both repeated to a common number of slots, which changes nothing for attention."""
    lengths = first.shape[1], second.shape[1]
    common = math.lcm(*lengths)
    if common > LARGEST_REPEAT * max(lengths):
        raise ValueError(
            f"The conditionings have {lengths[0]} and {lengths[1]} slots, which have no common multiple worth using: "
            "choose the mode concat or hand-off at percent, or encode both without padding."
        )
    return first.repeat(1, common // lengths[0], 1), second.repeat(1, common // lengths[1], 1)
