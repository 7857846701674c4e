"""The `trainable:` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class TrainableConfig:
    """Which of the stage's trained weights train."""

    parts: Literal["stage", "aligner"] = "stage"
    """stage: all that the stage trains; aligner: of these AlignerNet alone."""
    lora: int = 0
    """Rank of low-rank additions, which train in the place of the linear layers of language model and AlignerNet, and
    all else stays frozen; 0: the weights themselves train."""

    def __post_init__(self) -> None:
        if self.lora < 0:
            raise ValueError(f"trainable.lora: {self.lora} must be a rank of 1 or more, or 0 for none.")
