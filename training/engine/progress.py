"""What a person sees of a run: a line per step, JSONL always, TensorBoard by default, other trackers on demand."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
from PIL.Image import Image
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kosmos_core.atomic import atomic_write, write_file

from ..base.curves import curves
from ..base.display import duration, printable, short
from ..base.errors import ConfigError
from ..base.processes import ProcessGroup
from .log_config import LogConfig


class Progress:
    """The reports of one run; every method does nothing on processes other than 0.

    Args:
        folder: the run folder.
        steps: of the whole run.
        description: the run's configuration, for trackers that show it.
        done: steps that are done. Records of later ones are removed: a killed run wrote them, this one will again.
    """

    def __init__(
        self, folder: Path, steps: int, config: LogConfig, description: str, process_group: ProcessGroup, done: int = 0
    ) -> None:
        self.shown = process_group.rank == 0
        self.steps = steps
        if not self.shown:
            return
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.path = folder / "log.jsonl"
        self._keep_records(done)
        self.jsonl = self.path.open("a", buffering=1)
        self.trackers, self.images = [], None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(folder / "tensorboard", purge_step=done + 1)
            self.images = writer
            self.trackers.append(lambda values, step: [writer.add_scalar(k, v, step) for k, v in values.items()])
        self.trackers += [_accelerate_tracker(name, folder, description) for name in config.trackers]
        if self.console.is_terminal:
            self.live.start()

    def _keep_records(self, done: int) -> None:
        """Leave the records up to step `done` alone in the file."""
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        kept = []
        for line in content.splitlines(keepends=True):
            with contextlib.suppress(ValueError, LookupError, TypeError):  # cut off by a kill, or zeros by a crash
                if line.endswith(b"\n") and json.loads(line)["step"] <= done:
                    kept.append(line)
        if b"".join(kept) != content:
            write_file(self.path, b"".join(kept))

    def say(self, sentence: str) -> None:
        """Print a sentence above the progress line."""
        if self.shown:
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def line(self, record: Mapping[str, Any]) -> None:
        """Show the state of the run; stays on a terminal until the next call, else is not printed."""
        if self.shown and self.console.is_terminal and "eta_seconds" in record:
            self.live.update(Text(progress_line(record, self.steps)), refresh=True)

    def record(self, record: dict[str, Any]) -> None:
        """Write a record to the file and the trackers, and print its line."""
        if not self.shown:
            return
        self.jsonl.write(json.dumps(record) + "\n")
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        for track in self.trackers:
            track(numbers, record["step"])
        self.say(progress_line(record, self.steps))

    def image(self, name: str, image: Image, step: int) -> None:
        """Show an image in TensorBoard."""
        if self.shown and self.images is not None:
            self.images.add_image(name, numpy.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Bring the records onto the disk, draw them as curves.png, and end the progress line."""
        if self.shown:
            self.live.stop()
            self.jsonl.flush()
            os.fsync(self.jsonl.fileno())
            self.jsonl.close()
            self._draw_curves()

    def _draw_curves(self) -> None:
        with self.path.open() as file:
            page = curves([json.loads(line) for line in file], printable(self.path.parent))
        if page is None:
            return
        try:
            with atomic_write(self.path.with_name("curves.png")) as file:
                page.save(file, "PNG")
        except OSError as error:
            self.say(f"curves.png could not be written ({error.strerror}); log.jsonl holds what it shows.")


def progress_line(record: Mapping[str, Any], steps: int) -> str:
    """One line of a step's record."""
    parts = [f"step {record['step']}/{steps}", f"loss {record['loss']:.4f}"]
    parts += [f"{k.removeprefix('loss/')} {v:.4f}" for k, v in record.items() if k.startswith("loss/")]
    parts += [
        f"lr {record['lr']:.2e}",
        f"norm {record['gradient_norm']:.3f}",
        f"{short(record['samples_per_second'])} samples/s",
        f"{short(record['tokens_per_second'])} tokens/s",
        f"wait {record['data_wait_percent']:.0f}%",
    ]
    if record.get("mfu_percent") is not None:
        parts.append(f"MFU {record['mfu_percent']:.1f}%")
    parts += [f"mem {short(record['memory_bytes'])}B", f"ETA {duration(record['eta_seconds'])}"]
    if record.get("skipped"):
        parts.append(f"skipped {record['skipped']}")
    return " · ".join(parts)


def _accelerate_tracker(name: str, folder: Path, description: str) -> Callable[[dict[str, float], int], None]:
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = sorted(str(tracker.value) for tracker in get_available_trackers())
    if name not in installed:
        known = ", ".join(installed) or "none"
        raise ConfigError(f"log.trackers: '{name}' is not available; installed trackers are {known}.")
    PartialState()  # its trackers ask it which process is the first
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(folder.name, logging_dir=folder) if kind.requires_logging_directory else kind(folder.name)
    tracker.start()
    tracker.store_init_configuration({"config": description})
    return lambda values, step: tracker.log(values, step=step)
