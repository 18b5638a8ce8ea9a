"""The attacker's data beside their gradients, as inverters are fitted to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from lti.data.samples import as_input
from lti.errors import LTIError
from lti.inverters.base import Task, held_out_size
from lti.projections import Projection
from lti.projections.identity import Identity

if TYPE_CHECKING:
    from lti.defenses import Defense
    from lti.gradients.layout import ParameterLayout
    from lti.gradients.store import GradientStore

__all__ = ["AuxiliaryData", "targets"]


@dataclass(frozen=True)
class AuxiliaryData:
    """The attacker's data with their gradients, ``views`` consecutive rows a sample.

    View 1 of an image is its mirror image.
    """

    store: GradientStore
    value: torch.Tensor
    """Images, uint8 ``(n, c, h, w)``, or tokens, int32 ``(n, length)``."""
    label: torch.Tensor
    """int64 ``(n,)``."""
    classes: int
    views: int
    defense: Defense
    layout: ParameterLayout
    """Of the FL model's gradient, before projection."""
    projection: Projection = field(default_factory=Identity)
    batch_size: int = 1
    """Samples of a client batch."""
    network: nn.Module | None = None
    """The FL model, whose last layer tells samples of one batch apart; None: not known."""
    vocabulary: int | None = None
    """Number of tokens; None: images."""
    stored: int | None = None
    """Samples whose gradients are stored: these and others behind them; None: these."""

    @property
    def task(self) -> Task:
        """What goes into an inverter's network and what comes out."""
        return Task(
            self.projection.layout(self.layout),
            tuple(self.value.shape[1:]),
            self.batch_size,
            self.classes,
            self.vocabulary,
        )

    def split(self, holdout: float) -> tuple[range, range]:
        """Return the samples to learn from, and the last ones, a share that is held out.

        Raises:
            LTIError: too few samples, or a store of other ones.
        """
        samples = len(self.value)
        stored = self.stored or samples
        if self.store.n_rows != stored * self.views:
            raise LTIError(
                f"{self.store.path}: {self.store.n_rows} rows for {stored} samples in {self.views} "
                f"views; expected {stored * self.views}. Delete it and run the same command again."
            )
        held = held_out_size(samples, self.batch_size, holdout)
        if samples - held < self.batch_size:
            raise LTIError(
                f"{samples} auxiliary samples; expected at least {held + self.batch_size}. Use "
                f"more."
            )
        return range(samples - held), range(samples - held, samples)

    def observe(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what a server would receive, projected, of client batches.

        Args:
            rows: ``(m B, k)`` float32 of the store, the samples of a batch one after another.
            generator: of the defense's draws.

        Returns:
            ``(m, k)`` float32.
        """
        defense = self.defense
        counts = self.projection.counts(self.layout) if defense.is_random else None
        if defense.defense_at == "sample":
            rows = defense.randomise(rows, generator=generator, counts=counts)
        mean = rows if self.batch_size == 1 else rows.unflatten(0, (-1, self.batch_size)).mean(1)
        if defense.waits_for_mean(self.batch_size):
            # The store then holds whole undefended gradients.
            mean = defense.before_projection(mean, seeds=generator)
            mean = self.projection.project(mean, layout=self.layout)
        if defense.defense_at == "batch":
            mean = defense.randomise(mean, generator=generator, counts=counts)
        averaged = self.batch_size if defense.averages(self.batch_size) else 1
        return defense.randomise_mean(mean, generator=generator, averaged=averaged, counts=counts)

    def labels(self, index: torch.Tensor) -> torch.Tensor:
        """Return the labels of rows of the store, in the shape of ``index``."""
        return self.label[index.to(self.label.device) // self.views].to(index.device)


def targets(value: torch.Tensor, index: torch.Tensor, views: int) -> torch.Tensor:
    """Return what rows of the store are gradients of: images in [0, 1], or int64 tokens.

    ``index`` is ``(m, B)``, the result ``(m, B, *sample_shape)``.
    """
    flat = index.flatten()
    target = as_input(value.index_select(0, flat // views))
    if views == 1:
        return target.unflatten(0, index.shape)
    mirrored = (flat % views == 1)[:, None, None, None]
    return torch.where(mirrored, target.flip(3), target).unflatten(0, index.shape)
