"""Checkpoints of long work: written whole or not at all, and refused to other settings."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.files import canonical_json, read_tensors, write_tensors
from lti.interruption import Interrupted, asked_to_leave, take_the_time

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint"]


class Checkpoint:
    """The latest state of one piece of work.

    Args:
        path: the file (safetensors).
        settings: all that the state depends on, JSON-able.
        every_seconds: the least time between two saves; None: what the environment variable
            ``LTI_CHECKPOINT_SECONDS`` says, or 60.

    Raises:
        LTIError: the variable holds no number of seconds.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, every_seconds: float | None = None
    ) -> None:
        self.path = path
        self.settings = dict(settings)
        self.every_seconds = _seconds() if every_seconds is None else every_seconds
        self._saved = time.monotonic()
        self._parts: list[Checkpoint] = []

    def beside(self, name: str) -> Checkpoint:
        """Return the checkpoint of another part of the same work; both are cleared at once."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        part = Checkpoint(path, self.settings, every_seconds=self.every_seconds)
        self._parts.append(part)
        return part

    def due(self) -> bool:
        """Return whether enough time has passed since the last save, or to leave was asked."""
        late = time.monotonic() - self._saved >= self.every_seconds
        return late or asked_to_leave() is not None

    def save(self, tensors: Mapping[str, torch.Tensor], *, position: int) -> None:
        """Write the state after ``position`` units of work, replacing the earlier one.

        Raises:
            Interrupted: the process was asked to leave, and now may.
        """
        take_the_time()
        write_tensors(self.path, tensors, {"settings": self.settings, "position": position})
        self._saved = time.monotonic()
        if (number := asked_to_leave()) is not None:
            raise Interrupted(number)

    def load(self) -> tuple[dict[str, torch.Tensor], int] | None:
        """Return the saved tensors and position, or None where nothing was saved.

        Raises:
            LTIError: the file is damaged or of other settings.
        """
        for left in self.path.parent.glob(f".{self.path.stem}.*.part{self.path.suffix}"):
            left.unlink(missing_ok=True)  # of a writer that was killed
        if not self.path.exists():
            return None
        tensors, metadata = read_tensors(self.path)
        if canonical_json(metadata.get("settings")) != canonical_json(self.settings):
            raise LTIError(
                f"{self.path}: this checkpoint is of other settings.\n"
                f"  got      {canonical_json(metadata.get('settings'))}\n"
                f"  expected {canonical_json(self.settings)}\n"
                f"Delete it to begin anew, or restore the settings."
            )
        return tensors, int(metadata["position"])

    def clear(self) -> None:
        """Remove the file, and those of other parts, once the work's result is safe."""
        for part in self._parts:
            part.clear()
        self.path.unlink(missing_ok=True)


def _seconds() -> float:
    """Return the time between saves: of the machine, and so no setting of the science."""
    text = os.environ.get("LTI_CHECKPOINT_SECONDS", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise LTIError(
            f"LTI_CHECKPOINT_SECONDS: got {text!r}; expected a number of seconds, 0 or more. "
            f"Correct it, or unset it for 60."
        )
    return seconds
