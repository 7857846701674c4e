"""The configuration of a run: dataclasses filled from YAML files and `--a.b value`, strictly.

    python -m training.run --config training/configs/align.yaml --optim.lr 1e-4 --run_folder runs/align

Files and options are applied in order, later ones win. A key that does not exist or a value of the wrong type is an
error that names the nearest valid key. Each section is declared beside what it configures.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from kosmos_core import KosmosGConfig

from .checkpoint import CheckpointConfig
from .errors import ConfigError
from .optimizer import OptimConfig
from .parallel import ParallelConfig
from .precision import Precision
from .progress import LogConfig
from .stages import STAGES, stage_module

set_parsing_settings(docstring_parse_attribute_docstrings=True)

PRESETS = ("official", "medium", "tiny")


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


@dataclass
class RunConfig:
    """Everything that a run depends on; stored as config.yaml in the run folder."""

    stage: Literal["lm", "align", "instruct"]
    """Which of the three stages to train."""
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
    precision: Precision = "bf16"
    """Compute format; trained weights and optimiser state stay float32."""
    resume: str = "never"
    """auto: go on from the latest checkpoint of the run folder if there is one; never: refuse to touch an existing run;
    a path: start from that checkpoint."""
    model: KosmosGConfig = field(default_factory=KosmosGConfig.official)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    task: Any = None
    """Options of the stage itself."""
    data: Any = None
    """What the stage trains on."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} must be at least 1.")

    def to_yaml(self) -> str:
        return yaml.safe_dump(_plain(self), sort_keys=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `key: value` lines, found {type(values).__name__}.")
    return values


def _sections(kind: Any) -> list[type]:
    """The dataclasses a field's type may hold."""
    if dataclasses.is_dataclass(kind):
        return [kind]
    return [found for argument in typing.get_args(kind) for found in _sections(argument)]


def _check_keys(values: Any, kind: Any, prefix: str, source: str) -> None:
    sections = _sections(kind)
    if isinstance(values, list):
        for item in values:
            _check_keys(item, kind, prefix, source)
    if not sections or not isinstance(values, dict):
        return
    if typing.get_origin(kind) is dict or any(typing.get_origin(a) is dict for a in typing.get_args(kind)):
        for name, item in values.items():
            _check_keys(item, sections[0], f"{prefix}{name}.", source)
        return
    known = {name: hint for section in sections for name, hint in typing.get_type_hints(section).items()}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(_unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in known], source))
        _check_keys(value, known[key], f"{prefix}{key}.", source)


def _unknown(key: str, known: list[str], source: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{source}: there is no key '{key}'; the nearest is '{near[0]}'."


def _all_keys(kind: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        keys.append(f"{prefix}{name}")
        for section in _sections(hint):
            keys += _all_keys(section, f"{prefix}{name}.")
    return keys


def _sentence(message: str) -> str:
    """jsonargparse's report of a wrong value as one sentence."""
    found = re.search(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if not found:
        return " ".join(message.split())
    key, rest = found.groups()
    value = re.search(r"Got value: (.*)", rest)
    expected = re.search(r"Expected an? (.*?)\.? Got value", rest, re.DOTALL)
    if value and expected:
        kind = re.sub(r"<class '(\w+)'>", r"\1", expected[1])
        kind = re.sub(r"typing\.Literal\[(.*?)\]", lambda names: "one of " + names[1].replace("'", ""), kind)
        return f"{key}: {value[1].strip()!r} is not valid, expected {' '.join(kind.split())}."
    return f"{key}: {' '.join(rest.split())}"


def schema(stage: str) -> type:
    """`RunConfig` with the stage's own types for `task` and `data`."""
    module = stage_module(stage)
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


def parse(arguments: list[str]) -> RunConfig:
    """The configuration of `arguments`, the words after `python -m training.run`.

    Raises:
        ConfigError: a file, key or value is wrong.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", action="append", default=[])
    for key in ("stage", "preset", "resume"):
        first.add_argument(f"--{key}")
    given, _ = first.parse_known_args(arguments)
    files = {path: _read(path) for path in given.config}
    merged = {key: value for values in files.values() for key, value in values.items()}
    stage = given.stage or merged.get("stage")
    if stage not in STAGES:
        raise ConfigError(f"stage: {stage!r} is none of {', '.join(STAGES)}; set it in the file or with --stage.")
    preset = given.preset or merged.get("preset", RunConfig.preset)
    if preset not in PRESETS:
        raise ConfigError(f"preset: {preset!r} is none of {', '.join(PRESETS)}.")
    kind = schema(stage)
    for path, values in files.items():
        _check_keys(values, kind, "", path)

    parser = ArgumentParser(prog="python -m training.run", exit_on_error=False, description=__doc__)
    parser.add_argument("--config", action="config", help="A YAML file; may be given more than once.")
    parser.add_class_arguments(kind, default={"model": _preset(stage, preset).to_dict()})
    known = _all_keys(kind)
    for word in arguments:
        key = word[2:].split("=")[0]
        if word.startswith("--") and key not in (*known, "config", "help", "print_config"):
            raise ConfigError(_unknown(key, known, "command line"))
    try:
        values = parser.parse_args(arguments)
        built = parser.instantiate(values)
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(_sentence(str(error))) from None
    built.pop("config")
    return kind(**built)
