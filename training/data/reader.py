"""Samples of a data set by number: Megatron-Energon's random-access tar reader, and the same for files of lines.

They are Energon's crude samples: dictionaries of a sample's parts as bytes, with `__key__`, `__restore_key__` and
`__subflavors__`, which the cookers turn into this package's samples.
"""

from __future__ import annotations

import contextlib
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
from megatron.energon.epathlib import EPath
from megatron.energon.flavors.crude import CrudeSample
from megatron.energon.flavors.webdataset.itar import ITarSamplePointer
from megatron.energon.flavors.webdataset.itar_reader import ITarReader

from .cookers import kind_of
from .index import IndexedDataset, sample_offsets
from .sample_types import BadSample

OPEN_FILES = 64


class Reader:
    """Random access to the samples of an indexed data set.

    parts: which parts of a tar's samples to read (by name, as `0.mask.png`); None reads all. Open files cannot be
    shared between processes: each process that reads needs a reader of its own.
    """

    def __init__(self, dataset: IndexedDataset, kind: str, parts: Callable[[str], bool] | None = None):
        self.dataset, self.kind = dataset, kind
        self._starts = [0, *accumulate(shard.count for shard in dataset.shards)]
        self._offsets = lru_cache(maxsize=4 * OPEN_FILES)(self._read_offsets)
        self._tars = _Tars(self, parts) if dataset.ending == ".tar" else None
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, index: int) -> str:
        """Where sample `index` stands, shard:number; the name of a sample that cannot be read."""
        shard, number = self._locate(index)
        return f"{self.dataset.shards[shard].name}:{number}"

    def __getitem__(self, index: int) -> CrudeSample:
        """The parts of a sample. Raises BadSample where its file cannot be read."""
        try:
            crude = self._line(index) if self._tars is None else self._tars[index]
        except (OSError, ValueError, AssertionError, tarfile.TarError) as error:
            raise BadSample("unreadable shard") from error
        crude["__key__"] = f"{self.dataset.shards[self._locate(index)[0]].name}/{crude['__key__']}"
        crude["__subflavors__"] = {"kind": self.kind}
        return CrudeSample(crude)

    def pointer(self, index: int) -> tuple[int, int, int]:
        """Shard number, offset and length in bytes of a sample."""
        shard, number = self._locate(index)
        start, end = (int(offset) for offset in self._offsets(shard)[number : number + 2])
        return shard, start, end - start

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _read_offsets(self, shard: int) -> np.ndarray:
        return sample_offsets(self.dataset.root / self.dataset.shards[shard].name)

    def _line(self, index: int) -> dict:
        shard, start, size = self.pointer(index)
        if shard not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = (self.dataset.root / self.dataset.shards[shard].name).open("rb")
        self._files.move_to_end(shard)
        file = self._files[shard]
        file.seek(start)
        line = file.read(size)
        if len(line) < size:
            raise ValueError("the file is shorter than its index")
        number = index - self._starts[shard]
        part = {".jsonl": "json", ".tsv": "tsv"}[self.dataset.ending]
        return {"__key__": str(number), "__restore_key__": ("Webdataset", index), part: line}


class _Tars(ITarReader[int]):
    """Energon's tar reader on memory-mapped indexes: its own one opens the index file anew for every random access."""

    def __init__(self, reader: Reader, parts: Callable[[str], bool] | None):
        names = [shard.name for shard in reader.dataset.shards]
        root = EPath(Path(reader.dataset.root).absolute())
        super().__init__(root, names, [root / name for name in names], part_filter=parts, itar_cache_size=OPEN_FILES)
        self._reader = reader

    def _get_itar_sample_pointer(self, index: int) -> ITarSamplePointer:
        shard, start, size = self._reader.pointer(index)
        return ITarSamplePointer(tar_file_id=shard, byte_offset=start, byte_size=size)

    @contextlib.contextmanager
    def _open_itarfile(self, tar_file_id: int):
        with super()._open_itarfile(tar_file_id) as tar:
            yield tar
            tar.members = []  # tarfile remembers every header it has read: memory would grow with every sample

    def __len__(self) -> int:
        return len(self._reader)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._reader.dataset.root}, {len(self)} samples)"


def detect_kind(dataset: IndexedDataset) -> str:
    """The layout of a data set, from the first of its samples that tells one. Raises BadSample where none does."""
    reader = Reader(dataset, "auto")
    for index in range(min(len(reader), 20)):
        with contextlib.suppress(BadSample):
            if kind := kind_of(reader[index]):
                return kind
    raise BadSample("unknown layout")
