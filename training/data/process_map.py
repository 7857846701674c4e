"""One function over many items in several processes, each of which keeps the files that it has opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from ..base.signals import helper_process

Item = TypeVar("Item")
Result = TypeVar("Result")


def process_map(function: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """`function(item)` for every item, in their order. function: picklable.

    Each process gets the function once, not with every item: what it opens is opened once. With one process or one
    item all happens in the calling one.
    """
    processes = min(processes, len(items))
    if processes < 2:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(processes, initializer=_receive, initargs=(function,))
    try:
        yield from pool.map(_call, items)
    finally:  # whoever stops early waits for the items in work alone
        pool.shutdown(cancel_futures=True)


def _receive(function: Callable[[Any], Any]) -> None:
    helper_process()
    global _received
    _received = function


def _call(item: Any) -> Any:
    return _received(item)
