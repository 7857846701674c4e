"""Averages with their intervals as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(title: str, rows: Mapping[str, Mapping[str, Any]], headings: Mapping[str, str], warning: str = "") -> str:
    """A table with a row for each name and a column for each metric; intervals in brackets, "-" where there is none.

    warning: a sentence below it on what the figures do not say.
    """
    lines = [title, "", f"| | {' | '.join(headings.values())} |", f"|---|{'---|' * len(headings)}"]
    for name, summary in rows.items():
        cells = []
        for metric in headings:
            value = summary.get(metric)
            if value is None:
                cells.append("-")
            elif isinstance(value, Mapping):
                known = value["low"] is not None
                interval = f" [{value['low']:.3f}, {value['high']:.3f}]" if known else ""
                cells.append(f"{value['mean']:.3f}{interval}")
            else:
                cells.append(f"{value:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if warning:
        lines += ["", warning]
    return "\n".join(lines) + "\n"
