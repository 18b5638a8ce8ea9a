"""What LTI-MAP knows before it sees a victim, and how it refines reconstructions with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from lti.attacks.gauss_newton import Maximum, Posterior, maximise
from lti.attacks.likelihood import likelihood_of
from lti.attacks.prior import Covariance
from lti.compute import memory_budget
from lti.errors import LTIError
from lti.files import read_tensors, write_tensors
from lti.fl_models import attacked
from lti.gradients.per_sample import group_gradient_function

if TYPE_CHECKING:
    from torch import nn

    from lti.attacks.likelihood import Likelihood
    from lti.attacks.lti_map import PriorKind
    from lti.checkpoint import Checkpoint
    from lti.defenses import Defense
    from lti.fl_models import FLModel
    from lti.progress import Progress

__all__ = ["Client", "Refinement"]

MEMORY_MIB = 2048.0  # on the processor; on a GPU half of what is free
FLOATS_PER_COORDINATE = 40  # temporary ones, of a sample's gradient: second derivatives


@dataclass(frozen=True)
class Client:
    """The client whose gradients are explained."""

    model: FLModel
    network: nn.Module
    defense: Defense
    batch_size: int

    def at_once(self, device: torch.device) -> int:
        """Return how many client batches to refine at once."""
        width = sum(value.numel() for value in attacked(self.model, self.network).values())
        per_batch = 4 * FLOATS_PER_COORDINATE * self.batch_size * width
        return max(1, memory_budget(device, MEMORY_MIB) // per_batch)

    def gradients(self, sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return each sample's gradients, ``(n, B, p)``, of samples ``(n, B, ...)``."""
        function = group_gradient_function(self.model, self.network)
        each = function(sample.flatten(0, 1)[:, None], label.flatten(0, 1)[:, None])
        return each.unflatten(0, sample.shape[:2])

    def receive(self, gradient: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what the server gets of gradients ``(n, B, p)``: ``(n, p)``."""
        if not self.defense.averages(self.batch_size):
            return self.defense.defend(gradient.mean(dim=1), generator=generator)
        defended = self.defense.defend(gradient.flatten(0, 1), generator=generator)
        return defended.unflatten(0, gradient.shape[:2]).mean(dim=1)

    def predict(
        self, likelihood: Likelihood, sample: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """Return what would be received but for noise, ``(n, p)``, differentiably."""
        if not likelihood.of_mean:
            return likelihood.predict(self.gradients(sample, label))
        function = group_gradient_function(self.model, self.network)
        return likelihood.predict(function(sample, label)[:, None])


@dataclass(frozen=True)
class Refinement:
    """A prior and the settings that were best on held-out auxiliary data."""

    prior: PriorKind
    covariance: Covariance
    mean: torch.Tensor
    """``(c, h, w)``, of images; 0 where the prior's mean is the first reconstruction."""
    off: torch.Tensor
    """``(p,)``: how far first reconstructions' gradients are from the true ones, root mean
    square over each parameter."""
    width: float
    """Of the likelihood, in units of ``off``."""
    evidence: float
    """Weight of the log-likelihood."""
    farthest: float = float("inf")
    """Squared coordinates beyond which a result is refused."""

    def posterior(
        self,
        client: Client,
        likelihood: Likelihood,
        start: torch.Tensor,
        observed: torch.Tensor,
        label: torch.Tensor,
    ) -> Posterior:
        """Return what client batches are like, given observations and first reconstructions."""

        def predict(sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return client.predict(likelihood, sample, label)

        mean = self.mean.expand_as(start) if self.prior == "images" else start
        return Posterior(predict, likelihood, self.evidence, self.covariance, mean, observed, label)

    def refine(
        self,
        client: Client,
        start: torch.Tensor,
        observed: torch.Tensor,
        label: torch.Tensor,
        *,
        iterations: int,
        inner: int,
        begin: torch.Tensor | None = None,
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, Maximum]:
        """Refine first reconstructions.

        Args:
            client: whose gradients were received.
            start: ``(n, B, c, h, w)``, in the order of the labels.
            observed: ``(n, p)``.
            label: int64 ``(n, B)``.
            iterations: the most Gauss-Newton steps.
            inner: the most iterations of conjugate gradients a step.
            begin: ``(n, B, d)`` whitened coordinates of where to begin; None: at ``start``.
            checkpoint: of this work.
            progress: told of every step.

        Returns:
            samples in [0, 1] in the shape of ``start``, which of them were refined, bool
            ``(n,)`` (others are as they were), and how.

        Raises:
            LTIError: the defense has no likelihood.
        """
        likelihood = likelihood_of(
            client.defense, batch_size=client.batch_size, width=self.width * self.off
        )
        if likelihood is None:
            raise LTIError(
                f"defense {client.defense.name} states no likelihood; expected one, to refine "
                f"what is known of its gradients. Give it a method `likelihood`."
            )
        posterior = self.posterior(client, likelihood, start, observed, label)
        if begin is None:
            begin = self.covariance.whiten(start - posterior.mean)
        found = maximise(
            posterior,
            begin,
            iterations=iterations,
            inner=inner,
            checkpoint=checkpoint,
            progress=progress,
        )
        refined = posterior.mean + self.covariance.to_image(found.z)
        length = found.z.flatten(1).square().sum(dim=1)
        kept = (length <= self.farthest) & refined.flatten(1).isfinite().all(dim=1)
        return torch.where(kept[:, None, None, None, None], refined, start).clamp(0, 1), kept, found

    def save(self, path: Path | str, facts: Mapping[str, Any]) -> None:
        """Write it to a safetensors file, atomically, with what it was made for."""
        tensors = {
            "rotation": self.covariance.rotation,
            "std": self.covariance.std,
            "low_rank": self.covariance.low_rank,
            "mean": self.mean,
            "off": self.off,
        }
        numbers = {"width": self.width, "evidence": self.evidence, "farthest": self.farthest}
        write_tensors(path, tensors, {**facts, **numbers, "prior": self.prior})

    @classmethod
    def load(
        cls, path: Path | str, *, device: torch.device | str = "cpu"
    ) -> tuple[Self, dict[str, Any]]:
        """Read what :meth:`save` wrote, and what it was made for.

        Raises:
            LTIError: the file is missing, damaged or no prior.
        """
        tensors, facts = read_tensors(path)
        try:
            part = {name: tensor.to(device) for name, tensor in tensors.items()}
            covariance = Covariance(part["rotation"], part["std"], part["low_rank"])
            numbers = (facts["width"], facts["evidence"], facts["farthest"])
            return cls(facts["prior"], covariance, part["mean"], part["off"], *numbers), facts
        except KeyError as error:
            raise LTIError(
                f"{path}: not a prior of this version ({error} is missing). Delete it and run the "
                f"same command again."
            ) from None
