"""The ResNet20 of the paper's vision experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lti.fl_models.base import FL_MODELS, FLModel, FLTask
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ResNet20"]


@FL_MODELS.register(
    "resnet20", source="Wu et al. 2023, public code; He et al. 2016, section 4.2, shortcuts A"
)
class ResNet20(FLModel):
    """The ResNet of He et al. for CIFAR-10 with 20 layers, untrained.

    Input ``(b, 3, 32, 32)`` in [0, 1], output ``(b, classes)`` logits. Shortcuts have no
    parameters, convolutions no bias. All parameters, BatchNorm's weights and biases included,
    are drawn from U(-0.5, 0.5); BatchNorm stays at a running mean of 0 and a variance of 1.
    269,722 parameters for ten classes.
    """

    def architecture(self, task: FLTask) -> nn.Module:
        """Return the network (see the class)."""
        from lti.fl_models.residual import residual_network

        return residual_network(task.classes, blocks=3)

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
