"""GI-GIP: gradient matching inside a generator, then with the generator's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lti.attacks.base import ATTACKS, Need, Observations
from lti.attacks.images import ImageMatching
from lti.attacks.minimise import Minimum, minimise, tenfold_decay
from lti.attacks.optimise import Problems

if TYPE_CHECKING:
    import torch

    from lti.compute import Compute
    from lti.generators.trained import TrainedGenerator

__all__ = ["GenerativeImagePrior"]

# Of a generator's parameters: the weights, their gradients, Adam's two moments, and as many
# temporary ones.
COPIES_OF_WEIGHTS = 8


@ATTACKS.register("gi-gip", source="Jeon et al. 2021 (GI-GIP); Wu et al. 2023, supplement A")
class GenerativeImagePrior(ImageMatching):
    """Search a trained generator's latents, then fit its weights to the victims.

    Objective: the defense's matching distance + ``tv`` x total variation of what the
    generator makes. First Adam on a latent for each sample, of several restarts the one with
    the lowest objective; then the latents stay fixed and Adam runs on the weights of a
    generator that the samples of a victim batch share. BatchNorm uses its stored statistics.
    """

    needs: ClassVar[tuple[Need, ...]] = ("generator",)

    generator: str = Field(description="A key of `generators`.")
    tv: float = Field(1e-6, ge=0, description="Weight of the total variation.")
    restarts: int = Field(4, ge=1, description="Starts of the latent search, run side by side.")
    iterations_latent: int = Field(1000, ge=1, description="Steps of Adam on the latents.")
    iterations_weights: int = Field(5000, ge=1, description="Steps of Adam on the weights.")
    learning_rate_latent: float = Field(
        0.1, gt=0, description="Of Adam on the latents; x 0.1 at 3/8, 5/8, 7/8."
    )
    learning_rate_weights: float = Field(
        1e-3, gt=0, description="Of Adam on the weights; x 0.1 at 3/8, 5/8, 7/8."
    )

    def load(self, files: Mapping[str, Path], *, compute: Compute) -> TrainedGenerator:
        """Read the generator."""
        from lti.generators.trained import TrainedGenerator

        return TrainedGenerator.load(files["generator"], compute=compute)

    @property
    def iterations_in_all(self) -> int:
        """Steps of both stages."""
        return self.iterations_latent + self.iterations_weights

    @property
    def steps_per_victim(self) -> int:
        """Steps of both stages, every restart counted."""
        return self.restarts * self.iterations_latent + self.iterations_weights

    def floats_per_problem(self, observations: Observations, knowledge: TrainedGenerator) -> int:
        """Return the larger of the two stages' memory (see the base)."""
        matching = super().floats_per_problem(observations, knowledge)
        weights = sum(parameter.numel() for parameter in knowledge.network.parameters())
        return max(self.restarts * matching, matching + COPIES_OF_WEIGHTS * weights)

    def start_shape(
        self, observations: Observations, knowledge: TrainedGenerator
    ) -> tuple[int, ...]:
        """Return ``(restarts, B, latent)``.

        Raises:
            LTIError: the generator makes samples of another shape.
        """
        knowledge.check_shape(observations.sample_shape)
        return (self.restarts, observations.batch_size, knowledge.settings.latent)

    def solve(
        self,
        problems: Problems,
        start: torch.Tensor,
        step: torch.Tensor,
        knowledge: TrainedGenerator,
    ) -> Minimum:
        """Return the generated images of lowest objective (see the base)."""
        import torch

        later = step >= self.iterations_latent
        found = self._search_latents(problems, start, step[~later], knowledge)
        best = found.lowest.unflatten(0, start.shape[:2]).argmin(dim=1)
        row = torch.arange(len(best), device=best.device) * self.restarts + best
        weights = self._fit_weights(
            problems, found.kept[row], step[later] - self.iterations_latent, knowledge
        )
        objective = torch.cat([found.objective[row], weights.objective], dim=1)
        return Minimum(weights.kept, weights.lowest, objective)

    def _search_latents(
        self,
        problems: Problems,
        start: torch.Tensor,
        record: torch.Tensor,
        prior: TrainedGenerator,
    ) -> Minimum:
        """Return latents ``(n restarts, B, latent)``, a victim batch's restarts in a row."""
        repeated = problems.repeat(self.restarts)

        def evaluate(variables: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            (latent,) = variables
            sample = prior.network(latent.flatten(0, 1)).unflatten(0, latent.shape[:2])
            return self.objective(repeated, sample), latent

        return minimise(
            evaluate,
            [start.flatten(0, 1)],
            iterations=self.iterations_latent,
            schedule=tenfold_decay(self.learning_rate_latent, iterations=self.iterations_latent),
            record=record,
            checkpoint=problems.checkpoint("latents"),
            progress=problems.progress,
        )

    def _fit_weights(
        self,
        problems: Problems,
        latent: torch.Tensor,
        record: torch.Tensor,
        prior: TrainedGenerator,
    ) -> Minimum:
        """Return samples ``(n, B, *sample_shape)``, made with weights of each batch's own."""
        weights = dict(prior.network.named_parameters())

        def evaluate(variables: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            sample = prior.network.forward_each(dict(zip(weights, variables, strict=True)), latent)
            return self.objective(problems, sample), sample

        return minimise(
            evaluate,
            [value.detach().expand(len(latent), *value.shape) for value in weights.values()],
            iterations=self.iterations_weights,
            schedule=tenfold_decay(self.learning_rate_weights, iterations=self.iterations_weights),
            record=record,
            checkpoint=problems.checkpoint("weights"),
            progress=problems.progress,
        )
