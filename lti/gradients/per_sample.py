"""Per-sample gradients of an FL model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from lti.errors import LTIError
from lti.fl_models import attacked
from lti.gradients.layout import ParameterLayout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.fl_models import FLModel

__all__ = [
    "GradientFunction",
    "PartsFunction",
    "block_rows",
    "check_evaluation",
    "even_blocks",
    "group_gradient_function",
    "group_parts_function",
    "per_sample_gradient_function",
    "per_sample_parts_function",
]

GradientFunction: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
"""From samples and labels to gradients, flattened to rows."""

PartsFunction: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]"
"""From samples and labels to each parameter's gradients, ``(n, *shape)`` by name."""

# Of float32 gradients computed at once. While they are joined to rows they exist twice.
BLOCK_BYTES = 32 * 2**20
# A few at once pay though they are large.
FEW, FEW_BYTES = 8, 128 * 2**20


def block_rows(parameters: int) -> int:
    """Return how many gradients of ``parameters`` coordinates to compute at once.

    More bring little: on one thread 31 ResNet20 gradients at once came at 214 a second, 62
    at 221, 7 at 105; 530 LeNet gradients at 6,500, 1,060 at 6,800; 8 of a small BERT
    (3,357,442 coordinates) at 76, 16 at 81, 2 at 47.
    """
    size = 4 * parameters
    return max(1, BLOCK_BYTES // size, min(FEW, FEW_BYTES // size))


def even_blocks(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut a range into the fewest blocks of at most ``most``, all of about the same size."""
    count = -(-(stop - start) // most)
    return pairwise(start + (stop - start) * number // count for number in range(count + 1))


def group_gradient_function(model: FLModel, network: nn.Module) -> GradientFunction:
    """Return ``f(x, label) -> gradient``, one gradient of a batch's mean loss a row.

    ``x`` is ``(n, B, ...)`` in the network's input range, ``label`` ``(n, B)`` or what else the
    model's loss takes, the result ``(n, p)``: the gradients of the attacked parameters, in
    their order. It is differentiable in ``x`` and in a label that is not of integers (gradient
    matching differentiates it once more). Networks whose samples see one another (BatchNorm in
    training mode) must be in evaluation mode.

    Raises:
        LTIError: the network is in training mode, or no parameter matches what is attacked.
    """
    layout, parts = _parts_function(model, network)
    return lambda x, label: layout.join(parts(x, label))


def per_sample_gradient_function(model: FLModel, network: nn.Module) -> GradientFunction:
    """Return ``f(x, label) -> gradient``, one independent gradient a row.

    ``x`` is ``(b, ...)``, ``label`` ``(b,)`` or what else the model's loss takes; otherwise as
    :func:`group_gradient_function`. :func:`block_rows` says how many samples to give at once.
    """
    gradients = group_gradient_function(model, network)
    return lambda x, label: gradients(x[:, None], label[:, None])


def per_sample_parts_function(model: FLModel, network: nn.Module) -> PartsFunction:
    """Return :func:`per_sample_gradient_function` without the joining to rows.

    Joining takes as long as half of a backward pass through a large network.
    """
    _, parts = _parts_function(model, network)
    return lambda x, label: parts(x[:, None], label[:, None])


def group_parts_function(model: FLModel, network: nn.Module) -> PartsFunction:
    """Return :func:`group_gradient_function` without the joining to rows."""
    return _parts_function(model, network)[1]


def check_evaluation(network: nn.Module) -> None:
    """Refuse a network whose samples may see one another.

    Raises:
        LTIError: it is in training mode.
    """
    if network.training:
        raise LTIError(
            "the FL model is in training mode, in which samples may see one another; gradients "
            "of their own need evaluation mode. Call network.eval() first."
        )


def _parts_function(model: FLModel, network: nn.Module) -> tuple[ParameterLayout, PartsFunction]:
    from torch.func import grad, vmap

    check_evaluation(network)
    parameters = {name: value.detach() for name, value in attacked(model, network).items()}
    fixed = {
        name: value.detach() for name, value in network.named_parameters() if name not in parameters
    }

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, label: torch.Tensor):  # type: ignore[no-untyped-def]
        return model.loss_at(network, weights, fixed, x, label)

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    return ParameterLayout.of(parameters), lambda x, label: gradients(parameters, x, label)
