"""Reading positions: what is read next, from where, and what had to be skipped.

A lane is every `lanes`-th position of a source's order. Which lane serves which micro-batch is fixed by the
configuration, never by the number of processes or workers, and a lane's state is two numbers; so any number of them
reads the same samples and goes on exactly where others stopped. An unusable sample is passed over: the lane's next one
takes its place, and every sound sample is read once per epoch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..base.rng import seed_of
from .cookers import COOKS
from .index import DataError, Dataset
from .order import Order
from .packing import Packed, Unit
from .reader import Reader
from .samples import BadSample, Filtered
from .tsv_cookers import ORIGINAL_COOKS

Row = TypeVar("Row")
Encode = Callable[[Any, random.Random], Row]


@dataclass(frozen=True)
class Skip:
    """A sample that was passed over; `filtered` if the configuration asks for that, else it is bad."""

    source: str
    key: str
    reason: str
    filtered: bool


class Source:
    """The samples of one data set in the order of training, cooked, each with random numbers of its own.

    needed: which parts of a tar's samples are read.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        kind: str,
        seed: int,
        block: int,
        window: int,
        needed: Callable[[str], bool] | None = None,
    ):
        self.name, self.seed = name, seed
        self.reader = Reader(dataset, kind, needed)
        self.order = Order(seed_of("order", seed, name), len(self.reader), block, window)
        self.cook = (COOKS | ORIGINAL_COOKS)[kind]

    def read(self, position: int) -> tuple[dict[str, Any], random.Random]:
        """The crude sample at a position and its random numbers, a function of (seed, epoch, key) alone."""
        crude = self.reader[self.order[position]]
        epoch = self.order.epoch(position)
        return crude, random.Random(seed_of(self.seed, epoch, self.name, crude["__key__"]))

    def key(self, position: int) -> str:
        """Where the sample at a position stands, for one that cannot be read."""
        return self.reader.key(self.order[position])


class Lane:
    """One reading position of one source. seen: samples read since the last `take_seen`; skips: likewise."""

    def __init__(self, source: Source, number: int, lanes: int):
        self.source, self.number, self.lanes = source, number, lanes
        self.position = 0  # samples of this lane that are used up
        self.unit = 0  # units used of the sample at `position` (packing only)
        self.skips: list[Skip] = []
        self.seen = 0
        self._document: tuple[str, list[Unit]] | None = None

    def next(self, encode: Encode[Row]) -> tuple[str, Row]:
        """The key and the encoding of the next usable sample."""
        limit = min(max(2 * len(self.source.reader), 1000), 20_000)
        for _ in range(limit):
            place = self.position * self.lanes + self.number
            self.position += 1
            self.seen += 1
            key = None
            try:
                crude, rng = self.source.read(place)
                key = crude["__key__"]
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

    def pack(self, length: int, encode: Encode[list[Unit]]) -> Packed:
        """The next sequence of at most `length` ids."""
        packed = Packed()
        while True:
            if self._document is None:
                self._document = self._open_document(encode)
            key, units = self._document
            unit = units[self.unit]
            if self.unit and not packed.token_ids:
                unit = Unit([0], [False]) + unit  # a sequence begins with <s>, inside a document too
            if len(packed.token_ids) + len(unit.token_ids) > length:
                return packed
            packed.add(unit, key)
            self.unit += 1
            if self.unit == len(units):
                self.position, self.unit, self._document = self.position + 1, 0, None

    def _open_document(self, encode: Encode[list[Unit]]) -> tuple[str, list[Unit]]:
        """The document at `position`, or the next usable one; `position` stays on it until it is used up."""
        key, units = self.next(encode)
        self.position -= 1
        if self.unit >= len(units):  # the file has changed since the position was saved
            self.unit = 0
        return key, units

    def _stop_if_hopeless(self) -> None:
        """A long run of nothing but bad samples is not a matter of per cent."""
        recent = self.skips[-200:]
        if len(recent) == 200 and self.seen == len(self.skips) and not any(skip.filtered for skip in recent):
            reasons = sorted({skip.reason for skip in recent})
            raise DataError(
                f"Source {self.source.name}: 200 samples in a row are unusable ({', '.join(reasons)}), such as "
                f"{recent[0].key}. Check its path and kind: python -m training.data.lint PATH."
            )

    def take_seen(self) -> tuple[int, list[Skip]]:
        """Samples read and skipped since the last call."""
        seen, skips = self.seen, self.skips
        self.seen, self.skips = 0, []
        return seen, skips

    def state(self) -> tuple[int, int]:
        """The position, to be handed to `restore`."""
        return self.position, self.unit

    def restore(self, state: tuple[int, int]) -> None:
        """Go on where `state` was taken."""
        self.position, self.unit = state
        self._document = None
