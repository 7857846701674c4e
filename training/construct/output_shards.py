"""Output shards: parts written as chunks are finished, joined and renamed when a shard is complete, summed up at last.

    DIR/name.tar            the samples, in the input's order
    DIR/name.tar.idx        where each begins, as Megatron-Energon reads it: little-endian uint64, the end last
    DIR/name.stats.json     counts, what was left out and why; written last, it says that the shard is done
    DIR/construct.json      the settings that all shards were made with
    DIR/stats.json          the sum over all shards
    DIR/.work/              unfinished parts, perceptual hashes; safe to delete

Nothing in these files depends on time, machine or number of processes.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from kosmos_core.atomic import UNFINISHED, atomic_write, write_file

from ..base.errors import ConfigError
from .chunks import Chunk
from .construct_config import ConstructConfig
from .input_shards import InputShard
from .sample_encoding import EncodedSample, tar_members


@dataclass(frozen=True)
class ShardPart:
    """A finished chunk: its stretch of the shard's tar in a file of its own, and what happened to its pictures.

    file: the stretch's name in the folder of parts; empty where there is no sample.
    """

    shard: int
    number: int
    file: str
    last: bool
    problem: str | None
    offsets: list[int]
    size: int
    entities: int
    skipped: list[tuple[str, str]]
    notes: dict[str, int]


@dataclass
class PendingShard:
    """The parts of one shard so far."""

    parts: dict[int, ShardPart] = field(default_factory=dict)
    end: int | None = None

    def add(self, part: ShardPart) -> bool:
        """Whether all parts are there; a part that arrives twice counts once."""
        self.parts[part.number] = part
        if part.last:
            self.end = part.number
        return self.end is not None and len(self.parts) == self.end + 1


class ConstructionOutput:
    """The output folder of one run. Other processes than its owner may call `write_part` and `join`."""

    def __init__(self, folder: str | Path, run: str):
        self.folder = Path(folder)
        self.work = self.folder / ".work"
        self.parts = self.work / f"parts-{run}"

    @staticmethod
    def open(config: ConstructConfig) -> tuple[ConstructionOutput, FileLock]:
        """The folder, ready to be written, and the lock to keep while this run lasts.

        Raises:
            ConfigError: it cannot be written, another run is at it, or its shards were made with other settings.
        """
        output = ConstructionOutput(config.output, uuid.uuid4().hex[:12])
        lock = FileLock(output.work / "lock")
        try:
            output.work.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"output: another run is writing to {config.output}; wait for it or stop it.") from None
        except OSError as error:
            raise ConfigError(f"output: {config.output} cannot be written ({error.strerror}).") from error
        for stale in output.work.glob("parts-*"):
            shutil.rmtree(stale, ignore_errors=True)
        for stale in output.folder.rglob(UNFINISHED):
            stale.unlink(missing_ok=True)
        output.parts.mkdir()
        try:
            output._check_settings(config)
        except ConfigError:
            lock.release()
            raise
        return output, lock

    def _check_settings(self, config: ConstructConfig) -> None:
        record, settings = self.folder / "construct.json", config.result_settings()
        try:
            before = json.loads(record.read_text())
        except (OSError, ValueError):
            before = None
        done = any(self.folder.rglob("*.stats.json"))
        if before is not None and before != settings and done:
            changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
            key = changed[0]
            more = f" (and {len(changed) - 1} more settings)" if len(changed) > 1 else ""
            raise ConfigError(
                f"output: {self.folder} holds shards made with {key}: {before.get(key)!r}, now it is "
                f"{settings.get(key)!r}{more}; go on with the old settings or choose another folder."
            )
        write_file(record, json.dumps(settings, indent=1))

    def stats_path(self, shard: InputShard) -> Path:
        return self.folder / f"{shard.name}.stats.json"

    def finished(self, shard: InputShard) -> bool:
        """Whether this shard is done, from the same input."""
        try:
            return json.loads(self.stats_path(shard).read_text())["input"] == shard.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write_part(self, chunk: Chunk, samples: list[EncodedSample]) -> ShardPart:
        """Write a chunk's samples as one part. Raises OSError where they cannot be written; nothing is left then.

        Each call writes a file of its own: Ray may repeat a chunk whose first process is still at it.
        """
        content, offsets = tar_members(samples)
        name = f"{uuid.uuid4().hex}.tar" if samples else ""
        if samples:
            try:
                (self.parts / name).write_bytes(content)
            except OSError:
                (self.parts / name).unlink(missing_ok=True)
                raise
        entities = sum(name.endswith(".mask.png") for sample in samples for name in sample.members)
        return ShardPart(
            chunk.shard,
            chunk.number,
            name,
            chunk.last,
            chunk.problem,
            offsets,
            len(content),
            entities,
            chunk.skipped,
            chunk.notes,
        )

    def join(self, shard: InputShard, parts: list[ShardPart]) -> dict[str, Any]:
        """Make the output shard from all its parts, in order, and return its statistics."""
        target = self.folder / f"{shard.name}.tar"
        index, stats_path = target.with_name(target.name + ".idx"), self.stats_path(shard)
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = sorted(parts, key=lambda part: part.number)
        stats = statistics(shard, parts)
        # The statistics vouch for the two other files: they are deleted first and written last.
        stats_path.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
        offsets, position = [], 0
        for part in parts:
            offsets += [position + offset for offset in part.offsets]
            position += part.size
        if offsets:
            with atomic_write(target) as file:
                for part in parts:
                    if part.file:
                        with (self.parts / part.file).open("rb") as source:
                            shutil.copyfileobj(source, file, 1 << 20)
                file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
            write_file(index, np.array([*offsets, position], dtype="<u8").tobytes())
        else:  # readers stumble over archives without a sample
            target.unlink(missing_ok=True)
        write_file(stats_path, json.dumps(stats, indent=1))
        self.discard(parts)
        return stats

    def discard(self, parts: list[ShardPart]) -> None:
        """Delete parts that are no longer needed."""
        for part in parts:
            if part.file:
                (self.parts / part.file).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.parts, ignore_errors=True)


def statistics(shard: InputShard, parts: list[ShardPart]) -> dict[str, Any]:
    """Counts of one shard, and the keys that were left out by reason."""
    skipped: dict[str, list[str]] = {}
    notes: Counter[str] = Counter()
    for part in parts:
        notes.update(part.notes)
        for key, reason in part.skipped:
            skipped.setdefault(reason, []).append(key)
    samples = sum(len(part.offsets) for part in parts)
    return {
        "input": shard.fingerprint,
        "pictures": samples + sum(map(len, skipped.values())),
        "samples": samples,
        "entities": sum(part.entities for part in parts),
        "entities_left_out": dict(sorted(notes.items())),
        "pictures_left_out": dict(sorted(skipped.items())),
    }


def total(output: ConstructionOutput, shards: list[InputShard], failed: dict[str, str]) -> dict[str, Any]:
    """The sum over all finished shards; keys that were left out are counted, not listed."""
    summed: dict[str, Any] = {
        "shards": 0,
        "shards_failed": failed,
        "pictures": 0,
        "samples": 0,
        "entities": 0,
        "pictures_left_out": Counter(),
        "entities_left_out": Counter(),
    }
    for shard in shards:
        if not output.finished(shard):
            continue
        stats = json.loads(output.stats_path(shard).read_text())
        summed["shards"] += 1
        for name in ("pictures", "samples", "entities"):
            summed[name] += stats[name]
        summed["entities_left_out"].update(stats["entities_left_out"])
        summed["pictures_left_out"].update({why: len(keys) for why, keys in stats["pictures_left_out"].items()})
    for name in ("pictures_left_out", "entities_left_out"):
        summed[name] = dict(sorted(summed[name].items()))
    return summed
