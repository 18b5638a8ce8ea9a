"""What clients send: the defended update of each one's batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from lti.fl_models import attacked
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import block_rows, even_blocks
from lti.gradients.updates import client_update_function, sample_update_function

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.defenses import Defense
    from lti.fl_models import FLModel

__all__ = ["SentFunction", "clients_at_once", "sent_by_clients", "sent_function"]

SentFunction: TypeAlias = (
    "Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Generator]], torch.Tensor]"
)
"""From samples, labels and one generator a client to what each sends, ``(n, p)``."""


def clients_at_once(parameters: int, batch_size: int) -> int:
    """Return how many clients' batches to give at once: those that make up one block."""
    return max(1, block_rows(parameters) // batch_size)


def sent_function(defense: Defense, model: FLModel, network: nn.Module) -> SentFunction:
    """Return ``f(x, label, generators) -> sent``, what n clients send, ``(n, p)`` float32.

    Each sample's gradient is defended, then the batch is averaged (Wu et al. 2023, supplement A);
    with ``defense_at: batch`` the mean gradient is defended. ``x`` is ``(n, B, ...)`` in the
    network's input range, ``label`` ``(n, B)`` or what else the model's loss takes; the generators
    are of the defense's draws, on the device of ``x``. n is at most :func:`clients_at_once`.
    """
    import torch

    parameters = ParameterLayout.of(attacked(model, network)).total
    limit = block_rows(parameters)
    of_sample = sample_update_function(defense, model, network)
    of_client = client_update_function(defense, model, network)

    def sent(
        x: torch.Tensor, label: torch.Tensor, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        n, size = x.shape[:2]
        if defense.of_batch:
            mean = of_client(x, label)
        else:
            # Either clients that make up one block, or one client of several blocks.
            mean = torch.zeros(n, parameters, device=x.device)
            samples, labels = x.flatten(0, 1), label.flatten(0, 1)
            for first, last in even_blocks(0, n * size, limit):
                part = of_sample(samples[first:last], labels[first:last]).unflatten(0, (n, -1))
                for row, gradient, generator in zip(mean, part, generators, strict=True):
                    if defense.defense_at == "sample":
                        gradient = defense.defend_sample(gradient, generator=generator)
                    row += gradient.sum(dim=0)
            mean /= size
        for row, generator in zip(mean, generators, strict=True):
            if defense.of_batch or defense.defense_at == "batch":
                row[:] = defense.defend(row[None], generator=generator)[0]
            else:
                row[:] = defense.randomise_mean(row[None], generator=generator, averaged=size)[0]
        return mean

    return sent


def sent_by_clients(
    defense: Defense,
    model: FLModel,
    network: nn.Module,
    x: torch.Tensor,
    label: torch.Tensor,
    *,
    generators: Sequence[torch.Generator],
) -> Iterator[torch.Tensor]:
    """Yield what any number of clients send, ``(k, p)`` for some at a time, in their order.

    Arguments are those of :func:`sent_function` and of what it returns.
    """
    sent = sent_function(defense, model, network)
    parameters = ParameterLayout.of(attacked(model, network)).total
    for start, stop in even_blocks(0, len(x), clients_at_once(parameters, x.shape[1])):
        yield sent(x[start:stop], label[start:stop], generators[start:stop])
