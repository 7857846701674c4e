"""Averages with bootstrap intervals, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy

RESAMPLES = 10_000


def subject_means(records: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Mean of a metric for each subject; records without it are left out."""
    values: dict[str, list[float]] = {}
    for record in records:
        if record.get(metric) is not None:
            values.setdefault(record["subject"], []).append(float(record[metric]))
    return {subject: float(numpy.mean(found)) for subject, found in sorted(values.items())}


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean: subjects are drawn again with replacement, 10,000 times.

    Subjects and not pictures are drawn, because pictures of one subject are no independent witnesses.
    """
    values = numpy.asarray(values, dtype=float)
    draws = numpy.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = numpy.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def summarise(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, float] | None]:
    """For each metric the mean over subjects of their means, its interval, and the number of subjects; None without."""
    summary: dict[str, dict[str, float] | None] = {}
    for metric in metrics:
        means = list(subject_means(records, metric).values())
        if not means:
            summary[metric] = None
            continue
        low, high = interval(means)
        summary[metric] = {"mean": float(numpy.mean(means)), "low": low, "high": high, "subjects": len(means)}
    return summary


def markdown(title: str, rows: Mapping[str, Mapping[str, Any]], headings: Mapping[str, str]) -> str:
    """A table with a row for each name and a column for each metric; intervals in brackets, "-" where there is none."""
    lines = [title, "", f"| | {' | '.join(headings.values())} |", f"|---|{'---|' * len(headings)}"]
    for name, summary in rows.items():
        cells = []
        for metric in headings:
            value = summary.get(metric)
            if value is None:
                cells.append("-")
            elif isinstance(value, Mapping):
                cells.append(f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
            else:
                cells.append(f"{value:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
