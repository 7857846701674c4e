"""A recipe: a folder with trainings that follow each other, files that fit each to a machine, and what they read.

`recipe.yaml` names the steps in their order and the data by the paths that the steps' configurations give them. Beside
it lie `<step>.yaml` and, for each machine, `<step>-<GPUs>x<memory>gb.yaml`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.settings import read_yaml
from ..engine.run_config import RunConfig, parse

MACHINE = re.compile(r"-(\d+)x(\d+)gb\.yaml$")


class TooSmall(ConfigError):
    """A step of a recipe is fitted to no machine as small as the one that was asked about."""


@dataclass(frozen=True)
class DataSet:
    """One data set of a recipe, as large as the recipe wants it."""

    samples: float
    bytes: float
    """Of a sample on disk, so much on average."""
    core_seconds: float = 0.0
    """Of one CPU core to read a sample as training does."""
    construct_pictures: float = 0.0
    """Pictures that `training.construct` looks at to find the samples."""
    construct_tflop: float = 0.0
    """Operations of its models for a picture, in TF32."""

    @property
    def disk(self) -> float:
        return self.samples * self.bytes


@dataclass(frozen=True)
class Step:
    """One training of a recipe, fitted to a machine."""

    name: str
    files: tuple[Path, ...]
    config: RunConfig
    images: float  # pictures of a row


@dataclass(frozen=True)
class Recipe:
    """The steps of a folder in their order, and their data."""

    folder: Path
    steps: tuple[str, ...]
    images: dict[str, float]
    data: dict[str, DataSet] = field(default_factory=dict)

    def machines(self, step: str) -> list[tuple[int, int, Path]]:
        """GPUs, gigabytes of each and the file, of every machine that a step is fitted to, smallest first."""
        found = []
        for path in self.folder.glob(f"{step}-*.yaml"):
            if match := MACHINE.fullmatch(path.name.removeprefix(step)):
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)

    def step(self, name: str, gpus: int, memory: float) -> Step:
        """A step fitted to so many GPUs of that memory (bytes): the file for the largest machine that is no larger.

        Raises:
            TooSmall: the step has a file for no machine as small.
            ConfigError: a file is wrong.
        """
        machines = self.machines(name)
        fit = [one for one in machines if one[0] <= gpus and one[1] * 1e9 <= memory]
        if not fit:
            least = min(machines, key=lambda one: (one[1], one[0]), default=None)
            raise TooSmall(
                f"--recipe: step {name} of {self.folder} is fitted to no machine of {gpus} x {memory / 1e9:.0f} GB"
                + (f"; the smallest is {least[0]} x {least[1]} GB." if least else f"; add {name}-1x80gb.yaml there.")
            )
        # Memory decides what fits into a card, so it comes before the number of cards.
        _, _, path = max(fit, key=lambda one: (one[1], one[0]))
        files = (self.folder / f"{name}.yaml", path)
        return Step(name, files, _parsed(files), self.images[name])


@cache
def _parsed(files: tuple[Path, ...]) -> RunConfig:
    """The configuration of files; each pair takes a fifth of a second, and is asked for once for every machine."""
    return parse([word for file in files for word in ("--config", str(file))])


def read_recipe(folder: str | Path) -> Recipe:
    """The recipe of a folder.

    Raises:
        ConfigError: there is no recipe.yaml, or one of its keys or values is wrong.
    """
    folder = Path(folder)
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise ConfigError(f"--recipe: {folder} holds no recipe.yaml; give a folder such as training/configs/kosmos2.")
    content = read_yaml(path)
    try:
        steps = {str(name): float(step["images"]) for name, step in content.pop("steps").items()}
        data = {str(name): _data_set(values) for name, values in content.pop("data").items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"--recipe: {path} is no recipe ({type(error).__name__}: {error}); it needs `steps`, each with its "
            f"`images`, and `data`, each with `samples` and `bytes`."
        ) from None
    if content:
        raise ConfigError(f"--recipe: {path} has the key {min(content)!r}, but a recipe has `steps` and `data` alone.")
    if missing := [name for name in steps if not (folder / f"{name}.yaml").is_file()]:
        raise ConfigError(f"--recipe: {path} names the step {missing[0]!r}, but {folder / missing[0]}.yaml is missing.")
    return Recipe(folder, tuple(steps), steps, data)


def _data_set(values: dict[str, Any]) -> DataSet:
    found = DataSet(**{str(key): float(value) for key, value in values.items()})
    if not (found.samples > 0 and found.bytes > 0):
        raise ValueError("samples and bytes must be above 0")
    return found
