"""Held-out rows' values as figures with intervals, the same whatever processes the rows came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Rows = list[tuple[float, float]]  # a sum and a count of each row


@dataclass(frozen=True)
class Figure:
    """A metric, the sum over all rows by their count, and half the width of its 95 % interval (None for one row)."""

    value: float
    interval: float | None

    @classmethod
    def of(cls, rows: Iterable[tuple[float, float]]) -> Figure | None:
        """The figure of rows' (sum, count); None where nothing counts.

        Rows are independent samples, so a ratio of sums spreads by their residuals. `fsum` rounds once: the order of
        the rows, and so who computed them, does not matter.
        """
        counted = [(total, count) for total, count in rows if count]
        whole = math.fsum(count for _, count in counted)
        if not whole:
            return None
        value = math.fsum(total for total, _ in counted) / whole
        size = len(counted)
        if size < 2:
            return cls(value, None)
        residuals = math.fsum((total - value * count) ** 2 for total, count in counted)
        return cls(value, 1.96 * math.sqrt(residuals * size / (size - 1)) / whole)

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.interval is None else f" ± {self.interval:.2g}")


def figures(sources: Mapping[str, Mapping[str, Rows]]) -> dict[str, Figure]:
    """Each metric over the rows of all sources and, where there are several, `metric/source`."""
    found: dict[str, Figure] = {}
    names = dict.fromkeys(name for rows in sources.values() for name in rows)
    for name in names:
        parts = {source: rows[name] for source, rows in sources.items() if name in rows}
        labelled = {name: [row for rows in parts.values() for row in rows]}
        if len(sources) > 1:
            labelled |= {f"{name}/{source}": rows for source, rows in parts.items()}
        found |= {label: figure for label, rows in labelled.items() if (figure := Figure.of(rows))}
    return found


def metric_names(sources: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The names that `figures` gives, in its order, from each source's metrics and what they are told with."""
    known: dict[str, str] = {}
    for name in dict.fromkeys(name for metrics in sources.values() for name in metrics):
        own = {source: metrics[name] for source, metrics in sources.items() if name in metrics}
        known[name] = next(iter(own.values()))
        if len(sources) > 1:
            known |= {f"{name}/{source}": told for source, told in own.items()}
    return known
