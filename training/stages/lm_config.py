"""What stage 1, `lm`, starts from and trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.data_config import LmData

DataConfig = LmData


@dataclass
class Config:
    """What the stage starts from and trains."""

    vision_weights: str | None = None
    """CLIP vision weights for a start from scratch: a transformers folder or an open_clip file (.safetensors, .pt)."""
    vision_last_block: Literal["trained", "frozen"] = "trained"
    """Whether the vision tower's last block trains; its post-norm always does."""
