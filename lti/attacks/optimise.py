"""What optimisation attacks share: victims in parts, the objective, the checkpoints.

A problem is one victim batch. All problems of a part run at once, as rows of the same
tensors, and no row sees another.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lti.attacks.base import Attack, Observations, Reconstruction
from lti.attacks.matching import COSINE, Distances, MatchingObjective, matching_objective
from lti.attacks.minimise import Minimum, evenly_spaced
from lti.attacks.parts import WHOLE, Part, block_bytes
from lti.checkpoint import Checkpoint
from lti.errors import LTIError
from lti.files import digest_arrays
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.compute import Compute
    from lti.progress import Progress

__all__ = ["OptimisationAttack", "Problems"]

MEMORY_MIB = 1024.0  # of a block, on the processor


@dataclass(frozen=True)
class Problems:
    """Victim batches that are attacked at once: n of them, of B samples."""

    observed: torch.Tensor
    """``(n, p)``."""
    label: torch.Tensor
    """What the loss compares with: int64 ``(n, B)``, or tokens ``(n, B, T)``."""
    distance: MatchingObjective
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

    def matching(self, sample: torch.Tensor) -> torch.Tensor:
        """Return the distances of ``(n, B, ...)``: ``(n,)``."""
        return self.distance(sample, self.label, self.observed)


class OptimisationAttack(Attack):
    """Base of the attacks that match gradients, label by label: labels are given."""

    is_divisible = True

    # Measured: temporary floats per coordinate of a sample's gradient, 14 with LeNet and 20 with
    # ResNet20, activations included.
    floats_per_coordinate: ClassVar[int] = 24

    def reconstruct(
        self,
        observations: Observations,
        *,
        compute: Compute,
        seed: int,
        progress: Progress,
        checkpoints: Path,
        knowledge: Any = None,
        part: Part = WHOLE,
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
        self.check_whole(observations)
        count = len(observations.gradient)
        per_problem = self.floats_per_problem(observations, knowledge)
        at_once = max(1, block_bytes(compute.device, MEMORY_MIB) // (4 * per_problem))
        blocks = part.blocks(count, at_once)
        own = sum(rows.stop - rows.start for rows in blocks)
        progress.start(total=self.steps_per_victim * own, unit="victim-steps")
        shape = self.start_shape(observations, knowledge)
        start = torch.randn((count, *shape), generator=torch_generator(seed, self.name, "start"))
        distance = matching_objective(
            observations.model,
            observations.network,
            defense=observations.defense,
            batch_size=observations.batch_size,
            distances=self.distances(observations),
        )
        step = evenly_spaced(self.iterations_in_all)
        minima = []
        for rows in blocks:
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
                checkpoint,
                progress,
            )
            begin = start[rows].to(compute.device)
            minima.append(self.solve(problems, begin, step, knowledge))
        if failed := sum(int((~torch.isfinite(found.lowest)).sum()) for found in minima):
            raise LTIError(
                f"the objective of {failed} victim batches was never a finite number. Lower the "
                f"learning rate of {self.name}."
            )
        return Reconstruction.joined(
            [
                Reconstruction(
                    self.read_out(found.kept, observations).cpu(), found.objective.cpu(), step
                )
                for found in minima
            ]
        )

    @property
    @abstractmethod
    def iterations_in_all(self) -> int:
        """Steps of all stages: what the objective is recorded over."""

    @property
    def steps_per_victim(self) -> int:
        """Steps that are spent on one victim batch, restarts included."""
        return self.iterations_in_all

    def distances(self, observations: Observations) -> Distances:
        """Return how gradients are compared."""
        return COSINE

    def floats_per_problem(self, observations: Observations, knowledge: Any) -> int:
        """Return the float32 numbers that a problem takes: here, what matching takes."""
        return self.floats_per_coordinate * observations.batch_size * observations.gradient.shape[1]

    def read_out(self, kept: torch.Tensor, observations: Observations) -> torch.Tensor:
        """Return samples ``(n, B, *sample_shape)`` of what was kept, on any device."""
        return kept

    @abstractmethod
    def start_shape(self, observations: Observations, knowledge: Any) -> tuple[int, ...]:
        """Return the shape of a problem's starting point, which is drawn from N(0, 1)."""

    @abstractmethod
    def solve(
        self, problems: Problems, start: torch.Tensor, step: torch.Tensor, knowledge: Any
    ) -> Minimum:
        """Return the samples of lowest objective, ``(n, B, ...)``, before the read-out.

        Args:
            problems: what to match.
            start: ``(n, *start_shape)``.
            step: the steps of all ``iterations_in_all`` at which to record the objective.
            knowledge: what ``load`` returned.
        """
