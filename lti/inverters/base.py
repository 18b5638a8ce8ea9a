"""What every inverter states: how its network is built and how it is trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lti.data.samples import Modality
from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.gradients.layout import ParameterLayout
    from lti.inverters.head import ClassifierHead
    from lti.inverters.network import InverterNetwork
    from lti.inverters.token_inputs import TokenInputs

__all__ = ["INVERTERS", "Inverter", "Task", "TrainingSample"]


@dataclass(frozen=True)
class Task:
    """What goes into a network and what comes out."""

    layout: ParameterLayout
    """Of the gradients, after projection."""
    sample_shape: tuple[int, ...]
    batch_size: int
    classes: int
    vocabulary: int | None = None
    """Number of tokens; None: images."""


@dataclass(frozen=True)
class TrainingSample:
    """The part of the training data that a network's fixed statistics are taken from."""

    blocks: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    """Begins a pass over a sample of client batches: defended gradients, ``(m, p)`` float32
    at a time, and their labels, int64 ``(m, B)``."""
    value: torch.Tensor
    """``(k, *sample_shape)``: images, float32 in [0, 1], or int64 tokens; not of the same
    samples."""
    head: ClassifierHead | None
    """The FL model's last layer, where it ends with a linear one."""
    inputs: Callable[[], TokenInputs | None] = lambda: None
    """Looks for what the FL model's first layers see of tokens."""
    positions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Mean inputs of the positions, ``(T, k)`` by weight: see
    :meth:`lti.projections.Projection.positions`."""


class Inverter(Settings):
    """Base of all inverters (presets): architecture and training settings.

    ``network`` returns a module of two parts with their statistics as buffers: ``encoder``
    maps ``(b, p)`` float32 gradients and their labels to ``(b, k)`` inputs, is fixed, and may
    be applied once and for all where nothing is random; ``decoder``, a
    :class:`lti.inverters.network.Decoder`, maps those to samples and is trained.
    """

    modality: ClassVar[Modality] = "image"
    """What it reconstructs."""

    precision: ClassVar[Literal["float32", "fastest"]] = "fastest"
    """Format of the decoder's matrix products; ``fastest``: bfloat16 where it pays."""

    ordered_by_label: ClassVar[bool] = False
    """Whether output i of a batch is of label i; otherwise any order will do. Labels are then
    needed where B > 1."""

    seed: int = Field(0, description="Root seed of weights, order, noise and dropout.")
    epochs: int = Field(ge=1, description="Passes over the auxiliary set.")
    steps: int | None = Field(
        None, ge=1, description="Steps of the optimizer in place of epochs; null: epochs."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Steps without a lower held-out loss after which training ends; null: none.",
    )
    batch_size: int = Field(256, ge=1, description="Client batches a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    use_mirrored: bool = Field(
        False, description="Also train on mirrored images, one of the two views an epoch."
    )
    holdout: float = Field(
        0.02, gt=0, lt=1, description="Share of the auxiliary set kept for choosing the epoch."
    )

    @abstractmethod
    def statistics(self, task: Task, sample: TrainingSample) -> dict[str, torch.Tensor]:
        """Return the network's buffers, by their names in its ``state_dict``."""

    @abstractmethod
    def network(self, task: Task, statistics: Mapping[str, torch.Tensor]) -> InverterNetwork:
        """Return the network with these statistics and initial weights.

        The weights are drawn from torch's global stream. ``statistics`` may hold more (a
        whole ``state_dict``, when a trained network is read); only the buffers are used.
        """

    @abstractmethod
    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of the decoder's parameters."""

    @abstractmethod
    def learning_rate_factor(self, progress: float) -> float:
        """Return the factor on the peak learning rate after a share of training in [0, 1)."""


INVERTERS: Registry[Inverter] = Registry(
    "inverters",
    modules={
        "paper": "lti.inverters.paper",
        "paper-text": "lti.inverters.paper_text",
        "tuned": "lti.inverters.tuned",
        "tuned-text": "lti.inverters.tuned_text",
    },
)
