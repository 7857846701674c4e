"""Numbers as a person reads them on one line, and text from data as a terminal may show it."""

from __future__ import annotations

from rich.markup import escape


def short(number: float) -> str:
    """A number with at most four digits and a unit letter: 1234567 -> 1.23M."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}E"


def duration(seconds: float) -> str:
    """Seconds as 2d03h, 3h05m, 4m10s or 12s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d{h:02}h" if days else f"{hours}h{m:02}m" if hours else f"{m}m{s:02}s" if m else f"{s}s"


def printable(text: object) -> str:
    """Text of unknown origin on one line: what is not printable (escape codes, line breaks, turned directions) as
    `\\x1b`. For plain prints, logs and sentences; for `rich` take `markup`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def printable_lines(text: object) -> str:
    """The same for a message that may have several lines of its own."""
    return "\n".join(map(printable, str(text).split("\n")))


def markup(text: object) -> str:
    """The same for `rich`, where brackets would otherwise be taken for a style: a sample's key may be `x[/red]y`."""
    return escape(printable(text))
