"""The configuration of a run: dataclasses filled from YAML files and `--a.b value`, strictly.

    python -m training.run --config training/configs/align.yaml --optim.lr 1e-4 --run_folder runs/align

Files and options are applied in order, later ones win. A key that does not exist or a value of the wrong type is an
error that names the nearest valid key. Each section is declared in a module beside what it configures, without torch: a
help or a refusal of a key is there in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from kosmos_core import KosmosGConfig

from ..base.errors import ConfigError
from ..base.number_formats import Choice
from ..base.settings import fill, first_look, plain, read_yaml
from ..stages import STAGES, stage_config
from .checkpoint_config import CheckpointConfig
from .log_config import LogConfig
from .optim_config import OptimConfig
from .sharding.config import ParallelConfig
from .trainable_config import TrainableConfig
from .validate_config import ValidateConfig, check_held_out

OWN_KEYS = """
Every stage has keys of its own below task and data; --stage NAME --help, or --config FILE --help, shows them.
"""
PRESETS = ("official", "medium", "tiny")


def profiled_steps(wanted: str, steps: int) -> tuple[int, int]:
    """First and last step of `FIRST:LAST`; ValueError where it is no such pair, or the run of `steps` ends before."""
    first, colon, last = wanted.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"profile: {wanted!r} is not valid, expected FIRST:LAST, such as 10:13 for four steps.")
    if int(last) > steps:
        raise ValueError(f"profile: {wanted} goes beyond the run's {steps} steps; give earlier ones, or more --steps.")
    return int(first), int(last)


@dataclass(frozen=True)
class RateSweep:
    """Learning rates to try, one a step."""

    first: float
    last: float
    steps: int

    @classmethod
    def of(cls, wanted: str) -> RateSweep:
        """From FIRST:LAST:STEPS; ValueError where it is no such thing."""
        try:
            first, last, steps = wanted.split(":")
            found = cls(float(first), float(last), int(steps))
        except ValueError:
            found = None
        if found is None or not (0 < found.first < found.last < math.inf and 2 <= found.steps <= 10_000):
            raise ValueError(
                f"find_rate: {wanted!r} is not valid, expected FIRST:LAST:STEPS, two rising rates above 0 and 2 to "
                f"10,000 steps, such as 1e-6:1e-1:100."
            )
        return found

    def rates(self) -> list[float]:
        """From the first to the last, each the same multiple of the one before."""
        return [self.first * (self.last / self.first) ** (step / (self.steps - 1)) for step in range(self.steps)]


@dataclass
class BatchConfig:
    """How many rows a step takes and how they are cut."""

    size: int = 8
    """Rows of one step over all processes and micro-batches."""
    micro: int = 8
    """Rows a process handles at once; the gradients of size / (micro x processes) of them are accumulated."""
    streams: int | None = None
    """Data streams that feed the run, a multiple of the processes; empty: as many as processes at the first start.
    A run continues exactly on any number of processes that divides it."""

    def __post_init__(self) -> None:
        if self.micro < 1 or self.size < 1 or self.size % self.micro:
            raise ValueError(f"batch.size: {self.size} must be a multiple of batch.micro ({self.micro}), both above 0.")
        if self.streams is not None and self.streams < 1:
            raise ValueError(f"batch.streams: {self.streams} must be at least 1; empty takes one per process.")


@dataclass
class RunConfig:
    """Everything that a run depends on; stored as config.yaml in the run folder."""

    stage: Literal[STAGES]
    """Which stage to train."""
    run_folder: str
    """Where checkpoints, logs, samples and the resolved configuration go."""
    steps: int = 300_000
    """Optimiser steps of the whole run; the learning rate ends its decay here."""
    seed: int = 0
    preset: Literal["official", "medium", "tiny"] = "official"
    """Sizes of the model; single sizes can be changed under `model`."""
    weights: str | None = None
    """Weights to start from: a Kosmos-G file of any stage, or for lm a local kosmos-2 folder; empty: from scratch."""
    tokenizer: str | None = None
    """Folder with sentencepiece.bpe.model and dict.txt; empty: the tokenizer inside `weights`."""
    device: str = "auto"
    """auto, cuda, cpu or mps."""
    precision: Choice = "bf16"
    """Compute format; trained weights and optimiser state stay float32. auto: bf16 on GPUs that have it, else fp16; on
    a CPU whichever of bf16 and fp32 it multiplies faster."""
    resume: str = "never"
    """auto: go on from the latest checkpoint of the run folder if there is one; never: refuse to touch an existing run;
    a path: start from that checkpoint."""
    profile: str | None = None
    """Steps to profile, FIRST:LAST; a trace, the dearest operations and, on a GPU, a memory snapshot go into `profile`
    in the run folder."""
    find_rate: str | None = None
    """FIRST:LAST:STEPS, such as 1e-6:1e-1:100: instead of training, so many steps at learning rates from the first to
    the last, and which rate they speak for. Nothing is written."""
    model: KosmosGConfig = field(default_factory=KosmosGConfig.official)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    task: Any = None
    """Options of the stage itself."""
    data: Any = None
    """What the stage trains on."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} must be 0 or more.")
        if self.find_rate is not None:
            RateSweep.of(self.find_rate)
            if self.resume != "never":
                raise ValueError(f"find_rate: begins from `weights`; leave out --resume {self.resume}.")
        if self.profile is not None:
            profiled_steps(self.profile, self.steps)
        if self.data is not None:
            trained = {f"data.sources.{name}": source.path for name, source in self.data.sources.items()}
            replay = getattr(self.task, "replay", None)
            if replay is not None and replay.captions:
                trained["task.replay.captions"] = replay.captions
            check_held_out(self.validate, trained, self.steps)

    def to_yaml(self) -> str:
        return yaml.safe_dump(plain(self), sort_keys=False)


@functools.cache
def schema(stage: str) -> type:
    """`RunConfig` with the stage's own types for `task` and `data`."""
    module = stage_config(stage)
    own = [
        (name, kind, field(default_factory=kind))
        for name, kind in (("task", module.Config), ("data", module.DataConfig))
    ]
    schema = dataclasses.make_dataclass("RunConfig", own, bases=(RunConfig,), kw_only=True)
    schema.__doc__ = RunConfig.__doc__
    return schema


def _preset(stage: str, name: str) -> KosmosGConfig:
    sizes = getattr(KosmosGConfig, name)(reconstruction=stage == "align")
    return dataclasses.replace(sizes, aligner=None) if stage == "lm" else sizes


def _vocabulary(weights: Any, otherwise: int) -> int:
    """The vocabulary of a Kosmos-G file, so that nobody has to look it up; where the file cannot be read, another one,
    because loading it will say what is wrong."""
    if not (isinstance(weights, str) and Path(weights).is_file()):
        return otherwise
    from kosmos_core.safetensors_file import WeightsError  # late, as in `training.run`: torch comes with them
    from kosmos_core.weights import read_config

    try:
        return read_config(weights)[0].decoder.vocabulary
    except (WeightsError, OSError):
        return otherwise


def parse(arguments: list[str]) -> RunConfig:
    """The configuration of `arguments`, the words after `python -m training.run`.

    Raises:
        ConfigError: a file, key or value is wrong.
    """
    given = first_look(arguments, "stage", "preset", "weights")
    files = {path: read_yaml(path) for path in given.config}
    merged = {key: value for values in files.values() for key, value in values.items()}
    stage = given.stage or merged.get("stage")
    if stage is None and {"-h", "--help"} & set(arguments):
        return fill(RunConfig, arguments, "python -m training.run", f"{__doc__}{OWN_KEYS}")
    if stage is None and not given.config:
        raise ConfigError("--config: none given; name a file such as training/configs/align/single-gpu.yaml.")
    if stage not in STAGES:
        raise ConfigError(f"stage: {stage!r} is none of {', '.join(STAGES)}; set it in the file or with --stage.")
    preset = given.preset or merged.get("preset", RunConfig.preset)
    if preset not in PRESETS:
        raise ConfigError(f"preset: {preset!r} is none of {', '.join(PRESETS)}.")
    kind = schema(stage)

    def default() -> dict[str, Any]:
        sizes = _preset(stage, preset).to_dict()
        decoder, weights = sizes["decoder"], given.weights or merged.get("weights")
        decoder["vocabulary"] = _vocabulary(weights, decoder["vocabulary"])
        return {"model": sizes}

    return fill(kind, arguments, "python -m training.run", __doc__, default)
