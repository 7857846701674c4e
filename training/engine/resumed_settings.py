"""What differs when a run goes on with other settings: listed where it may, refused where it cannot be right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kosmos_core import Tokenizer

from ..base.errors import ConfigError
from ..base.yaml_text import load_yaml
from ..weights.provenance import TOKENIZER_FILES, TOKENIZER_FOLDER
from .checkpoint import SETTINGS

# Where a run lies and how it was started says nothing of what it computes.
OF_THE_START = ("resume", "run_folder", "device", "profile", "find_rate")


def run_folder_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint belongs to."""
    return checkpoint.resolve().parents[1]


def stored_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made with, which a start that came to no checkpoint has not changed.

    Those of the run folder's last start where the checkpoint, of an earlier release, has none; empty without any.
    """
    for folder in (checkpoint, run_folder_of(checkpoint)):
        try:
            settings = load_yaml((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(settings, dict):
            return settings
    return {}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that differ, by key: the value before and the value now, None where there is none."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**old, **new} if key not in OF_THE_START and old.get(key) != new.get(key)]
    return {key: [old.get(key), new.get(key)] for key in keys}


def sentence(changed: Mapping[str, list[Any]]) -> str:
    """The changes in one line."""
    return ", ".join(f"{key} {_shown(before)} -> {_shown(now)}" for key, (before, now) in changed.items())


def refuse(checkpoint: Path, step: int, now: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    """Refuse what no continued run can have.

    Raises:
        ConfigError: another stage, another tokenizer, or fewer steps than are done.
    """
    before = stored_settings(checkpoint)
    if before.get("stage", now["stage"]) != now["stage"]:
        raise ConfigError(
            f"stage: {now['stage']}, but {checkpoint} is of stage {before['stage']}; begin the new stage in a "
            f"--run_folder of its own, with --weights from `python -m training.export`."
        )
    if now["steps"] < step:
        raise ConfigError(f"steps: {now['steps']}, but {checkpoint} has done {step}; give at least that many.")
    folder = run_folder_of(checkpoint) / TOKENIZER_FOLDER
    if tokenizer is None or not all((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    for name, content in zip(TOKENIZER_FILES, tokenizer.to_bytes(), strict=True):
        if (folder / name).read_bytes() != content:
            raise ConfigError(
                f"tokenizer: its {name} is not the one that {checkpoint} was trained with ({folder / name}), so every "
                f"token would mean another word; give --tokenizer {folder}."
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return "(none)" if value is None else f"{value!s:.80}"
