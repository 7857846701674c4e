"""The micro-batches of one stream: sources mixed in exact shares, read by any number of processes, resumable anywhere.

Why not one Energon loader per source: Energon deals shards out to (rank, worker) pairs, so its order depends on how
many of them there are, and its saved state fits the same number only. Here Energon reads (index, random access,
cookers) and the order is our own: a function of the seed and of a position, so that a global batch is the same set of
samples on any number of processes and workers, a resume is exact on another number too, and a state is a few integers.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .batches import Batch
from .data_config import DataConfig, SourceConfig
from .index import DataError, Dataset, index_dataset
from .lanes import Lane, Skip, Source
from .mixture import Mixture
from .protocol import Stream
from .reader import detect_kind
from .samples import BadSample
from .skips import SkipCounts
from .tasks import Task

log = logging.getLogger(__name__)


@dataclass
class _Read:
    """A micro-batch as it leaves a reading process: with the lanes' positions behind it and what was skipped for it."""

    batch: Batch
    lanes: dict[str, tuple[int, int]]
    seen: Counter[str]
    skips: list[Skip]


class MicroBatches(IterableDataset):
    """Micro-batches `start`, `start + 1`, ... of a stream; of each worker, the ones that its lanes serve."""

    def __init__(
        self,
        task: Task,
        config: DataConfig,
        stream: Stream,
        datasets: Mapping[str, tuple[Dataset, str]],
        start: int,
        lanes: Mapping[str, tuple[int, int]],
        mixture: Mapping[str, Any],
    ):
        self.task, self.config, self.stream, self.datasets = task, config, stream, datasets
        self.start, self.lanes, self.mixture = start, lanes, mixture

    def __iter__(self) -> Iterator[_Read | DataError]:
        worker = get_worker_info()
        workers, first = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker:
            torch.set_num_threads(1)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        sources = {
            name: Source(
                name,
                dataset,
                kind,
                self.stream.seed,
                self.config.shuffle_block,
                self.config.shuffle_window,
                self.task.needed(kind),
            )
            for name, (dataset, kind) in self.datasets.items()
        }
        lanes: dict[str, Lane] = {}
        mixture = open_mixture(self.config, self.stream, self.mixture)
        rows_of_step: list[str] = []
        number = self.start
        while True:
            step, place = divmod(number, self.stream.per_step)
            while mixture.step < step:
                mixture.advance()
                rows_of_step = []
            if (number - self.start) % workers == first:
                rows_of_step = rows_of_step or mixture.rows_of_step()
                begin = (self.stream.index + self.stream.streams * place) * self.stream.micro_batch
                try:
                    yield self._read(rows_of_step[begin : begin + self.stream.micro_batch], number, sources, lanes)
                except DataError as error:
                    yield error  # raised in a reading process, it would arrive wrapped in that process's traceback
                    return
            number += 1

    def _read(self, wanted: list[str], number: int, sources: dict[str, Source], lanes: dict[str, Lane]) -> _Read:
        rows, keys, used = [], [], {}
        for source in wanted:
            name = f"{number % self.config.lanes}/{source}"
            if name not in lanes:
                lane = self.stream.index * self.config.lanes + number % self.config.lanes
                lanes[name] = Lane(sources[source], lane, self.stream.streams * self.config.lanes)
                lanes[name].restore(self.lanes.get(name, (0, 0)))
            used[name] = lanes[name]
            key, row = self.task.row(lanes[name])
            rows.append(row)
            keys.append(key)
        batch = self.task.batch(rows) | {"keys": keys, "sources": list(wanted)}
        seen: Counter[str] = Counter()
        skips: list[Skip] = []
        for lane in used.values():
            count, skipped = lane.take_seen()
            seen[lane.source.name] += count
            skips += skipped
        return _Read(batch, {name: lane.state() for name, lane in used.items()}, seen, skips)


class DataStream:
    """Endless micro-batches of one stream; the engine's `BatchStream`.

    Raises DataError where a source cannot be read or is of a layout that the stage has no use for, and TooManyBad.
    """

    def __init__(self, task: Task, config: DataConfig, stream: Stream):
        self.task, self.config, self.stream = task, config, stream
        self.datasets = {name: _open(name, source, task, config) for name, source in config.sources.items()}
        for name, (dataset, _) in self.datasets.items() if stream.index == 0 else ():
            for shard in dataset.damaged:
                log.warning("Source %s: %s: %s; %d samples are used.", name, shard.name, shard.problem, shard.count)
        if not self.datasets:
            raise DataError(f"Stage {task.stage} has no data: name at least one source under data.sources.")
        self.counts = SkipCounts(config.max_bad)
        self._mixture = open_mixture(config, stream)
        self._number = 0
        self._lanes: dict[str, tuple[int, int]] = {}
        self._epochs: Counter[str] = Counter()
        self._iterator: Iterator[_Read | DataError] | None = None

    def __iter__(self) -> DataStream:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._loader())
        read = next(self._iterator)
        if isinstance(read, DataError):
            raise read
        self._number += 1
        while self._mixture.step < self._number // self.stream.per_step:
            self._mixture.advance()
        self._lanes.update(read.lanes)
        self.counts.add(read.seen, read.skips)
        self._judge_epochs(read.seen)
        return read.batch

    @property
    def workers(self) -> int:
        """Reading processes in use: a lane must stay with one of them, so their number divides the lanes."""
        wanted = min(self.config.workers, self.config.lanes)
        return max((n for n in range(1, wanted + 1) if self.config.lanes % n == 0), default=0)

    def state_dict(self) -> dict[str, Any]:
        """The position behind the micro-batches yielded so far: numbers and strings only."""
        return {
            "number": self._number,
            "lanes": dict(self._lanes),
            "mixture": self._mixture.state_dict(),
            "counts": self.counts.state_dict(),
            "layout": [self.stream.streams, self.config.lanes],
            "sizes": self._sizes(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same stream. Raises DataError if streams or lanes were laid out differently."""
        layout = [self.stream.streams, self.config.lanes]
        if list(state["layout"]) != layout:
            raise DataError(
                f"The saved data position is for {state['layout'][0]} streams of {state['layout'][1]} lanes, this run "
                f"has {layout[0]} of {layout[1]}. Set both as they were, or start the data anew."
            )
        for name, size in self._sizes().items():
            if (before := state["sizes"].get(name, size)) != size:
                log.warning(
                    "Source %s had %d samples and has %d now: it is read in a new order, some samples of this epoch "
                    "again and some not.",
                    name,
                    before,
                    size,
                )
        self.close()
        self._number = int(state["number"])
        self._lanes = {name: (int(place), int(unit)) for name, (place, unit) in state["lanes"].items()}
        self._mixture = open_mixture(self.config, self.stream, state["mixture"])
        self.counts = SkipCounts(self.config.max_bad)
        self.counts.load_state_dict(state["counts"])
        self._epochs = Counter({name: self._epoch(name) for name in self.datasets})

    def report(self) -> dict[str, int]:
        """Counts so far, by "source/size" (samples of its data set), "source/seen", "source/bad/reason" and
        "source/filtered/reason"."""
        counts = Counter(self.counts.report())
        for name, (dataset, _) in self.datasets.items():
            counts[f"{name}/size"] = len(dataset)
            for shard in dataset.damaged if self.stream.index == 0 else ():  # once per run, not per stream
                counts[f"{name}/bad/{shard.problem}"] += 1
        return dict(counts)

    def close(self) -> None:
        """End the reading processes."""
        self._iterator = None

    def _loader(self) -> DataLoader | MicroBatches:
        micro_batches = MicroBatches(
            self.task,
            self.config,
            self.stream,
            self.datasets,
            self._number,
            dict(self._lanes),
            self._mixture.state_dict(),
        )
        if not self.workers:
            return micro_batches
        return DataLoader(
            micro_batches,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self.config.prefetch,
            pin_memory=torch.cuda.is_available(),
        )

    def _sizes(self) -> dict[str, int]:
        return {name: len(dataset) for name, (dataset, _) in self.datasets.items()}

    def _epoch(self, source: str) -> int:
        """How often this stream has read its share of a source."""
        return self.counts.seen[source] * self.stream.streams // len(self.datasets[source][0])

    def _judge_epochs(self, seen: Mapping[str, int]) -> None:
        """At the end of an epoch even a source too small to be judged before is."""
        for source in seen:
            if (epoch := self._epoch(source)) > self._epochs[source]:
                self._epochs[source] = epoch
                self.counts.judge(source, at_least=1)


def open_mixture(config: DataConfig, stream: Stream, state: Mapping[str, Any] | None = None) -> Mixture:
    """The mixture of a configuration's sources over a stream's global batches."""
    weights = {name: source.weight for name, source in config.sources.items()}
    mixture = Mixture(weights, stream.micro_batches * stream.micro_batch, stream.seed)
    if state:
        mixture.load_state_dict(state)
    return mixture


def _open(name: str, source: SourceConfig, task: Task, config: DataConfig) -> tuple[Dataset, str]:
    """The index of a source and its layout."""
    try:
        dataset = index_dataset(source.path, config.index_folder)
    except DataError as error:
        raise DataError(f"data.sources.{name}: {error}") from None
    kind = source.kind
    if kind == "auto":
        try:
            kind = detect_kind(dataset)
        except BadSample:
            raise DataError(
                f"Source {name}: the layout of {source.path} is none of the known ones. Name it as `kind`."
            ) from None
    if kind not in task.kinds:
        known = ", ".join(sorted(task.kinds))
        raise DataError(f"Source {name} ({source.path}) is of kind {kind}; stage {task.stage} reads {known}.")
    return dataset, kind
