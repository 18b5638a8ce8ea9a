"""Clipping: a gradient is scaled down to a norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense
from lti.gradients.clipping import clipped

if TYPE_CHECKING:
    import torch

__all__ = ["Clipping"]


@DEFENSES.register("clip", source="Abadi et al. 2016, algorithm 1, without its noise")
class Clipping(Defense):
    """Scale the whole flattened gradient down to an L2 norm where it is longer."""

    norm: float = Field(1.0, gt=0.0, description="Largest L2 norm that is sent.")

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the clipped gradients, ``(b, p)`` float32."""
        return clipped(gradient, self.norm)
