"""Training an inverter."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lti.checkpoint import Checkpoint
from lti.compute import Compute, peak_memory_mib
from lti.errors import LTIError
from lti.inverters.auxiliary_data import AuxiliaryData, targets
from lti.inverters.base import NetworkInverter
from lti.inverters.inputs import (
    TrainingInputs,
    held_out_error,
    held_out_inputs,
    statistics_sample,
)
from lti.inverters.trained import TrainedInverter, precision_of
from lti.seeding import derive_seed

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


def train_inverter(
    settings: NetworkInverter,
    data: AuxiliaryData,
    *,
    compute: Compute,
    checkpoint: Checkpoint,
    progress: Progress,
    memory_mib: float = 4096.0,
) -> tuple[TrainedInverter, list[dict[str, Any]]]:
    """Train an inverter and keep the epoch that is best on held-out auxiliary data.

    With ``steps``, training of any auxiliary set has as many, whatever its size; with
    ``patience`` it ends once so many brought no lower held-out loss.

    The last ``holdout`` share of the auxiliary set is never trained on. Every random draw
    comes from a stream named after the epoch, so a run that was interrupted and resumed
    ends with the same weights, bit for bit, as one that was not.

    Args:
        settings: the preset.
        data: the auxiliary set with its stored gradients.
        compute: where to run.
        checkpoint: state for resuming, written between epochs.
        progress: told of every step.
        memory_mib: host memory for training rows.

    Returns:
        the trained inverter, and one record per epoch: ``epoch``, ``train_loss``,
        ``held_out_loss``, ``learning_rate``, ``seconds``, ``samples_per_second``,
        ``peak_memory_mib``.

    Raises:
        LTIError: store and auxiliary set do not fit, a checkpoint of other settings, or a
            loss that is not finite.
    """
    learned, kept = data.split(settings.holdout)
    rows = range(learned.stop * data.views)
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    task = data.task
    statistics = settings.statistics(task, statistics_sample(settings, data, learned.stop))
    network = settings.network(task, statistics).to(compute.device)
    # Victims' inputs are never rounded: a decoder in float32 must not be trained on bfloat16.
    dtype = torch.float32 if settings.precision == "float32" else compute.dtype
    inputs = TrainingInputs(
        data, rows, encoder=network.encoder, compute=compute, dtype=dtype, memory_mib=memory_mib
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
    history: list[dict[str, Any]] = []
    best = _Best(float("inf"), _copy(network.decoder))
    if (saved := checkpoint.load()) is not None:
        best = _restore(saved[0], network.decoder, optimizer, history)
    progress.start(total=in_all * len(learned) // steps, unit="samples")
    progress.skip(len(history) * len(learned))

    for epoch in range(len(history), epochs):
        if _is_over(history, steps, settings.patience):
            break
        began = time.monotonic()
        seed = derive_seed(settings.seed, "epoch", epoch)
        torch.manual_seed(derive_seed(seed, "dropout"))
        network.train()
        total, seen = torch.zeros((), device=compute.device), 0
        batches = inputs.epoch(settings.batch_size, seed=seed, mirrored=settings.use_mirrored)
        for step, (index, batch) in enumerate(batches, start=epoch * steps):
            if step == in_all:
                break
            factor = settings.learning_rate_factor(step / in_all)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            target = targets(value, index, data.views)
            label = data.labels(index) if settings.ordered_by_label else None
            with precision_of(settings, compute):
                loss = network.decoder.loss(batch, target, label).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * index.numel()
            seen += index.numel()
            progress.advance(index.numel(), epoch=epoch + 1, loss=loss.detach())
        network.eval()
        with precision_of(settings, compute):
            error = held_out_error(network.decoder, held_out)
        seconds = time.monotonic() - began
        history.append(
            {
                "epoch": epoch + 1,
                "train_loss": float(total) / seen,
                "held_out_loss": error,
                "learning_rate": settings.learning_rate * factor,
                "seconds": seconds,
                "samples_per_second": seen / seconds,
                "peak_memory_mib": peak_memory_mib(compute),
            }
        )
        for loss_value in (history[-1]["train_loss"], error):
            if not math.isfinite(loss_value):
                raise LTIError(
                    f"the loss of epoch {epoch + 1} is {loss_value}; expected a finite number. "
                    f"Lower the learning rate ({settings.learning_rate:g})."
                )
        if error < best.loss:
            best = _Best(error, _copy(network.decoder))
        if checkpoint.due() and epoch + 1 < epochs:
            checkpoint.save(_state(network.decoder, optimizer, history, best), position=epoch + 1)
    network.decoder.load_state_dict(best.weights)
    trained = TrainedInverter.of(settings, data, network=network, compute=compute)
    return trained, history


def _is_over(history: list[dict[str, Any]], steps: int, patience: int | None) -> bool:
    """Return whether the last epochs, ``steps`` each, brought no lower held-out loss."""
    if patience is None or not history:
        return False
    losses = [record["held_out_loss"] for record in history]
    return (len(losses) - 1 - losses.index(min(losses))) * steps >= patience


def _copy(decoder: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in decoder.state_dict().items()}


def _state(
    decoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, Any]],
    best: _Best,
) -> dict[str, torch.Tensor]:
    state = {f"weights/{key}": value for key, value in decoder.state_dict().items()}
    state |= {f"best/{key}": value for key, value in best.weights.items()}
    for number, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer/{number}/{key}": value for key, value in slots.items()}
    table = [[float(record[key]) for key in HISTORY] for record in history]
    return state | {
        "history": torch.tensor(table, dtype=torch.float64),
        "best_loss": torch.tensor(best.loss, dtype=torch.float64),
    }


def _restore(
    state: dict[str, torch.Tensor],
    decoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, Any]],
) -> _Best:
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    decoder.load_state_dict(part("weights/"))
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in part("optimizer/").items():
        number, _, name = key.partition("/")
        slots.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    for record in state["history"].tolist():
        history.append(dict(zip(HISTORY, record, strict=True)))
        history[-1]["epoch"] = int(history[-1]["epoch"])
    return _Best(float(state["best_loss"]), part("best/"))
