"""Numbers as a person reads them on one line."""

from __future__ import annotations


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


def plain(text: object) -> str:
    """Text from outside as a terminal may show it: characters that are no print, escape codes too, as \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in str(text))
