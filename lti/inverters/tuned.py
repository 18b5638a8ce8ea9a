"""This project's inverter: factored inputs, a residual network, principal components."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lti.inverters.base import INVERTERS, NetworkInverter, Task, TrainingSample

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.inverters.network import InverterNetwork

__all__ = ["TunedInverter"]


@INVERTERS.register("tuned", source="this project; docs/inverters.md")
class TunedInverter(NetworkInverter):
    """A residual network from encoded gradients to principal components of the images.

    Inputs: :mod:`lti.inverters.encoder` or, where B > 1, :mod:`lti.inverters.batch_encoder`,
    which takes the labels as given; one decoder serves all samples of a batch. AdamW
    without weight decay, linear warm-up over 5 % of the steps, then a cosine to zero.
    Trained on mirrored images too.
    """

    ordered_by_label = True
    shared = True

    epochs: int = Field(14, ge=1, description="Passes over the auxiliary set.")
    batch_size: int = Field(128, ge=1, description="Client batches a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    use_mirrored: bool = Field(True, description="Train on mirrored images too.")
    hidden: int = Field(2048, ge=1, description="Width of the residual network.")
    components: int = Field(768, ge=1, description="Principal components of the images.")
    channels: int = Field(
        0,
        ge=0,
        multiple_of=8,
        description="Of a convolutional network that corrects the images; 0: none.",
    )
    whitening: float = Field(0.5, ge=0, le=1, description="Power of the inputs' whitening.")
    divide_by: Literal["head", "parameter"] = Field(
        "head",
        description=(
            "Where B = 1: what takes the loss's magnitude out of the parameters of no linear "
            "layer, the last layer's factor or the parameter's own root mean square."
        ),
    )
    ridge: float = Field(
        1e-4, gt=0, description="Where B > 1: of the least squares that tell samples apart."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of hidden units dropped.")
    warm_up: float = Field(0.05, ge=0, lt=1, description="Share of the steps.")

    def statistics(self, task: Task, sample: TrainingSample) -> dict[str, torch.Tensor]:
        """Return the encoder's statistics, and mean and components of the images."""
        from lti.inverters.batch_encoder import batch_encoder_statistics
        from lti.inverters.decoder import image_components
        from lti.inverters.encoder import encoder_statistics

        if task.batch_size == 1:
            encoder = encoder_statistics(
                task.layout,
                lambda: (gradient for gradient, _ in sample.blocks()),
                power=self.whitening,
                divide_by=self.divide_by,
            )
        else:
            encoder = batch_encoder_statistics(
                task.layout,
                sample.blocks,
                head=sample.head,
                power=self.whitening,
                ridge=self.ridge,
            )
        mean, components = image_components(sample.value, self.components)
        return {
            **{f"encoder.{name}": value for name, value in encoder.items()},
            "decoder.mean": mean,
            "decoder.components": components,
        }

    def network(self, task: Task, statistics: Mapping[str, torch.Tensor]) -> InverterNetwork:
        """Return the network (see :class:`lti.inverters.Inverter`)."""
        from lti.inverters.batch_encoder import BatchEncoder
        from lti.inverters.decoder import ResidualDecoder
        from lti.inverters.encoder import GradientEncoder
        from lti.inverters.network import InverterNetwork

        prefix = "encoder."
        buffers = {k.removeprefix(prefix): v for k, v in statistics.items() if k.startswith(prefix)}
        encoder: GradientEncoder | BatchEncoder
        if task.batch_size == 1:
            encoder = GradientEncoder(task.layout, buffers, divide_by=self.divide_by)
        else:
            encoder = BatchEncoder(
                task.layout,
                batch_size=task.batch_size,
                classes=task.classes,
                ridge=self.ridge,
                statistics=buffers,
            )
        decoder = ResidualDecoder(
            encoder.shared_width,
            encoder.own_width,
            batch_size=task.batch_size,
            sample_shape=task.sample_shape,
            hidden=self.hidden,
            dropout=self.dropout,
            mean=statistics["decoder.mean"],
            components=statistics["decoder.components"],
            channels=self.channels,
        )
        return InverterNetwork(encoder, decoder)

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return AdamW without weight decay."""
        import torch

        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    def learning_rate_factor(self, progress: float) -> float:
        """Return the warm-up and the cosine."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return cosine * (min(1.0, progress / self.warm_up) if self.warm_up else 1.0)
