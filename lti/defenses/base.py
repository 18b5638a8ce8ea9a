"""What every defense states.

The projection lies between two parts of a defense. Before it comes what is not linear: the
deterministic part and, where a defense has one, the stochastic part. The gradient store keeps
their result, so stochastic draws are frozen there, from a seed for each row. After it comes
additive noise, drawn afresh whenever a training batch is made and once for the victim: hashing
is linear, so noise is told how many coordinates each entry sums up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lti.gradients.encoding import Encoding
from lti.registry import Registry, Settings, described

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.attacks.likelihood import Likelihood
    from lti.fl_models import FLModel
    from lti.gradients.layout import ParameterLayout
    from lti.gradients.per_sample import PartsFunction

__all__ = ["DEFENSES", "Defense", "Matching", "standard_normal", "standard_uniform"]

Matching = Literal["cosine", "sign", "nonzero-cosine"]
"""See :mod:`lti.attacks.matching`."""


class Defense(Settings):
    """Base of all defenses. The defaults are those of the undefended gradient."""

    encoding: ClassVar[Encoding] = "scaled-float16"
    """How the store keeps what comes before the projection."""
    compress: ClassVar[bool] = False
    """Whether a lossless codec pays on that."""
    entrywise: ClassVar[bool] = False
    """Whether the deterministic part treats every entry alone. It is then applied parameter by
    parameter, and large gradients need not be joined."""
    matching: ClassVar[Matching] = "cosine"
    """The distance by which gradient matching compares with what was received."""
    of_batch: ClassVar[bool] = False
    """Whether a batch's update is not the mean of its samples' (:meth:`update_function`)."""

    defense_at: Literal["sample", "batch"] = Field(
        "sample",
        description=(
            "Where B > 1: `sample` defends each sample's gradient and averages the batch, as the "
            "paper does; `batch` defends the batch's mean gradient."
        ),
    )

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.defense_at == "batch" and not self._of_gradient:
            raise described(
                ["defense_at: got 'batch', where no gradient is defended; allowed: 'sample'"]
            )
        return self

    @property
    def _of_gradient(self) -> bool:
        return type(self).update_function is Defense.update_function

    @property
    def is_deterministic_identity(self) -> bool:
        """Whether nothing comes before the projection: one store then serves all such."""
        cls = type(self)
        return (
            cls.deterministic is Defense.deterministic
            and self._of_gradient
            and not self.is_stochastic
        )

    @property
    def is_stochastic(self) -> bool:
        """Whether there is a stochastic part, before the projection."""
        return type(self).stochastic is not Defense.stochastic

    @property
    def is_random(self) -> bool:
        """Whether there is noise, after the projection."""
        cls = type(self)
        return (
            cls.randomise is not Defense.randomise
            or cls.randomise_mean is not Defense.randomise_mean
        )

    def waits_for_mean(self, batch_size: int) -> bool:
        """Return whether what comes before the projection applies to a batch's mean alone."""
        at_mean = self.defense_at == "batch" and batch_size > 1
        return at_mean and not self.is_deterministic_identity

    def update_function(self, model: FLModel, network: nn.Module) -> PartsFunction | None:
        """Return how a client's update is computed; None: it is the gradient of its loss.

        For what needs the network and the samples, and not the gradient alone. It maps samples
        ``(n, m, ...)`` and labels ``(n, m)`` to the updates of n clients with m samples each:
        every attacked parameter's, ``(n, *shape)`` float32, by name.
        """
        return None

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        """Apply the deterministic part.

        Args:
            gradient: ``(b, p)`` float32, one whole flattened gradient a row.

        Returns:
            ``(b, p)`` float32.
        """
        return gradient

    def deterministic_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> Mapping[str, torch.Tensor]:
        """Apply the deterministic part to gradients that are not joined to rows.

        Args:
            parts: each parameter's, ``(b, *shape)`` float32, by name.
            layout: of the parameters.

        Returns:
            each parameter's, ``(b, *shape)`` or ``(b, size)`` float32.
        """
        if type(self).deterministic is Defense.deterministic:
            return parts
        if self.entrywise:
            return {name: self.deterministic(part.flatten(1)) for name, part in parts.items()}
        return layout.split(self.deterministic(layout.join(parts)))

    def stochastic(self, gradient: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
        """Apply the stochastic part: chance that does not commute with a projection.

        Args:
            gradient: ``(b, p)`` float32, after the deterministic part.
            seeds: ``b``, each deciding all draws of its row whatever the other rows are.

        Returns:
            ``(b, p)`` float32.
        """
        return gradient

    def before_projection(
        self, gradient: torch.Tensor, *, seeds: Sequence[int] | torch.Generator
    ) -> torch.Tensor:
        """Apply the deterministic and the stochastic part.

        Args:
            gradient: ``(b, p)`` float32.
            seeds: one a row, or where they are drawn from.

        Returns:
            ``(b, p)`` float32.
        """
        gradient = self.deterministic(gradient)
        if not self.is_stochastic:
            return gradient
        if not isinstance(seeds, Sequence):
            seeds = _drawn_seeds(seeds, len(gradient))
        return self.stochastic(gradient, seeds=seeds)

    def randomise(
        self,
        gradient: torch.Tensor,
        *,
        generator: torch.Generator,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add the noise; may write into ``gradient``.

        Args:
            gradient: ``(b, k)`` float32, perhaps hashed.
            generator: where the draw comes from, on the gradient's device.
            counts: ``(k,)``, how many coordinates each entry sums up; None: one each.

        Returns:
            ``(b, k)`` float32.
        """
        return gradient

    def randomise_mean(
        self,
        mean: torch.Tensor,
        *,
        generator: torch.Generator,
        averaged: int,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add the noise that a batch gets once; may write into ``mean``.

        Args:
            mean: ``(b, k)`` float32, means of defended gradients, perhaps hashed.
            generator: where the draw comes from, on the mean's device.
            averaged: how many defended gradients each is the mean of.
            counts: as of :meth:`randomise`.

        Returns:
            ``(b, k)`` float32.
        """
        return mean

    def likelihood(self, *, batch_size: int, width: torch.Tensor) -> Likelihood | None:
        """Return how probable an observation is, given gradients; None: not stated here.

        Those of this project's defenses are in :mod:`lti.attacks.likelihood`, so that gradients do
        not depend on how they are attacked.

        Args:
            batch_size: samples of a client batch.
            width: ``(p,)``, how far a coordinate may be off where the defense itself is exact.
        """
        return None

    def averages(self, batch_size: int) -> bool:
        """Return whether an observation is the mean of several defended gradients."""
        return batch_size > 1 and self.defense_at == "sample" and not self.of_batch

    def defend_sample(self, gradient: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        """Apply all but the noise of the mean to ``(b, p)`` gradients of samples of a batch."""
        defended = self.before_projection(gradient, seeds=generator)
        return self.randomise(defended, generator=generator)

    def defend(self, gradient: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        """Apply the whole defense to ``(b, p)`` gradients, each of a client of its own."""
        defended = self.defend_sample(gradient, generator=generator)
        return self.randomise_mean(defended, generator=generator, averaged=1)


def _drawn_seeds(generator: torch.Generator, count: int) -> list[int]:
    """Return seeds for ``count`` rows."""
    import torch

    most = 2**62
    drawn = torch.randint(most, (count,), generator=generator, device=generator.device)
    return [int(seed) for seed in drawn.tolist()]


def standard_uniform(like: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
    """Return independent draws from [0, 1) in the shape of ``like``, ``(b, p)``, a seed a row.

    They are drawn on the CPU, so that a row gets the same whatever the device.
    """
    import torch

    generator = torch.Generator()
    drawn = torch.empty(like.shape, dtype=like.dtype)
    for row, seed in zip(drawn, seeds, strict=True):
        row.uniform_(generator=generator.manual_seed(seed))
    return drawn.to(like.device)


def standard_normal(
    like: torch.Tensor, *, generator: torch.Generator, counts: torch.Tensor | None
) -> torch.Tensor:
    """Return independent N(0, 1) in the shape of ``like``; a sum of c coordinates gets N(0, c)."""
    import torch

    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    if counts is not None:
        noise *= counts.to(noise).sqrt()
    return noise


DEFENSES: Registry[Defense] = Registry(
    "defenses",
    modules={
        "clip": "lti.defenses.clip",
        "dp-sgd": "lti.defenses.dp_sgd",
        "fedavg": "lti.defenses.fedavg",
        "gauss": "lti.defenses.gauss",
        "none": "lti.defenses.none",
        "prune": "lti.defenses.prune",
        "qsgd": "lti.defenses.qsgd",
        "random-k": "lti.defenses.random_k",
        "sequence": "lti.defenses.sequence",
        "sign": "lti.defenses.sign",
        "soteria": "lti.defenses.soteria",
        "uniform": "lti.defenses.uniform",
    },
    plain="lti.defenses.custom",
)
