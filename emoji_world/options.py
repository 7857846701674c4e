"""Numbers as options: argparse refuses one that cannot be meant, before anything is read."""

import argparse
from collections.abc import Callable


def whole_number(least: int) -> Callable[[str], int]:
    """The `type` of an option that takes whole numbers from `least` on."""

    def number(word: str) -> int:
        try:
            found = int(word)
        except ValueError:
            found = least - 1
        if found < least:
            raise argparse.ArgumentTypeError(f"{word!r} must be a whole number of at least {least}")
        return found

    return number


def positive_number(word: str) -> float:
    """The `type` of an option that takes any number above 0: a rate, minutes."""
    return _within(word, lambda found: 0 < found < float("inf"), "a number above 0")


def share(word: str) -> float:
    """The `type` of an option that takes a part of a whole, 0 to 1."""
    return _within(word, lambda found: 0 <= found <= 1, "a number from 0 to 1")


def _within(word: str, meant: Callable[[float], bool], asked: str) -> float:
    try:
        found = float(word)
    except ValueError:
        found = float("nan")
    if not meant(found):
        raise argparse.ArgumentTypeError(f"{word!r} must be {asked}")
    return found
