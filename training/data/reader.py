"""Samples of a data set by number, from tars by Megatron-Energon's index and names, and the same from files of lines.

They are Energon's crude samples: dictionaries of a sample's parts as bytes, with `__key__`, `__restore_key__` and
`__subflavors__`, which the cookers turn into this package's samples.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import BinaryIO

import numpy as np
from megatron.energon.flavors.crude import CrudeSample
from megatron.energon.flavors.webdataset.itar import ITarFile

from ..base.display import printable
from .cookers import kind_of, unknown_endings
from .index import IndexedDataset, sample_name, sample_offsets
from .sample_types import BadSample, one_bad_sample

OPEN_FILES = 64
SIZE, CHECKSUM = re.compile(rb"[0-7]{11}[\0 ]"), re.compile(rb"[0-7]{6}\0")  # in a tar's header, as they usually are
MAX_MEGABYTES = 256.0  # of one part of a sample, or one line


class Reader:
    """Random access to the samples of an indexed data set.

    parts: which parts of a tar's samples to read (by name in lower case, as `0.mask.png`); None reads all.
    max_megabytes: larger parts and lines are not read; see `DataConfig.max_megabytes`. Open files cannot be
    shared between processes: each process that reads needs a reader of its own.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        kind: str,
        parts: Callable[[str], bool] | None = None,
        max_megabytes: float = MAX_MEGABYTES,
    ):
        self.dataset, self.kind = dataset, kind
        self._starts = [0, *accumulate(shard.count for shard in dataset.shards)]
        self._offsets = lru_cache(maxsize=4 * OPEN_FILES)(self._read_offsets)
        self.parts, self.max_bytes = parts, int(max_megabytes * 1e6)
        self._files: OrderedDict[int, BinaryIO | ITarFile] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, index: int) -> str:
        """Where sample `index` stands, shard:number; the name of a sample that cannot be read."""
        shard, number = self._locate(index)
        return printable(f"{self.dataset.shards[shard].name}:{number}")

    def __getitem__(self, index: int) -> CrudeSample:
        """The parts of a sample. Raises BadSample where its file cannot be read."""
        try:
            key, parts = self._members(index) if self.dataset.ending == ".tar" else self._line(index)
        except BadSample:
            raise
        except Exception as error:  # a damaged header can raise anything: OverflowError for a size of 10^20
            raise BadSample("unreadable shard") from error
        crude = {"__restore_key__": ("Webdataset", index), "__subflavors__": {"kind": self.kind}}
        crude["__key__"] = printable(f"{self.dataset.shards[self._locate(index)[0]].name}/{key}")
        return CrudeSample(crude | parts)

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

    def _open(self, shard: int) -> BinaryIO | ITarFile:
        """A shard's file, at most OPEN_FILES of them at a time."""
        if shard not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            file = (self.dataset.root / self.dataset.shards[shard].name).open("rb")
            self._files[shard] = _OpenTar.open(fileobj=file, mode="r:") if self.dataset.ending == ".tar" else file
        self._files.move_to_end(shard)
        return self._files[shard]

    def _line(self, index: int) -> tuple[str, dict[str, bytes]]:
        shard, start, size = self.pointer(index)
        if size > self.max_bytes:
            raise BadSample("line too large")
        file = self._open(shard)
        file.seek(start)
        line = file.read(size)
        if len(line) < size:
            raise ValueError("the file is shorter than its index")
        return str(index - self._starts[shard]), {self.dataset.ending[1:].replace("jsonl", "json"): line}

    def _members(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Key and parts of a tar's sample; its members are found by Energon's rules for names, in any case."""
        shard, start, size = self.pointer(index)
        tar, key, parts = self._open(shard), None, {}
        tar.offset = start
        while tar.offset < start + size:
            member = tar.next()
            tar.members = []  # tarfile remembers every header it has read: memory would grow with every sample
            if member is None:
                raise ValueError("the file is shorter than its index")
            name = sample_name(member)
            if not name:
                continue
            if key is not None and name[0] != key:
                raise ValueError("the file does not fit its index")
            key, part = name[0], name[1].lower()
            if part in parts or part.startswith("__"):
                raise BadSample("the same file twice" if part in parts else "bad file name")
            parts[part] = b""
            if self.parts is None or self.parts(part):
                parts[part] = self._content(tar, member)
        if key is None:
            raise ValueError("no file of a sample")
        return key, {part: content for part, content in parts.items() if self.parts is None or self.parts(part)}

    def _content(self, tar: ITarFile, member: tarfile.TarInfo) -> bytes:
        if member.issparse():  # a header of 512 bytes may claim any size of zeros
            raise BadSample("sparse file")
        if member.size > self.max_bytes:
            raise BadSample("file too large")
        tar.fileobj.seek(member.offset_data)  # tarfile's own reader of a member would copy its content once more
        content = tar.fileobj.read(member.size)
        if len(content) < member.size:
            raise ValueError("the file ends early")
        return content


class _OpenTar(ITarFile):
    """Reads headers of plain files itself, in a fifth of tarfile's time; closes its file with itself."""

    def next(self) -> tarfile.TarInfo | None:
        if self.in_init or self.pax_headers:
            return super().next()
        self.fileobj.seek(self.offset)
        member = _plain_member(self.fileobj.read(tarfile.BLOCKSIZE))
        if member is None:
            return super().next()
        member.offset, member.offset_data = self.offset, self.offset + tarfile.BLOCKSIZE
        self.offset = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return member

    def close(self) -> None:
        super().close()
        self.fileobj.close()


def _plain_member(header: bytes) -> tarfile.TarInfo | None:
    """The member of a sound header of a file with a short ASCII name; None for all others, which tarfile then reads."""
    if header[156:157] != tarfile.REGTYPE or header[257:262] != b"ustar" or header[345:346] != b"\0":
        return None
    name, size, checksum = header[:100].partition(b"\0")[0], header[124:136], header[148:155]
    if not (name.isascii() and SIZE.fullmatch(size) and CHECKSUM.fullmatch(checksum)):
        return None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(checksum[:6], 8):
        return None
    member = tarfile.TarInfo(name.decode())
    member.size = int(size[:11], 8)
    return member


def detect_kind(dataset: IndexedDataset) -> str:
    """The layout of a data set, from the first of its samples that tells one. Raises BadSample where none does."""
    reader = Reader(dataset, "auto")
    unknown: list[str] = []
    for index in range(min(len(reader), 20)):
        with contextlib.suppress(BadSample), one_bad_sample():
            crude = reader[index]
            if kind := kind_of(crude):
                return kind
            unknown += [ending for ending in unknown_endings(crude) if ending not in unknown]
    named = f" (nothing reads files that end in {', '.join(map(printable, unknown[:5]))})" if unknown else ""
    raise BadSample(f"none of the known layouts{named}")
