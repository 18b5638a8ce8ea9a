"""What every inverter states: how its network is built and how it is trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lti.data.samples import Modality
from lti.process_group import ALONE, ProcessGroup
from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.checkpoint import Checkpoint
    from lti.compute import Compute
    from lti.fl_models.token_inputs import TokenInputs
    from lti.gradients.layout import ParameterLayout
    from lti.inverters.auxiliary_data import AuxiliaryData
    from lti.inverters.head import ClassifierHead
    from lti.inverters.network import InverterNetwork
    from lti.inverters.trained import TrainedInverter
    from lti.progress import Progress

__all__ = [
    "INVERTERS",
    "Inverter",
    "NetworkInverter",
    "Task",
    "TrainingSample",
    "held_out_size",
]


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


def held_out_size(samples: int, batch_size: int, share: float) -> int:
    """Return how many of an auxiliary set's samples, its last ones, no inverter learns from."""
    return max(8, batch_size, round(samples * share))


class Inverter(Settings):
    """Base of all inverters (presets): what they are made of, and how they are fitted.

    ``network`` returns a module of two parts: ``encoder`` maps ``(b, p)`` float32 gradients and
    their labels to ``(b, k)`` inputs, and is fixed; ``decoder``, a
    :class:`lti.inverters.network.Decoder`, maps those to samples and is fitted to auxiliary data.
    """

    modality: ClassVar[Modality] = "image"
    """What it reconstructs."""

    precision: ClassVar[Literal["float32", "fastest"]] = "fastest"
    """Format of the decoder's matrix products; ``fastest``: bfloat16 where it pays."""

    ordered_by_label: ClassVar[bool] = False
    """Whether output i of a batch is of label i; otherwise any order will do. Labels are then
    needed where B > 1."""

    single: ClassVar[bool] = False
    """Whether it takes client batches of one sample alone."""

    shared: ClassVar[bool] = False
    """Whether several processes can fit it together, each its part of every batch: the loss of a
    batch is then the mean of its client batches' losses, which do not depend on one another."""

    seed: int = Field(0, description="Root seed of all random draws.")
    use_mirrored: bool = Field(False, description="Also learn from mirrored images.")
    holdout: float = Field(
        0.02, gt=0, lt=1, description="Share of the auxiliary set that is kept for measuring."
    )

    @abstractmethod
    def network(self, task: Task, statistics: Mapping[str, torch.Tensor]) -> InverterNetwork:
        """Return the network with these statistics.

        ``statistics`` may hold more (a whole ``state_dict``, when a fitted network is read); only
        the buffers are used, and their shapes.
        """

    @abstractmethod
    def fit(
        self,
        data: AuxiliaryData,
        *,
        compute: Compute,
        checkpoint: Checkpoint,
        progress: Progress,
        memory_mib: float,
        group: ProcessGroup = ALONE,
    ) -> tuple[TrainedInverter, list[dict[str, Any]]]:
        """Fit the decoder to auxiliary data.

        Args:
            data: the auxiliary set with its stored gradients.
            compute: where to run.
            checkpoint: state for resuming, where there is any.
            progress: told of every step.
            memory_mib: host memory for training rows, of all processes.
            group: the processes that fit it together; more than one where it is ``shared``.

        Returns:
            the inverter, and a record (:data:`lti.inverters.train.HISTORY`) for each epoch.

        Raises:
            LTIError: store and auxiliary set do not fit, or what this inverter says.
        """

    @property
    @abstractmethod
    def length(self) -> str:
        """How long it is fitted, in a few words for captions."""

    def memory_mib(self, samples: int) -> float:
        """Return the memory, in MiB, that fitting to so many samples takes besides their rows."""
        return 4000.0


class NetworkInverter(Inverter):
    """Base of inverters that are trained step by step.

    Statistics are the network's buffers. The encoder may be applied once and for all where
    nothing is random.
    """

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
        """Return the network (see :class:`Inverter`), its weights from torch's global stream."""

    @abstractmethod
    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of the decoder's parameters."""

    @abstractmethod
    def learning_rate_factor(self, progress: float) -> float:
        """Return the factor on the peak learning rate after a share of training in [0, 1)."""

    def fit(
        self,
        data: AuxiliaryData,
        *,
        compute: Compute,
        checkpoint: Checkpoint,
        progress: Progress,
        memory_mib: float,
        group: ProcessGroup = ALONE,
    ) -> tuple[TrainedInverter, list[dict[str, Any]]]:
        """Train the network: :func:`lti.inverters.train.train_inverter`."""
        from lti.inverters.train import train_inverter

        return train_inverter(
            self,
            data,
            compute=compute,
            checkpoint=checkpoint,
            progress=progress,
            memory_mib=memory_mib,
            group=group,
        )

    @property
    def length(self) -> str:
        """Steps or epochs, and when training stops."""
        length = f"{self.steps:,} steps at every point" if self.steps else f"{self.epochs} epochs"
        stop = f", or until {self.patience:,} bring no lower held-out loss" if self.patience else ""
        return f"Trained for {length}{stop}; the epoch best on held-out data is kept."


INVERTERS: Registry[Inverter] = Registry(
    "inverters",
    modules={
        "kernel": "lti.inverters.kernel",
        "paper": "lti.inverters.paper",
        "paper-text": "lti.inverters.paper_text",
        "tuned": "lti.inverters.tuned",
        "tuned-text": "lti.inverters.tuned_text",
    },
)
