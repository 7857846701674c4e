"""Held-out rows for validation: always the same ones, each once, whatever a run reads besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from .batch_stream import Batch, Stream
from .data_config import DataConfig, HeldOutSource, SourceConfig

if TYPE_CHECKING:
    from .data_stream import DataStream

Config = TypeVar("Config", bound=DataConfig)


def only_held_out(data: Config, name: str, source: HeldOutSource) -> Config:
    """A run's data settings with this source alone."""
    return replace(data, sources={name: SourceConfig(source.path, source.kind)}, workers=0)


def held_out_stream(rows: int) -> Stream:
    """The stream that `held_out_rows` takes its rows from: no run's seed or number of processes changes them."""
    return Stream(seed=0, index=0, streams=1, micro_batch=rows, micro_batches=1)


def held_out_rows(stream: DataStream, size: int) -> Iterator[Batch]:
    """The first `size` usable rows of a stream's one source in micro-batches, or as many as one epoch of it has.

    At least one row. Raises DataError where nothing in the source is usable.
    """
    from .lanes import Lane  # late, see `streams.py`

    (source,) = stream.sources.values()
    lane, left = Lane(source, 0, 1), size
    ended = False
    while left and not ended:
        rows: list[Any] = []
        keys: list[str] = []
        while len(rows) < min(left, stream.stream.micro_batch):
            key, row = stream.task.row(lane)
            begun = lane.position + (lane.unit > 0)  # of a document that is in use a part is in this row
            if ended := begun > len(source.dataset) and (left < size or bool(rows)):
                break
            rows.append(row)
            keys.append(key)
        left -= len(rows)
        if rows:
            yield stream.task.batch(rows) | {"keys": keys, "sources": [source.name] * len(keys)}
