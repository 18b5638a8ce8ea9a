"""How probable a clipped gradient is, with noise or without (see :mod:`lti.attacks.likelihood`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lti.attacks.likelihood import Exact, Gaussian
from lti.gradients.clipping import clipped

if TYPE_CHECKING:
    import torch

__all__ = ["Clipped", "ClippedMean", "NoisyClipped", "NoisyClippedMean"]


@dataclass(frozen=True)
class NoisyClipped(Gaussian):
    """The mean of B clipped gradients with Gaussian noise: DP-SGD's, ``std`` that of the mean."""

    norm: float
    of_mean = False

    def predict(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the mean of the clipped gradients (see the base)."""
        return clipped(gradient, self.norm).mean(dim=1)


class NoisyClippedMean(NoisyClipped):
    """A mean gradient that was clipped, with Gaussian noise."""

    of_mean = True


class Clipped(NoisyClipped):
    """The mean of B clipped gradients as it is: ``std`` is a numerical width."""

    widths = Exact.widths
    weights = Exact.weights


class ClippedMean(Clipped):
    """A mean gradient that was clipped, as it is."""

    of_mean = True
