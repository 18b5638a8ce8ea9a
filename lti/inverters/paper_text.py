"""The inverter of the paper's language experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lti.data.samples import Modality
from lti.errors import LTIError
from lti.inverters.base import INVERTERS, NetworkInverter, Task, TrainingSample

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.inverters.network import InverterNetwork

__all__ = ["PaperTextInverter"]


@INVERTERS.register("paper-text", source="Wu et al. 2023, public code: language")
class PaperTextInverter(NetworkInverter):
    """Three linear layers on the hashed gradient, ReLU, Adam; the last one shared by positions.

    The loss is the mean cross-entropy of the tokens, the least over all orderings of a batch.
    The paper hashes CoLA's gradients to 1 % and WikiText's to 10 %. Its learning rates: 1e-3
    without a defense and with pruning, 1e-5 for signs, 1e-4 for noise. Its batches: 16 for
    CoLA, 64 for WikiText. Unlike the public code, the epoch is chosen on held-out auxiliary
    data, not on the victims.
    """

    modality: ClassVar[Modality] = "text"
    precision = "float32"

    epochs: int = Field(100, ge=1, description="Passes over the auxiliary set.")
    batch_size: int = Field(16, ge=1, description="Client batches a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of Adam.")
    hidden: int = Field(600, ge=1, description="Width of the first layer.")
    position_width: int = Field(1000, ge=1, description="Width of a position's state.")
    decay_at: float = Field(
        0.5, gt=0, le=1, description="Share of the epochs after which the rate is a tenth."
    )

    def statistics(self, task: Task, sample: TrainingSample) -> dict[str, torch.Tensor]:
        """Return nothing: the gradient goes in as it is."""
        return {}

    def network(self, task: Task, statistics: Mapping[str, torch.Tensor]) -> InverterNetwork:
        """Return the network (see :class:`lti.inverters.Inverter`).

        Raises:
            LTIError: samples that are no tokens.
        """
        from torch import nn

        from lti.inverters.network import InverterNetwork, RawGradient
        from lti.inverters.text_decoder import TokenLayers

        if task.vocabulary is None:
            raise LTIError(
                f"inverter {self.name} got samples of shape {task.sample_shape}; expected tokens. "
                f"Use an inverter for images."
            )
        batch, (length,) = task.batch_size, task.sample_shape
        layers = nn.Sequential(
            nn.Linear(task.layout.total, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, batch * length * self.position_width),
            nn.ReLU(),
        )
        decoder = TokenLayers((batch, length, task.vocabulary), layers, width=self.position_width)
        return InverterNetwork(RawGradient(), decoder)

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        import torch

        return torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        """Return 1, then 0.1 from ``decay_at`` on."""
        return 1.0 if progress < self.decay_at else 0.1
