"""The `log:` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LogConfig:
    """How often and where to report."""

    every: int = 10
    """Steps between records in log.jsonl and the trackers; the line on a terminal shows every step."""
    tensorboard: bool = True
    trackers: list[str] = field(default_factory=list)
    """Further trackers by their name in accelerate (wandb, mlflow, comet_ml, ...); must be installed."""
    sample_every: int = 1000
    """Steps between grids of sampled pictures (instruct); 0 samples none."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"log.every: {self.every} must be at least 1.")
        if self.sample_every < 0:
            raise ValueError(f"log.sample_every: {self.sample_every} must be 0 or more.")
