"""IG: Inverting Gradients, by gradient matching with a total-variation prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.attacks.base import ATTACKS, Observations
from lti.attacks.images import ImageMatching
from lti.attacks.minimise import Minimum, minimise, tenfold_decay
from lti.attacks.optimise import Problems

if TYPE_CHECKING:
    import torch

__all__ = ["InvertingGradients"]


@ATTACKS.register("ig", source="Geiping et al. 2020; Wu et al. 2023, supplement A")
class InvertingGradients(ImageMatching):
    """Adam on the sign of the objective's gradient, from noise, inside the box [0, 1].

    Objective: the defense's matching distance + ``tv`` x total variation.
    """

    iterations: int = Field(24_000, ge=2, description="Steps of Adam.")
    learning_rate: float = Field(0.1, gt=0, description="Of Adam; x 0.1 at 3/8, 5/8, 7/8.")

    @property
    def iterations_in_all(self) -> int:
        """Steps of Adam."""
        return self.iterations

    def start_shape(self, observations: Observations, knowledge: Any) -> tuple[int, ...]:
        """Return ``(B, *sample_shape)``."""
        return (observations.batch_size, *observations.sample_shape)

    def solve(
        self, problems: Problems, start: torch.Tensor, step: torch.Tensor, knowledge: Any
    ) -> Minimum:
        """Return the images of lowest objective (see the base)."""

        def evaluate(variables: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            (image,) = variables
            return self.objective(problems, image), image

        return minimise(
            evaluate,
            [start],
            iterations=self.iterations,
            schedule=tenfold_decay(self.learning_rate, iterations=self.iterations),
            record=step,
            checkpoint=problems.checkpoint("images"),
            progress=problems.progress,
            boxed=True,
        )
