"""Training an inverter."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lti.checkpoint import Checkpoint
from lti.compute import Compute, peak_memory_mib
from lti.errors import LTIError
from lti.interruption import saving_first
from lti.inverters.auxiliary_data import AuxiliaryData, targets
from lti.inverters.base import NetworkInverter
from lti.inverters.inputs import (
    TrainingInputs,
    held_out_error,
    held_out_inputs,
    statistics_sample,
)
from lti.inverters.trained import TrainedInverter, precision_of
from lti.process_group import ALONE, ProcessGroup
from lti.seeding import derive_seed, torch_generator
from lti.training_state import TrainingState, copy_of

if TYPE_CHECKING:
    from lti.progress import Progress

__all__ = ["HISTORY", "train_inverter"]

HISTORY = (
    "epoch",
    "train_loss",
    "held_out_loss",
    "learning_rate",
    "seconds",
    "samples_per_second",
    "peak_memory_mib",
)


class _Best(NamedTuple):
    """The epoch that did best on held-out data."""

    loss: float
    weights: dict[str, torch.Tensor]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return it as tensors."""
        loss = torch.tensor(self.loss, dtype=torch.float64)
        return {"best_loss": loss, **{f"best/{key}": v for key, v in self.weights.items()}}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> _Best:
        """Return what :meth:`tensors` gave."""
        weights = {k.removeprefix("best/"): v for k, v in tensors.items() if k.startswith("best/")}
        return cls(float(tensors["best_loss"]), weights)


@saving_first()
def train_inverter(
    settings: NetworkInverter,
    data: AuxiliaryData,
    *,
    compute: Compute,
    checkpoint: Checkpoint,
    progress: Progress,
    memory_mib: float = 4096.0,
    group: ProcessGroup = ALONE,
) -> tuple[TrainedInverter, list[dict[str, Any]]]:
    """Train an inverter and keep the epoch that is best on held-out auxiliary data.

    With ``steps``, training of any auxiliary set has as many, whatever its size; with
    ``patience`` it ends once so many brought no lower held-out loss.

    The last ``holdout`` share of the auxiliary set is never trained on. Every random draw
    comes from a stream named after the epoch, so a run that was interrupted and resumed
    ends with the same weights, bit for bit, as one that was not.

    Several processes, each its part of every batch, train as one does but for rounding, and for
    dropout, which each draws by itself; of streamed rows the batches are others. Any number may go
    on from what was saved.

    Args:
        settings: the preset.
        data: the auxiliary set with its stored gradients.
        compute: where to run.
        checkpoint: state for resuming, at any step.
        progress: told of every step.
        memory_mib: host memory for training rows, of all processes.
        group: the processes that train together, with equal arguments otherwise.

    Returns:
        the trained inverter, and one record per epoch: ``epoch``, ``train_loss``,
        ``held_out_loss``, ``learning_rate``, ``seconds``, ``samples_per_second``,
        ``peak_memory_mib``.

    Raises:
        LTIError: store and auxiliary set do not fit, a checkpoint of other settings, a loss
            that is not finite, or batches that are smaller than the group.
        Interrupted: the process was asked to leave, and has saved.
    """
    if settings.batch_size < group.size:
        raise LTIError(
            f"batches of {settings.batch_size} for {group.size} processes; expected one of each at "
            f"least. Use fewer processes."
        )
    learned, kept = data.split(settings.holdout)
    rows = range(learned.stop * data.views)
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    task = data.task
    statistics = settings.statistics(task, statistics_sample(settings, data, learned.stop))
    network = settings.network(task, statistics).to(compute.device)
    group.copy_from_first(network.state_dict().values())
    # Victims' inputs are never rounded: a decoder in float32 must not be trained on bfloat16.
    dtype = torch.float32 if settings.precision == "float32" else compute.dtype
    inputs = TrainingInputs(
        data,
        rows,
        encoder=network.encoder,
        compute=compute,
        dtype=dtype,
        memory_mib=memory_mib,
        group=group,
    )
    held_out = held_out_inputs(
        settings,
        data,
        kept,
        encoder=network.encoder,
        compute=compute,
        dtype=dtype,
    )
    value = data.value.to(compute.device)

    optimizer = settings.optimizer(network.decoder.parameters())
    steps = -(-(len(learned) // data.batch_size) // settings.batch_size)  # of an epoch
    in_all = settings.steps or settings.epochs * steps
    epochs = -(-in_all // steps)
    best = _Best(float("inf"), copy_of(network.decoder))
    state = TrainingState(
        checkpoint,
        networks={"decoder": network.decoder},
        optimizers={"optimizer": optimizer},
        columns=HISTORY,
        device=compute.device,
        group=group,
    )
    if state.restore():
        best = _Best.of(state.kept)
    history = state.history
    progress.start(total=in_all * len(learned) // steps, unit="samples")
    progress.skip(state.step * len(learned) // steps)

    for epoch in range(state.step // steps, epochs):
        if _is_over(history, steps, settings.patience):
            break
        began = time.monotonic()
        seed = derive_seed(settings.seed, "epoch", epoch)
        noise = torch_generator(seed, "noise", device=compute.device)
        skip = state.step - epoch * steps  # 0, unless resumed inside the epoch
        if skip:
            sums = state.kept["sums"]  # of losses, samples and seconds
            sums *= group.is_first  # which has those of all processes
            noise.set_state(state.kept["noise"].cpu())
        else:
            sums = torch.zeros(3, dtype=torch.float64, device=compute.device)
            torch.manual_seed(derive_seed(seed, "dropout"))
        loss = sums[0]
        within = partial(_within_epoch, sums, began, noise, best, group)
        network.train()
        for index, batch in inputs.epoch(
            settings.batch_size, seed=seed, noise=noise, mirrored=settings.use_mirrored, skip=skip
        ):
            if state.step == in_all:
                break
            factor = settings.learning_rate_factor(state.step / in_all)
            for slot in optimizer.param_groups:
                slot["lr"] = settings.learning_rate * factor
            optimizer.zero_grad(set_to_none=True)
            if len(index):
                if not group.is_first:
                    torch.manual_seed(derive_seed(seed, "dropout", group.rank, state.step))
                target = targets(value, index, data.views)
                label = data.labels(index) if settings.ordered_by_label else None
                with precision_of(settings, compute):
                    loss = network.decoder.loss(batch, target, label).mean()
                loss.backward()
                sums[0] += loss.detach() * index.numel()
                sums[1] += index.numel()
            group.average_gradients(network.decoder.parameters(), weight=len(index))
            optimizer.step()
            state.step += 1
            progress.advance(index.numel() * group.size, epoch=epoch + 1, loss=loss.detach())
            if state.step < min((epoch + 1) * steps, in_all):
                state.save_if_due(within)
        network.eval()
        with precision_of(settings, compute):
            error = held_out_error(network.decoder, held_out, group=group)
        total, seen, earlier = group.sum(sums).tolist()
        seconds = earlier + time.monotonic() - began
        history.append(
            {
                "epoch": epoch + 1,
                "train_loss": total / seen,
                "held_out_loss": error,
                "learning_rate": settings.learning_rate * factor,
                "seconds": seconds,
                "samples_per_second": seen / seconds,
                "peak_memory_mib": group.most(peak_memory_mib(compute))[0],
            }
        )
        for loss_value in (history[-1]["train_loss"], error):
            if not math.isfinite(loss_value):
                raise LTIError(
                    f"the loss of epoch {epoch + 1} is {loss_value}; expected a finite number. "
                    f"Lower the learning rate ({settings.learning_rate:g})."
                )
        if error < best.loss:
            best = _Best(error, copy_of(network.decoder))
        if epoch + 1 < epochs:
            state.save_if_due(best.tensors)
    network.decoder.load_state_dict(best.weights)
    trained = TrainedInverter.of(settings, data, network=network, compute=compute)
    return trained, history


def _is_over(history: list[dict[str, Any]], steps: int, patience: int | None) -> bool:
    """Return whether the last epochs, ``steps`` each, brought no lower held-out loss."""
    if patience is None or not history:
        return False
    losses = [record["held_out_loss"] for record in history]
    return (len(losses) - 1 - losses.index(min(losses))) * steps >= patience


def _within_epoch(
    sums: torch.Tensor, began: float, noise: torch.Generator, best: _Best, group: ProcessGroup
) -> dict[str, torch.Tensor]:
    """Return what resuming inside an epoch needs beside the training's state."""
    passed = group.sum(sums) + sums.new_tensor([0, 0, time.monotonic() - began])
    return {"sums": passed, "noise": noise.get_state(), **best.tensors()}
