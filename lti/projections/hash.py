"""Feature hashing: every coordinate falls into one of fewer bins, and bins are summed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from lti.projections.base import PROJECTIONS, Projection
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import ParameterLayout

__all__ = ["FeatureHashing"]


@PROJECTIONS.register("hash", source="Wu et al. 2023, section 4; Weinberger et al. 2009")
class FeatureHashing(Projection):
    """Sum the coordinates of each of ``round(p * ratio)`` bins (at least one).

    Every coordinate falls into one bin, drawn once from the seed. As in the paper's code,
    coordinates keep their signs.
    """

    ratio: float = Field(0.5, gt=0.0, le=1.0, description="Bins per coordinate.")
    seed: int = Field(0, description="Root seed of the bins.")

    def size(self, parameters: int) -> int:
        """Return the number of bins for ``parameters`` coordinates."""
        return max(1, round(parameters * self.ratio))

    def bins(self, parameters: int) -> torch.Tensor:
        """Return each coordinate's bin, int64 ``(p,)``."""
        return _bins(self.seed, parameters, self.size(parameters))

    def project(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the bins' sums."""
        parameters = gradient.shape[1]
        result = gradient.new_zeros(len(gradient), self.size(parameters))
        return result.index_add_(1, self.bins(parameters).to(gradient.device), gradient)

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return one block: a bin mixes coordinates of all parameters."""
        from lti.gradients.layout import ParameterLayout

        return ParameterLayout(("hashed",), ((self.size(layout.total),),))

    def counts(self, parameters: int) -> torch.Tensor | None:
        """Return the number of coordinates in each bin."""
        import torch

        return torch.bincount(self.bins(parameters), minlength=self.size(parameters))


@cache
def _bins(seed: int, parameters: int, size: int) -> torch.Tensor:
    import torch

    generator = torch_generator(seed, "projection", "hash", parameters, size)
    return torch.randint(size, (parameters,), generator=generator)
