"""What stage 3, `instruct`, trains through and how it weighs its losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..data.data_config import REPLAY, InstructData, SourceConfig

DataConfig = InstructData


@dataclass
class Replay:
    """Captions that stage 3 keeps aligned beside its rows."""

    captions: str | None = None
    """A data set of captions, with pictures or without, as stage 2 reads it; empty: none."""
    share: float = 0.5
    """Captions for each row of the stage, rounded to at least one in a micro-batch."""
    weight: float = 0.4
    """Of their mean squared error to CLIP's states, beside the rows' mean loss."""

    def __post_init__(self) -> None:
        for key in ("share", "weight"):
            if not getattr(self, key) > 0:
                raise ValueError(
                    f"{REPLAY}.{key}: {getattr(self, key)} must be above 0; {REPLAY}.captions empty means no replay."
                )
            if self.captions is None and getattr(self, key) != getattr(type(self), key):
                raise ValueError(
                    f"{REPLAY}.{key}: {getattr(self, key)}, but there is nothing to replay; name a data set as "
                    f"{REPLAY}.captions."
                )

    def rows(self, micro_batch: int) -> int:
        """Captions beside a micro-batch of so many rows; 0 without a data set."""
        return max(1, round(self.share * micro_batch)) if self.captions else 0

    def sources(self) -> dict[str, SourceConfig]:
        """Its data set by the name that logs and skip counts use."""
        return {REPLAY: SourceConfig(self.captions)} if self.captions else {}


@dataclass
class PreviewPrompt:
    """A prompt with `<i>` marks, and the pictures that they stand for."""

    text: str
    images: list[str] = field(default_factory=list)


@dataclass
class Preview:
    """Prompts that are sampled every `log.sample_every` steps."""

    prompts: list[PreviewPrompt] = field(default_factory=list)
    """Prompts with `<i>` marks and the paths of their pictures; empty: the first rows of the data."""
    rows: int = 4
    """How many rows of the data, where there are no prompts."""
    samples: int = 2
    """Pictures per prompt, always from the same noise."""
    steps: int = 25
    """Steps of DPM-Solver++."""
    guidance: float = 6.0
    """Scale of classifier-free guidance."""
    size: int = 512
    """Side of the pictures in pixels."""
    dino: str = ""
    """facebook/dino-vits16 or its folder: with `clip`, what was sampled is measured, too (preview/dino, preview/clip_i,
    preview/clip_t in the log)."""
    clip: str = ""
    """openai/clip-vit-base-patch32 or its folder."""

    def __post_init__(self) -> None:
        if bool(self.dino) != bool(self.clip):
            given, lacking = ("dino", "clip") if self.dino else ("clip", "dino")
            raise ValueError(
                f"task.preview.{given}: {getattr(self, given)!r} measures previews only together with "
                f"task.preview.{lacking}; give both or neither."
            )


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
