"""The micro-batches of one stream: sources mixed in exact shares, the same on any number of processes, resumable.

An example: sources A and B in shares 2 : 1, two streams, four lanes each, micro-batches of 3 rows, one micro-batch of
each stream a step. `A5` is the sample at position 5 of A's shuffled order.

    mixture     every step's global batch has 6 rows: A B A | A B A   (4 of A, 2 of B, spread evenly)
                                        stream 0 ------^       ^------ stream 1

                stream 0                             stream 1
    step 0      lane 0   A0   B0   A8                lane 0   A4   B4   A12
    step 1      lane 1   A1   B1   A9                lane 1   A5   B5   A13
    step 2      lane 2   A2   B2   A10               lane 2   A6   B6   A14
    step 3      lane 3   A3   B3   A11               lane 3   A7   B7   A15
    step 4      lane 0   A16  B8   A24               lane 0   A20  B12  A28

    lanes       The lanes of a stream take turns. There are 2 x 4 = 8 over all streams: lane 1 of stream 0 reads A1, A9,
                A17, ... and B1, B9, ...; lane 1 of stream 1, which is lane 5 of all, reads A5, A13, A21, ...
    order       A0 ... A15 are different samples in shuffled order (`Order`). If A has 20 samples, A20 begins its second
                epoch, which has an order of its own. If the sample A8 is unusable, its lane takes A16 in its place.
    workers     With 2 workers, one reads the even lanes and the other the odd ones: both streams' rows stay the same.
    processes   On one process both streams are read in turn, on two each reads one: the steps stay the same.
    state       Of stream 0 behind step 4: {"number": 5, "lanes": {"0/A": (4, 0), "0/B": (2, 0), "1/A": (2, 0), ...},
                ...}: micro-batches yielded; samples used up by each lane (and units of a document, for packing); the
                mixture's step and the counts. Whoever loads it, with any number of workers and on any number of
                processes up to the number of streams, goes on with step 5: lane 1, A17 B9 A25.

Why not one Energon loader per source: Energon deals files out to (process, worker) pairs, so that its order and its
saved state fit one number of them only. Here Energon's reader opens the files, and the order is our own.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kosmos_core.images import is_image_name

from ..base.display import printable
from ..base.signals import helper_process
from .batch_stream import Batch, BatchStream, Stream
from .cached_rows import CachedRows
from .data_config import DataConfig, SourceConfig, source_key
from .index import DataError
from .lanes import Lane, Skip, Source
from .mixture import Mixture
from .reader import detect_kind
from .sample_types import BadSample
from .shared_index import source_index
from .skips import SkipCounts
from .tasks import Task

log = logging.getLogger(__name__)
RESTARTS, FORGIVEN_AFTER = 3, 1000  # of killed workers; micro-batches
LaneStates = dict[str, tuple[int, int]]  # "lane/source" -> `Lane.state`


@dataclass
class ReadBatch:
    """A micro-batch as it leaves a worker: with the states of its lanes behind it and what was passed over for it."""

    batch: Batch
    lanes: LaneStates
    seen: Counter[str]
    skips: list[Skip]


class MicroBatchReader(IterableDataset):
    """A stream's micro-batches `start`, `start + 1`, ...; in a worker those of them that its lanes serve.

    lanes: of the stream; states: those of the lanes that have read; mixture: as it stood at micro-batch `start`.
    """

    def __init__(
        self,
        task: Task,
        stream: Stream,
        sources: Mapping[str, Source],
        lanes: int,
        start: int,
        states: LaneStates,
        mixture: Mixture,
    ):
        self.task, self.stream, self.sources, self.lanes = task, stream, sources, lanes
        self.start, self.states, self.mixture = start, states, mixture

    def __iter__(self) -> Iterator[ReadBatch | DataError]:
        worker = get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker:
            helper_process()
            torch.set_num_threads(1)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        mixture, lanes, rows = copy.deepcopy(self.mixture), {}, []
        # A worker's turn comes every `workers` micro-batches; `workers` divides the lanes, so its lanes stay its own.
        for number in itertools.count(self.start + own, workers):
            step = number // self.stream.per_step
            if not rows or mixture.step < step:  # once a step: ordering thousands of rows takes milliseconds
                mixture.advance_to(step)
                rows = mixture.rows_of_step()
            try:
                yield self._read(rows[self.stream.rows(number)], number % self.lanes, lanes)
            except DataError as error:
                yield error  # raised in a worker, it would arrive wrapped in that process's traceback
                return

    def _read(self, wanted: list[str], turn: int, lanes: dict[str, Lane]) -> ReadBatch:
        """One row of each source in `wanted`, read by lane `turn`. lanes: those in use so far."""
        rows, keys, used = [], [], {}
        for source in wanted:
            name = f"{turn}/{source}"
            if name not in lanes:
                number = self.stream.index * self.lanes + turn
                lanes[name] = Lane(self.sources[source], number, self.stream.streams * self.lanes)
                lanes[name].restore(self.states.get(name, (0, 0)))
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
        return ReadBatch(batch, {name: lane.state() for name, lane in used.items()}, seen, skips)


class DataStream(BatchStream):
    """Endless micro-batches of one stream.

    Raises DataError where a source cannot be read or is of a layout that the stage has no use for, and TooManyBad.
    """

    def __init__(self, task: Task, config: DataConfig, stream: Stream):
        self.task, self.config, self.stream = task, config, stream
        self.sources = {name: _open(name, source, task, config, stream) for name, source in config.sources.items()}
        if not self.sources:
            raise DataError(f"Stage {task.stage} has no data: name at least one source under data.sources.")
        for name, source in self.sources.items() if stream.index == 0 else ():
            for shard in source.dataset.damaged:
                log.warning(
                    "Source %s: %s: %s; %d samples are used.", name, printable(shard.name), shard.problem, shard.count
                )
            if unread := [file for file in source.dataset.unread if is_image_name(file) or file.endswith(".txt")]:
                log.warning(
                    "Source %s: %d loose files are not read, such as %s.", name, len(unread), printable(unread[0])
                )
        weights = {name: source.weight for name, source in config.sources.items()}
        self._mixture = Mixture(weights, stream.micro_batches * stream.micro_batch, stream.seed)
        self.counts = SkipCounts(config.max_bad)
        self._number = 0
        self._lanes: LaneStates = {}
        self._epochs: Counter[str] = Counter()
        self._iterator: Iterator[ReadBatch | DataError] | None = None
        self._lost = self._lost_at = 0  # workers that were killed, and the micro-batch of the last one

    def __iter__(self) -> DataStream:
        return self

    def __next__(self) -> Batch:
        read = self._read()
        if isinstance(read, DataError):
            raise read
        self._number += 1
        self._mixture.advance_to(self._number // self.stream.per_step)
        self._lanes.update(read.lanes)
        self.counts.add(read.seen, read.skips)
        self._judge_epochs(read.seen)
        return read.batch

    def _read(self) -> ReadBatch | DataError:
        """The next micro-batch; where a worker was killed, workers are started again at the present position."""
        while True:
            if self._iterator is None:
                self._iterator = self._start()
            try:
                return next(self._iterator)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                self._note_loss(" ".join(str(error).split()))

    def _note_loss(self, what: str) -> None:
        self._iterator = None
        recent = self._number - self._lost_at <= FORGIVEN_AFTER
        self._lost, self._lost_at = self._lost + 1 if recent else 1, self._number
        way_on = (
            "It is started again." if self._lost <= RESTARTS else "From here on this process reads without workers."
        )
        log.warning(
            "%s. Often memory was short: lower data.workers or data.prefetch. Nothing is lost. %s", what, way_on
        )

    def _start(self) -> Iterator[ReadBatch | DataError]:
        """An iterator at the present position."""
        if not self.workers or self._lost > RESTARTS:
            return iter(self._reader())
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        iterator = iter(self._loader())
        if before is not None and threading.current_thread() is threading.main_thread():
            # torch's handler would raise at any place of a training step when a worker ends; `next` tells as well.
            signal.signal(signal.SIGCHLD, before)
        return iterator

    @property
    def workers(self) -> int:
        """Workers in use: a lane must stay with one of them, so their number divides the number of lanes."""
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
            "files": self._files(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same stream. Raises DataError if streams or lanes were laid out differently."""
        layout = [self.stream.streams, self.config.lanes]
        if list(state["layout"]) != layout:
            raise DataError(
                f"The saved data position is for {state['layout'][0]} streams of {state['layout'][1]} lanes, this run "
                f"has {layout[0]} of {layout[1]}. Set both as they were, or start the data anew."
            )
        files, files_before = self._files(), state.get("files", {})  # which earlier releases did not save
        for name, size in self._sizes().items():
            if (before := state["sizes"].get(name, size)) == size:
                if files_before.get(name, files[name]) != files[name]:
                    log.warning(
                        "Source %s has other files than before, by name or size: it is read in a new order, some "
                        "samples of this epoch again and some not.",
                        name,
                    )
            else:
                log.warning(
                    "Source %s had %d samples and has %d now: it is read in a new order, some samples of this epoch "
                    "again and some not.",
                    name,
                    before,
                    size,
                )
        self.close()
        self._number = int(state["number"])
        self._lanes = {name: (int(position), int(unit)) for name, (position, unit) in state["lanes"].items()}
        self._mixture.load_state_dict(state["mixture"])
        self.counts = SkipCounts(self.config.max_bad)
        self.counts.load_state_dict(state["counts"])
        self._epochs = Counter({name: self._epoch(name) for name in self.sources})

    def report(self) -> dict[str, int]:
        """Counts so far, by "source/size" (samples of its data set), "source/seen", "source/bad/reason" and
        "source/filtered/reason"."""
        counts = Counter(self.counts.report())
        for name, source in self.sources.items():
            counts[f"{name}/size"] = len(source.dataset)
            for shard in source.dataset.damaged if self.stream.index == 0 else ():  # once per run, not per stream
                counts[f"{name}/bad/{shard.problem}"] += 1
        return dict(counts)

    def close(self) -> None:
        """End the workers."""
        self._iterator = None

    def _reader(self) -> MicroBatchReader:
        lanes, states = self.config.lanes, dict(self._lanes)
        return MicroBatchReader(self.task, self.stream, self.sources, lanes, self._number, states, self._mixture)

    def _loader(self) -> DataLoader:
        return DataLoader(
            self._reader(),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self.config.prefetch,
            pin_memory=torch.cuda.is_available(),
        )

    def _sizes(self) -> dict[str, int]:
        return {name: len(source.dataset) for name, source in self.sources.items()}

    def _files(self) -> dict[str, str]:
        """A digest of each source's files by name, samples and bytes, wherever they lie: they decide the order."""
        digests = {}
        for name, source in self.sources.items():
            told = ascii([(shard.name, shard.count, shard.size) for shard in source.dataset.shards])
            digests[name] = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
        return digests

    def _epoch(self, source: str) -> int:
        """How often this stream has read its share of a source."""
        return self.counts.seen[source] * self.stream.streams // len(self.sources[source].dataset)

    def _judge_epochs(self, seen: Mapping[str, int]) -> None:
        """At the end of an epoch judge every source, also one that is too small to be judged before."""
        for source in seen:
            if (epoch := self._epoch(source)) > self._epochs[source]:
                self._epochs[source] = epoch
                self.counts.judge(source, at_least=1)


def _open(name: str, source: SourceConfig, task: Task, config: DataConfig, stream: Stream) -> Source:
    """A source of the configuration, indexed, and its layout known."""
    try:
        dataset = source_index(source.path, config.index_folder)
    except DataError as error:
        raise DataError(f"{source_key(name)}: {error}") from None
    kind = source.kind
    if kind == "auto":
        try:
            kind = detect_kind(dataset)
        except BadSample as bad:
            raise DataError(f"Source {name}: {source.path} has {bad.reason}. Name it as `kind`.") from None
    if kind not in task.kinds:
        known = ", ".join(sorted(task.kinds))
        raise DataError(f"Source {name} ({source.path}) is of kind {kind}; stage {task.stage} reads {known}.")
    parts = task.needed(kind)
    order = stream.seed, config.shuffle_block, config.shuffle_window
    limits = int(config.max_megapixels * 1e6), config.max_megabytes
    maker = task.maker if config.use_cache else None
    cached = None if maker is None else CachedRows.of(name, dataset, maker)
    return Source(name, dataset, kind, *order, parts, *limits, cached)
