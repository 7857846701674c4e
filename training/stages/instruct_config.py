"""What stage 3, `instruct`, trains through and how it weighs its losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .caption_replay import Replay
from .preview import Preview


@dataclass
class Config:
    """What the stage trains through."""

    stable_diffusion: str = ""
    """Any Stable Diffusion 1.5 model: a diffusers folder or a single file."""
    null_probability: float = 0.1
    """Share of the samples whose condition is replaced by the null condition, for classifier-free guidance."""
    vision_last_block: Literal["trained", "frozen"] = "trained"
    """frozen reproduces the original, whose activation checkpointing kept the last block from learning."""
    snr_bounds: tuple[float, float] | None = None
    """Weighs a sample's loss by clamp(SNR, low, high) / SNR of its timestep: min-SNR (arXiv 2303.09556) with a lower
    bound, since the condition decides where noise hides the picture, and there errors are small. Empty: 1 (paper)."""
    alignment: float = 0.0
    """Adds so much of stage 2's squared error, to CLIP's states of the target's caption where the data tells it. The
    paper's 0 asks for many samples: through the U-Net the gradient is faint beside its noise."""
    padding_weight: float = 1.0
    """Weight of CLIP's states behind a caption's end in `alignment` and `replay`, as in stage 2."""
    replay: Replay = field(default_factory=Replay)
    """Captions of stage 2 beside the rows, which keep the words that stage 3's pictures do not show."""
    clip_tokenizer: str | None = None
    """As in stage 2; needed with `alignment` or `replay` and a single file."""
    preview: Preview = field(default_factory=Preview)
    """The prompts that are sampled every log.sample_every steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.null_probability <= 1:
            raise ValueError(f"task.null_probability: {self.null_probability} must be from 0 to 1.")
        for key in ("alignment", "padding_weight"):
            if getattr(self, key) < 0:
                raise ValueError(f"task.{key}: {getattr(self, key)} must be 0 or more.")
