"""The stages as operators of Ray Data, and the loop that turns finished chunks into shards.

A row of the data set is a chunk. Reading, preparing and finishing are tasks on any core; caption, entities and segment
are pools of processes that hold a model, each of its own size and on its own kind of GPU. Ray restarts what dies and
repeats what was lost with it; a chunk's result depends on nothing but the chunk, so it does not show.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from kosmos_core.atomic import write_file

from ..base.content_digest import RememberedDigests
from ..base.display import markup
from ..base.errors import ConfigError
from . import chunk_stages
from .captioners import build_captioner
from .chunks import Chunk
from .construct_config import ConstructConfig, WorkerPool
from .entity_extractors import build_extractor
from .hash_files import HashFiles
from .input_shards import InputShard, find_input
from .open_images_table import build_table
from .output_shards import ConstructionOutput, PendingShard, ShardPart, remembered, total
from .places import FINISH_CPUS, PREPARE_CPUS, READ_CPUS, place, preferring, rooms
from .ray_cluster import ConstructionStopped, placed_pools, plain_errors, ray, ray_connection
from .segmenters import build_segmenter
from .shared_disks import require_seen_by_all
from .stage_models import check_models, contents_of
from .stage_progress import StageBars, StageTally, summary
from .stall import Watch

LOADING_DEATHS = 3  # processes of a stage that may die in a row while they load their model


def construct(config: ConstructConfig, console: Console) -> dict[str, Any]:
    """Read `config.input`, write shards into `config.output`, and return the summed statistics.

    Raises:
        ConfigError: something in the configuration cannot be; a folder that was not there before is gone again.
        ConstructionStopped: the disk is full or a stage failed; starting again goes on.
    """
    digests = RememberedDigests(remembered(config))
    inputs = find_input(config, digests)
    if not config.ray_address:  # on a cluster the models are where the stages run
        check_models(config)
    contents = contents_of(config, digests)
    output, lock = ConstructionOutput.open(config, contents)
    try:
        digests.save(remembered(config))
        if config.open_images:
            build_table(config)
        if aside := output.set_aside(inputs.shards):
            console.print(markup(aside))
        hashes = HashFiles(config, inputs.shards, output.work, contents)
        shards, failed = _make_missing(config, inputs.shards, hashes, output, console)
        stats = total(output, shards, failed, inputs.left_out)
        write_file(output.folder / "stats.json", json.dumps(stats, indent=1))
    except ConfigError:
        output.abandon()
        raise
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


def _make_missing(
    config: ConstructConfig, found: list[InputShard], hashes: HashFiles, output: ConstructionOutput, console: Console
) -> tuple[list[InputShard], dict[str, str]]:
    """Make the shards that are not there from this input; returns all, and what is wrong with those not readable.

    Which pictures are near-duplicates depends on the whole input: a shard that was finished beside other inputs is
    made again where other pictures of it are left out now. Ray is started only where there is something to do.
    """
    connection = contextlib.ExitStack()
    with connection:
        if hashes.missing():
            watch = _connect(connection, config, found, console)
            _hash(config, found, hashes, watch, console)
        duplicates = hashes.duplicates()
        shards = [shard.without(duplicates.get(number, frozenset())) for number, shard in enumerate(found)]
        missing = [number for number, shard in enumerate(shards) if not output.finished(shard)]
        done = len(shards) - len(missing)
        where = markup(config.output)
        console.print(f"{len(shards):,} input shards, {done:,} of them done before, output in {where}")
        if not missing:
            return shards, {}
        if not hashes.missing_at_first:
            watch = _connect(connection, config, found, console)
        pools = placed_pools(config)
        places = place(pools, rooms())
        tally = ray.remote(StageTally).options(num_cpus=0, max_restarts=-1).remote()
        rows = _pipeline(config, shards, missing, duplicates, output, pools, places, tally)
        bars = StageBars(lambda: ray.get(tally.read.remote(), timeout=5), console)
        bars.shards = len(missing)
        watch.progress = lambda: bars.counts
        with bars, plain_errors():
            return shards, _collect(rows, shards, output, bars, tally, config)


def _connect(
    connection: contextlib.ExitStack, config: ConstructConfig, shards: list[InputShard], console: Console
) -> Watch:
    connection.enter_context(ray_connection(config))
    watch = connection.enter_context(Watch(console))
    if config.ray_address:
        require_seen_by_all(config, shards)
    return watch


def _hash(config: ConstructConfig, shards: list[InputShard], hashes: HashFiles, watch: Watch, console: Console) -> None:
    """Write the hash files that are missing."""
    place(placed_pools(config), rooms())  # a cluster that is too small is said before hours of hashing
    wanted = hashes.missing()
    console.print(f"looking for near-duplicates in {len(wanted):,} shards ...")

    def hash_row(row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["shard"])
        hashes.write(number, *chunk_stages.hash_shard(shards[number], config))
        return {"shard": number}

    with plain_errors():
        for done, _ in enumerate(_rows(wanted).map(hash_row, num_cpus=1).iter_rows(), 1):
            watch.progress = lambda done=done: done


def _rows(numbers: list[int]) -> ray.data.Dataset:
    return ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))


class _ModelStage:
    """A process that holds the model of one stage."""

    def __init__(self, stage: str, config: ConstructConfig, tally: Any):
        self.stage, self.config, self.tally = stage, config, tally
        build = {"caption": build_captioner, "entities": build_extractor, "segment": build_segmenter}[stage]
        self.model = build(getattr(config, stage))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk.from_row(row, own=self.stage != "entities")
        if self.stage == "caption":
            chunk_stages.caption(chunk, self.model, self.config.filters)
        elif self.stage == "entities":
            chunk_stages.name_entities(chunk, self.model, self.config.filters)
        else:
            chunk_stages.segment(chunk, self.model)
        return _counted(chunk, self.stage, self.tally)


def _counted(chunk: Chunk, stage: str, tally: Any) -> dict[str, Any]:
    """The chunk as a row for the next stage; its pictures are counted as having left this one."""
    tally.add.remote(stage, chunk.shard, chunk.number, len(chunk.images) + len(chunk.skipped))
    return chunk.to_row()


def _pipeline(
    config: ConstructConfig,
    shards: list[InputShard],
    missing: list[int],
    duplicates: dict[int, frozenset[int]],
    output: ConstructionOutput,
    pools: dict[str, WorkerPool],
    places: dict[str, list[str]],
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
            for chunk in chunk_stages.read_chunks(known[number], number, config, repeated.get(number, frozenset())):
                yield {name: np.asarray(value)[None] for name, value in _counted(chunk, "read", tally).items()}

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk.from_row(row)
        chunk_stages.prepare(chunk, config)
        return _counted(chunk, "prepare", tally)

    def finish(row: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk.from_row(row)
        samples = chunk_stages.finish(chunk, config)
        try:
            part, error = output.write_part(chunk, samples), None
        except OSError as failure:
            part, error = None, failure
        tally.add.remote("write", chunk.shard, chunk.number, len(samples) + len(chunk.skipped))
        return {"part": part, "error": error}

    cores = ray.cluster_resources().get("CPU", 1.0) - sum(pool.cpus * pool.workers for pool in pools.values())
    readers = ray.data.TaskPoolStrategy(size=max(1, int(cores) // 4))
    rows = (
        _rows(missing)
        .map_batches(read, batch_size=1, num_cpus=READ_CPUS, compute=readers)
        .map(prepare, num_cpus=PREPARE_CPUS)
    )
    for stage, pool in pools.items():
        size = ray.data.ActorPoolStrategy(min_size=pool.workers, max_size=max(pool.workers, pool.most_workers))
        placement = {"accelerator_type": pool.accelerator} if pool.accelerator else {}
        rows = rows.map(
            _ModelStage,
            fn_constructor_args=(stage, config, tally),
            compute=size,
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            **preferring(places[stage]),
            **placement,
        )
    return rows.map(finish, num_cpus=FINISH_CPUS)


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
