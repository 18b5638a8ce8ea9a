"""The inverter of the paper's LeNet experiments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from lti.inverters.base import INVERTERS, Inverter, TrainingSample

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.gradients.layout import ParameterLayout
    from lti.inverters.network import InverterNetwork

__all__ = ["PaperInverter"]


@INVERTERS.register("paper", source="Wu et al. 2023, public code: LeNet, B = 1")
class PaperInverter(Inverter):
    """Three linear layers on the raw gradient, ReLU, sigmoid output, Adam.

    The learning rate falls to a tenth after three quarters of the epochs. Unlike the
    public code, the epoch is chosen on held-out auxiliary data, not on the victims.
    """

    precision = "float32"

    epochs: int = Field(200, ge=1, description="Passes over the auxiliary set.")
    learning_rate: float = Field(1e-4, gt=0, description="Of Adam.")
    hidden: int = Field(3000, ge=1, description="Width of the two hidden layers.")

    def statistics(
        self, layout: ParameterLayout, sample: TrainingSample
    ) -> dict[str, torch.Tensor]:
        """Return nothing: the gradient goes in as it is."""
        return {}

    def network(
        self,
        layout: ParameterLayout,
        sample_shape: Sequence[int],
        statistics: Mapping[str, torch.Tensor],
    ) -> InverterNetwork:
        """Return the network (see :class:`lti.inverters.Inverter`)."""
        from torch import nn

        from lti.inverters.network import InverterNetwork

        shape = tuple(sample_shape)
        decoder = nn.Sequential(
            nn.Linear(layout.total, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, math.prod(shape)),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )
        return InverterNetwork(nn.Identity(), decoder)

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        import torch

        return torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        """Return 1, then 0.1 from three quarters on."""
        return 1.0 if progress < 0.75 else 0.1
