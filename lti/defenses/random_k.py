"""Random-k sparsification: only coordinates drawn by chance are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense, standard_uniform

if TYPE_CHECKING:
    import torch

__all__ = ["RandomSparsification"]


@DEFENSES.register("random-k", source="Stich et al. 2018, definition 2.1 (rand_k)")
class RandomSparsification(Defense):
    """Keep the share ``1 - rate`` of coordinates, drawn anew for every gradient.

    The number kept is that of `prune`: ``round(p * (1 - rate))``, at least one. Kept entries are
    sent as they are.
    """

    compress = True
    matching = "nonzero-cosine"

    rate: float = Field(0.99, gt=0.0, lt=1.0, description="Share of coordinates set to zero.")

    def kept(self, parameters: int) -> int:
        """Return how many of ``parameters`` coordinates are kept."""
        return max(1, round(parameters * (1.0 - self.rate)))

    def stochastic(self, gradient: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
        """Return the sparse gradients, ``(b, p)`` float32."""
        import torch

        drawn = standard_uniform(gradient, seeds=seeds)
        place = drawn.topk(self.kept(gradient.shape[1]), dim=1, sorted=False).indices
        return torch.zeros_like(gradient).scatter_(1, place, gradient.gather(1, place))
