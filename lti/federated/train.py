"""Training an FL model by simulated clients that defend their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.data.samples import Samples, as_input
from lti.errors import LTIError
from lti.federated.evaluation import Judged, judge
from lti.federated.settings import FederatedTraining
from lti.federated.split import client_batches, hold_out, split_to_clients
from lti.fl_models import FLModel, attacked
from lti.fl_models.batch_norm import set_statistics
from lti.gradients.layout import ParameterLayout
from lti.gradients.sent import sent_by_clients
from lti.interruption import saving_first
from lti.seeding import torch_generator
from lti.training_state import TrainingState, copy_of

if TYPE_CHECKING:
    from lti.defenses import Defense
    from lti.progress import Progress

__all__ = ["HISTORY", "Trained", "train_federated"]

HISTORY = ("round", "samples", "accuracy", "low", "high", "n", "test_loss", "train_loss")
STATISTICS = 256  # training samples for BatchNorm's statistics
JUDGED = 1000  # training samples for the training loss, at most


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    history: list[dict[str, Any]]
    """A record per evaluation, with the keys :data:`HISTORY`."""
    learning_rate: float
    """The one chosen."""
    pilots: list[dict[str, float | None]]
    """``learning_rate``, ``accuracy`` and ``loss`` (None: no finite number) on held-out samples."""
    clients: list[int]
    """Samples of each client."""


@saving_first()
def train_federated(
    settings: FederatedTraining,
    model: FLModel,
    network: nn.Module,
    samples: Samples,
    test: Samples,
    *,
    defense: Defense,
    special: Sequence[int] = (),
    compute: Compute,
    checkpoint: Checkpoint,
    progress: Progress,
) -> Trained:
    """Train, and evaluate on test samples along the way.

    In a round, each of some clients computes the gradients of a batch of its own samples, defends
    them and sends their mean (:func:`lti.gradients.sent.sent_by_clients`); the server averages
    what it is sent and takes one step of its optimiser (federated SGD: McMahan et al. 2017, section
    2; with Adam: Reddi et al. 2021, FedAdam). It does not undo a defense: the mean of signs is
    stepped along as it is, so that with ``sgd`` their learning rate is a step per coordinate
    (Bernstein et al. 2018 take the sign of the sum again); Adam divides any scale out.

    Only the parameters whose gradients are sent (``attacked_parameters``) are trained. Gradients
    are those of the network in evaluation mode, as the attacked one is. BatchNorm's statistics are
    set anew before every round and every evaluation, to those of 256 training samples under the
    current weights; the clients' gradients take them for constants.

    Every defense gets the learning rate that suits it: each of ``learning_rates`` is tried for
    ``pilot_rounds`` from the same weights, and the one with the lowest loss on held-out training
    samples is used. No client has a held-out sample, and test samples decide nothing.

    Every random draw comes from a stream named after the round, so a run that was interrupted and
    resumed ends with the same numbers, bit for bit, as one that was not.

    Args:
        settings: of the training.
        model: has the loss.
        network: initial weights, in evaluation mode; trained in place.
        samples: training samples.
        test: test samples.
        defense: the clients'.
        special: tokens that do not count as answers of a language model, such as padding.
        compute: where to run.
        checkpoint: state for resuming, at any round.
        progress: told of every round.

    Raises:
        LTIError: too few samples, of another modality than the model's, a checkpoint of other
            settings, or no learning rate whose losses are finite numbers.
        Interrupted: the process was asked to leave, and has saved.
    """
    value, label = _tensors(model, samples, "training")
    learned, kept = hold_out(len(samples), settings)
    parts = [learned[part] for part in split_to_clients(samples.label[learned], settings)]
    test_value, test_label = _tensors(model, test, "test")
    judged = learned[:JUDGED]
    statistics = as_input(value[learned[:STATISTICS]].to(compute.device))

    parameters = attacked(model, network)
    layout = ParameterLayout.of(parameters)
    initial = copy_of(network)
    optimizer = _optimizer(settings, list(parameters.values()))
    state = TrainingState(
        checkpoint,
        networks={"network": network},
        optimizers={"server": optimizer},
        columns=HISTORY,
        device=compute.device,
    )
    scores = torch.full((settings.pilots, 2), torch.nan, dtype=torch.float64)
    if state.restore():
        scores = state.kept["scores"].cpu()

    def score(value: torch.Tensor, label: torch.Tensor) -> Judged:
        set_statistics(network, statistics)
        return judge(model, network, value, label, special=special)

    def evaluate(number: int) -> None:
        found = score(test_value, test_label)
        train_loss = score(value[judged], label[judged]).loss
        if not math.isfinite(found.loss + train_loss):
            raise LTIError(
                f"the loss after round {number} is not a finite number; expected one. Add smaller "
                f"learning rates."
            )
        seen = number * settings.clients_per_round * settings.batch_size
        row = (number, seen, found.accuracy, *found.interval(), len(test), found.loss, train_loss)
        state.history.append(dict(zip(HISTORY, row, strict=True)))

    def take_step(number: int) -> None:
        set_statistics(network, statistics)
        index = torch.from_numpy(client_batches(parts, settings, number))
        generators = [
            torch_generator(
                *(settings.seed, "federated", defense.name, "round", number, "client", client),
                device=compute.device,
            )
            for client in range(settings.clients_per_round)
        ]
        total = torch.zeros(layout.total, device=compute.device)
        for block in sent_by_clients(
            defense,
            model,
            network,
            as_input(value[index].to(compute.device)),
            label[index].to(compute.device),
            generators=generators,
        ):
            total += block.sum(dim=0)
        mean = layout.split(total[None] / settings.clients_per_round)
        for name, parameter in parameters.items():
            parameter.grad = mean[name].view_as(parameter)
        optimizer.step()

    pilots, rounds = settings.pilots, settings.pilot_rounds
    total = pilots * rounds + settings.rounds
    progress.start(total=total, unit="rounds")
    progress.skip(state.step)
    while state.step < total:
        run = min(state.step // rounds, pilots)  # one a learning rate, then the training
        number = state.step - run * rounds
        rate = settings.learning_rates[run] if run < pilots else _best(settings, scores)
        if number == 0:
            network.load_state_dict(initial)
            optimizer.state.clear()
            if run == pilots:
                evaluate(0)
        optimizer.param_groups[0]["lr"] = rate
        take_step(number + 1)
        state.step += 1
        if run < pilots:
            if number + 1 == rounds:
                found = score(value[kept], label[kept])
                scores[run] = torch.tensor([found.accuracy, found.loss])
                progress.say(f"pilot at {rate:g}: {_words(found.accuracy, found.loss)}")
            progress.advance(1, learning_rate=rate)
        else:
            if number + 1 in settings.evaluated:
                evaluate(number + 1)
            last = state.history[-1]
            progress.advance(1, loss=last["train_loss"], accuracy=last["accuracy"])
        if state.step < total:
            state.save_if_due(lambda: {"scores": scores})
    tried = [
        {"learning_rate": rate, "accuracy": found[0], "loss": _finite(found[1])}
        for rate, found in zip(settings.learning_rates, scores.tolist(), strict=bool(pilots))
    ]
    whole = ("round", "samples", "n")  # numbers that are floats once they were saved
    history = [
        {key: int(found) if key in whole else found for key, found in row.items()}
        for row in state.history
    ]
    return Trained(history, _best(settings, scores), tried, [len(part) for part in parts])


def _tensors(model: FLModel, samples: Samples, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples and labels as the model takes them, the samples as stored."""
    if samples.modality != model.modality:
        raise LTIError(
            f"FL model {model.name} got {what} samples of modality {samples.modality}; expected "
            f"{model.modality}. Use another FL model or other samples."
        )
    return torch.from_numpy(samples.value), torch.from_numpy(model.labels(samples))


def _optimizer(
    settings: FederatedTraining, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    if settings.optimiser == "adam":
        return torch.optim.Adam(parameters)
    return torch.optim.SGD(parameters, momentum=settings.momentum)


def _best(settings: FederatedTraining, scores: torch.Tensor) -> float:
    """Return the learning rate whose pilot did best.

    Raises:
        LTIError: none has a finite loss.
    """
    if not settings.pilots:
        return settings.learning_rates[0]
    losses = zip(scores[:, 1].tolist(), settings.learning_rates, strict=True)
    ranked = [(loss, rate) for loss, rate in losses if math.isfinite(loss)]
    if not ranked:
        raise LTIError(
            f"no learning rate of {', '.join(f'{rate:g}' for rate in settings.learning_rates)} "
            f"leads to a finite loss; expected one that does. Add smaller ones."
        )
    return min(ranked)[1]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _words(accuracy: float, loss: float) -> str:
    return f"held-out accuracy {accuracy:.3f}, loss {loss:.4g}"
