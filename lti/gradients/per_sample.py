"""Per-sample gradients of an FL model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from lti.errors import LTIError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.fl_models import FLModel

__all__ = ["GradientFunction", "per_sample_gradient_function"]

GradientFunction: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"


def per_sample_gradient_function(model: FLModel, network: nn.Module) -> GradientFunction:
    """Return ``f(x, label) -> gradient``, one independent gradient a row.

    ``x`` is ``(b, ...)`` in the network's input range, ``label`` int64 ``(b,)``, the
    result ``(b, p)`` in the order of ``named_parameters``. It is differentiable in ``x``
    (gradient matching differentiates it once more). Networks whose samples see one
    another (BatchNorm in training mode) have no per-sample gradient and must be in
    evaluation mode. Some hundred rows at a time are fastest: the store's chunks.

    Raises:
        LTIError: the network is in training mode.
    """
    import torch
    from torch.func import functional_call, grad, vmap

    if network.training:
        raise LTIError(
            "the FL model is in training mode, in which samples may see one another; per-sample "
            "gradients need evaluation mode. Call network.eval() first."
        )
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, label: torch.Tensor):  # type: ignore[no-untyped-def]
        return model.loss(functional_call(network, weights, (x[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def flat(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        by_name = gradients(parameters, x, label)
        return torch.cat([by_name[name].flatten(1) for name in parameters], dim=1)

    return flat
