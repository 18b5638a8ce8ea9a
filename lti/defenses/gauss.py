"""Gaussian perturbation: independent noise on every coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense, standard_normal

if TYPE_CHECKING:
    import torch

__all__ = ["GaussianPerturbation"]


@DEFENSES.register("gauss", source="Wu et al. 2023, section 5")
class GaussianPerturbation(Defense):
    """Add N(0, sigma^2) to every coordinate."""

    sigma: float = Field(0.1, gt=0.0, description="Standard deviation of the noise.")

    def randomise(
        self,
        gradient: torch.Tensor,
        *,
        generator: torch.Generator,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the noisy gradients; a sum of c coordinates gets variance c sigma^2."""
        noise = standard_normal(gradient, generator=generator, counts=counts)
        return gradient.add(noise, alpha=self.sigma)
