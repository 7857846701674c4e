"""Partial training for small cards: AlignerNet alone, or low-rank additions to frozen weights (arXiv 2106.09685).

Additions go into language model and AlignerNet where the stage trains a linear layer. A checkpoint then holds the
layer's weight as `LAYER.base_layer.weight` and its addition as `LAYER.lora_A.weight` (rank, in) and
`LAYER.lora_B.weight` (out, rank), as peft names them; `merge` gives the plain weights back. peft itself moves what it
makes about in a way that the simulated tensors of a plan do not bear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import ConfigError
from ..base.rng import seed_of
from .trainable_config import TrainableConfig

BASE, DOWN, UP = "base_layer", "lora_A.weight", "lora_B.weight"
PARTS = {"decoder": ("decoder.",), "aligner": ("aligner.",)}
COMFYUI = "text_encoders.model."  # before a layer's name, what ComfyUI's own LoRA loader looks for in any text encoder


def restrict(model: nn.Module, config: TrainableConfig, kind: str, seed: int) -> None:
    """Leave of what a stage trains the parts that `config` names, in place, before the model is spread over processes.

    kind: the sharding. ConfigError where nothing would train, or the sharding knows no additions.
    """
    if config.parts == "aligner":
        for name, parameter in model.named_parameters():
            if not name.startswith(PARTS["aligner"]):
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"trainable.parts: {config.parts}, but this stage trains nothing there; use stage.")
    if config.lora:
        if kind not in ("single", "ddp"):
            raise ConfigError(
                f"trainable.lora: {config.lora}, but parallel.sharding {kind} does not know low-rank additions; they "
                "are small, so that single or ddp do."
            )
        _add_low_rank(model, config.lora, seed)


def check_rank(checkpoint: Path, stored: Mapping[str, Any], config: TrainableConfig) -> None:
    """ConfigError where a run would go on from a checkpoint with additions of another rank, or with none."""
    before = (stored.get("trainable") or {}).get("lora", 0)
    if before != config.lora:
        raise ConfigError(
            f"trainable.lora: {config.lora}, but {checkpoint} was trained with {before}; give that, or begin a run of "
            "its own with --weights from `python -m training.export`."
        )


class LowRankLinear(nn.Module):
    """A frozen linear layer and a trained addition to its weight, which is zero at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        device = base.weight.device
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_B.weight)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, whose type is the one to compute in."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def _add_low_rank(model: nn.Module, rank: int, seed: int) -> None:
    within = (*PARTS["decoder"], *PARTS["aligner"])
    targets = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.startswith(within) and module.weight.requires_grad
    ]
    most, name = max(((min(module.weight.shape), name) for name, module in targets), default=(rank, ""))
    if rank > most:
        raise ConfigError(
            f"trainable.lora: {rank}, but the largest layer to add to, {name}, has a side of {most}, and no addition "
            "has a higher rank; 4 to 64 are usual."
        )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "low-rank additions"))
        for name, module in targets:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, LowRankLinear(module, rank))


def stored_names(names: Iterable[str], stored: Mapping[str, object]) -> dict[str, str]:
    """What each of a plain model's tensors is called in a checkpoint that may have low-rank additions."""
    return {name: _based(name) if _based(name) in stored else name for name in names}


def low_rank_layers(stored: Iterable[str]) -> list[str]:
    """The layers that have an addition in a checkpoint, by name."""
    return sorted(name.removesuffix(f".{DOWN}") for name in stored if name.endswith(f".{DOWN}"))


def merge(weights: dict[str, Tensor], layers: Iterable[str], additions: Mapping[str, Tensor]) -> None:
    """Add the additions of `layers`, by the names that they have in a checkpoint, to a plain model's weights."""
    for layer in layers:
        weights[f"{layer}.weight"] += additions[f"{layer}.{UP}"] @ additions[f"{layer}.{DOWN}"]


def comfyui_lora(layers: Iterable[str], additions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The additions as a LoRA file that ComfyUI's loader applies to the CLIP of Load Kosmos-G."""
    found: dict[str, Tensor] = {}
    for layer in layers:
        down, up = additions[f"{layer}.{DOWN}"], additions[f"{layer}.{UP}"]
        stem = f"{COMFYUI}{layer}"
        found |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        found[f"{stem}.alpha"] = torch.tensor(float(len(down)))  # as large as the rank: the addition as it is
    return found


def empty_additions(layers: Iterable[str], shape_of: Callable[[str], tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors to read the additions of `layers` into."""
    names = [f"{layer}.{part}" for layer in layers for part in (DOWN, UP)]
    return {name: torch.empty(shape_of(name)) for name in names}


def _based(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.{BASE}.{leaf}"
