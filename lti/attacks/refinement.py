"""What LTI-MAP knows before it sees a victim, and how it refines reconstructions with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from lti.attacks.gauss_newton import Maximum, Posterior, maximise
from lti.attacks.likelihood import likelihood_of
from lti.attacks.parts import block_bytes
from lti.attacks.prior import Covariance
from lti.errors import LTIError
from lti.files import digest_arrays, digest_json, read_tensors, write_tensors
from lti.fl_models import attacked
from lti.fl_models.soft_rectifiers import SoftRectifiers
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

MEMORY_MIB = 2048.0  # of a block, on the processor
FLOATS_PER_COORDINATE = 50  # temporary ones, of a sample's gradient; measured with LeNet


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
        return max(1, block_bytes(device, MEMORY_MIB) // per_batch)

    def gradients(self, sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return each sample's gradients, ``(n, B, p)``, of samples ``(n, B, ...)``."""
        function = group_gradient_function(self.model, self.network)
        each = function(sample.flatten(0, 1)[:, None], label.flatten(0, 1)[:, None])
        return each.unflatten(0, sample.shape[:2])

    def receive(self, gradient: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what the server gets of gradients ``(n, B, p)``: ``(n, p)``."""
        if not self.defense.averages(self.batch_size):
            return self.defense.defend(gradient.mean(dim=1), generator=generator)
        defended = self.defense.defend_sample(gradient.flatten(0, 1), generator=generator)
        mean = defended.unflatten(0, gradient.shape[:2]).mean(dim=1)
        return self.defense.randomise_mean(mean, generator=generator, averaged=self.batch_size)

    def has_rectifiers(self, sample: torch.Tensor, label: torch.Tensor) -> bool:
        """Say whether samples ``(n, B, ...)`` pass rectifiers that can be softened."""
        with SoftRectifiers(0.0) as mode, torch.no_grad():
            self.gradients(sample, label)
        return mode.met

    def predict(
        self,
        likelihood: Likelihood,
        sample: torch.Tensor,
        label: torch.Tensor,
        *,
        softening: float = 0.0,
    ) -> torch.Tensor:
        """Return what would be received but for noise, ``(n, p)`` or as the likelihood has it.

        Where derivatives are asked for and ``softening`` is above 0, they are those of the gradient
        of a network whose rectifiers are softened by so much
        (:class:`lti.fl_models.soft_rectifiers.SoftRectifiers`); the value is the exact one.
        """
        if not softening or not torch.is_grad_enabled():
            return likelihood.predict(self._given(likelihood, sample, label))
        with torch.no_grad():
            exact = self._given(likelihood, sample, label)
        with SoftRectifiers(softening):
            soft = self._given(likelihood, sample, label)
        return likelihood.predict(soft + (exact - soft).detach())

    def _given(
        self, likelihood: Likelihood, sample: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradients that a likelihood looks at."""
        if not likelihood.of_mean:
            return self.gradients(sample, label)
        return group_gradient_function(self.model, self.network)(sample, label)[:, None]


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
    weight: float
    """Of the log-likelihood."""
    softening: float = 0.0
    """Of rectifiers, where the Jacobian is taken; see :meth:`Client.predict`."""
    farthest: float = float("inf")
    """Length of the coordinates beyond which a result is refused."""

    @property
    def digest(self) -> str:
        """Digest of all of it."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        return digest_json([digest_arrays(arrays), self._numbers()])

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            "rotation": self.covariance.rotation,
            "std": self.covariance.std,
            "low_rank": self.covariance.low_rank,
            "mean": self.mean,
            "off": self.off,
        }

    def _numbers(self) -> dict[str, Any]:
        return {
            "prior": self.prior,
            "width": self.width,
            "weight": self.weight,
            "softening": self.softening,
            "farthest": self.farthest,
        }

    def likelihood(self, client: Client) -> Likelihood:
        """Return the likelihood of what a client sends.

        Raises:
            LTIError: its defense states none.
        """
        found = likelihood_of(
            client.defense, batch_size=client.batch_size, width=self.width * self.off
        )
        if found is None:
            raise LTIError(
                f"defense {client.defense.name} states no likelihood; expected one, to refine "
                f"what is known of its gradients. Give it a method `likelihood`."
            )
        return found

    def refine(
        self,
        client: Client,
        start: torch.Tensor,
        observed: torch.Tensor,
        label: torch.Tensor,
        *,
        ordered: bool,
        iterations: int,
        inner: int,
        begin: torch.Tensor | None = None,
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, Maximum]:
        """Refine first reconstructions.

        Args:
            client: whose gradients were received.
            start: ``(n, B, c, h, w)``.
            observed: ``(n, p)``.
            label: int64 ``(n, B)``.
            ordered: whether sample i of ``start`` has label i; otherwise the order is taken that
                explains the observation best.
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
        likelihood = self.likelihood(client)

        def predict(sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return client.predict(likelihood, sample, label, softening=self.softening)

        if not ordered:

            @torch.no_grad()
            def unlikely(sample: torch.Tensor) -> torch.Tensor:
                return likelihood.terms(predict(sample, label), observed).value

            start = _in_order(start, unlikely)
        mean = self.mean.expand_as(start) if self.prior == "images" else start
        found = maximise(
            Posterior(predict, likelihood, self.weight, self.covariance, mean, observed, label),
            self.covariance.whiten(start - mean) if begin is None else begin,
            iterations=iterations,
            inner=inner,
            checkpoint=checkpoint,
            progress=progress,
        )
        refined = mean + self.covariance.to_image(found.z)
        plausible = found.z.flatten(1).norm(dim=1) <= self.farthest
        kept = plausible & refined.flatten(1).isfinite().all(dim=1)
        return torch.where(kept[:, None, None, None, None], refined, start).clamp(0, 1), kept, found

    def save(self, path: Path | str, facts: Mapping[str, Any]) -> None:
        """Write it to a safetensors file, atomically, with what it was made for."""
        write_tensors(path, self._tensors(), {**facts, **self._numbers()})

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
            numbers = {key: facts[key] for key in ("width", "weight", "softening", "farthest")}
            return cls(facts["prior"], covariance, part["mean"], part["off"], **numbers), facts
        except KeyError as error:
            raise LTIError(
                f"{path}: not a prior of this version ({error} is missing). Delete it and run the "
                f"same command again."
            ) from None


def _in_order(
    start: torch.Tensor, unlikely: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return the samples of each batch in the likeliest order.

    Pairs are exchanged as long as that helps.
    """
    best, lowest = start.clone(), unlikely(start)
    improved = True
    while improved:
        improved = False
        for i, j in combinations(range(start.shape[1]), 2):
            tried = best.clone()
            tried[:, [i, j]] = best[:, [j, i]]
            now = unlikely(tried)
            better = now < lowest
            best[better], lowest[better] = tried[better], now[better]
            improved = improved or bool(better.any())
    return best
