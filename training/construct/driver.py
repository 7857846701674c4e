"""The stages as operators of Ray Data, and the loop that turns finished chunks into shards.

A row of the data set is a chunk. Reading, preparing and finishing are tasks on any core; caption, entities and segment
are pools of processes that hold a model, each of its own size and on its own kind of GPU. Ray restarts what dies and
repeats what was lost with it; a chunk's result depends on nothing but the chunk, so it does not show.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from ..base.errors import ConfigError
from . import operators as stages
from .captioners import build_captioner
from .chunks import Chunk
from .construct_config import ConstructConfig, WorkerPool
from .duplicates import near_duplicates
from .entity_extractors import build_extractor
from .input_shards import InputShard, find_shards
from .model_files import check_models
from .open_images_table import build_table
from .output_shards import ConstructionOutput, PendingShard, ShardPart, total, write_whole
from .segmenters import build_segmenter
from .stage_progress import StageBars, StageTally, summary

# Ray reports usage to its makers, draws bars of its own and logs inner warnings unless told before it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

MODEL_STAGES = ("caption", "entities", "segment")
NO_GPU_KINDS = ("given", "spacy")
READ_CPUS = 0.25  # reading waits for the disk
NO_START = "Ray did not start on this machine"
LOADING_DEATHS = 3  # processes of a stage that may die in a row while they load their model


class ConstructionStopped(RuntimeError):
    """The run cannot go on; the message says why and what to do. Finished shards stay."""


def construct(config: ConstructConfig, console: Console) -> dict[str, Any]:
    """Read `config.input`, write shards into `config.output`, and return the summed statistics.

    Raises:
        ConfigError: something in the configuration cannot be.
        ConstructionStopped: the disk is full or a stage failed; starting again goes on.
    """
    shards = find_shards(config)
    if not config.ray_address:  # on a cluster the models are where the stages run
        check_models(config)
    output, lock = ConstructionOutput.open(config)
    try:
        if config.open_images:
            build_table(config)
        missing = [number for number, shard in enumerate(shards) if not output.finished(shard)]
        done = len(shards) - len(missing)
        console.print(f"{len(shards):,} input shards, {done:,} of them done before, output in {config.output}")
        failed: dict[str, str] = {}
        if missing:
            failed = _run(config, shards, missing, output, console)
        stats = total(output, shards, failed)
        write_whole(output.folder / "stats.json", json.dumps(stats, indent=1).encode(), output.parts)
    except OSError as error:
        raise ConstructionStopped(_disk_message(config, error)) from error
    finally:
        output.close()
        lock.release()
    console.print(summary(stats))
    return stats


def _disk_message(config: ConstructConfig, error: OSError) -> str:
    return (
        f"output: writing to {config.output} failed ({error.strerror or error}); finished shards are kept. Make room "
        "or choose another disk, then start the same command again: it goes on where it stopped."
    )


def _run(
    config: ConstructConfig, shards: list[InputShard], missing: list[int], output: ConstructionOutput, console: Console
) -> dict[str, str]:
    """Make the missing shards; returns what is wrong with those that could not be read."""
    with _ray(config):
        pools = _place(config)
        tally = ray.remote(StageTally).options(num_cpus=0, max_restarts=-1).remote()
        duplicates = _duplicates(config, shards, output, console)
        rows = _pipeline(config, shards, missing, duplicates, output, pools, tally)
        bars = StageBars(lambda: ray.get(tally.read.remote(), timeout=5), console)
        bars.shards = len(missing)
        with bars, _plain_errors():
            return _collect(rows, shards, output, bars, tally, config)


@contextlib.contextmanager
def _ray(config: ConstructConfig) -> Iterator[None]:
    """A connection to the cluster, or Ray on this machine for as long as the run lasts."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is said once, in `_plain_errors`
    if ray.is_initialized():
        yield
        return
    if config.ray_address:
        try:
            _knock(config.ray_address)
            ray.init(address=config.ray_address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"ray_address: no Ray cluster answers at {config.ray_address} ({error}); start one with "
                "`ray start --head`, or leave --ray-address out to use this machine alone."
            ) from error
    else:
        for_models = sum(max(pool.most_workers, pool.workers) * pool.cpus for pool in _pools(config).values())
        store = {"object_store_memory": int(config.object_store_gb * 1e9)} if config.object_store_gb else {}
        cores = config.cpus or os.cpu_count() or 1
        try:
            ray.init(num_cpus=int(np.ceil(for_models)) + cores + 1, include_dashboard=False, **store, **quiet)
        except Exception as error:  # Ray raises a bare one when its processes need more than its half a minute
            raise ConstructionStopped(
                f"{NO_START} ({error}); the machine may be too busy or short of memory. Start the same command again."
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """OSError unless something listens at host:port: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _pools(config: ConstructConfig) -> dict[str, WorkerPool]:
    return {name: getattr(config, name) for name in MODEL_STAGES}


def _place(config: ConstructConfig) -> dict[str, WorkerPool]:
    """The pools with their GPUs settled.

    Raises:
        ConfigError: the cluster has fewer GPUs or cores than the smallest pools need.
    """
    has = ray.cluster_resources()
    gpus = has.get("GPU", 0.0)
    pools = _pools(config)
    undecided = [name for name, pool in pools.items() if pool.gpus is None and pool.kind not in NO_GPU_KINDS]
    asked = sum((pool.gpus or 0) * pool.workers for pool in pools.values())
    sharers = sum(pools[name].workers for name in undecided)
    # As many whole GPUs as there are; where processes outnumber them they share, three to one if need be.
    share = min(1.0, int(100 * (gpus - asked) / sharers) / 100) if sharers and gpus > asked else 0.0
    placed = {
        name: replace(pool, gpus=share if name in undecided else pool.gpus or 0.0) for name, pool in pools.items()
    }
    for resource, available in (("gpus", gpus), ("cpus", has.get("CPU", 0.0) - 1)):
        needed = sum(getattr(pool, resource) * pool.workers for pool in placed.values())
        if needed > available:
            kinds = " + ".join(f"{name} {p.workers} x {getattr(p, resource):g}" for name, p in placed.items())
            raise ConfigError(
                f"caption.workers, entities.workers, segment.workers: they need {needed:g} {resource} ({kinds}), the "
                f"cluster has {available:g}; lower workers or {resource}, or add nodes."
            )
    return placed


def _duplicates(
    config: ConstructConfig, shards: list[InputShard], output: ConstructionOutput, console: Console
) -> dict[int, frozenset[int]]:
    """Positions of pictures that repeat an earlier one, by shard number. Hashes are kept from run to run."""
    if config.filters.duplicates == "off":
        return {}
    folder = output.work / "hashes"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{shard.name.replace('/', '__')}.{shard.fingerprint}.npz" for shard in shards]
    wanted = [number for number, path in enumerate(paths) if not path.is_file()]
    if wanted:
        console.print(f"looking for near-duplicates in {len(wanted):,} shards ...")

        def hash_row(row: dict[str, Any]) -> dict[str, Any]:
            number = int(row["shard"])
            positions, hashes = stages.hash_shard(shards[number], config)
            partial = output.parts / f"{uuid.uuid4().hex}.npz"
            np.savez(partial, positions=positions, hashes=hashes)
            partial.replace(paths[number])
            return {"shard": number}

        with _plain_errors():
            for _ in _rows(wanted).map(hash_row, num_cpus=1).iter_rows():
                pass
    positions, hashes, owners = [], [], []
    for number, path in enumerate(paths):
        with np.load(path) as stored:
            positions.append(stored["positions"])
            hashes.append(stored["hashes"])
            owners.append(np.full(len(positions[-1]), number))
    repeated = near_duplicates(np.concatenate(hashes), config.filters.duplicate_distance)
    found: dict[int, set[int]] = {}
    owner, position = np.concatenate(owners)[repeated], np.concatenate(positions)[repeated]
    for number, place in zip(owner.tolist(), position.tolist(), strict=True):
        found.setdefault(number, set()).add(place)
    return {number: frozenset(places) for number, places in found.items()}


def _rows(numbers: list[int]) -> ray.data.Dataset:
    return ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))


class _ModelStage:
    """A process that holds the model of one stage."""

    def __init__(self, stage: str, config: ConstructConfig, tally: Any):
        self.stage, self.config, self.tally = stage, config, tally
        build = {"caption": build_captioner, "entities": build_extractor, "segment": build_segmenter}[stage]
        self.model = build(getattr(config, stage))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk.from_row(row)
        if self.stage == "caption":
            stages.caption(chunk, self.model, self.config.filters)
        elif self.stage == "entities":
            stages.name_entities(chunk, self.model, self.config.filters)
        else:
            stages.segment(chunk, self.model)
        return _passed(chunk, self.stage, self.tally)


def _passed(chunk: Chunk, stage: str, tally: Any) -> dict[str, Any]:
    tally.add.remote(stage, chunk.shard, chunk.number, len(chunk.images) + len(chunk.skipped))
    return chunk.to_row()


def _pipeline(
    config: ConstructConfig,
    shards: list[InputShard],
    missing: list[int],
    duplicates: dict[int, frozenset[int]],
    output: ConstructionOutput,
    pools: dict[str, WorkerPool],
    tally: Any,
) -> ray.data.Dataset:
    """The data set whose rows are finished parts."""
    # One chunk is one block: Ray would otherwise glue chunks together up to 128 MB and spread them worse.
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1
    context.max_consecutive_actor_init_deaths = LOADING_DEATHS
    shared = ray.put((shards, duplicates))

    def read(batch: dict[str, np.ndarray]) -> Iterator[dict[str, list]]:
        known, repeated = ray.get(shared)
        for number in batch["shard"].tolist():
            for chunk in stages.read_chunks(known[number], number, config, repeated.get(number, frozenset())):
                yield {name: [value] for name, value in _passed(chunk, "read", tally).items()}

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk.from_row(row)
        stages.prepare(chunk, config)
        return _passed(chunk, "prepare", tally)

    def finish(row: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk.from_row(row)
        samples = stages.finish(chunk, config)
        try:
            part, error = output.write_part(chunk, samples), None
        except OSError as failure:
            part, error = None, failure
        tally.add.remote("write", chunk.shard, chunk.number, len(samples) + len(chunk.skipped))
        return {"part": part, "error": error}

    cores = ray.cluster_resources().get("CPU", 1.0) - sum(pool.cpus * pool.workers for pool in pools.values())
    readers = TaskPoolStrategy(size=max(1, int(cores) // 4))
    rows = _rows(missing).map_batches(read, batch_size=1, num_cpus=READ_CPUS, compute=readers).map(prepare, num_cpus=1)
    for stage, pool in pools.items():
        size = ActorPoolStrategy(min_size=pool.workers, max_size=max(pool.workers, pool.most_workers))
        placement = {"accelerator_type": pool.accelerator} if pool.accelerator else {}
        rows = rows.map(
            _ModelStage,
            fn_constructor_args=(stage, config, tally),
            compute=size,
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            **placement,
        )
    return rows.map(finish, num_cpus=1)


def _collect(
    rows: ray.data.Dataset,
    shards: list[InputShard],
    output: ConstructionOutput,
    bars: StageBars,
    tally: Any,
    config: ConstructConfig,
) -> dict[str, str]:
    """Join the parts of every shard as soon as all are there."""
    pending: dict[int, PendingShard] = {}
    failed: dict[str, str] = {}
    for row in rows.iter_rows():
        part: ShardPart = row["part"]
        if row["error"] is not None:
            raise ConstructionStopped(_disk_message(config, row["error"]))
        arrived = pending.setdefault(part.shard, PendingShard())
        if not arrived.add(part):
            continue
        parts = list(pending.pop(part.shard).parts.values())
        problem = next((part.problem for part in parts if part.problem), None)
        if problem:
            failed[shards[part.shard].name] = problem
            output.discard(parts)
        else:
            output.join(shards[part.shard], parts)
        bars.shards_done += 1
        tally.forget.remote(part.shard)
    return failed


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """What a stage raised, without Ray's wrapping: our own errors as they are, others as one sentence and the cause."""
    try:
        yield
    except (ConfigError, ConstructionStopped, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        cause: BaseException | None = error
        seen: list[BaseException] = []
        while cause is not None and cause not in seen:
            if isinstance(cause, ConfigError):
                raise ConfigError(str(cause)) from None
            seen.append(cause)
            cause = getattr(cause, "cause", None) or cause.__cause__
        message = str(error)
        if "ConfigError:" in message:  # an error in a constructor arrives as text alone
            raise ConfigError(message.rpartition("ConfigError:")[2].strip().splitlines()[0]) from None
        last = [line for line in message.strip().splitlines() if line.strip()][-1:]
        raise ConstructionStopped(
            f"A stage failed: {last[0].strip() if last else type(error).__name__}. Finished shards are kept; start the "
            "same command again to go on."
        ) from error
