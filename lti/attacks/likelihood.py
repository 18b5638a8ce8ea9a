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
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

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
STEEP = 300.0  # standard deviations beyond which one is as far as another


class Terms(NamedTuple):
    """The negative log-likelihood of observations, without constants."""

    value: torch.Tensor
    """``(n,)``, in nats."""
    score: torch.Tensor
    """``(n, p)``, its derivative by the prediction."""
    curvature: torch.Tensor
    """``(n, p)``, at least 0: the second derivative, or its expectation."""


class Likelihood(ABC):
    """Of one defense.

    A prediction is ``(n, q)``: q is p, or B p where each sample's gradient counts.
    """

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

    widths: ClassVar[tuple[float, ...]] = (1.0, 0.0)
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
    """The mean of B samples' signs: how many are positive, each with a probit of ``width``.

    That number has a Poisson binomial distribution. Which samples they are is not seen. The
    curvature is the square of the score, sample by sample, and at most what a single sign's is.
    """

    width: torch.Tensor
    batch_size: int
    of_mean = False

    def predict(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the samples' gradients beside one another, ``(n, B p)``."""
        return gradient.flatten(1)

    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Return -log P(number of positive signs), by sample and coordinate (see the base)."""
        size = self.batch_size
        margin = predicted.unflatten(1, (size, -1)) / self.width
        margin = margin.clamp(-STEEP, STEEP)
        up, down = torch.special.log_ndtr(margin), torch.special.log_ndtr(-margin)
        count = ((observed + 1) * size / 2).round().clamp(0, size).long()[:, None]
        # Logarithms of P(k of the first i samples are positive), and of the last ones.
        none = torch.full_like(up[:, :1].expand(-1, size + 1, -1), -torch.inf)
        none[:, 0] = 0
        first, last = [none], [none]
        for i in range(size):
            first.append(_one_more(first[-1], up[:, i], down[:, i]))
            last.append(_one_more(last[-1], up[:, size - 1 - i], down[:, size - 1 - i]))
        likely = first[-1].gather(1, count)[:, 0]
        density = -0.5 * margin.square() - 0.5 * math.log(2 * math.pi) - likely[:, None]
        score = []
        for i in range(size):
            others = first[i], last[size - 1 - i]
            more = torch.exp(_joined(*others, count - 1) + density[:, i])
            same = torch.exp(_joined(*others, count) + density[:, i])
            score.append((same - more) / self.width)
        stacked = torch.cat(score, dim=1)
        most = (1 / self.width.square()).expand(size, -1).flatten()
        return Terms(-likely.sum(dim=1), stacked, torch.minimum(stacked.square(), most))


def _one_more(known: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Return log P of numbers of positive signs, ``(n, B + 1, p)``, with one more sample."""
    less = torch.cat([torch.full_like(up, -torch.inf)[:, None], known[:, :-1]], dim=1)
    return torch.logaddexp(known + down[:, None], less + up[:, None])


def _joined(first: torch.Tensor, last: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return log P(``count``) of the sum of two numbers, ``(n, p)``; below 0 impossible."""
    size = first.shape[1] - 1
    ways = []
    for k in range(size + 1):
        rest = count - k
        there = last.gather(1, rest.clamp(0, size))
        ways.append(first[:, k : k + 1] + torch.where(rest >= 0, there, -torch.inf))
    return torch.cat(ways, dim=1).logsumexp(dim=1)


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
        largest = torch.finfo(observed.dtype).max ** 0.25  # where nothing was kept: no bound
        magnitude = torch.where(kept, observed.abs(), largest)
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
    """Return phi(m) / Phi(m), the derivative of log Phi(m); where terms cancel, its expansion."""
    far = margin < FAR
    x = torch.where(far, margin, FAR)
    near = margin.clamp_min(FAR)
    logarithm = -0.5 * near.square() - 0.5 * math.log(2 * math.pi)
    ratio = torch.exp(logarithm - torch.special.log_ndtr(near))
    return torch.where(far, -(x + 1 / x - 2 / x**3), ratio)


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
        width: ``(p,)``, how far the gradient of a sample nearby may be off, beside what the defense
            adds.
    """
    own = defense.likelihood(batch_size=batch_size, width=width)
    averages = defense.averages(batch_size)
    if own is not None:
        return own
    # By name: another package's defense, if of a kind with one of these, says so itself.
    settings: Any = defense
    if defense.name == "none":
        return Exact(width)
    if defense.name == "gauss":
        samples = batch_size if averages else 1
        return Gaussian((width.square() + settings.sigma**2 / samples).sqrt())
    if defense.name == "sign":
        return MeanOfSigns(width, batch_size) if averages else Signs(width)
    if defense.name == "prune":
        kept = settings.kept(len(width))
        return MeanOfPruned(width, kept, batch_size) if averages else Pruned(width)
    if defense.name in ("clip", "dp-sgd"):
        return _of_clipped(defense, width, samples=batch_size if averages else 1)
    stated = getattr(defense, "log_likelihood", None)
    if stated is not None and not averages:  # of one gradient, not of a mean of several
        from lti.attacks.stated_likelihood import StatedLikelihood

        return StatedLikelihood(defense.name, stated)
    return None


def _of_clipped(defense: Any, width: torch.Tensor, *, samples: int) -> Likelihood:
    """Return the likelihood of a mean of clipped gradients, or of one that was clipped."""
    from lti.attacks import clipped_likelihood as of

    if defense.name == "clip":
        exact = of.Clipped if samples > 1 else of.ClippedMean
        return exact(width, defense.norm)
    noisy = of.NoisyClipped if samples > 1 else of.NoisyClippedMean
    return noisy((width.square() + defense.deviation(samples) ** 2).sqrt(), defense.norm)
