"""DP-SGD: clipped gradients of samples, with Gaussian noise on their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense, standard_normal
from lti.gradients.clipping import clipped

if TYPE_CHECKING:
    import torch

__all__ = ["DPSGD"]


@DEFENSES.register("dp-sgd", source="Abadi et al. 2016, algorithm 1")
class DPSGD(Defense):
    """Clip each sample's gradient to C, and add N(0, (z C)^2) to every coordinate of the sum.

    The mean over B samples so has noise of standard deviation z C / B. With
    `defense_at: batch` the mean gradient is the one record: it is clipped and gets z C.
    `lti.defenses.privacy` says which epsilon that is.
    """

    norm: float = Field(1.0, gt=0.0, description="C, the L2 norm to which a gradient is clipped.")
    noise_multiplier: float = Field(
        1.0, gt=0.0, description="z, the standard deviation of the noise on the sum, per C."
    )

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the clipped gradients, ``(b, p)`` float32."""
        return clipped(gradient, self.norm)

    def deviation(self, averaged: int) -> float:
        """Return the standard deviation of the noise on a mean of so many clipped gradients."""
        return self.noise_multiplier * self.norm / averaged

    def randomise_mean(
        self,
        mean: torch.Tensor,
        *,
        generator: torch.Generator,
        averaged: int,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the noisy means, ``(b, k)``."""
        noise = standard_normal(mean, generator=generator, counts=counts)
        return mean.add(noise, alpha=self.deviation(averaged))
