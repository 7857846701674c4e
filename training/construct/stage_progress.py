"""What a person sees: a bar per stage with pictures per second and how many wait for it, and a table at last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..base.display import markup

STAGES = ("read", "prepare", "caption", "entities", "segment", "write")
PLAIN_EVERY = 30.0  # seconds between lines where the output is no terminal


class StageTally:
    """Counts the pictures that have left each stage; lives in a process of its own.

    A chunk that Ray repeats after a crash counts once.
    """

    def __init__(self) -> None:
        self.done: dict[str, dict[tuple[int, int], int]] = {stage: {} for stage in STAGES}
        self.sums = dict.fromkeys(STAGES, 0)

    def add(self, stage: str, shard: int, chunk: int, images: int) -> None:
        counted = self.done[stage]
        self.sums[stage] += images - counted.get((shard, chunk), 0)
        counted[shard, chunk] = images

    def forget(self, shard: int) -> None:
        """Drop what is only needed against repetition: the shard is done."""
        for counted in self.done.values():
            for key in [key for key in counted if key[0] == shard]:
                del counted[key]

    def read(self) -> dict[str, int]:
        return self.sums


class StageBars:
    """Shows the counts of `poll` until it is closed: bars on a terminal, a line now and then elsewhere."""

    def __init__(self, poll: Callable[[], dict[str, int]], console: Console):
        self.poll, self.console = poll, console
        self.shards_done = self.shards = 0
        self.counts: dict[str, int] = {}
        self.started = time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=32),
            TextColumn("{task.completed:>9,.0f} pictures"),
            TextColumn("{task.fields[rate]:>8}/s"),
            TextColumn("{task.fields[waiting]:>7,} waiting"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks = {stage: self.bars.add_task(stage, total=None, rate="-", waiting=0) for stage in STAGES}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StageBars:
        self.bars.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()
        self.update()
        self.bars.stop()

    def _watch(self) -> None:
        next_line = time.monotonic() + PLAIN_EVERY
        while not self.stopping.wait(0.5):
            self.update()
            if not self.console.is_terminal and time.monotonic() >= next_line:
                next_line += PLAIN_EVERY
                self.console.print(self.line())

    def update(self) -> None:
        """Take over the newest counts."""
        try:
            counts = self.poll()
        except Exception:  # the counting process may be gone at the end or start again: nothing depends on it
            return
        self.counts = counts
        elapsed = time.monotonic() - self.started
        before = counts["read"]
        for stage in STAGES:
            done = counts[stage]
            self.bars.update(
                self.tasks[stage],
                completed=done,
                # How many pictures there are is only known when all are read.
                total=counts["read"] if self.shards_done == self.shards else max(counts["read"], 1),
                rate=f"{done / elapsed:.1f}",
                waiting=max(before - done, 0),
            )
            before = done

    def line(self) -> str:
        """The state in one line."""
        parts = [f"{task.description} {task.completed:,.0f} ({task.fields['rate']}/s)" for task in self.bars.tasks]
        return f"shards {self.shards_done}/{self.shards}  " + "  ".join(parts)


def summary(stats: dict[str, Any]) -> Table:
    """The table at the end of a run."""
    table = Table(title="Construction", title_justify="left")
    table.add_column("")
    table.add_column("count", justify="right")
    for name in ("shards", "pictures", "samples", "entities"):
        table.add_row(name, f"{stats[name]:,}")
    for title, name in (
        ("pictures left out", "pictures_left_out"),
        ("entities left out", "entities_left_out"),
        ("files left out", "files_left_out"),
    ):
        if stats.get(name):
            table.add_section()
            table.add_row(f"[bold]{title}[/]", f"[bold]{sum(stats[name].values()):,}[/]")
            for reason, count in stats[name].items():
                table.add_row(f"  {markup(reason)}", f"{count:,}")
    if stats["shards_failed"]:
        table.add_section()
        table.add_row("[bold red]input shards that cannot be read[/]", f"[bold red]{len(stats['shards_failed']):,}[/]")
        for shard, why in list(stats["shards_failed"].items())[:10]:
            table.add_row(f"  {markup(shard)}: {markup(why)}", "")
    return table
