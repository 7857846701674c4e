"""Output shards: parts written as chunks are finished, joined and renamed when a shard is complete, summed up at last.

    DIR/name.tar            the samples, in the input's order
    DIR/name.tar.idx        where each begins, as Megatron-Energon reads it: little-endian uint64, the end last
    DIR/name.stats.json     counts, what was left out and why; written last, it says that the shard is done
    DIR/construct.json      the settings that all shards were made with
    DIR/stats.json          the sum over all shards
    DIR/.work/              unfinished parts, perceptual hashes, digests of the input; safe to delete
    DIR/.work/set_aside/    shards whose input is no longer there; they come back with it

Nothing in these files depends on time, machine or number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from kosmos_core.atomic import UNFINISHED, atomic_write, write_file

from ..base.errors import ConfigError
from .chunks import Chunk
from .construct_config import ConstructConfig
from .input_shards import InputShard
from .sample_encoding import EncodedSample, tar_members

RULES = 2  # raised where the same settings and input give other samples than the release before
NOTHING: Mapping[str, Any] = MappingProxyType({})


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


def remembered(config: ConstructConfig) -> Path:
    """The file of the digests of the input."""
    return Path(config.output, ".work", "contents.json")


class ConstructionOutput:
    """The output folder of one run. Other processes than its owner may call `write_part` and `join`."""

    def __init__(self, folder: str | Path, run: str):
        self.folder = Path(folder)
        self.work = self.folder / ".work"
        self.parts = self.work / f"parts-{run}"
        self.began = False
        """Whether this run has made the folder."""

    @staticmethod
    def open(config: ConstructConfig, contents: Mapping[str, str] = NOTHING) -> tuple[ConstructionOutput, FileLock]:
        """The folder, ready to be written, and the lock to keep while this run lasts.

        contents: digests of what else decides the result, such as models, by the name of their option.

        Raises:
            ConfigError: it cannot be written, another run is at it, or its shards were made with other settings.
        """
        output = ConstructionOutput(config.output, uuid.uuid4().hex[:12])
        lock = FileLock(output.work / "lock")
        output.began = not output.folder.exists()
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
            output._check_settings(config, contents)
        except ConfigError:
            output.close()
            lock.release()
            raise
        return output, lock

    def abandon(self) -> None:
        """Take the folder away again where this run has made it and nothing has come of it."""
        if self.began and not any(self.folder.rglob("*.stats.json")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check_settings(self, config: ConstructConfig, contents: Mapping[str, str]) -> None:
        record = self.folder / "construct.json"
        settings: dict[str, Any] = {"rules": RULES, **config.result_settings(), "contents": dict(contents)}
        try:
            before = json.loads(record.read_text())
            before = dict(before, contents=dict(before.get("contents", {})))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            before = None
        done = any(self.folder.rglob("*.stats.json"))
        if before is not None and done:
            self._refuse_changes(before, settings)
            settings["contents"] = before["contents"] | settings["contents"]  # what is not seen from here stays
        write_file(record, json.dumps(settings, indent=1))

    def _refuse_changes(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """ConfigError that names the first thing in which the folder's shards were made otherwise."""
        if before.get("rules") != now["rules"]:
            raise ConfigError(
                f"output: {self.folder} holds shards that another release made by other rules; finish them with that "
                "release, or choose another folder."
            )
        changed = sorted(key for key in {*before, *now} - {"contents"} if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            more = f" (and {len(changed) - 1} more settings)" if len(changed) > 1 else ""
            raise ConfigError(
                f"output: {self.folder} holds shards made with {key}: {before.get(key)!r}, now it is "
                f"{now.get(key)!r}{more}; go on with the old settings or choose another folder."
            )
        for key in sorted(before["contents"].keys() & now["contents"].keys()):
            if before["contents"][key] != now["contents"][key]:
                raise ConfigError(
                    f"output: the files of {key} are not those that the shards in {self.folder} were made with; bring "
                    "the earlier ones back or choose another folder."
                )

    def set_aside(self, shards: Iterable[InputShard]) -> str:
        """Move shards whose input is no longer there out of the readers' sight, and those back whose input is.

        Returns a sentence that names what was moved away, "" where nothing was.
        """
        wanted = {shard.name for shard in shards}
        aside = self.work / "set_aside"
        for stats in sorted(aside.rglob("*.stats.json")):
            name = "/".join(stats.relative_to(aside).parts[1:]).removesuffix(".stats.json")
            if name in wanted and not (self.folder / f"{name}.stats.json").exists():
                _move_shard(stats.with_name(stats.name.removesuffix(".stats.json")), self.folder / name)
        orphans = [name for name in self._finished_names() if name not in wanted]
        for name in orphans:
            source = self.folder / name
            content = hashlib.blake2b((self.folder / f"{name}.stats.json").read_bytes(), digest_size=8).hexdigest()
            _move_shard(source, aside / content / name)
        listed = ", ".join(orphans[:5]) + (f" and {len(orphans) - 5} more" if len(orphans) > 5 else "")
        return (
            f"{len(orphans)} shards whose input is no longer there are set aside in {aside} ({listed}); they come back "
            "with their input, or delete them."
            if orphans
            else ""
        )

    def _finished_names(self) -> list[str]:
        """Names of the shards in this folder, whatever they were made from; other constructions below are not its."""
        names = []
        for folder, folders, files in os.walk(self.folder):
            own = [name for name in folders if not name.startswith(".")]
            folders[:] = [name for name in own if not Path(folder, name, "construct.json").exists()]
            found = [Path(folder, name).relative_to(self.folder) for name in files if name.endswith(".stats.json")]
            names += [path.as_posix().removesuffix(".stats.json") for path in found]
        return sorted(names)

    def stats_path(self, shard: InputShard) -> Path:
        return self.folder / f"{shard.name}.stats.json"

    def finished(self, shard: InputShard) -> bool:
        """Whether this shard is done, from the same input, and still there."""
        try:
            stats = json.loads(self.stats_path(shard).read_text())
            there = not stats["samples"] or all(
                (self.folder / f"{shard.name}{x}").is_file() for x in (".tar", ".tar.idx")
            )
            return stats["input"] == shard.fingerprint and there
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
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


def _move_shard(source: Path, target: Path) -> None:
    """Move a shard's files; the statistics, which vouch for the others, last, so that after a kill it goes on."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".tar", ".tar.idx", ".stats.json"):
        with contextlib.suppress(FileNotFoundError):  # a shard without a sample has no tar; or a kill came between
            source.with_name(source.name + ending).replace(target.with_name(target.name + ending))


def statistics(shard: InputShard, parts: list[ShardPart]) -> dict[str, Any]:
    """Counts of one shard, and the keys that were left out by reason."""
    skipped: dict[str, list[str]] = {}
    notes: Counter[str] = Counter()
    for part in parts:
        notes.update(part.notes)
        for key, reason in part.skipped:
            skipped.setdefault(reason, []).append(key)
    samples = sum(len(part.offsets) for part in parts)
    files = {reason: skipped.pop(reason) for reason in sorted(skipped) if reason.startswith("file: ")}
    return {
        "input": shard.fingerprint,
        "pictures": samples + sum(map(len, skipped.values())),
        "samples": samples,
        "entities": sum(part.entities for part in parts),
        "entities_left_out": dict(sorted(notes.items())),
        "pictures_left_out": dict(sorted(skipped.items())),
        "files_left_out": files,
    }


def total(
    output: ConstructionOutput, shards: list[InputShard], failed: dict[str, str], left_out: Mapping[str, int] = NOTHING
) -> dict[str, Any]:
    """The sum over all finished shards and the files that belong to none; keys are counted, not listed."""
    summed: dict[str, Any] = {
        "shards": 0,
        "shards_failed": failed,
        "pictures": 0,
        "samples": 0,
        "entities": 0,
        "pictures_left_out": Counter(),
        "entities_left_out": Counter(),
        "files_left_out": Counter(left_out),
    }
    for shard in shards:
        if not output.finished(shard):
            continue
        stats = json.loads(output.stats_path(shard).read_text())
        summed["shards"] += 1
        for name in ("pictures", "samples", "entities"):
            summed[name] += stats[name]
        summed["entities_left_out"].update(stats["entities_left_out"])
        for name in ("pictures_left_out", "files_left_out"):
            summed[name].update({why: len(keys) for why, keys in stats[name].items()})
    for name in ("pictures_left_out", "entities_left_out", "files_left_out"):
        summed[name] = dict(sorted(summed[name].items()))
    return summed
