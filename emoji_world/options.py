"""Options of the world's commands: what cannot be meant is said in one sentence, before the work begins."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.base.display import printable


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


@contextmanager
def refused_by(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Around the reading of the files that options name: what is wrong with one is an error of the command line."""
    try:
        yield
    except (ValueError, OSError) as error:
        parser.error(printable(str(error)))


def require_file(parser: argparse.ArgumentParser, option: str, folder: Path, name: str, meant: str) -> None:
    """Refuse a folder, given by `option`, that does not hold a file `name`."""
    if not (folder / name).is_file():
        parser.error(printable(f"{option}: {folder} holds no {name}; give {meant}"))


def _within(word: str, meant: Callable[[float], bool], asked: str) -> float:
    try:
        found = float(word)
    except ValueError:
        found = float("nan")
    if not meant(found):
        raise argparse.ArgumentTypeError(f"{word!r} must be {asked}")
    return found
