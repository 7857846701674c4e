"""Texts from outside: decoded alike everywhere, and shown on a terminal without steering it."""

import io

import pytest
from rich.console import Console

from training.base.display import duration, markup, printable, short
from training.base.text import decode_text

CAPTION = "ein H\u00fcndchen, \u72d7 \U0001f436"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding_and_is_no_part_of_the_text(encoding):
    assert decode_text(CAPTION.encode(encoding)) == CAPTION


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (7.125, "7.12"), (999.4, "999"), (999.6, "1k"), (1234567, "1.23M"), (-1500, "-1.5k"), (2e15, "2P")],
)
def test_a_number_takes_at_most_four_digits(number, shown):
    assert short(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"), (183600, "2d03h")],
)
def test_a_duration_has_its_two_largest_units(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    "content", ["H\u00fcndchen".encode("latin-1"), "a dog".encode("utf-16-le"), b"\xef\xbb\xbf\xff", b"\xff\xfea"]
)
def test_other_encodings_are_refused_instead_of_guessed(content):
    with pytest.raises(ValueError, match=r"decode|zero bytes|truncated"):
        decode_text(content)


@pytest.mark.parametrize("key", ["x[/red]y", "x[bold]y", "x\\[red]y", "\x1b[31mx\x1b]0;title\x07", "a\nb\u202ec\ud800"])
def test_text_from_data_neither_steers_the_terminal_nor_raises(key):
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(markup(key), highlight=False)
    shown = console.file.getvalue()
    assert shown == printable(key) + "\n"
    assert printable(key).isprintable()


def test_every_language_stays_as_it_is():
    assert printable(f"{CAPTION} [/red]") == f"{CAPTION} [/red]"
