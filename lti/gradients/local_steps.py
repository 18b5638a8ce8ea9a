"""What a client sends after several steps of its own: federated averaging's update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lti.fl_models import attacked
from lti.gradients.per_sample import check_evaluation

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.fl_models import FLModel
    from lti.gradients.per_sample import PartsFunction

__all__ = ["local_update_function"]


def local_update_function(
    model: FLModel, network: nn.Module, *, steps: int, rate: float
) -> PartsFunction:
    """Return ``f(x, label)``: the updates of clients that take steps on their whole batch.

    ``x`` is ``(n, B, ...)``, ``label`` ``(n, B)`` or what else the model's loss takes. The update
    is ``(w_0 - w_steps) / (steps rate)`` of each attacked parameter, ``(n, *shape)``: the mean of
    the steps' gradients. All parameters are trained. It is differentiable in ``x``.

    Raises:
        LTIError: the network is in training mode, or no parameter matches what is attacked.
    """
    from torch.func import grad, vmap

    check_evaluation(network)
    begin = {name: value.detach() for name, value in network.named_parameters()}
    seen = tuple(attacked(model, network))

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, label: torch.Tensor):  # type: ignore[no-untyped-def]
        return model.loss_at(network, weights, {}, x, label)

    def update(x: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = dict(begin)
        total: dict[str, torch.Tensor] = {}
        for _ in range(steps):
            gradient = grad(loss)(weights, x, label)
            weights = {name: value - rate * gradient[name] for name, value in weights.items()}
            total = {name: total.get(name, 0) + gradient[name] for name in seen}
        return {name: value / steps for name, value in total.items()}

    return vmap(update)
