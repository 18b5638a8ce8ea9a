"""The LeNet of the paper's vision experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lti.fl_models.base import FL_MODELS, FLModel, FLTask
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["LeNet"]


@FL_MODELS.register("lenet", source="Wu et al. 2023, public code; Zhu et al. 2019 (DLG)")
class LeNet(FLModel):
    """Three 5x5 convolutions with sigmoids and a linear layer, untrained.

    Input ``(b, 3, 32, 32)`` in [0, 1], output ``(b, classes)`` logits. Weights and
    biases are drawn from U(-0.5, 0.5). 15,826 parameters for ten classes.
    """

    def architecture(self, task: FLTask) -> nn.Module:
        """Return the network (see the class)."""
        from torch import nn

        network = nn.Sequential()
        channels = ((3, 12, 2), (12, 12, 2), (12, 12, 1))
        for number, (inputs, outputs, stride) in enumerate(channels, start=1):
            network.add_module(
                f"conv{number}", nn.Conv2d(inputs, outputs, 5, stride=stride, padding=2)
            )
            network.add_module(f"sigmoid{number}", nn.Sigmoid())
        network.add_module("flatten", nn.Flatten())
        network.add_module("linear", nn.Linear(768, task.classes))
        return network

    def initialise(self, network: nn.Module) -> dict[str, Any]:
        """Draw the weights (see the class)."""
        import torch

        generator = torch_generator(self.seed, "fl_model", self.name)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-0.5, 0.5, generator=generator)
        return {}

    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy."""
        from torch.nn import functional

        return functional.cross_entropy(output, label)
