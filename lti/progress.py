"""Progress of long work, as single lines: rate, time left, current values."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import IO, Any

__all__ = ["Progress"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Print a line to the terminal (and every line to a log) at most every few seconds.

    Several stages run at once under Snakemake, so lines are used rather than bars, each
    with the stage's title in front.

    Args:
        title: what runs, e.g. ``train cifar10 lenet sign``.
        log: a file for the same lines; its folder is made.
        every_seconds: the least time between two lines.
    """

    def __init__(
        self, title: str, *, log: Path | str | None = None, every_seconds: float = 5.0
    ) -> None:
        self.title = title
        self.every_seconds = every_seconds
        self._log: IO[str] | None = None
        if log is not None:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            self._log = Path(log).open("w")  # noqa: SIM115 (open until the process ends)
        self.start(total=0)

    def start(self, *, total: int, unit: str = "steps") -> None:
        """Begin to count up to ``total`` units."""
        self.total, self.unit = total, unit
        self._done = self._skipped = 0
        self._began = self._printed = time.monotonic()

    def skip(self, count: int) -> None:
        """Count work that an earlier, interrupted run did."""
        self._done += count
        self._skipped += count

    def advance(self, count: int, **values: Any) -> None:
        """Count finished work; ``values`` (numbers, or tensors, whose mean is shown) follow it."""
        self._done += count
        now = time.monotonic()
        if now - self._printed < self.every_seconds:
            return
        self._printed = now
        rate = (self._done - self._skipped) / max(now - self._began, 1e-9)
        left = (self.total - self._done) / rate if rate > 0 else float("inf")
        shown = "".join(
            f", {key} {float(value.float().mean() if hasattr(value, 'mean') else value):.4g}"
            for key, value in values.items()
        )
        share = self._done / self.total if self.total else 0.0
        self.say(f"{share:4.0%}  {rate:,.0f} {self.unit}/s, {_clock(left)} left{shown}")

    def say(self, message: str) -> None:
        """Print one line now."""
        line = f"[{self.title}] {message}"
        print(line, file=sys.stderr, flush=True)
        if self._log is not None:
            print(line, file=self._log, flush=True)
