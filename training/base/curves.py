"""A run's log as one page of curves, to look at when it has ended.

A panel for the loss and its parts, one for each kind of figure that was validated, with the intervals that the log has
as bars, and the learning rate, the gradient's norm and the speed. Each kind keeps the scale of its own values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from . import contact_sheet as sheet

WIDTH, HEIGHT, COLUMNS = 400, 170, 3  # of a panel's field in pixels, and panels side by side
LABEL = 11
OTHERS = ("lr", "gradient_norm", "samples_per_second")
Points = list[tuple[float, float, float]]  # step, value, half of its interval


def curves(records: Sequence[Mapping[str, Any]], title: str) -> Image.Image | None:
    """The page of a log's records; None where no figure has two points to draw a line between."""
    panels = [
        _panel(name, lines)
        for name, lines in _panels(records).items()
        if max(len(points) for points in lines.values()) > 1
    ]
    if not panels:
        return None
    heading = sheet.text(title, COLUMNS * (WIDTH + 24), size=16, lines=1)
    return sheet.page(sheet.column([heading, sheet.grid(panels, COLUMNS, gap=24)], gap=18))


def _panels(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Points]]:
    """The lines of each panel by their names: `loss`, `loss/*`; `preview/*`; `validate/x`, `validate/x/*`; the others
    one each."""
    panels: dict[str, dict[str, Points]] = {}
    for record in records:
        for name, value in record.items():
            head, *rest = name.split("/")
            if head == "validate":
                head, rest = "/".join((head, *rest[:1])), rest[1:]
            wanted = head in ("loss", "preview") or head.startswith("validate/") or name in OTHERS
            if not wanted or name.endswith(("/interval", "/time_percent")):
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                line = panels.setdefault(head, {}).setdefault("/".join(rest) or "all", [])
                line.append((record["step"], value, record.get(f"{name}/interval") or 0.0))
    ranks = {"loss": 0, **{name: 2 + number for number, name in enumerate(OTHERS)}}
    return dict(sorted(panels.items(), key=lambda item: ranks.get(item[0], 1)))


def _range(lines: Mapping[str, Points]) -> tuple[float, float]:
    """What the field shows: all values, but for the few of a long run that would press the others flat."""
    values = sorted(value for points in lines.values() for _, value, _ in points)
    spared = len(values) // 100
    low, high = values[0], values[-1 - spared]
    bars = [edge for points in lines.values() for _, y, half in points if half for edge in (y - half, y + half)]
    low, high = min([low, *bars]), max([high, *bars])
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _thinned(points: Points) -> Points:
    """At most one point for each pixel of the width: the mean of those that fall on it."""
    size = -(-len(points) // WIDTH)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [tuple(math.fsum(part) / len(group) for part in zip(*group, strict=True)) for group in groups]


def _panel(name: str, lines: Mapping[str, Points]) -> sheet.Block:
    (low, high), steps = _range(lines), [step for points in lines.values() for step, _, _ in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def draw(canvas: Image.Image, left: int, top: int) -> None:
        # The field is drawn by itself, so that what lies beyond its scale is cut off at its edge.
        field = Image.new("RGB", (WIDTH, HEIGHT), sheet.PAPER)
        pen = ImageDraw.Draw(field)

        def x(step: float) -> float:
            return (step - first) / (last - first) * (WIDTH - 1)

        def y(value: float) -> float:
            return (high - value) / (high - low) * (HEIGHT - 1)

        if low < 0 < high:
            pen.line((0, y(0), WIDTH, y(0)), sheet.LINE)
        for number, points in enumerate(lines.values()):
            colour = sheet.mark(number)
            for step, value, half in points if any(half for _, _, half in points) else ():
                pen.line((x(step), y(value - half), x(step), y(value + half)), colour)
            places = [(x(step), y(value)) for step, value, _ in _thinned(points)]
            pen.line(places, colour, 2)
            if len(places) <= 40:
                for across, down in places:
                    pen.ellipse((across - 2, down - 2, across + 2, down + 2), colour)
        pen.rectangle((0, 0, WIDTH - 1, HEIGHT - 1), outline=sheet.LINE)
        canvas.paste(field, (left, top))

    legend = []
    for number, (line, points) in enumerate(lines.items()):
        legend.append((f"{line} {points[-1][1]:.4g} ", sheet.mark(number)))
    scale = f"{low:.4g} to {high:.4g}, steps {first:g} to {last:g}"
    return sheet.column(
        [
            sheet.text(name, WIDTH, size=13, lines=1),
            sheet.text(legend, WIDTH, size=LABEL, lines=2),
            sheet.Block(WIDTH, HEIGHT, draw),
            sheet.text(scale, WIDTH, size=LABEL, colour=sheet.FAINT, lines=1),
        ],
        gap=2,
    )
