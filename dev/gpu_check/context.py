"""What every part of the check is given, and what it hands back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Skipped(Exception):
    """A part, or a line of one, that cannot be run here; the text says what is missing."""


def require(*packages: str) -> None:
    """Raise Skipped with the names of the packages that are not installed."""
    if missing := [name for name in packages if find_spec(name.split(".")[0]) is None]:
        raise Skipped(f"needs {', '.join(missing)}")


@dataclass
class Line:
    """One measurement: what it is, its value, what it is held against, and whether it holds (None: nothing to hold)."""

    what: str
    value: str
    beside: str = ""
    good: bool | None = None


@dataclass
class Context:
    """Where and how large to measure, and until when."""

    device: torch.device
    size: str  # official, or tiny for a machine without a GPU
    until: float = float("inf")  # time.monotonic() after which nothing new begins
    lines: dict[str, list[Line]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Numbers for the JSON file, by part."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of each part."""

    @property
    def official(self) -> bool:
        return self.size == "official"

    def in_time(self) -> None:
        """Raise Skipped where the time is used up."""
        if time.monotonic() > self.until:
            raise Skipped("the time is used up; --minutes gives more")

    def synchronize(self) -> None:
        """Wait for what the device has been given to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], rounds: int = 5, warm: int = 2) -> float:
        """The median time of a call by the clock, after a few that warm up."""
        taken = []
        for number in range(warm + rounds):
            self.synchronize()
            started = time.perf_counter()
            run()
            self.synchronize()
            if number >= warm:
                taken.append(time.perf_counter() - started)
        return sorted(taken)[len(taken) // 2]

    def peak_memory(self, run: Callable[[], object]) -> float | None:
        """Bytes that torch had allocated at most during a call, None on a CPU, where no such count is kept."""
        if self.device.type != "cuda":
            run()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.synchronize()
        return float(torch.cuda.max_memory_allocated(self.device))

    def attempt(self, name: str, part: Callable[[], Iterable[Line]]) -> None:
        """Keep the lines of a part, and why it ended early where it did."""
        kept, started = self.lines.setdefault(name, []), time.perf_counter()
        try:
            self.in_time()
            for line in part():
                kept.append(line)
        except Skipped as reason:
            self.skipped[name] = str(reason)
        except Exception as error:  # one part must not take the others along
            kept.append(Line("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", good=False))
        self.spent[name] = time.perf_counter() - started


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f} GB"
