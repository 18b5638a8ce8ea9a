"""A likelihood that a user's class states as ``log_likelihood(observation, gradient)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lti.attacks.likelihood import Likelihood, Terms
from lti.errors import LTIError

__all__ = ["StatedLikelihood"]


@dataclass(frozen=True)
class StatedLikelihood(Likelihood):
    """A differentiable function of one observation and one gradient, ``(p,)`` each, to a scalar.

    It is taken to be a sum over coordinates, each of its own entry of the gradient: the second
    derivatives then are the Hessian times a vector of ones.
    """

    name: str
    log_likelihood: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    widths = (1.0,)

    def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        """Return value, score and curvature (see the base); negative curvature counts as none.

        Raises:
            LTIError: the function returns no scalar that depends on the gradient.
        """
        parts = [self._of_one(*pair) for pair in zip(predicted, observed, strict=True)]
        return Terms(*(torch.stack(column) for column in zip(*parts, strict=True)))

    def _of_one(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
        with torch.enable_grad():
            gradient = predicted.detach().requires_grad_()
            value = self.log_likelihood(observed, gradient)
            if not isinstance(value, torch.Tensor) or value.ndim or not value.requires_grad:
                raise LTIError(
                    f"log_likelihood of defense {self.name} returned {value!r}; expected a scalar "
                    f"tensor that is differentiable in the gradient. Correct it."
                )
            (score,) = torch.autograd.grad(-value, gradient, create_graph=True)
            curvature = torch.zeros_like(gradient)
            if score.requires_grad:
                (second,) = torch.autograd.grad(score.sum(), gradient, allow_unused=True)
                curvature = curvature if second is None else second.clamp_min(0.0)
        return Terms(-value.detach(), score.detach(), curvature)
