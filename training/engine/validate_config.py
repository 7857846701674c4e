"""The `validate:` section of a configuration: what is held out, how often it is looked at, what it has to reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import ConfigError
from ..data.data_config import HeldOutSource


@dataclass
class Expectation:
    """What a metric has to reach by a step."""

    metric: str
    """A metric's name as the log has it behind `validate/`; a wrong one is told the names that exist."""
    by_step: int
    """Judged at this step, where a validation takes place in any case, and at each one after it."""
    at_least: float | None = None
    at_most: float | None = None
    stop: bool = False
    """Save and end the run where it is missed; else only say so."""

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if len(bounds) != 1 or not math.isfinite(bounds[0]):
            raise ValueError(
                f"validate.expect: {self.metric} has at_least {self.at_least} and at_most {self.at_most}; give one of "
                f"the two, a number."
            )
        if self.metric.split("/")[0] == "retrieval" and not 0 <= bounds[0] <= 1:
            raise ValueError(
                f"validate.expect: {bounds[0]:g} for {self.metric} must be a share of the captions, from 0 to 1; half "
                "of them is 0.5."
            )
        if self.by_step < 1:
            raise ValueError(f"validate.expect: by_step {self.by_step} of {self.metric} must be at least 1.")

    def missed(self, value: float) -> str | None:
        """What was expected in words where a value misses it; one that is no number does."""
        if self.at_least is not None:
            return None if value >= self.at_least else f"at least {self.at_least:g}"
        return None if value <= self.at_most else f"at most {self.at_most:g}"


@dataclass
class ValidateConfig:
    """Figures of samples that are not trained on, so that a run shows early whether it is on its way."""

    sources: dict[str, HeldOutSource] = field(default_factory=dict)
    """Held-out data sets by name, read with the settings of `data`; none: no validation."""
    every: int = 1000
    """Steps between validations; the last step and each by_step of `expect` has one too."""
    samples: int = 256
    """Rows of each source, the same ones every time; a source that has fewer gives all. In lm a row is a sequence of
    data.sequence_length tokens, and 32 of them do."""
    batch: int = 8
    """Rows that a process handles at once. Images are exchanged among these rows."""
    most_time: float = 2.0
    """Per cent of the time that validation may take before the run says how to spend less."""
    expect: list[Expectation] = field(default_factory=list)
    """What metrics have to reach, such as {metric: retrieval, at_least: 0.5, by_step: 2000}."""

    def __post_init__(self) -> None:
        for key in ("every", "samples", "batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"validate.{key}: {getattr(self, key)} must be at least 1.")
        if not 0 < self.most_time <= 100:
            raise ValueError(f"validate.most_time: {self.most_time} must be per cent, above 0 and up to 100.")
        if self.expect and not self.sources:
            raise ValueError(
                f"validate.expect: {self.expect[0].metric} cannot be measured, because no data is held out; name some "
                f"under validate.sources."
            )

    def due(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` steps is validated after `step` of them."""
        named = any(step == expected.by_step for expected in self.expect)
        return bool(self.sources) and (step % self.every == 0 or step == steps or named)


def check_held_out(config: ValidateConfig, trained: Mapping[str, str], steps: int) -> None:
    """ConfigError where a run trains on what is held out, or ends before an expectation is judged.

    trained: the paths of what it trains on, by the settings that name them.
    """
    for name, held in config.sources.items():
        for setting, path in trained.items():
            first, second = Path(held.path).resolve(), Path(path).resolve()
            if first == second or first in second.parents or second in first.parents:
                raise ConfigError(
                    f"validate.sources.{name}: {held.path} is, holds or lies inside {path}, which {setting} trains "
                    f"on; move the held-out shards to a folder of their own."
                )
    for expected in config.expect:
        if expected.by_step > steps:
            raise ConfigError(
                f"validate.expect: {expected.metric} is expected by step {expected.by_step}, but the run ends at step "
                f"{steps}; give a by_step up to that, or more --steps."
            )


def check_names(config: ValidateConfig, known: Mapping[str, str]) -> None:
    """ConfigError where an expectation names no metric of `known`."""
    for expected in config.expect:
        if expected.metric not in known:
            raise ConfigError(
                f"validate.expect: there is no metric {expected.metric!r} in this run; there are {', '.join(known)}."
            )
