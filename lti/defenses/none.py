"""No defense: the gradient as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lti.defenses.base import DEFENSES, Defense

if TYPE_CHECKING:
    import torch

    from lti.defenses.likelihood import Likelihood

__all__ = ["NoDefense"]


@DEFENSES.register("none", source="Wu et al. 2023, section 5")
class NoDefense(Defense):
    """Send the gradient as it is."""

    widths = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    evidence = (1.0,)

    def likelihood(self, *, batch_size: int, width: torch.Tensor) -> Likelihood:
        """Return a Gaussian of numerical width (see the base)."""
        from lti.defenses.likelihood import Gaussian

        return Gaussian(width)
