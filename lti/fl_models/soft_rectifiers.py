"""Rectifiers whose derivative does not jump, for attacks that differentiate a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["SoftRectifiers"]

RECTIFIERS = (functional.relu, torch.relu, torch.Tensor.relu, torch.ops.aten.relu.default)


class SoftRectifiers(TorchFunctionMode):
    """Inside of it a rectifier returns what it would on average if its input were less certain.

    ``relu(a)`` becomes the expectation of ``max(0, a + w r n)``: n is standard normal, r the root
    mean square of the inputs, w the width. The second derivative of a rectifier is 0 wherever it
    exists, so that the derivative of a network's gradient by its input misses that units are
    switched on and off; that of the softened one tells how many are close to it.
    """

    def __init__(self, width: float) -> None:
        """Soften by ``width``, at least 0; 0 changes nothing."""
        super().__init__()
        self.width = width
        self.met = False
        """Whether a rectifier was called."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        if function not in RECTIFIERS:
            return function(*args, **(kwargs or {}))
        self.met = True
        if not self.width:
            return function(*args, **(kwargs or {}))
        value = args[0] if args else (kwargs or {})["input"]
        scale = self.width * value.detach().square().mean().sqrt().clamp_min(1e-12)
        z = value / scale
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        return scale * (z * torch.special.ndtr(z) + density)
