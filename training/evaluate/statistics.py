"""Averages over subjects, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy

RESAMPLES = 10_000
ENOUGH_SUBJECTS = 10  # percentile intervals of fewer values cover the mean in far less than 95 of 100 cases


def subject_means(records: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Mean of a metric for each subject; records without it are left out."""
    values: dict[str, list[float]] = {}
    for record in records:
        if record.get(metric) is not None:
            values.setdefault(record["subject"], []).append(float(record[metric]))
    return {subject: float(numpy.mean(found)) for subject, found in sorted(values.items())}


def bootstrap_interval(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean: the values are drawn again with replacement, `resamples` times.

    Our own, because scipy.stats.bootstrap refuses a single value and takes longer to import than this to run.
    """
    values = numpy.asarray(values, dtype=float)
    draws = numpy.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = numpy.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def summarise(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """For each metric the mean over subjects of their means, its interval, and the number of subjects; None without.

    The interval draws subjects again and not pictures, because pictures of one subject are not independent; of one
    subject there is none.
    """
    summary: dict[str, dict[str, Any] | None] = {}
    for metric in metrics:
        means = list(subject_means(records, metric).values())
        if not means:
            summary[metric] = None
            continue
        low, high = bootstrap_interval(means) if len(means) > 1 else (None, None)
        summary[metric] = {"mean": float(numpy.mean(means)), "low": low, "high": high, "subjects": len(means)}
    return summary


def warning_of_size(subjects: int) -> str:
    """A sentence where too few subjects were measured for their mean to be compared; "" where there are enough."""
    if subjects >= ENOUGH_SUBJECTS:
        return ""
    interval = "there is no interval" if subjects == 1 else "the interval is narrower than what is unknown"
    return (
        f"Warning: a mean over {subjects} subject{'s' * (subjects > 1)} is no figure to compare with others: below "
        f"{ENOUGH_SUBJECTS} subjects {interval}."
    )
