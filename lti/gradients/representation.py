"""Gradients of a linear layer whose input, a representation of the sample, is perturbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lti.errors import LTIError
from lti.fl_models import attacked
from lti.gradients.per_sample import group_parts_function

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.fl_models import FLModel
    from lti.gradients.per_sample import PartsFunction

__all__ = ["perturbed_representation_function"]

# Derivatives of so many entries of so many samples at once; bounds the memory.
JACOBIAN_ROWS, JACOBIAN_SAMPLES = 64, 16


def perturbed_representation_function(
    model: FLModel,
    network: nn.Module,
    *,
    layer: str | None,
    dropped: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> PartsFunction:
    """Return ``f(x, label)``: gradients ``(n, *shape)`` of clients with m samples, by name.

    In the weight's gradient of a linear layer, each sample's input of the layer has entries of
    zero. ``x`` is ``(n, m, ...)``, ``label`` ``(n, m)``.

    Args:
        model: the FL model.
        network: its network, in evaluation mode.
        layer: name of the linear layer; None: the network's last.
        dropped: from inputs of the layer and how steep each entry is in the sample, the L2 norm of
            its derivative, both ``(n m, d)``, to the entries of zero, bool ``(n m, d)``.

    Raises:
        LTIError: there is no such layer, its weight is not attacked, it sees sequences, or the
            samples are text.
    """
    name, module = _linear(model, network, layer)
    gradients = group_parts_function(model, network)

    def parts(x: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        sample = x.flatten(0, 1)
        each = gradients(sample[:, None], label.flatten(0, 1)[:, None])
        zero = dropped(*_representation(network, module, sample, where=name))
        weight = f"{name}.weight"
        each[weight] = each[weight].masked_fill(zero[:, None], 0.0)
        return {key: value.unflatten(0, x.shape[:2]).mean(dim=1) for key, value in each.items()}

    return parts


def _linear(model: FLModel, network: nn.Module, layer: str | None) -> tuple[str, nn.Module]:
    from torch import nn

    if model.modality == "text":
        raise LTIError(
            f"FL model {model.name} takes text; expected images, in which a representation has "
            f"derivatives. Use another defense."
        )
    seen = attacked(model, network)
    linear = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in seen
    }
    chosen = layer if layer is not None else next(reversed(linear), "")
    if chosen not in linear:
        raise LTIError(
            f"layer: got {layer!r}; expected an attacked linear layer of {model.name}, of which "
            f"there are {', '.join(linear) or 'none'}. Name one, or use another defense."
        )
    return chosen, linear[chosen]


def _representation(
    network: nn.Module, module: nn.Module, sample: torch.Tensor, *, where: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what goes into a layer and how steep it is in the samples, ``(n, d)`` each."""
    import torch

    taken: list[torch.Tensor] = []

    def representation(x: torch.Tensor) -> torch.Tensor:
        taken.clear()
        network(x)
        value = taken[-1]
        if value.ndim != 2:
            raise LTIError(
                f"layer {where!r} takes inputs of shape {tuple(value.shape)}; expected one vector "
                f"a sample. Name another layer."
            )
        return value

    # A hook sees what the layer takes under whatever transformation the pass is.
    handle = module.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        parts = [_steepness(representation, part) for part in sample.split(JACOBIAN_SAMPLES)]
    finally:
        handle.remove()
    value, slope = (torch.cat(column) for column in zip(*parts, strict=True))
    return value, slope


def _steepness(
    function: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a function's values ``(n, d)`` and the norm of each one's derivative by its sample."""
    import torch
    from torch.func import vjp, vmap

    value, pullback = vjp(function, sample)[:2]
    squares = []
    for places in torch.arange(value.shape[1], device=value.device).split(JACOBIAN_ROWS):
        # Samples do not see one another: one pass gives entry i's derivative of them all.
        seeds = torch.zeros(len(places), *value.shape, device=value.device, dtype=value.dtype)
        seeds[torch.arange(len(places)), :, places] = 1.0
        (slopes,) = vmap(pullback)(seeds)
        squares.append(slopes.flatten(2).square().sum(dim=2))
    return value.detach(), torch.cat(squares).T.sqrt().detach()
