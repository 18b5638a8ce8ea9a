"""What every defense states.

A defense is split in two: a deterministic part, whose result the gradient store keeps,
and a random part, which is drawn afresh whenever a training batch is made and once for
the victim. Hashing is linear and lies between the two, so the random part is told how
many coordinates each entry sums up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lti.gradients.encoding import Encoding
from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import torch

    from lti.attacks.likelihood import Likelihood
    from lti.gradients.layout import ParameterLayout

__all__ = ["DEFENSES", "Defense", "Matching"]

Matching = Literal["cosine", "sign", "nonzero-cosine"]
"""See :mod:`lti.attacks.matching`."""


class Defense(Settings):
    """Base of all defenses. The defaults are those of the undefended gradient."""

    encoding: ClassVar[Encoding] = "scaled-float16"
    """How the store keeps the deterministic part."""
    compress: ClassVar[bool] = False
    """Whether a lossless codec pays on the deterministic part."""
    entrywise: ClassVar[bool] = False
    """Whether the deterministic part treats every entry alone. It is then applied parameter by
    parameter, and large gradients need not be joined."""
    matching: ClassVar[Matching] = "cosine"
    """The distance by which gradient matching compares with what was received."""

    defense_at: Literal["sample", "batch"] = Field(
        "sample",
        description=(
            "Where B > 1: `sample` defends each sample's gradient and averages the batch, as the "
            "paper does; `batch` defends the batch's mean gradient."
        ),
    )

    @property
    def is_deterministic_identity(self) -> bool:
        """Whether the deterministic part changes nothing: one store then serves all such."""
        return type(self).deterministic is Defense.deterministic

    @property
    def is_random(self) -> bool:
        """Whether there is a random part."""
        return type(self).randomise is not Defense.randomise

    def waits_for_mean(self, batch_size: int) -> bool:
        """Return whether the deterministic part applies to the mean of a batch alone."""
        at_mean = self.defense_at == "batch" and batch_size > 1
        return at_mean and not self.is_deterministic_identity

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
        if self.is_deterministic_identity:
            return parts
        if self.entrywise:
            return {name: self.deterministic(part.flatten(1)) for name, part in parts.items()}
        return layout.split(self.deterministic(layout.join(parts)))

    def randomise(
        self,
        gradient: torch.Tensor,
        *,
        generator: torch.Generator,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply the random part; may write into ``gradient``.

        Args:
            gradient: ``(b, k)`` float32, the deterministic part, perhaps hashed.
            generator: where the draw comes from, on the gradient's device.
            counts: ``(k,)``, how many coordinates each entry sums up; None: one each.

        Returns:
            ``(b, k)`` float32.
        """
        return gradient

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
        return batch_size > 1 and self.defense_at == "sample"

    def defend(self, gradient: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        """Apply the whole defense to ``(b, p)`` gradients, as a client does."""
        return self.randomise(self.deterministic(gradient), generator=generator)


DEFENSES: Registry[Defense] = Registry(
    "defenses",
    modules={
        "gauss": "lti.defenses.gauss",
        "none": "lti.defenses.none",
        "prune": "lti.defenses.prune",
        "sign": "lti.defenses.sign",
    },
)
