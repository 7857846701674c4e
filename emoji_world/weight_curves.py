"""Tables and the figure of what prompt weights do."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 190, 110, 44, 54, 46  # of one chart, and the margins
COLOURS = ("#888888", "#c8a000", "#3d9970", "#d9534f", "#1f5fbf")
Curves = dict[str, dict[float, list[float]]]  # by place and weight: difference in 255 levels, probability


def table(rows: dict[str, dict], weights: Sequence[float]) -> str:
    """A line for each place and a column for each weight, in Markdown; pictures give `levels; probability`."""
    head = "| place | " + " | ".join(f"{weight:g}" for weight in weights) + " |"
    lines = [head, "|---" * (len(weights) + 1) + "|"]
    for place, values in rows.items():
        cells = [_cell(values.get(weight)) for weight in weights]
        lines.append(f"| {place} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | list[float] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.1f}; {value[1]:.2f}" if isinstance(value, list) else f"{value:.2f}"


def figure(kinds: dict[str, Curves]) -> str:
    """An SVG: a column for each kind of prompt, above the difference in levels, below the probability."""
    places = list(dict.fromkeys(place for curves in kinds.values() for place in curves))
    colours = dict(zip(places, COLOURS, strict=False))
    width = LEFT + len(kinds) * (WIDTH + GAP)
    height = TOP + 2 * (HEIGHT + GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, place in enumerate(places):
        x = LEFT + number * 190
        parts.append(f'<path d="M{x} 16h22" stroke="{colours[place]}" stroke-width="2.5"/>')
        parts.append(f'<text x="{x + 28}" y="20">{escape(place)}</text>')
    highest = max(point[0] for curves in kinds.values() for line in curves.values() for point in line.values())
    for column, (kind, curves) in enumerate(kinds.items()):
        x = LEFT + column * (WIDTH + GAP)
        for row, (title, limit) in enumerate(
            (("difference, of 255 levels", highest), ("probability by the judge", 1.0))
        ):
            y = TOP + row * (HEIGHT + GAP)
            parts += _axes(x, y, kind if row == 0 else "", title if column == 0 else "", limit)
            for place, line in curves.items():
                parts.append(_line(x, y, {weight: point[row] for weight, point in line.items()}, limit, colours[place]))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _axes(x: float, y: float, heading: str, title: str, limit: float) -> list[str]:
    parts = [f'<path d="M{x} {y}v{HEIGHT}h{WIDTH}" fill="none" stroke="#444"/>']
    if heading:
        parts.append(f'<text x="{x}" y="{y - 10}" font-weight="bold">{escape(heading)}</text>')
    if title:
        parts.append(f'<text transform="translate({x - 30} {y + HEIGHT}) rotate(-90)">{escape(title)}</text>')
    for weight in (0, 1, 2, 3):
        parts.append(
            f'<text x="{x + weight / 3 * WIDTH:.0f}" y="{y + HEIGHT + 14}" text-anchor="middle">{weight}</text>'
        )
    parts.append(f'<text x="{x - 4}" y="{y + 8}" text-anchor="end">{limit:.3g}</text>')
    return parts


def _line(x: float, y: float, points: dict[float, float], limit: float, colour: str) -> str:
    places = [
        f"{x + weight / 3 * WIDTH:.1f},{y + HEIGHT * (1 - value / limit):.1f}" for weight, value in points.items()
    ]
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
