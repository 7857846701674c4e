"""Signals: a run finishes its step and saves, its helper processes stay until it lets them go, commands end in a line.

Whoever wants a run to end sends a signal to the process, to its whole group (Ctrl-C in a terminal, `timeout`, systemd)
or to the launcher, which passes it on. All of them mean the same here, and no helper process may die of it first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # Windows has the first two alone
AGAIN = 2.0  # seconds after which another Ctrl-C is a second one: a launcher passes on the first
WITHOUT_LAUNCHER = 120.0  # seconds that a run has for its last step when its launcher is gone


def numbers() -> list[int]:
    """The signals that ask a process to end, on this system."""
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class StopSignal:
    """Notes the first signal that asks the run to end, so that the step in progress can be finished and saved.

    received: its name, or None. A second Ctrl-C ends the process at once, by KeyboardInterrupt; not under a launcher,
    which ends its processes itself when they take too long.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._noted = 0.0
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        for number in numbers():
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        again = self.received is not None and time.monotonic() - self._noted > AGAIN
        if number == signal.SIGINT and again and self._launcher is None:
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self._noted = signal.Signals(number).name, time.monotonic()
        if self._launcher is not None and os.getppid() != self._launcher:
            # The other machines' processes may be gone as well, and a collective would wait for them for half an hour.
            threading.Thread(target=_end_later, daemon=True).start()


def _end_later() -> None:
    time.sleep(WITHOUT_LAUNCHER)
    os._exit(1)


def end_with_parent(number: int) -> None:
    """Let the system send a signal to this process when its parent ends, however that happens (Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # 1 = PR_SET_PDEATHSIG


def helper_process() -> None:
    """To be called first in a process that works for another one of ours: it ends with it, and not before.

    A signal to the whole group reaches helpers as well; the one they work for decides when they are done.
    """
    for number in numbers():
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGKILL"):
        end_with_parent(signal.SIGKILL)


class Stopped(BaseException):
    """A signal asked a command to end; not an Exception, because no sample's error handling may keep it."""


@contextmanager
def ends_at_signals() -> Iterator[None]:
    """Within it, the first signal that asks the process to end raises `Stopped` in the main thread; later ones do
    nothing, so that what is being cleaned up is cleaned up."""
    before = {number: signal.getsignal(number) for number in numbers()}

    def stop(number: int, _frame: object) -> None:
        for each in numbers():
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    for number in numbers():
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stoppable(main: Callable[[], int], kept: str) -> int:
    """Run a command's `main`; stopped by a signal, it ends with one line, which says what is `kept`, and a shell's
    exit code for that signal."""
    try:
        with ends_at_signals():
            return main()
    except Stopped as stopped:
        print(f"Stopped by {stopped}: {kept}", file=sys.stderr)
        return 128 + int(signal.Signals[str(stopped)])
