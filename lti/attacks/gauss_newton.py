"""Gauss-Newton on many independent problems at once: the most probable samples.

    minimise over z   -log p(observation | gradient(mean + L z)) + |z|^2 / 2

Each step solves ``(I + L' J' W J L) d = -slope`` by conjugate gradients, with the Jacobian J of
what the likelihood predicts and its curvature W, in products alone: one forward and one backward
derivative an iteration. Every problem has its own steps, damping and end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

import torch

from lti.checkpoint import Checkpoint

if TYPE_CHECKING:
    from lti.attacks.likelihood import Likelihood
    from lti.attacks.prior import Covariance
    from lti.progress import Progress

__all__ = ["Maximum", "Posterior", "maximise"]

Predict: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
"""From samples ``(n, B, ...)`` and labels to what would be received but for noise, ``(n, p)``."""

SHORTENINGS = 6  # of a step that does not descend, by SHORTER each
SHORTER = 0.35
NATS = 0.1  # a problem has converged where a step would decrease the objective by less,
STILL = 1 / 510  # or move its samples by less than half a grey level, root mean square
DAMPED = 100.0  # beyond this damping a problem that does not descend is given up
RESIDUAL = 1e-2  # of conjugate gradients, relative


@dataclass(frozen=True)
class Posterior:
    """What n samples' batches are like, given what was received."""

    predict: Predict
    likelihood: Likelihood
    weight: float
    """Of the log-likelihood; below 1 where coordinates tell the same twice."""
    covariance: Covariance
    mean: torch.Tensor
    """``(n, B, c, h, w)``."""
    observed: torch.Tensor
    """``(n, p)``."""
    label: torch.Tensor
    """int64 ``(n, B)``."""

    def sample(self, z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the samples at coordinates ``(m, B, d)`` of some problems."""
        return self.mean[rows] + self.covariance.to_image(z)

    def objective(self, z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return what is minimised, ``(m,)``."""
        predicted = self.predict(self.sample(z, rows), self.label[rows])
        value = self.likelihood.terms(predicted, self.observed[rows]).value
        return self.weight * value + 0.5 * _dot(z, z)


@dataclass
class Maximum:
    """The most probable samples of n problems, and how they were found."""

    z: torch.Tensor
    """``(n, B, d)`` whitened coordinates."""
    objective: torch.Tensor
    """``(n, iterations + 1)``, after each step; a problem that has converged keeps its last."""
    slope: torch.Tensor
    """``(n,)``, the norm of the objective's gradient, where it was evaluated last."""
    active: torch.Tensor
    """bool ``(n,)``: neither converged nor given up."""
    converged: torch.Tensor
    """bool ``(n,)``."""
    damping: torch.Tensor
    """``(n,)``, what is added to the matrix's diagonal."""


def maximise(
    posterior: Posterior,
    start: torch.Tensor,
    *,
    iterations: int,
    inner: int,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Maximum:
    """Return the most probable samples.

    A run that was interrupted resumes from its checkpoint to the same result, bit for bit.

    Args:
        posterior: of n problems.
        start: ``(n, B, d)`` coordinates.
        iterations: the most steps.
        inner: the most iterations of conjugate gradients a step.
        checkpoint: of this work.
        progress: told of every step of every problem.
    """
    count, device = len(start), start.device
    everyone = torch.arange(count, device=device)
    found = Maximum(
        start.clone(),
        torch.zeros(count, iterations + 1, device=device),
        torch.full((count,), torch.inf, device=device),
        torch.ones(count, dtype=torch.bool, device=device),
        torch.zeros(count, dtype=torch.bool, device=device),
        torch.zeros(count, device=device),
    )
    done = 0
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        tensors, done = saved
        found = Maximum(**{name: value.to(device) for name, value in tensors.items()})
    else:
        with torch.no_grad():
            found.objective[:] = posterior.objective(start, everyone)[:, None]
    if progress is not None:
        progress.skip(done * count)
    for step in range(done, iterations):
        rows = everyone[found.active]
        if len(rows):
            _step(posterior, found, rows, step, inner)
        if progress is not None:
            progress.advance(count, objective=found.objective[:, step + 1])
        if checkpoint is not None and (checkpoint.due() or step + 1 == iterations):
            state = {field.name: getattr(found, field.name) for field in fields(found)}
            checkpoint.save(state, position=step + 1)
    return found


def _step(posterior: Posterior, found: Maximum, rows: torch.Tensor, step: int, inner: int) -> None:
    """Take one step on the problems ``rows``."""
    z, before = found.z[rows], found.objective[rows, step]
    with torch.enable_grad():
        sample = posterior.sample(z, rows).requires_grad_()
        predicted = posterior.predict(sample, posterior.label[rows])
        # The Jacobian's product with a vector, as the derivative of its transpose's product.
        cotangent = torch.zeros_like(predicted, requires_grad=True)
        (pulled,) = torch.autograd.grad(predicted, sample, cotangent, create_graph=True)
    covariance = posterior.covariance
    terms = posterior.likelihood.terms(predicted.detach(), posterior.observed[rows])
    curvature = posterior.weight * terms.curvature

    def push(direction: torch.Tensor) -> torch.Tensor:
        image = covariance.to_image(direction)
        (result,) = torch.autograd.grad(pulled, cotangent, image, retain_graph=True)
        return result

    def pull(residual: torch.Tensor) -> torch.Tensor:
        (image,) = torch.autograd.grad(predicted, sample, residual, retain_graph=True)
        return covariance.to_coordinates(image)

    slope = z + pull(posterior.weight * terms.score)
    damping = found.damping[rows]

    def product(direction: torch.Tensor) -> torch.Tensor:
        return direction * (1 + damping[:, None, None]) + pull(curvature * push(direction))

    direction = _conjugate_gradients(product, -slope, inner)
    with torch.no_grad():
        best, lowest = z.clone(), before.clone()
        left = torch.ones_like(before, dtype=torch.bool)
        for shortening in range(SHORTENINGS):
            tried = z[left] + SHORTER**shortening * direction[left]
            value = posterior.objective(tried, rows[left])
            better = value < lowest[left]
            place = left.nonzero()[:, 0][better]
            best[place], lowest[place] = tried[better], value[better]
            left[place] = False
            if not left.any():
                break
    found.z[rows] = best
    found.objective[rows, step + 1 :] = lowest[:, None]
    found.slope[rows] = _dot(slope, slope).sqrt()
    moves = covariance.to_image(direction).square().flatten(1).mean(dim=1).sqrt()
    expected = -0.5 * _dot(slope, direction)
    decrease = torch.where(left, expected, before - lowest)
    converged = (decrease < NATS) | (~left & (damping == 0) & (moves < STILL))
    damping = torch.where(left, (10 * damping).clamp_min(1.0), damping / 10)
    found.damping[rows] = torch.where(damping < 0.1, 0.0, damping)
    found.converged[rows] = converged
    found.active[rows] = ~converged & (damping <= DAMPED)


def _conjugate_gradients(
    product: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Solve ``product(x) = right`` for each row; a row that is solved stands still."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, squares = residual.clone(), _dot(right, right)
    enough = RESIDUAL**2 * squares
    for _ in range(iterations):
        going = squares > enough
        if not going.any():
            break
        image = product(direction)
        length = torch.where(going, squares / _dot(direction, image).clamp_min(1e-30), 0.0)
        x += length[:, None, None] * direction
        residual -= length[:, None, None] * image
        new = _dot(residual, residual)
        direction = residual + (new / squares.clamp_min(1e-30))[:, None, None] * direction
        squares = torch.where(going, new, squares)
    return x


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(dim=1)
