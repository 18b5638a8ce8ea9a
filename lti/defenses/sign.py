"""Sign compression: one bit a coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lti.defenses.base import DEFENSES, Defense

if TYPE_CHECKING:
    import torch

__all__ = ["SignCompression"]


@DEFENSES.register("sign", source="Wu et al. 2023, section 5; Bernstein et al. 2018 (signSGD)")
class SignCompression(Defense):
    """Send the sign of each coordinate: -1, 0 or 1."""

    encoding = "sign"
    compress = True
    entrywise = True
    matching = "sign"

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the signs, ``(b, p)`` float32."""
        return gradient.sign()
