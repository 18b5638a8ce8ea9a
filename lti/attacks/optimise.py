"""What optimisation attacks share: victims in parts, the objective, the checkpoints.

A problem is one victim batch. All problems of a part run at once, as rows of the same
tensors, and no row sees another.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.attacks.base import Attack, Observations, Reconstruction
from lti.attacks.matching import MatchingObjective, matching_objective
from lti.attacks.minimise import Minimum, evenly_spaced
from lti.checkpoint import Checkpoint
from lti.compute import memory_budget
from lti.errors import LTIError
from lti.files import digest_arrays
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.compute import Compute
    from lti.progress import Progress

__all__ = ["OptimisationAttack", "Problems", "total_variation"]

MEMORY_MIB = 1024.0  # on the processor; on a GPU half of what is free
# Measured: temporary floats per coordinate of a sample's gradient, 14 with LeNet and 20 with
# ResNet20, activations included.
FLOATS_PER_COORDINATE = 24


@dataclass(frozen=True)
class Problems:
    """Victim batches that are attacked at once: n of them, of B samples."""

    observed: torch.Tensor
    """``(n, p)``."""
    label: torch.Tensor
    """int64 ``(n, B)``."""
    distance: MatchingObjective
    tv: float
    checkpoint: Callable[[str], Checkpoint]
    """The checkpoint of a stage."""
    progress: Progress

    def repeat(self, times: int) -> Problems:
        """Return each problem ``times`` times in a row."""
        return replace(
            self,
            observed=self.observed.repeat_interleave(times, dim=0),
            label=self.label.repeat_interleave(times, dim=0),
        )

    def objective(self, sample: torch.Tensor) -> torch.Tensor:
        """Return distance + ``tv`` x mean total variation of ``(n, B, c, h, w)``: ``(n,)``."""
        smooth = total_variation(sample.flatten(0, 1)).unflatten(0, sample.shape[:2]).mean(dim=1)
        return self.distance(sample, self.label, self.observed) + self.tv * smooth


class OptimisationAttack(Attack):
    """Base of the attacks that match gradients, label by label: labels are given."""

    tv: float = Field(1e-4, ge=0, description="Weight of the total variation.")

    def reconstruct(
        self,
        observations: Observations,
        *,
        compute: Compute,
        seed: int,
        progress: Progress,
        checkpoints: Path,
        knowledge: Any = None,
    ) -> Reconstruction:
        """Return the iterates of lowest objective (see :class:`lti.attacks.Attack`).

        Raises:
            LTIError: labels unknown, projected observations, or an objective that never was a
                finite number.
        """
        import torch

        target = observations.target
        if target is None:
            raise LTIError(
                f"attack {self.name} got unknown labels; expected known ones: it matches the "
                f"gradient of the loss at the labels. Use another attack."
            )
        if observations.projection.name != "identity":
            raise LTIError(
                f"attack {self.name} got observations under {observations.projection.canonical()}; "
                f"expected whole gradients. Give the observations of an identity projection."
            )
        count, batch_size = len(observations.gradient), observations.batch_size
        coordinates = batch_size * observations.gradient.shape[1]
        per_problem = self.floats_per_problem(FLOATS_PER_COORDINATE * coordinates, knowledge)
        at_once = max(1, memory_budget(compute.device, MEMORY_MIB) // (4 * per_problem))
        progress.start(total=self.steps_per_victim * count, unit="victim-steps")
        shape = self.start_shape(batch_size, observations.sample_shape, knowledge)
        start = torch.randn((count, *shape), generator=torch_generator(seed, self.name, "start"))
        distance = matching_objective(
            observations.model,
            observations.network,
            defense=observations.defense,
            batch_size=batch_size,
        )
        step = evenly_spaced(self.iterations_in_all)
        parts = []
        for first in range(0, count, at_once):
            rows = slice(first, min(first + at_once, count))
            observed, label = observations.gradient[rows], target[rows]
            settings = {
                **self.canonical(),
                "seed": seed,
                "observed": digest_arrays({"gradient": observed.numpy(), "label": label.numpy()}),
                "knowledge": getattr(knowledge, "digest", None),  # a generator has one
            }

            def checkpoint(
                stage: str, rows: slice = rows, settings: dict[str, Any] = settings
            ) -> Checkpoint:
                return Checkpoint(
                    checkpoints / f"victims-{rows.start}-{rows.stop}-{stage}.safetensors",
                    {**settings, "stage": stage},
                )

            problems = Problems(
                observed.to(compute.device),
                label.to(compute.device),
                distance,
                self.tv,
                checkpoint,
                progress,
            )
            parts.append(self.solve(problems, start[rows].to(compute.device), step, knowledge))
        if failed := sum(int((~torch.isfinite(part.lowest)).sum()) for part in parts):
            raise LTIError(
                f"the objective of {failed} victim batches was never a finite number. Lower the "
                f"learning rate of {self.name}."
            )
        return Reconstruction(
            torch.cat([part.kept for part in parts]).cpu(),
            torch.cat([part.objective for part in parts]).cpu(),
            step,
        )

    @property
    @abstractmethod
    def iterations_in_all(self) -> int:
        """Steps of all stages: what the objective is recorded over."""

    @property
    def steps_per_victim(self) -> int:
        """Steps that are spent on one victim batch, restarts included."""
        return self.iterations_in_all

    def floats_per_problem(self, matching: int, knowledge: Any) -> int:
        """Return the float32 numbers that a problem takes, given what matching takes."""
        return matching

    @abstractmethod
    def start_shape(
        self, batch_size: int, sample_shape: tuple[int, ...], knowledge: Any
    ) -> tuple[int, ...]:
        """Return the shape of a problem's starting point, which is drawn from N(0, 1)."""

    @abstractmethod
    def solve(
        self, problems: Problems, start: torch.Tensor, step: torch.Tensor, knowledge: Any
    ) -> Minimum:
        """Return samples ``(n, B, *sample_shape)`` in [0, 1] of lowest objective.

        Args:
            problems: what to match.
            start: ``(n, *start_shape)``.
            step: the steps of all ``iterations_in_all`` at which to record the objective.
            knowledge: what ``load`` returned.
        """


def total_variation(image: torch.Tensor) -> torch.Tensor:
    """Return the anisotropic total variation of ``(b, c, h, w)`` images, ``(b,)``.

    The mean absolute difference of vertical neighbours plus that of horizontal ones
    (Geiping et al. 2020, public code), summed so that images are independent.
    """
    down = (image[:, :, 1:, :] - image[:, :, :-1, :]).abs().mean(dim=(1, 2, 3))
    right = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().mean(dim=(1, 2, 3))
    return down + right
