"""Uniform quantisation: every coordinate is rounded to one of evenly spaced levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense

if TYPE_CHECKING:
    import torch

__all__ = ["UniformQuantisation"]


@DEFENSES.register("uniform", source="Krishnamoorthi 2018, section 2.2 (symmetric quantizer)")
class UniformQuantisation(Defense):
    """Round to the nearest of ``2^bits - 1`` levels from -m to m, m the largest magnitude.

    Zero is a level. m is that of the whole flattened gradient, and is sent beside the levels.
    """

    compress = True

    bits: int = Field(4, ge=2, le=16, description="Bits a coordinate.")

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the quantised gradients, ``(b, p)`` float32."""
        import torch

        steps = 2 ** (self.bits - 1) - 1
        largest = gradient.abs().amax(dim=1, keepdim=True)
        # Divided first: 1 / step may overflow. Zeros stay zeros.
        level = (gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny) * steps).round()
        return level / steps * largest
