"""The three training stages, a module each: the model, what of it trains, and the loss of one micro-batch.

`training.engine.stage` says what a stage's module has to offer.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

STAGES = ("lm", "align", "instruct")


def stage_config(name: str) -> ModuleType:
    """The module of a stage's `Config` and `DataConfig`; it brings no torch along, so that a help comes at once."""
    return import_module(f".{name}_config", __package__)


def stage_module(name: str) -> ModuleType:
    """The module of a stage by its name."""
    return import_module(f".{name}", __package__)
