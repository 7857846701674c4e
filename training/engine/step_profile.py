"""A few steps under torch's profiler: a trace, the dearest operations as a table and, on a GPU, a snapshot of memory.

Process 0 alone is profiled. In `profile/` of the run folder lie `trace.json.gz`, for ui.perfetto.dev or
chrome://tracing; `operations.txt`, the table; `memory.pickle`, for pytorch.org/memory_viz.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from kosmos_core.atomic import write_file

from ..base.processes import ProcessGroup

DEAREST = 10
COLUMN = 48  # characters of an operation's name in the table


class StepProfile:
    """The profile of the steps `first` to `last`; nothing where `steps` is None."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path, process_group: ProcessGroup) -> None:
        self.first, self.last = steps or (0, -1)
        self.folder, self.device = folder, process_group.device
        self.wanted = steps is not None and process_group.rank == 0
        self._running: profile | None = None

    def before(self, step: int) -> str:
        """Call before a step; what a person is to know, if anything."""
        if not self.wanted or step < self.first:
            return ""
        if self._running is None:
            self.wanted = step <= self.last
            if step > self.first:
                self.first = step
            if not self.wanted:
                return f"profile: step {self.last} has been done before this start; nothing is profiled."
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history(max_entries=200_000)
            self._running = profile(activities=activities)
            self._running.start()
        return ""

    def after(self, step: int, ending: bool) -> str:
        """Call after a step, `ending` where no other follows; the table, once the last step to profile is done."""
        if self._running is None or (step < self.last and not ending):
            return ""
        self._running.stop()
        running, self._running, self.wanted = self._running, None, False
        self.folder.mkdir(exist_ok=True)
        running.export_chrome_trace(str(self.folder / "trace.json.gz"))
        parts = [f"trace.json.gz in {self.folder}"]
        if self.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
            parts.append("memory.pickle beside it")
        else:
            parts.append("no snapshot of memory, which torch takes on GPUs alone")
        table = dearest(running, self.device, step - self.first + 1)
        write_file(self.folder / "operations.txt", f"{table}\n")
        return f"profile of steps {self.first} to {step}: {', '.join(parts)}\n{table}"


def dearest(running: profile, device: torch.device, steps: int) -> str:
    """The operations that took longest, without the time of those that they call: milliseconds per step."""
    on_gpu = device.type == "cuda"

    def spent(event: object) -> float:
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    events = sorted(running.key_averages(), key=spent, reverse=True)
    whole = sum(map(spent, events)) or 1.0
    lines = [f"{'operation':{COLUMN}} {'ms a step':>10} {'share':>7} {'calls a step':>13}"]
    for event in events[:DEAREST]:
        name = event.key if len(event.key) <= COLUMN else f"{event.key[: COLUMN - 1]}…"
        time, share = spent(event) / 1000 / steps, 100 * spent(event) / whole
        lines.append(f"{name:{COLUMN}} {time:>10.2f} {share:>6.1f}% {event.count / steps:>13.1f}")
    return "\n".join(lines)
