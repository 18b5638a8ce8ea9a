"""The inverter of the paper's vision experiments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from lti.inverters.base import INVERTERS, NetworkInverter, Task, TrainingSample

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.inverters.network import InverterNetwork

__all__ = ["PaperInverter"]


@INVERTERS.register("paper", source="Wu et al. 2023, public code: vision")
class PaperInverter(NetworkInverter):
    """Three linear layers on the raw gradient, ReLU, Adam; all samples of a batch at once.

    The defaults are those for LeNet, B = 1. LeNet, B = 4: ``hidden`` 10000, ``epochs`` 5000.
    ResNet20: no ``sigmoid``, ``decay_at`` 0.5, ``epochs`` 40 (B = 1) or 200 (B = 4). The
    loss is the least over all orderings of a batch. Unlike the public code, the epoch is
    chosen on held-out auxiliary data, not on the victims.
    """

    precision = "float32"
    shared = True

    epochs: int = Field(200, ge=1, description="Passes over the auxiliary set.")
    learning_rate: float = Field(1e-4, gt=0, description="Of Adam.")
    hidden: int = Field(3000, ge=1, description="Width of the two hidden layers.")

    sigmoid: bool = Field(True, description="Whether the output goes through a sigmoid.")
    decay_at: float = Field(
        0.75, gt=0, le=1, description="Share of the epochs after which the rate is a tenth."
    )

    def statistics(self, task: Task, sample: TrainingSample) -> dict[str, torch.Tensor]:
        """Return nothing: the gradient goes in as it is."""
        return {}

    def network(self, task: Task, statistics: Mapping[str, torch.Tensor]) -> InverterNetwork:
        """Return the network (see :class:`lti.inverters.Inverter`)."""
        from torch import nn

        from lti.inverters.network import ImageLayers, InverterNetwork, RawGradient

        shape = (task.batch_size, *task.sample_shape)
        decoder = ImageLayers(
            nn.Linear(task.layout.total, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, math.prod(shape)),
            nn.Sigmoid() if self.sigmoid else nn.Identity(),
            nn.Unflatten(1, shape),
        )
        return InverterNetwork(RawGradient(), decoder)

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        import torch

        return torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        """Return 1, then 0.1 from ``decay_at`` on."""
        return 1.0 if progress < self.decay_at else 0.1
