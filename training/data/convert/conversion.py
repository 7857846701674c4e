"""Turn numbered items into shards: restartable, the same bytes on any number of workers, nothing lost or half-written.

Shard k holds items k * shard_size ... (k + 1) * shard_size - 1, less those that had to be skipped. A shard is done when
its counts are written, which is the last thing to happen; a run that was killed does over what is not done.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from filelock import FileLock, Timeout
from rich.progress import Progress

from ..index import DataError, index_dataset, write_whole
from ..samples import BadSample
from ..shard_writer import Parts, ShardWriter

FOLDER = ".conversion"
EXAMPLES = 5


class Converted(NamedTuple):
    """A sample of the output. folder: the data set that it belongs to, below the output folder; "" for the only one."""

    folder: str
    key: str
    parts: Parts


class Converter(Protocol):
    """What a layout has to tell; must be picklable, and cheap to copy into worker processes."""

    def __len__(self) -> int:
        """The number of items."""

    def convert(self, number: int) -> Converted:
        """Item `number` as a sample. Raises BadSample."""

    def fingerprint(self) -> dict[str, Any]:
        """What the items depend on, so that a restart on other input is noticed; plain values."""


@dataclass(frozen=True)
class Outcome:
    """What became of the items of one shard or of all. skipped: reason -> count; examples: reason -> first items."""

    items: int
    written: dict[str, int]
    skipped: dict[str, int]
    examples: dict[str, list[int]]


def convert_all(converter: Converter, output: Path, shard_size: int, workers: int, progress: Progress) -> Outcome:
    """Convert every item, going on where an earlier run of the same conversion stopped.

    Raises DataError if the output folder belongs to another conversion, or is in use, or nothing came out.
    OSError passes through: what is complete stays, and the same call goes on from there.
    """
    work = output / FOLDER
    shards = range((len(converter) + shard_size - 1) // shard_size)
    plan = {"shard_size": shard_size, "items": len(converter)} | converter.fingerprint()
    with _claimed(work, plan):
        for partial in output.rglob(".*.tmp"):
            partial.unlink(missing_ok=True)
        todo = [shard for shard in shards if not _counts(work, shard).exists()]
        bar = progress.add_task("Converting", total=len(shards), completed=len(shards) - len(todo))
        for _ in _run(converter, output, shard_size, todo, workers):
            progress.advance(bar)
        outcome = _sum(work, shards)
        write_whole(output / "stats.json", json.dumps(vars(outcome), indent=1, sort_keys=True).encode())
    if not any(outcome.written.values()):
        raise DataError(f"None of the {outcome.items} items could be converted: {outcome.skipped or 'there is none'}.")
    for folder in outcome.written:
        index_dataset(output / folder)
    return outcome


def _run(converter: Converter, output: Path, shard_size: int, todo: list[int], workers: int) -> Iterator[None]:
    jobs = [(output, shard_size, shard) for shard in todo]
    if workers < 2 or len(jobs) < 2:
        for job in jobs:
            yield convert_shard(converter, *job)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), initializer=_receive, initargs=(converter,)) as pool:
        yield from pool.map(_convert_received, jobs)


def _receive(converter: Converter) -> None:
    """Keep the converter in this process: its files are opened once, not for every shard."""
    global _received
    _received = converter


def _convert_received(job: tuple[Path, int, int]) -> None:
    convert_shard(_received, *job)


def convert_shard(converter: Converter, output: Path, shard_size: int, shard: int) -> None:
    """Write one shard, then its counts."""
    skipped: Counter[str] = Counter()
    examples: dict[str, list[int]] = {}
    start = shard * shard_size
    stop = min(start + shard_size, len(converter))
    with contextlib.ExitStack() as stack:
        writers: dict[str, ShardWriter] = {}
        for number in range(start, stop):
            try:
                folder, key, parts = converter.convert(number)
            except BadSample as bad:
                skipped[bad.reason] += 1
                examples.setdefault(bad.reason, []).append(number)
                continue
            if folder not in writers:
                writers[folder] = stack.enter_context(ShardWriter(output / folder / f"{shard:05d}.tar"))
            writers[folder].add(key, parts)
    written = {folder: writer.count for folder, writer in sorted(writers.items())}
    examples = {reason: numbers[:EXAMPLES] for reason, numbers in examples.items()}
    outcome = Outcome(stop - start, written, dict(skipped), examples)
    write_whole(_counts(output / FOLDER, shard), json.dumps(vars(outcome), sort_keys=True).encode())


def _counts(work: Path, shard: int) -> Path:
    return work / f"{shard:05d}.json"


def _sum(work: Path, shards: range) -> Outcome:
    items, written, skipped, examples = 0, Counter(), Counter(), {}
    for shard in shards:
        counts = json.loads(_counts(work, shard).read_bytes())
        items += counts["items"]
        written.update(counts["written"])
        skipped.update(counts["skipped"])
        for reason, numbers in counts["examples"].items():
            examples[reason] = [*examples.get(reason, []), *numbers][:EXAMPLES]
    return Outcome(items, dict(written), dict(skipped.most_common()), examples)


@contextlib.contextmanager
def _claimed(work: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the output folder for this conversion."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(work / "lock").acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"Another conversion is writing to {work.parent}. Wait for it, or choose another.") from error
    with held:
        planned = work / "plan.json"
        if planned.exists() and (before := json.loads(planned.read_bytes())) != json.loads(json.dumps(plan)):
            changed = [name for name in plan | before if before.get(name) != plan.get(name)]
            raise DataError(
                f"{work.parent} holds a conversion with another {', '.join(changed)} "
                f"({before.get(changed[0])}, now {plan.get(changed[0])}). Choose another folder, or delete it."
            )
        others = [entry.name for entry in work.parent.iterdir() if entry != work]
        if not planned.exists() and others:
            raise DataError(f"{work.parent} is not empty ({others[0]}). Choose an empty folder for the output.")
        write_whole(planned, json.dumps(plan, indent=1, sort_keys=True).encode())
        yield


def file_state(path: Path) -> list:
    """Name, size and time of a file, to notice a change."""
    state = os.stat(path)
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]
