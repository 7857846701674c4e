"""Turn numbered items into shards: restartable, and the same bytes on any number of workers.

Shard k holds items k * shard_size ... (k + 1) * shard_size - 1, without those that had to be skipped. A shard's counts
are written last: a run that was killed makes those shards again that have none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from filelock import FileLock, Timeout
from rich.progress import Progress

from kosmos_core.atomic import UNFINISHED, write_file

from ..cookers import read_json
from ..index import DataError, index_dataset, visible_files
from ..process_map import process_map
from ..sample_types import BadSample, one_bad_sample
from ..shard_writer import Parts, ShardWriter

FOLDER, PLAN = ".conversion", "plan.json"
EXAMPLES = 5


class Converted(NamedTuple):
    """A sample of the output.

    folder: the data set that it belongs to, below the output folder; "" for the only one. lacks: the reason for each
    thing that the item has and the sample does not.
    """

    folder: str
    key: str
    parts: Parts
    lacks: tuple[str, ...] = ()


class Converter(Protocol):
    """The items of a data set in some layout, and how each becomes a sample.

    Picklable: every worker process gets a copy, and opens files itself.
    """

    def __len__(self) -> int:
        """The number of items."""

    def convert(self, number: int) -> Converted:
        """Item `number` as a sample. Raises BadSample."""

    def fingerprint(self) -> dict[str, Any]:
        """What the items depend on, as JSON has it: by a change of it a restart on other input is noticed."""


@dataclass(frozen=True)
class Outcome:
    """What became of the items of one shard, or of all.

    written: samples by folder; skipped: items by reason; examples: the first items of each reason; lacking: what
    written samples lack, by reason.
    """

    items: int
    written: dict[str, int]
    skipped: dict[str, int]
    examples: dict[str, list[int]]
    lacking: dict[str, int]


def convert_all(converter: Converter, output: Path, shard_size: int, workers: int, progress: Progress) -> Outcome:
    """Convert every item, going on where an earlier run of the same conversion stopped.

    Raises DataError if the output folder belongs to another conversion, or is in use, or nothing came out; OSError
    where the disk refuses: what is complete stays, and the same call goes on from there.
    """
    work = output / FOLDER
    shards = range((len(converter) + shard_size - 1) // shard_size)
    plan = {"shard_size": shard_size, "items": len(converter)} | converter.fingerprint()
    with _claimed(work, plan):
        for unfinished in output.rglob(UNFINISHED):
            unfinished.unlink(missing_ok=True)
        todo = [shard for shard in shards if not _counts(work, shard).exists()]
        bar = progress.add_task("Converting", total=len(shards), completed=len(shards) - len(todo))
        for _ in process_map(partial(convert_shard, converter, output, shard_size), todo, workers):
            progress.advance(bar)
        outcome = _sum(work, shards)
        write_file(output / "stats.json", json.dumps(vars(outcome), indent=1, sort_keys=True))
    if not any(outcome.written.values()):
        raise DataError(f"None of the {outcome.items} items could be converted: {outcome.skipped or 'there is none'}.")
    for folder in outcome.written:
        index_dataset(output / folder)
    return outcome


def convert_shard(converter: Converter, output: Path, shard_size: int, shard: int) -> None:
    """Write one shard, then its counts."""
    skipped, lacking = Counter(), Counter()
    examples: dict[str, list[int]] = {}
    keys: set[tuple[str, str]] = set()
    start = shard * shard_size
    stop = min(start + shard_size, len(converter))
    with contextlib.ExitStack() as stack:
        writers: dict[str, ShardWriter] = {}
        for number in range(start, stop):
            try:
                with one_bad_sample():
                    folder, key, parts, lacks = converter.convert(number)
            except BadSample as bad:
                skipped[bad.reason] += 1
                examples.setdefault(bad.reason, []).append(number)
                continue
            if folder not in writers:
                writers[folder] = stack.enter_context(ShardWriter(output / folder / f"{shard:05d}.tar"))
            while (folder, key) in keys:  # two samples of one key would be read as one
                key += f"-{number}"
            keys.add((folder, key))
            writers[folder].add(key, parts)
            lacking.update(lacks)
    written = {folder: writer.count for folder, writer in sorted(writers.items())}
    examples = {reason: numbers[:EXAMPLES] for reason, numbers in examples.items()}
    outcome = Outcome(stop - start, written, dict(skipped), examples, dict(lacking))
    write_file(_counts(output / FOLDER, shard), json.dumps(vars(outcome), sort_keys=True))


def _counts(work: Path, shard: int) -> Path:
    return work / f"{shard:05d}.json"


def _sum(work: Path, shards: range) -> Outcome:
    items, written, skipped, lacking, examples = 0, Counter(), Counter(), Counter(), {}
    for shard in shards:
        path = _counts(work, shard)
        counts = _recorded(path)
        try:
            items += counts["items"]
            written.update(counts["written"])
            skipped.update(counts["skipped"])
            lacking.update(counts.get("lacking", {}))  # earlier releases did not count it
            for reason, numbers in counts["examples"].items():
                examples[reason] = [*examples.get(reason, []), *numbers][:EXAMPLES]
        except (KeyError, TypeError, AttributeError) as error:
            raise _no_record(path, "no counts") from error
    return Outcome(items, dict(written), dict(skipped.most_common()), examples, dict(lacking.most_common()))


@contextlib.contextmanager
def _claimed(work: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the output folder for this conversion, and no other. work: the folder in it where the plan is kept."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(work / "lock").acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"Another conversion is writing to {work.parent}. Wait for it, or choose another.") from error
    with held:
        planned = work / PLAN
        if planned.exists() and (before := _recorded(planned)) != json.loads(json.dumps(plan)):
            changed = [name for name in plan | before if before.get(name) != plan.get(name)]
            raise DataError(
                f"{work.parent} holds a conversion with another {', '.join(changed)} "
                f"({before.get(changed[0])}, now {plan.get(changed[0])}). Choose another folder, or delete it."
            )
        others = [entry.name for entry in work.parent.iterdir() if entry != work]
        if not planned.exists() and others:
            raise DataError(f"{work.parent} is not empty ({others[0]}). Choose an empty folder for the output.")
        write_file(planned, json.dumps(plan, indent=1, sort_keys=True))
        yield


def _recorded(path: Path) -> dict[str, Any]:
    """What an earlier run wrote. Raises DataError where something else stands there."""
    try:
        return read_json(path.read_bytes())
    except BadSample as bad:
        raise _no_record(path, bad.reason) from bad


def _no_record(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is no record of a conversion ({reason}). Choose another folder, or delete {path.parent}.")


def key_of(item: int | str) -> str:
    """The key of an item's sample; a name's dots and slashes, which mean something in a tar, become underscores."""
    return f"{item:09d}" if isinstance(item, int) else item.replace("/", "_").replace(".", "_")


def file_state(path: Path) -> list:
    """Name, size and times of a file, to notice a change. The second time no program can set back."""
    state = os.stat(path)
    return [str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def source_files(root: Path) -> Iterator[Path]:
    """The files of a source, in linked folders too; without hidden ones and the outputs of conversions inside it."""
    return visible_files(root, without=FOLDER)


def folder_state(root: Path) -> str:
    """A digest of the files of a source, their sizes and times: by it a corrected, new or lost file is noticed."""
    digest = hashlib.blake2b(digest_size=16)
    for path in source_files(root):
        if not path.name.endswith(".idx"):
            state = os.stat(path, follow_symlinks=path.exists())
            told = f"{os.path.relpath(path, root)}\0{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n"
            digest.update(told.encode(errors="surrogateescape"))
    return digest.hexdigest()
