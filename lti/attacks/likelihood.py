"""How probable an observation is, given gradients: what a defense adds and takes away.

A likelihood has two halves. ``predict`` maps the samples' gradients to what the server would
receive but for noise, and is differentiable. ``terms`` compares a prediction with an observation,
coordinate by coordinate: the negative logarithm of the probability, its derivative, and a
curvature that is never negative, as Gauss-Newton steps need it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

if TYPE_CHECKING:
    from lti.defenses import Defense

__all__ = [
    "Exact",
    "Gaussian",
    "Likelihood",
    "MeanOfPruned",
    "MeanOfSigns",
    "Pruned",
    "Signs",
    "Terms",
    "likelihood_of",
]

FAR = -15.0  # standard deviations


class Terms(NamedTuple):
    """The negative log-likelihood of observations, without constants."""

    value: torch.Tensor
    """``(n,)``, in nats."""
    score: torch.Tensor
    """``(n, p)``, its derivative by the prediction."""
    curvature: torch.Tensor
    """``(n, p)``, at least 0: the second derivative, or its expectation."""


class Likelihood(ABC):
    """Of one defense."""

    of_mean: ClassVar[bool] = True
    """Whether it takes the mean gradient of a batch, not each sample's."""
    widths: ClassVar[tuple[float, ...]] = (0.03, 0.1, 0.3)
    """Widths from which the attacker chooses on auxiliary data, in order, in units of how far the
    gradients of first reconstructions are from the true ones."""
    weights: ClassVar[tuple[float, ...]] = (1.0, 0.3, 0.1, 0.03, 0.01)
    """Weights of the logarithm, likewise: below 1 where coordinates tell the same twice."""

    def predict(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return what would be received but for noise, ``(n, p)``.

        Args:
            gradient: ``(n, 1, p)`` where ``of_mean``, else ``(n, B, p)``.
        """
        return gradient[:, 0]

    @abstractmethod
    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Compare ``(n, p)`` predictions and observations."""


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """The prediction with independent noise of standard deviation ``std``, ``(p,)`` or a scalar."""

    widths: ClassVar[tuple[float, ...]] = (1.0,)
    weights: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.2, 0.1, 0.03)

    std: torch.Tensor

    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Return the squares, half of them (see the base)."""
        off = (predicted - observed) / self.std
        curvature = (1 / self.std.square()).expand_as(predicted)
        return Terms(0.5 * off.square().sum(dim=1), off / self.std, curvature)


class Exact(Gaussian):
    """A gradient that is sent as it is: a Gaussian of numerical width."""

    widths = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    weights = (1.0,)


@dataclass(frozen=True)
class Signs(Likelihood):
    """Signs of one gradient: a probit of ``width``, ``(p,)``; a sign of 0 says nothing.

    The signs of the true gradient are certain. What is not is the gradient of a sample nearby:
    ``width`` is how far it may be from the true one.
    """

    width: torch.Tensor

    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Return -log Phi(sign x gradient / width) (see the base)."""
        margin = observed * predicted / self.width
        hazard = _hazard(margin)
        seen = observed.abs()
        value = -(torch.special.log_ndtr(margin) * seen).sum(dim=1)
        curvature = seen * _bend(margin, hazard) / self.width.square()
        return Terms(value, -observed * hazard / self.width, curvature)


@dataclass(frozen=True)
class MeanOfSigns(Likelihood):
    """The mean of B samples' signs: each expected to be 2 Phi(gradient / width) - 1."""

    width: torch.Tensor
    batch_size: int
    of_mean = False

    def predict(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the mean expected sign."""
        return torch.erf(gradient / (self.width * math.sqrt(2))).mean(dim=1)

    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Return squares, as if of B independent signs of variance 1 (see the base)."""
        off = (predicted - observed) * self.batch_size
        return Terms(
            0.5 * off.square().sum(dim=1) / self.batch_size,
            off,
            torch.full_like(predicted, self.batch_size),
        )


@dataclass(frozen=True)
class Pruned(Likelihood):
    """A pruned gradient: what was kept is exact to ``width``, ``(p,)``; what was not is smaller.

    The threshold is the least magnitude that was kept. A dropped coordinate lies within it, give
    or take ``width``.
    """

    width: torch.Tensor

    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Return squares where kept, -log Phi of both margins where dropped (see the base)."""
        kept = observed != 0
        magnitude = torch.where(kept, observed.abs(), torch.inf)
        threshold = magnitude.amin(dim=1, keepdim=True)
        above, below = (threshold - predicted) / self.width, (threshold + predicted) / self.width
        high, low = _hazard(above), _hazard(below)
        off = (predicted - observed) / self.width
        dropped = -torch.special.log_ndtr(above) - torch.special.log_ndtr(below)
        bend = _bend(above, high) + _bend(below, low)
        return Terms(
            torch.where(kept, 0.5 * off.square(), dropped).sum(dim=1),
            torch.where(kept, off, high - low) / self.width,
            torch.where(kept, 1.0, bend) / self.width.square(),
        )


@dataclass(frozen=True)
class MeanOfPruned(Likelihood):
    """The mean of B pruned gradients, each with a soft threshold; exact to ``width``, ``(p,)``.

    Which samples kept a coordinate is not seen. A sample is expected to keep it with probability
    Phi((magnitude - threshold) / width); the threshold is that of its gradient as it is.
    """

    width: torch.Tensor
    kept: int
    batch_size: int
    of_mean = False

    def predict(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the mean of what is expected to be kept."""
        magnitude = gradient.abs()
        place = magnitude.shape[2] - self.kept + 1
        threshold = magnitude.detach().kthvalue(place, dim=2, keepdim=True).values
        share = torch.special.ndtr((magnitude - threshold) / self.width)
        return (gradient * share).mean(dim=1)

    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Return squares (see the base)."""
        return Gaussian(self.width / self.batch_size).terms(predicted, observed)


def _hazard(margin: torch.Tensor) -> torch.Tensor:
    """Return phi(m) / Phi(m), the derivative of log Phi(m), far into both tails."""
    return torch.exp(
        -0.5 * margin.square() - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(margin)
    )


def _bend(margin: torch.Tensor, hazard: torch.Tensor) -> torch.Tensor:
    """Return -d^2 log Phi(m) / dm^2, in [0, 1]; where terms cancel, its expansion."""
    far = margin < FAR
    expansion = 1 - 1 / torch.where(far, margin, FAR).square()
    return torch.where(far, expansion, hazard * (hazard + margin)).clamp(0, 1)


def likelihood_of(defense: Defense, *, batch_size: int, width: torch.Tensor) -> Likelihood | None:
    """Return what a defense states itself, or what is known of it here; None: nothing is.

    Args:
        defense: what the client did.
        batch_size: samples of its batch.
        width: ``(p,)``, how far a coordinate may be off where the defense itself is exact.
    """
    from lti.defenses.gauss import GaussianPerturbation
    from lti.defenses.none import NoDefense
    from lti.defenses.prune import GradientPruning
    from lti.defenses.sign import SignCompression

    own = defense.likelihood(batch_size=batch_size, width=width)
    averages = defense.averages(batch_size)
    if own is not None:
        return own
    if isinstance(defense, NoDefense):
        return Exact(width)
    if isinstance(defense, GaussianPerturbation):
        samples = batch_size if averages else 1
        return Gaussian(torch.as_tensor(defense.sigma / samples**0.5).to(width))
    if isinstance(defense, SignCompression):
        return MeanOfSigns(width, batch_size) if averages else Signs(width)
    if isinstance(defense, GradientPruning):
        kept = defense.kept(len(width))
        return MeanOfPruned(width, kept, batch_size) if averages else Pruned(width)
    return None
