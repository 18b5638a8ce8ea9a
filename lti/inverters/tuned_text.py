"""This project's inverter of text: which tokens fit what the first layers' gradients span."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lti.data.samples import Modality
from lti.errors import LTIError
from lti.inverters.base import INVERTERS, NetworkInverter, Task, TrainingSample

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.inverters.network import InverterNetwork

__all__ = ["TunedTextInverter"]


@INVERTERS.register("tuned-text", source="this project; docs/inverters.md")
class TunedTextInverter(NetworkInverter):
    """Tokens that fit the span of the first layers' gradients, and a residual network.

    Where the projection is ``layer-inputs``, the network is given each position's parts too.

    Inputs: :mod:`lti.inverters.span_encoder`; outputs: :mod:`lti.inverters.span_decoder`. The
    projection must keep the weights of a layer that sees single tokens (``identity``, or
    ``select`` with them). AdamW without weight decay, linear warm-up over 5 % of the steps,
    then a cosine to zero. The loss is the least over all orderings of a batch; labels are not
    used.
    """

    modality: ClassVar[Modality] = "text"

    epochs: int = Field(10, ge=1, description="Passes over the auxiliary set.")
    batch_size: int = Field(64, ge=1, description="Client batches a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    hidden: int = Field(1024, ge=1, description="Width of the residual network.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of hidden units dropped.")
    whitening: float = Field(0.0, ge=0, le=1, description="Power of the features' whitening.")
    features: Literal["all", "others"] = Field(
        "all",
        description=(
            "Of which weights the network sees every coordinate: all that the projection keeps and "
            "no parts are of, or others than those of the layers that see single tokens, which are "
            "many in large models."
        ),
    )
    spare: int = Field(
        8, ge=0, description="Directions of the span beyond one for each token of a batch."
    )
    certainty: float = Field(
        60.0, gt=0, description="Factor of the fit to the span, at the start of training."
    )
    others: int = Field(2048, ge=0, description="Random tokens in a step's loss.")
    warm_up: float = Field(0.05, ge=0, lt=1, description="Share of the steps.")

    def statistics(self, task: Task, sample: TrainingSample) -> dict[str, torch.Tensor]:
        """Return the features' statistics, and what the FL model's first layers see.

        Raises:
            LTIError: samples that are no tokens, or an FL model or a projection without such
                layers.
        """
        import torch

        from lti.inverters.encoder import encoder_statistics
        from lti.inverters.position_parts import part_statistics
        from lti.inverters.span_encoder import OtherParameters, span_places

        vocabulary = task.vocabulary
        if vocabulary is None:
            raise LTIError(
                f"inverter {self.name} got samples of shape {task.sample_shape}; expected tokens. "
                f"Use an inverter for images."
            )
        inputs = sample.inputs()
        if inputs is None:
            raise LTIError(
                f"inverter {self.name} found no linear layer of the FL model that sees single "
                f"tokens; expected one behind the embedding. Use inverter paper-text."
            )
        kept = task.layout.slices
        seen = [name for name in inputs.weights if name in kept and name not in sample.positions]
        places = span_places(task.layout, seen or inputs.weights)

        def gradients() -> Iterator[torch.Tensor]:
            return (gradient for gradient, _ in sample.blocks())

        parts: dict[str, torch.Tensor] = {}
        if sample.positions:
            parts = part_statistics(task.layout, sample.positions, gradients)
        without = [*sample.positions, *(seen if self.features == "others" else ())]
        others = OtherParameters(task.layout, {task.layout.slices[name].start for name in without})
        features = encoder_statistics(
            others.layout,
            lambda: (others.of(gradient) for gradient in gradients()),
            power=self.whitening,
            divide_by="parameter",
        )
        # Unseen tokens too have a share.
        count = torch.bincount(sample.value.flatten().cpu(), minlength=vocabulary) + 0.1
        return {
            **{f"encoder.features.{name}": value for name, value in features.items()},
            **{f"encoder.parts.{name}": value for name, value in parts.items()},
            "encoder.places": places,
            **{f"decoder.{name}": value for name, value in inputs.tensors().items()},
            "decoder.frequency": count / count.sum(),
        }

    def network(self, task: Task, statistics: Mapping[str, torch.Tensor]) -> InverterNetwork:
        """Return the network (see :class:`lti.inverters.Inverter`)."""
        from lti.fl_models.token_inputs import TokenInputs
        from lti.inverters.network import InverterNetwork
        from lti.inverters.span_decoder import SpanDecoder
        from lti.inverters.span_encoder import SpanEncoder

        assert task.vocabulary is not None  # else there are no statistics

        def under(prefix: str) -> dict[str, torch.Tensor]:
            found = (key for key in statistics if key.startswith(prefix))
            return {key.removeprefix(prefix): statistics[key] for key in found}

        token = statistics["decoder.token"]
        batch, (length,) = task.batch_size, task.sample_shape
        encoder = SpanEncoder(
            task.layout,
            statistics["encoder.places"],
            inputs=token.shape[1],
            rank=batch * length + self.spare,
            statistics=under("encoder.features."),
            span_features=self.features == "all",
            parts=under("encoder.parts."),
        )
        decoder = SpanDecoder(
            (batch, length, task.vocabulary),
            widths=encoder.widths,
            inputs=TokenInputs.from_tensors(statistics, prefix="decoder."),
            frequency=statistics.get("decoder.frequency"),
            hidden=self.hidden,
            dropout=self.dropout,
            others=self.others,
            certainty=self.certainty,
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
