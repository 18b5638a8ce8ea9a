"""The auxiliary sets of an experiment, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lti.config import Experiment

__all__ = ["AuxiliarySet", "auxiliary_sets", "population_id"]


@dataclass(frozen=True)
class AuxiliarySet:
    """One auxiliary set."""

    dataset: str
    size: int
    seed: int
    shift: str | None
    beta: float
    mirrored: bool
    of: int
    """Size of the set that it is the beginning of, and whose gradient store it reads."""

    @property
    def identifier(self) -> str:
        """As it stands in paths."""
        name = f"{population_id(self.dataset, self.shift)}-n{self.size}-s{self.seed}"
        return name if self.shift is None else f"{name}-b{self.beta:.6g}"


def auxiliary_sets(experiment: Experiment, *, mirrored: bool) -> list[AuxiliarySet]:
    """Return an experiment's auxiliary sets, in the order of its variations.

    Sets of one seed and beta are beginnings of the largest.

    Args:
        experiment: its settings.
        mirrored: whether mirrored images' gradients are stored too.
    """
    base = experiment.auxiliary
    points = [
        (size, beta, seed)
        for variation in experiment.variations
        for size in variation.size or [base.size]
        for beta in variation.beta or [base.beta]
        for seed in variation.seed or [base.seed]
    ] or [(base.size, base.beta, base.seed)]
    largest: dict[tuple[float, int], int] = {}
    for size, beta, seed in points:
        largest[beta, seed] = max(size, largest.get((beta, seed), 0))
    return [
        AuxiliarySet(
            dataset=experiment.dataset,
            size=size,
            seed=seed,
            shift=base.shift,
            beta=beta,
            mirrored=mirrored,
            of=largest[beta, seed],
        )
        for size, beta, seed in points
    ]


def population_id(dataset: str, shift: str | None) -> str:
    """Return the identifier of what samples are drawn from."""
    return dataset if shift is None else f"{dataset}-{shift}"
