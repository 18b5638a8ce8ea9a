"""The loss over the orderings of a batch: its gradient says nothing of them."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import torch

__all__ = ["best_order", "matched_mse"]

ENUMERATED = 5  # up to this batch size all orderings are tried at once (120)


@torch.no_grad()
def best_order(
    output: torch.Tensor, target: torch.Tensor, label: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the ordering of the targets with the least total squared error.

    Args:
        output: ``(b, B, ...)`` float32.
        target: the same shape.
        label: int64 ``(b, B)``, of the outputs and of the targets alike: only orderings that
            keep it are allowed. None: all are.

    Returns:
        int64 ``(b, B)``: ``output[k, i]`` belongs to ``target[k, order[k, i]]``.
    """
    batch = output.shape[1]
    x, y = output.flatten(2), target.flatten(2)
    cost = -2 * x @ y.transpose(1, 2) + y.square().sum(dim=2)[:, None]
    cost = cost + x.square().sum(dim=2)[:, :, None]
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

    Differentiable in ``output``; the arguments are those of :func:`best_order`.

    Source: Wu et al. 2023, section 4 (the minimum over the orderings of the batch).
    """
    if output.shape[1] > 1:
        order = best_order(output, target, label)
        target = target[torch.arange(len(target), device=order.device)[:, None], order]
    return (output - target).square().flatten(1).mean(dim=1)


@cache
def _orders(batch: int) -> torch.Tensor:
    return torch.tensor(list(permutations(range(batch))))
