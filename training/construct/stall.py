"""A run in which nothing moves: what it waits for, and the end of one that has lost its cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console

from ..base.display import markup, printable
from .places import head_answers, what_is_missing
from .ray_cluster import ConstructionStopped, ray

EVERY = 5.0  # seconds between looks
GRACE = 30.0  # seconds without progress before what is missing is said
HEAD_GRACE = 30.0  # seconds without the head before the run ends; after 60 s Ray ends the process without a word
TO_UNWIND = 10.0  # seconds that an interrupted run has to end by itself


class Watch:
    """Looks at the run from a thread of its own for as long as it is open; `progress` says how far it is.

    Raises:
        ConstructionStopped: on leaving, where the cluster's head was gone for `HEAD_GRACE` seconds.
    """

    def __init__(self, console: Console):
        self.progress: Callable[[], object] = lambda: None
        self.console = console
        self.head = ray.get_runtime_context().gcs_address
        self.lost = ""
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.thread.join()
        if self.lost:
            raise ConstructionStopped(self.lost) from None

    def _look(self) -> None:
        before, moved, answered, said = None, time.monotonic(), time.monotonic(), None
        while not self.closed.wait(EVERY):
            now = time.monotonic()
            if head_answers(self.head):
                answered = now
            elif now - answered > HEAD_GRACE:
                self._end()
                return
            else:
                continue
            if (count := self.progress()) != before:
                before, moved, said = count, now, None
            elif now - moved > GRACE and said is None and (said := what_is_missing()):
                self.console.print(f"No picture has left a stage for {now - moved:.0f} s: {markup(said)}")

    def _end(self) -> None:
        """Interrupt the run; where it waits inside Ray and cannot be interrupted, end the process with the sentence."""
        self.lost = (
            f"The head of the Ray cluster ({self.head}) has not answered for {HEAD_GRACE:g} s; finished shards are "
            "kept. Start it again with `ray start --head`, then start the same command again: it goes on where it "
            "stopped."
        )
        os.kill(os.getpid(), signal.SIGINT)
        if not self.closed.wait(TO_UNWIND):
            print(printable(self.lost), file=sys.stderr, flush=True)
            os._exit(1)  # all that is written is written whole, as after a kill
