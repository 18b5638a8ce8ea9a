"""What the clients of a round send."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lti.fl_models import attacked
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import block_rows, even_blocks, per_sample_gradient_function

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.defenses import Defense
    from lti.fl_models import FLModel

__all__ = ["sent_gradients"]


def sent_gradients(
    defense: Defense,
    model: FLModel,
    network: nn.Module,
    x: torch.Tensor,
    label: torch.Tensor,
    *,
    generators: Sequence[torch.Generator],
) -> Iterator[torch.Tensor]:
    """Yield what clients send, ``(k, p)`` for some of them at a time, in their order.

    The same as an attacker observes (:func:`lti.stages.gradients.observe`): each sample's gradient
    is defended, then the batch is averaged (Wu et al. 2023, supplement A); with
    ``defense_at: batch`` the mean gradient is defended.

    Args:
        defense: all clients'.
        model: has the loss.
        network: with its current weights, in evaluation mode.
        x: ``(clients, B, ...)``, inputs of the network.
        label: ``(clients, B)`` or what else the model's loss takes.
        generators: of the defense's draws, one a client, on the device of ``x``.
    """
    import torch

    gradients = per_sample_gradient_function(model, network)
    parameters = ParameterLayout.of(attacked(model, network)).total
    clients, size = x.shape[:2]
    limit = block_rows(parameters)
    x, label = x.flatten(0, 1), label.flatten(0, 1)
    # Either clients that make up one block, or one client of several blocks.
    for start, stop in even_blocks(0, clients, max(1, limit // size)):
        mean = torch.zeros(stop - start, parameters, device=x.device)
        own = generators[start:stop]
        for first, last in even_blocks(start * size, stop * size, limit):
            gradient = gradients(x[first:last], label[first:last]).unflatten(0, (stop - start, -1))
            for row, part, generator in zip(mean, gradient, own, strict=True):
                if defense.defense_at == "sample":
                    part = defense.defend(part, generator=generator)
                row += part.sum(dim=0)
        mean /= size
        if defense.defense_at == "batch":
            for row, generator in zip(mean, own, strict=True):
                row[:] = defense.defend(row[None], generator=generator)[0]
        yield mean
