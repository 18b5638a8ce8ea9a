"""Gradient pruning: only the largest magnitudes are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense

if TYPE_CHECKING:
    import torch

__all__ = ["GradientPruning"]


@DEFENSES.register("prune", source="Wu et al. 2023, section 5; Aji and Heafield 2017")
class GradientPruning(Defense):
    """Keep the share ``1 - rate`` of largest magnitudes over the whole flattened gradient.

    The number kept is ``round(p * (1 - rate))``, at least one.
    """

    compress = True
    matching = "nonzero-cosine"

    rate: float = Field(0.99, gt=0.0, lt=1.0, description="Share of coordinates set to zero.")

    def kept(self, parameters: int) -> int:
        """Return how many of ``parameters`` coordinates are kept."""
        return max(1, round(parameters * (1.0 - self.rate)))

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the pruned gradients, ``(b, p)`` float32."""
        import torch

        index = gradient.abs().topk(self.kept(gradient.shape[1]), dim=1, sorted=False).indices
        return torch.zeros_like(gradient).scatter_(1, index, gradient.gather(1, index))
