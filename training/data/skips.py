"""Counts of the samples that were passed over, by source and reason, and a stop where there are too many."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .index import DataError
from .lanes import Skip

LISTED = 1000


class TooManyBad(DataError):
    """More of a source's samples are unusable than `max_bad` allows; `listing` names them, one "key: reason" each."""

    def __init__(self, message: str, listing: tuple[str, ...] = ()):
        super().__init__(message)
        self.listing = listing


@dataclass
class SkipCounts:
    """What was read and passed over.

    max_bad: per cent of a source's samples; a source is judged when `judged_from` of its samples have been read.
    listing: the first bad samples of each source, "key: reason".
    """

    max_bad: float
    judged_from: int = 200
    seen: Counter[str] = field(default_factory=Counter)
    bad: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    filtered: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    listing: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, seen: Mapping[str, int], skips: Iterable[Skip]) -> None:
        """Count a micro-batch. Raises TooManyBad."""
        self.seen.update(seen)
        for skip in skips:
            (self.filtered if skip.filtered else self.bad)[skip.source][skip.reason] += 1
            if not skip.filtered and len(self.listing[skip.source]) < LISTED:
                self.listing[skip.source].append(f"{skip.key}: {skip.reason}")
        for source in seen:
            self.judge(source)

    def judge(self, source: str, at_least: int | None = None) -> None:
        """Raise TooManyBad if a source has too many bad samples, once so many have been read (default: judged_from)."""
        count, seen = self.bad[source].total(), self.seen[source]
        if seen < (self.judged_from if at_least is None else at_least) or count * 100 <= self.max_bad * seen:
            return
        listed = self.listing[source]
        more = f"\n  ... and {count - 20} more" if count > 20 else ""
        raise TooManyBad(
            f"Source {source}: {count} of {seen} samples read are unusable ({100 * count / seen:.1f} %), more than "
            f"max_bad = {self.max_bad:g} %. Repair the data set (python -m training.data.lint PATH) or raise max_bad."
            + "".join(f"\n  {line}" for line in listed[:20])
            + more,
            tuple(listed),
        )

    def report(self) -> dict[str, int]:
        """Counts by "source/seen", "source/bad/reason" and "source/filtered/reason"."""
        counts = {f"{source}/seen": count for source, count in sorted(self.seen.items())}
        for label, table in (("bad", self.bad), ("filtered", self.filtered)):
            for source, reasons in sorted(table.items()):
                counts |= {f"{source}/{label}/{reason}": count for reason, count in sorted(reasons.items())}
        return counts

    def state_dict(self) -> dict:
        """Plain numbers and strings."""
        return {"report": self.report(), "listing": {source: list(lines) for source, lines in self.listing.items()}}

    def load_state_dict(self, state: Mapping) -> None:
        """Continue counting."""
        for name, count in state["report"].items():
            source, label, *reason = name.split("/", 2)
            if label == "seen":
                self.seen[source] = count
            else:
                (self.bad if label == "bad" else self.filtered)[source][reason[0]] = count
        for source, lines in state["listing"].items():
            self.listing[source] = list(lines)
