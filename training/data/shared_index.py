"""One index of a run's data for all of its processes: process 0 reads it and sends it to the others.

At 100,000 shards reading an index takes many seconds, which processes that read it one after another would add up. The
first process of each other machine looks whether its disk holds the same files; where the index itself is not there (a
machine may have a copy of the data of its own), it is made there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from ..base.display import printable
from ..base.processes import ProcessGroup
from .data_config import DataConfig, source_key
from .index import DataError, IndexedDataset, has_index, index_dataset

_indexed: ContextVar[dict[str, IndexedDataset] | None] = ContextVar("indexed", default=None)


def source_index(path: str, index_folder: str | None) -> IndexedDataset:
    """The index of a source: that of `shared_indexes` inside it, else read here."""
    return (_indexed.get() or {}).get(path) or index_dataset(path, index_folder)


@contextmanager
def shared_indexes(config: DataConfig, process_group: ProcessGroup, section: str = "data.sources") -> Iterator[None]:
    """Inside, all streams of all processes get the same index of each source; all processes enter together.

    section: where the configuration names the sources, for errors.

    Raises:
        DataError: on every process, where a source cannot be read, or a machine holds other files under its path.
    """
    token = _indexed.set(_share(config, process_group, section))
    try:
        yield
    finally:
        _indexed.reset(token)


def _share(config: DataConfig, process_group: ProcessGroup, section: str) -> dict[str, IndexedDataset]:
    found, problem = {}, None
    if process_group.rank == 0:
        found, problem = _read(config, section)
    process_group.meet("data indexed by process 0")  # which may take longer than a collective may wait
    found, problem = process_group.broadcast((found, problem))
    if problem:
        raise DataError(problem)
    # Agents of a launcher count as machines, also where several of them share one.
    machines = process_group.gather(os.environ.get("GROUP_RANK") or socket.gethostname())
    first = machines.index(machines[process_group.rank])
    roots: dict[str, Path] = {}
    if process_group.rank == first != 0:
        roots, problem = _compared(config, found, section)
    process_group.meet("data compared on every machine")
    answers = process_group.gather((roots, problem))
    if problem := next((problem for _, problem in answers if problem), None):
        raise DataError(problem)
    return {path: replace(dataset, root=answers[first][0].get(path, dataset.root)) for path, dataset in found.items()}


def _read(config: DataConfig, section: str) -> tuple[dict[str, IndexedDataset], str | None]:
    """The index of every source by its path, and what is wrong with one."""
    found: dict[str, IndexedDataset] = {}
    for name, source in config.sources.items():
        try:
            if source.path not in found:
                found[source.path] = index_dataset(source.path, config.index_folder)
        except DataError as error:
            return found, f"{source_key(name, section)}: {error}"
    return found, None


def _compared(config: DataConfig, found: dict[str, IndexedDataset], section: str) -> tuple[dict[str, Path], str | None]:
    """Where this machine has the index of every source, by path, and in what its files differ from process 0's."""
    roots: dict[str, Path] = {}
    for name, source in config.sources.items():
        theirs = found[source.path]
        if has_index(theirs):
            roots[source.path] = theirs.root
            continue
        try:
            mine = index_dataset(source.path, config.index_folder)
        except DataError as error:
            return roots, f"{source_key(name, section)}: on {socket.gethostname()}: {error}"
        if difference := _difference(mine, theirs):
            where = f"{source_key(name, section)}: {printable(source.path)} on {socket.gethostname()}"
            return roots, (
                f"{where} is not what process 0 reads there: {difference}. Give all machines the same files, best on a "
                f"file system that they share."
            )
        roots[source.path] = mine.root
    return roots, None


def _difference(mine: IndexedDataset, theirs: IndexedDataset) -> str | None:
    """The first shard that is another one, in words."""
    own, other = ({shard.name: (shard.size, shard.count) for shard in one.shards} for one in (mine, theirs))
    for name in sorted(own.keys() | other.keys()):
        if own.get(name) != other.get(name):
            here, there = (
                f"{entry[0]:,} bytes with {entry[1]:,} samples" if entry else "missing"
                for entry in (own.get(name), other.get(name))
            )
            return f"{printable(name)} is {here} here and {there} there"
    return None
