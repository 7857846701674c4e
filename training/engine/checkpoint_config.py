"""The `checkpoint:` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CheckpointConfig:
    """When to save and how much to keep."""

    every: int = 2000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """How many to keep; older ones are deleted after a newer one is complete."""
    asynchronous: bool = True
    """Write in the background while training goes on; costs a copy of the state in host memory."""

    def __post_init__(self) -> None:
        for key in ("every", "keep"):
            if getattr(self, key) < 1:
                raise ValueError(f"checkpoint.{key}: {getattr(self, key)} must be at least 1.")
