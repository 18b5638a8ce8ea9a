"""The loss over the orderings of a batch: its gradient says nothing of them."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import torch

__all__ = ["best_order", "matched_cross_entropy", "matched_mse", "squared_distance"]

ENUMERATED = 5  # up to this batch size all orderings are tried at once (120)


@torch.no_grad()
def best_order(cost: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
    """Return the ordering of the targets with the least total cost.

    Args:
        cost: ``(b, B, B)`` float32, of output i as target j.
        label: int64 ``(b, B)``, of the outputs and of the targets alike: only orderings that
            keep it are allowed. None: all are.

    Returns:
        int64 ``(b, B)``: ``output[k, i]`` belongs to ``target[k, order[k, i]]``.
    """
    batch = cost.shape[1]
    if label is not None:
        # More than any allowed ordering can cost, so that none that is not allowed wins.
        barrier = 1 + batch * cost.abs().amax()
        cost = cost + barrier * (label[:, :, None] != label[:, None, :])
    if batch <= ENUMERATED:
        orders = _orders(batch).to(cost.device)
        total = cost[:, torch.arange(batch, device=cost.device), orders].sum(dim=2)
        return orders[total.argmin(dim=1)]
    from scipy.optimize import linear_sum_assignment

    table = cost.nan_to_num(nan=0.0, posinf=0.0).cpu().numpy()  # the loss itself is then refused
    found = [torch.from_numpy(linear_sum_assignment(one)[1]) for one in table]
    return torch.stack(found).to(cost.device)


def matched_mse(
    output: torch.Tensor, target: torch.Tensor, label: torch.Tensor | None = None
) -> torch.Tensor:
    """Return each batch's mean squared error under its best ordering, ``(b,)``.

    Differentiable in ``output``.

    Args:
        output: ``(b, B, ...)`` float32.
        target: the same shape.
        label: see :func:`best_order`.

    Source: Wu et al. 2023, section 4 (the minimum over the orderings of the batch).
    """
    if output.shape[1] > 1:
        order = best_order(squared_distance(output.detach(), target), label)
        target = target[torch.arange(len(target), device=order.device)[:, None], order]
    return (output - target).square().flatten(1).mean(dim=1)


def matched_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, label: torch.Tensor | None = None
) -> torch.Tensor:
    """Return each batch's mean cross-entropy under its best ordering, ``(b,)``, in nats.

    The mean over samples and positions; differentiable in ``logits``.

    Args:
        logits: ``(b, B, length, vocabulary)`` float32.
        target: int64 ``(b, B, length)``, the tokens.
        label: see :func:`best_order`.

    Source: Wu et al. 2023, section 4 and public code: language.
    """
    batch = logits.shape[1]
    logarithm = logits.log_softmax(dim=-1)
    # (b, i, length, j): what output i says of the tokens of target j.
    index = target.transpose(1, 2)[:, None].expand(-1, batch, -1, -1)
    cost = -logarithm.gather(-1, index).mean(dim=2)
    order = best_order(cost.detach(), label)
    return cost.gather(2, order[:, :, None]).mean(dim=(1, 2))


def squared_distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each output to each target of its batch, ``(b, B, B)``."""
    x, y = output.flatten(2), target.flatten(2)
    cost = -2 * x @ y.transpose(1, 2) + y.square().sum(dim=2)[:, None]
    return cost + x.square().sum(dim=2)[:, :, None]


@cache
def _orders(batch: int) -> torch.Tensor:
    return torch.tensor(list(permutations(range(batch))))
