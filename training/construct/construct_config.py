"""What a person chooses: input, models, filters, and how many processes each stage gets."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..base.errors import ConfigError
from ..base.settings import fill, plain

DuplicateScope = Literal["all", "off"]
Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass
class WorkerPool:
    """The processes of one stage; Ray places them where the cluster has what they ask for."""

    workers: int = 1
    """Processes that load the stage's model."""
    most_workers: int = 0
    """With more pictures waiting, grow up to this many; 0: stay at `workers`."""
    gpus: float | None = None
    """GPUs per process, fractions allowed; empty: 1 where the machine or cluster has GPUs, else 0."""
    cpus: float = 1.0
    """CPU cores per process."""
    accelerator: str | None = None
    """Kind of GPU this stage needs, in Ray's words: A100, H100, L4, ...; empty: any."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers: {self.workers} must be at least 1.")
        if self.most_workers and self.most_workers < self.workers:
            raise ValueError(f"most_workers: {self.most_workers} must be 0 or at least workers ({self.workers}).")


@dataclass
class CaptionConfig(WorkerPool):
    """How a picture gets its caption."""

    kind: str = "blip2"
    """blip2; given (the .txt or json caption beside each picture); or package.module:Class."""
    model: str = "Salesforce/blip2-opt-6.7b"
    """A local folder, or a name in the hub cache."""
    dtype: Dtype = "bfloat16"
    """Number format of the model on a GPU; the CPU computes in float32."""
    batch: int = 16
    """Pictures at a time."""
    max_new_tokens: int = 40
    """Longest caption."""


@dataclass
class EntityConfig(WorkerPool):
    """How the entities of a caption are named."""

    kind: str = "llm"
    """llm; spacy (noun chunks, no language model needed); or package.module:Class."""
    model: str = "mosaicml/mpt-7b-instruct"
    """llm: a local folder or a name in the hub cache; spacy: a pipeline's package name or folder."""
    dtype: Dtype = "bfloat16"
    """Number format of the model on a GPU; the CPU computes in float32."""
    batch: int = 32
    """Captions at a time."""
    max_new_tokens: int = 64
    """Longest answer."""


@dataclass
class SegmentConfig(WorkerPool):
    """How an entity is found in its picture."""

    kind: str = "clipseg"
    """clipseg; grounded-sam2 (GroundingDINO boxes, SAM 2 masks); sam3; or package.module:Class."""
    model: str = "CIDAS/clipseg-rd64-refined"
    """A local folder, or a name in the hub cache."""
    detector: str = "IDEA-Research/grounding-dino-base"
    """grounded-sam2 only: the model that finds boxes."""
    dtype: Dtype = "float32"
    """Number format of the model on a GPU; the CPU computes in float32."""
    batch: int = 32
    """Pairs of picture and entity at a time, across pictures."""
    threshold: float = 0.3
    """Probability above which a pixel belongs to the entity."""
    detector_threshold: float = 0.3
    """Least confidence of a box (grounded-sam2) or an instance (sam3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"segment.threshold: {self.threshold} must lie between 0 and 1.")


@dataclass
class FilterConfig:
    """Which pictures and entities are left out; each reason is counted."""

    min_side: int = 384
    """Pictures with a shorter side below this are left out."""
    max_aspect: float = 3.0
    """Pictures longer than this many times their shorter side are left out: only their centre square is used."""
    max_megapixels: float = 50.0
    """Larger pictures are not decoded."""
    max_megabytes: float = 256.0
    """Larger files of pictures are not read."""
    min_words: int = 3
    """Captions with fewer words are left out."""
    max_words: int = 60
    """Captions with more words are left out."""
    min_share: float = 2.0
    """Entities whose mask covers less of the picture than this (per cent) are left out."""
    max_share: float = 90.0
    """Entities whose mask covers more of the picture than this (per cent) are left out."""
    min_entities: int = 1
    """Pictures with fewer entities left are left out."""
    max_entities: int = 5
    """Pictures with more entities are left out."""
    duplicates: DuplicateScope = "all"
    """all: of pictures that look the same anywhere in the input, only the first is kept; off: all are kept."""
    duplicate_distance: int = 4
    """Bits of the 64-bit perceptual hash in which two pictures that look the same may differ."""


@dataclass
class CropConfig:
    """What is written."""

    dilation: int = 100
    """Masks are dilated by the picture's height divided by this; 0: not at all."""
    side: int = 512
    """Side of target and crops in pixels."""
    enlarge: bool = False
    """Enlarge smaller ones to `side`, as the first implementation did; else they keep their size."""
    jpeg_quality: int = 95


@dataclass
class ConstructConfig:
    """Everything that a construction depends on."""

    input: str
    """Pictures: a folder, or WebDataset/img2dataset tars (a folder of them or one)."""
    output: str
    """Folder for the shards."""
    open_images: str | None = None
    """An Open Images CSV: its Rotation is applied, licence and origin go along; unlisted pictures are left out."""
    licence: str = ""
    """Licence of pictures that come without a statement of theirs."""
    shard_size: int = 1000
    """Pictures per shard where the input is a folder of pictures; a tar stays one shard."""
    chunk: int = 32
    """Pictures that travel through the stages together; batches never reach beyond, so it is part of the result."""
    model_side: int = 384
    """Side of the picture that the models see, in pixels."""
    salvage: bool = False
    """Use what can be read of a damaged tar, instead of leaving the shard to a later run."""
    preview: int = 0
    """Write a contact sheet of this many samples, preview.png."""
    ray_address: str | None = None
    """A running Ray cluster: auto, host:6379 or ray://host:10001; empty: this machine alone."""
    cpus: int = 0
    """Processes that decode, cut out and write on this machine; 0: one per core."""
    object_store_gb: float = 0.0
    """Memory for pictures on their way between processes of this machine; 0: Ray's choice."""
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    entities: EntityConfig = field(default_factory=EntityConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    crops: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("chunk", 1), ("model_side", 32), ("preview", 0), ("cpus", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least {least}.")

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide what is written, as `section.key: value`; not processes and places."""
        placement = {pool_field.name for pool_field in fields(WorkerPool)}
        no_effect = {"input", "output", "open_images", "salvage", "preview", "ray_address", "cpus", "object_store_gb"}
        flat = {}
        for name, value in plain(self).items():
            if isinstance(value, dict):
                flat.update({f"{name}.{key}": item for key, item in value.items() if key not in placement})
            elif name not in no_effect:
                flat[name] = value
        return flat


def parse(arguments: list[str], description: str | None = None) -> ConstructConfig:
    """The configuration of the words after `python -m training.construct`; hyphens in names count as underscores.

    Raises:
        ConfigError: a file, key or value is wrong.
    """
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        words.append(name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word)
    config = fill(ConstructConfig, words, "python -m training.construct", description)
    if not config.input or not config.output:
        raise ConfigError("Both --input and --output are needed.")
    return config
