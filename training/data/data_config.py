"""What a person writes in the `data:` section of a training configuration, one dataclass per stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

KINDS = (  # of layouts; `cookers.py` has a cooker for each
    "text",
    "captions",
    "pictures",
    "interleaved",
    "compositional",
    "edit",
    "original-laion",
    "original-instructpix2pix",
    "original-openimage",
)
Kind = Literal[("auto", *KINDS)]
REPLAY = "task.replay"  # the name of stage 3's captions of stage 2 among the sources, and their key


def source_key(name: str, section: str = "data.sources") -> str:
    """The key of a configuration that names a source; `section` holds all others."""
    return f"{REPLAY}.captions" if name == REPLAY else f"{section}.{name}"


@dataclass
class SourceConfig:
    """One data set and its share of every global batch."""

    path: str
    """A folder of .tar, .jsonl or .tsv files (sub-folders included), or one such file."""
    kind: Kind = "auto"
    """Layout of its samples; `auto` looks at the first ones. The `original-` kinds, the first Kosmos-G code's tsv
    files, must be named."""
    weight: float = 1.0
    """Share of the rows of every step against the other sources' weights, such as 2 : 2 : 1."""


@dataclass
class HeldOutSource:
    """A data set that no step trains on."""

    path: str
    """A folder of .tar, .jsonl or .tsv files (sub-folders included), or one such file."""
    kind: Kind = "auto"
    """As in data.sources."""


@dataclass
class DataConfig:
    """Sources, order and reading; what all stages share."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Data sets by the name that logs and skip counts use."""
    workers: int = 2
    """Reading processes per stream (0: read in the training process). Never changes what is read."""
    lanes: int = 12
    """Reading positions per stream, which take turns. The workers in use are the largest divisor of it up to `workers`.
    The order of the samples depends on it: keep it when a run is resumed."""
    prefetch: int = 2
    """Micro-batches that each worker keeps ready."""
    shuffle_block: int = 64
    """Samples that lie side by side on disk are shuffled in blocks of this many; 1 shuffles them one by one."""
    shuffle_window: int = 64
    """Blocks whose samples are mixed with each other: reading touches this many places of the disk at a time."""
    use_cache: bool = True
    """Use the latents (stage 3) and CLIP states (stage 2) that `training.data.cache` has put beside the shards; false
    computes them anew."""
    max_bad: float = 5.0
    """Per cent of a source's samples that may be unusable before the run stops with their list."""
    max_megapixels: float = 50.0
    """Pictures with more are unusable: each takes three to seven bytes a pixel in every worker."""
    max_megabytes: float = 256.0
    """Larger files in tars, and longer lines, are unusable."""
    index_folder: str | None = None
    """Where the indexes of the data files go. Default: beside the data, or, where that cannot be written,
    `kosmos-g/index` in the user's cache folder."""

    def __post_init__(self) -> None:
        for key, least in (("workers", 0), ("lanes", 1), ("prefetch", 1), ("shuffle_block", 1), ("shuffle_window", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"data.{key}: {getattr(self, key)} must be at least {least}.")
        for key in ("max_megapixels", "max_megabytes"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"data.{key}: {getattr(self, key)} must be above 0.")
        if not 0 <= self.max_bad <= 100:
            raise ValueError(f"data.max_bad: {self.max_bad} must be per cent, from 0 to 100.")


@dataclass
class LmData(DataConfig):
    """Stage 1: documents packed into sequences of fixed length."""

    sequence_length: int = 2048
    """Tokens per sequence; 64 latents of a picture count as 64 tokens."""
    document_mask: bool = False
    """Also yield `document_ids`, for attention that stays inside each document."""


@dataclass
class PromptData(DataConfig):
    """What stages 2 and 3 draw for a compositional sample."""

    drop_entity: float = 0.5
    """Probability that an entity's words give way to its picture (compositional data)."""
    drop_scope: Literal["sample", "entity"] = "sample"
    """One draw for all entities of a sample, as the first implementation did, or one for each."""
    keep_background: float = 0.5
    """Probability that an entity's picture keeps its background instead of standing on white."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("drop_entity", "keep_background", "drop_caption", "empty_captions"):
            if not 0 <= getattr(self, key, 0) <= 1:
                raise ValueError(f"data.{key}: {getattr(self, key)} must be a probability, from 0 to 1.")


@dataclass
class AlignData(PromptData):
    """Stage 2: captions, and beyond the paper compositional samples: their pictures stand for words of the caption."""

    empty_captions: float = 0.0
    """Share of rows with neither words nor pictures; above 0 the null condition is aligned too, beyond the paper."""
    max_clip_tokens: int = 75
    """Longer captions are left out: CLIP sees 77 tokens, two of them start and end."""
    max_tokens: int = 85
    """Captions of more SentencePiece tokens than this are left out."""
    pad_to: int = 0
    """Pad every micro-batch to this many tokens; 0 pads to its longest caption."""


@dataclass
class InstructData(PromptData):
    """Stage 3: prompts with pictures, and the picture to generate."""

    resolution: int = 512
    """Side of the square target in pixels."""
    drop_caption: float = 0.5
    """Probability that the caption before an editing instruction's picture is dropped."""
    min_side: int = 0
    """Captioned pictures with a shorter side below this are left out (the first implementation: 384)."""
    max_tokens: int = 128
    """Captions of more SentencePiece tokens than this are left out."""
    max_images: int = 0
    """Compositional samples with more entities than this are left out; 0 keeps all."""
    pad_to: int = 0
    """Pad every micro-batch to this many tokens; 0 pads to its longest row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution < 8 or self.resolution % 8:
            raise ValueError(f"data.resolution: {self.resolution} must be a multiple of 8, the autoencoder's factor.")
