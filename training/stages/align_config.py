"""What stage 2, `align`, aligns to and how it weighs its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.data_config import AlignData

DataConfig = AlignData
Reconstruction = Literal["original", "paper"]


@dataclass
class Config:
    """What the stage aligns to and how it weighs the two losses."""

    stable_diffusion: str = ""
    """Any Stable Diffusion 1.5 model, whose CLIP text encoder is the target: a diffusers folder or a single file."""
    clip_tokenizer: str | None = None
    """Folder with CLIP's vocab.json and merges.txt, where `stable_diffusion` is a single file."""
    rec: Reconstruction = "original"
    """Reconstruction loss: original multiplies it by 77 / tokens, as the first implementation did; paper does not.
    `model.aligner.reconstruction: false` trains without it, and without half N: nothing reads that later."""
    aligner_tables: float = 1.0
    """Deviation of a new AlignerNet's queries and positions. The original's 1 suits its long runs of large batches; a
    short run learns the prompt sooner from a small one, such as 0.03."""
    padding_weight: float = 1.0
    """Weight of CLIP's states behind a caption's end (paper: 1). They are most of the 77, but errors in them hardly
    change the picture, unlike errors in the states of the words."""

    def __post_init__(self) -> None:
        if self.padding_weight < 0:
            raise ValueError(f"task.padding_weight: {self.padding_weight} must be 0 or more.")
