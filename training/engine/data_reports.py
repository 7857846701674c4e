"""What the data streams of a run have read and left out, summed over processes and told at the end of every epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


class DataReports:
    """Counts of a whole run, added up from the `report()` of all its data streams."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._epochs: dict[str, int] = {}

    def update(self, reports: Iterable[Mapping[str, int]]) -> list[str]:
        """Take the present reports of all streams; returns a sentence for each source whose epoch has just ended."""
        counts: Counter[str] = Counter()
        for report in reports:
            for name, count in report.items():
                counts[name] = max(counts[name], count) if name.endswith("/size") else counts[name] + count
        first, self.counts = not self.counts, dict(counts)
        sentences = []
        for source in self.sources():
            epoch = counts[f"{source}/seen"] // counts[f"{source}/size"]
            if epoch > self._epochs.get(source, 0) and not first:
                sentences.append(f"data: end of epoch {epoch} of {self.summary(source)}")
            self._epochs[source] = epoch
        return sentences

    def sources(self) -> list[str]:
        """The names of the sources."""
        return [name.removesuffix("/size") for name in self.counts if name.endswith("/size")]

    def summary(self, source: str) -> str:
        """One line about a source."""
        parts = [f"{source}: {self.counts.get(f'{source}/seen', 0):,} samples read"]
        for label, told in (("bad", "unusable"), ("filtered", "left out")):
            prefix = f"{source}/{label}/"
            reasons = {name.removeprefix(prefix): n for name, n in self.counts.items() if name.startswith(prefix)}
            if reasons:
                listed = ", ".join(
                    f"{reason} {n:,}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])
                )
                parts.append(f"{sum(reasons.values()):,} {told} ({listed})")
        return ", ".join(parts if len(parts) > 1 else [*parts, "all usable"])
