"""What the stages read of a run's configuration."""

from __future__ import annotations

from typing import Any, Protocol

from ..base.precision import Precision
from ..weights.warm_start import StartConfig


class StageConfig(StartConfig, Protocol):
    """The configuration that a stage's `build` is given; the engine's `RunConfig` is one."""

    precision: Precision
    task: Any  # the stage's Config
    data: Any  # the stage's DataConfig
    validate: Any  # the engine's ValidateConfig: `sources` are held out
