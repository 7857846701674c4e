"""Whole numbers as options: argparse refuses one that is too small, before anything is read."""

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
