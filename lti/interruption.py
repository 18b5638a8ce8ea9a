"""Leaving when the scheduler asks: long work saves first, everything else leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = [
    "GRACE_SECONDS",
    "Interrupted",
    "asked_to_leave",
    "leave_when_asked",
    "saving_first",
    "take_the_time",
]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
GRACE_SECONDS = 9.0  # for the step under way; schedulers kill after 5 to 60 seconds

_asked: signal.Signals | None = None
_deadline: threading.Timer | None = None
_savers = 0


class Interrupted(SystemExit):
    """Raised to leave; the exit status is 128 and the signal's number, as a shell's."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)
        self.signal = number


def leave_when_asked() -> None:
    """Handle SIGTERM and SIGUSR1 from now on: raise :class:`Interrupted`.

    Inside :func:`saving_first` they only make :func:`asked_to_leave` true. Work that does not begin
    to save within :data:`GRACE_SECONDS` is ended; outputs and checkpoints are whole or absent.
    """
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _asked, _deadline
    if _asked is not None:
        return  # a scheduler may ask the same of a process and its group
    _asked = signal.Signals(number)
    if not _savers:
        raise Interrupted(_asked)
    _deadline = threading.Timer(GRACE_SECONDS, os._exit, (128 + number,))
    _deadline.daemon = True
    _deadline.start()


@contextmanager
def saving_first() -> Iterator[None]:
    """Promise to save and raise :class:`Interrupted` soon after :func:`asked_to_leave`.

    Also a decorator. Work that ends before it has saved may go on to write its result.
    """
    global _savers
    _savers += 1
    try:
        yield
    finally:
        _savers -= 1


def take_the_time() -> None:
    """Lift the deadline, for a save: a large one may take what the scheduler gives."""
    if _deadline is not None:
        _deadline.cancel()


def asked_to_leave() -> signal.Signals | None:
    """Return the signal that came, if any."""
    return _asked
