"""A tuning that was stopped, in a file beside the output that it is to become."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from filelock import FileLock, Timeout

from kosmos_core.safetensors_file import read_header, write

from ..base.errors import ConfigError
from ..base.precision import LossScale
from .tuning import Progress

SUFFIX = ".unfinished"
TENSORS = ("embeddings", "best", "first_moment", "second_moment")


@contextlib.contextmanager
def owned(output: Path) -> Iterator[None]:
    """Own the output while within; ConfigError where another command is tuning it. The lock ends with its process."""
    path = output.with_name(f"{output.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"--output: another command is tuning {output}; wait until it has ended, or choose another name."
        ) from None
    try:
        yield
    finally:
        # Still locked: filelock's acquire refuses the file of one who opened it before and gets it without a name.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def path_beside(output: Path) -> Path:
    return output.with_name(output.name + SUFFIX)


def save(output: Path, progress: Progress, settings: dict[str, Any]) -> None:
    """Write it, atomically; OSError, in one sentence, where it cannot be written."""
    counts = {name: value for name, value in asdict(progress).items() if name not in TENSORS}
    tensors = [(name, getattr(progress, name), torch.float32) for name in TENSORS]
    write(path_beside(output), tensors, {"settings": json.dumps(settings), "progress": json.dumps(counts)})


def load(output: Path, settings: dict[str, Any], like: Progress) -> Progress:
    """Read it back onto the device of `like`.

    ConfigError where it cannot be read, or was begun with other settings: it says which.
    """
    path = path_beside(output)
    anew = f"give what it was begun with, or remove {path.name} to begin anew"
    try:
        metadata = read_header(path).metadata
        stored, counts = dict(json.loads(metadata["settings"])), dict(json.loads(metadata["progress"]))
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone().to(like.best.device) for name in TENSORS}
        for name, tensor in tensors.items():
            if tensor.shape != like.best.shape:
                raise ValueError(f"its {name} are {tuple(tensor.shape)}, expected {tuple(like.best.shape)}")
        counts = {field.name: counts[field.name] for field in fields(Progress) if field.name not in TENSORS}
        progress = Progress(**tensors, **{**counts, "loss_scale": LossScale(**counts["loss_scale"])})
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"--resume: {path} cannot be read ({error}); remove it to begin anew.") from error
    refuse_other(f"{path} was begun", stored, settings, anew)
    return progress


def refuse_other(begun: str, stored: dict[str, Any], settings: dict[str, Any], way_out: str) -> None:
    """ConfigError, which says which, where what is on the disk was `begun` with other settings than those of now."""
    for name, value in settings.items():
        before = stored.get(name)
        if before == value:
            continue
        if isinstance(value, dict):  # by photograph
            before = before if isinstance(before, dict) else {}
            places = [place for place in {**before, **value} if before.get(place) != value.get(place)]
            difference = f"it differs in {_shown(places)}"
        else:
            difference = f"{_shown(before)}, now {_shown(value)}"
        raise ConfigError(f"--resume: {begun} with another {name} ({difference}); {way_out}.")


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return (text if len(text) <= 60 else text[:60] + "…") or "none"
