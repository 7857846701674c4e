"""Lanes: the reading positions of a stream in a source, and what was passed over on the way.

A stream reads a source through several lanes, which take turns: micro-batch n uses lane n % lanes. Counted over all
streams, lane l of L reads the positions l, l + L, l + 2 L, ... of the source's order (`data_stream.py` draws an
example). Which lane serves which micro-batch depends on the configuration alone, and a lane's state is two numbers; so
any number of processes and workers reads the same samples and goes on exactly where others stopped. An unusable sample
is passed over: the lane's next one takes its place. Every sound sample is read once per epoch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from kosmos_core.images import MAX_PIXELS
from kosmos_core.special_tokens import SpecialTokens

from ..base.rng import seed_of
from .cached_rows import CachedRows
from .cookers import cook
from .index import DataError, IndexedDataset
from .order import Order
from .packing import PackedRow, PackingUnit
from .reader import MAX_MEGABYTES, Reader
from .sample_types import BadSample, Filtered, one_bad_sample

HOPELESS = 200  # unusable samples in a row, without a usable one before them
Encoded = TypeVar("Encoded")
Encode = Callable[[Any, random.Random], Encoded]


@dataclass(frozen=True)
class Skip:
    """A sample that was passed over; `filtered` if the configuration asks for that, else it is bad."""

    source: str
    key: str
    reason: str
    filtered: bool


@dataclass
class Source:
    """One data set's samples in the order of training, each with random numbers of its own.

    Every reading process gets a copy and opens the files itself, at its first read. block, window: see
    `DataConfig.shuffle_block`; parts: which parts of a tar's samples are read, None for all.
    """

    name: str
    dataset: IndexedDataset
    kind: str
    seed: int
    block: int
    window: int
    parts: Callable[[str], bool] | None = None
    max_pixels: int = MAX_PIXELS
    max_megabytes: float = MAX_MEGABYTES
    cached: CachedRows | None = None  # latents or CLIP states beside the shards, where the task uses them

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.dataset, self.kind, self.parts, self.max_megabytes)

    @cached_property
    def order(self) -> Order:
        return Order(seed_of("order", self.seed, self.name), len(self.dataset), self.block, self.window)

    def read(self, position: int) -> tuple[dict[str, Any], random.Random]:
        """The raw sample at a position and its random numbers, which depend on (seed, epoch, key) alone."""
        crude = self.reader[self.order[position]]
        epoch = self.order.epoch(position)
        return crude, random.Random(seed_of(self.seed, epoch, self.name, crude["__key__"]))

    def cook(self, crude: dict[str, Any]) -> Any:
        """The sample that a raw one describes. Raises BadSample."""
        return cook(self.kind, crude, self.max_pixels)

    def key(self, position: int) -> str:
        """The name of the sample at a position, for one that cannot be read: its file and its number there."""
        return self.reader.key(self.order[position])


class Lane:
    """Lane `number` of `lanes` (over all streams) through a source.

    Its state is `position`, how many of its samples are used up, and, where documents are packed, `unit`: how many
    units of the sample at `position` are.
    """

    def __init__(self, source: Source, number: int, lanes: int):
        self.source, self.number, self.lanes = source, number, lanes
        self.position = self.unit = 0
        self.seen = 0  # samples read since the last `take_seen`
        self.skips: list[Skip] = []  # those of them that were passed over
        self._document: tuple[str, list[PackingUnit]] | None = None  # the one at `position`, where it is read already

    def next(self, encode: Encode[Encoded]) -> tuple[str, Encoded]:
        """The key and the encoding of the next usable sample. Raises DataError where too many in a row are not."""
        limit = min(max(2 * len(self.source.reader), 1000), 20_000)
        for _ in range(limit):
            place = self.position * self.lanes + self.number
            self.position += 1
            self.seen += 1
            key = None
            try:
                crude, rng = self.source.read(place)
                key = crude["__key__"]
                with one_bad_sample():
                    return key, encode(self.source.cook(crude), rng)
            except BadSample as bad:
                key = key or self.source.key(place)
                self.skips.append(Skip(self.source.name, key, bad.reason, isinstance(bad, Filtered)))
                self.unit = 0
                self._stop_if_hopeless()
        raise DataError(
            f"Source {self.source.name}: {limit} samples in a row were left out, the last one because of: "
            f"{self.skips[-1].reason}. Check its path and kind, or the stage's limits on captions and pictures."
        )

    def pack(self, length: int, encode: Encode[list[PackingUnit]]) -> PackedRow:
        """The next sequence of at most `length` ids. encode: a document as its units."""
        row = PackedRow()
        while True:
            if self._document is None:
                self._document = self._open_document(encode)
            key, units = self._document
            unit = units[self.unit]
            if self.unit and not row.token_ids:
                unit = PackingUnit([SpecialTokens.bos], [False]) + unit  # a sequence inside a document begins so, too
            if len(row.token_ids) + len(unit.token_ids) > length:
                return row
            row.add(unit, key)
            self.unit += 1
            if self.unit == len(units):
                self.position, self.unit, self._document = self.position + 1, 0, None

    def _open_document(self, encode: Encode[list[PackingUnit]]) -> tuple[str, list[PackingUnit]]:
        """The document at `position`, or the next usable one; `position` stays on it until all its units are used."""
        key, units = self.next(encode)
        self.position -= 1
        if self.unit >= len(units):  # the file has changed since the position was saved
            self.unit = 0
        return key, units

    def _stop_if_hopeless(self) -> None:
        """Stop at once where nothing but bad samples comes, without waiting until `max_bad` can be judged."""
        recent = self.skips[-HOPELESS:]
        nothing_usable = len(recent) == HOPELESS and self.seen == len(self.skips)
        if nothing_usable and not any(skip.filtered for skip in recent):
            reasons = sorted({skip.reason for skip in recent})
            raise DataError(
                f"Source {self.source.name}: {HOPELESS} samples in a row are unusable ({', '.join(reasons)}), such as "
                f"{recent[0].key}. Check its path and kind: python -m training.data.lint PATH."
            )

    def take_seen(self) -> tuple[int, list[Skip]]:
        """How many samples were read, and which of them passed over, since the last call."""
        seen, skips = self.seen, self.skips
        self.seen, self.skips = 0, []
        return seen, skips

    def state(self) -> tuple[int, int]:
        """`position` and `unit`, to be handed to `restore`."""
        return self.position, self.unit

    def restore(self, state: tuple[int, int]) -> None:
        """Go on where `state` was taken."""
        self.position, self.unit = state
        self._document = None
