"""Telling the samples of a batch apart in the gradient of the last layer.

The mean gradient of the last layer is ``G = (1/B) sum_i u_i v_i^T`` with ``v_i`` the layer's
input for sample i and ``u_i = p_i - e(y_i)``, p the softmax and y the label; that of its bias
is ``g = (1/B) sum_i u_i``. With the mean input v over auxiliary data,

    B (G - g v^T) = sum_i u_i (v_i - v)^T

holds exactly, and u_i is known but for p_i. Two estimates of a sample's input follow: least
squares over all classes, refined with p_i = softmax(W v_i + b); and the row of its own class,
which is all that some defenses leave. Samples of one label look alike here; the loss over
orderings and their rank among their like let a network tell them apart by the rest.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from lti.gradients.layout import LinearBlock
from lti.inverters.head import ClassifierHead

__all__ = ["label_features", "separate"]

ROUNDS = 3  # of least squares; more change nothing that was measured
TINY = 1e-6


def separate(
    gradient: torch.Tensor,
    label: torch.Tensor,
    *,
    block: LinearBlock,
    head: ClassifierHead,
    ridge: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate each sample's input to the last layer.

    Args:
        gradient: ``(b, p)`` float32, defended means over batches.
        label: int64 ``(b, B)``.
        block: where the layer lies in the gradient; ``f`` inputs, ``c`` outputs.
        head: the layer itself.
        ridge: added to the normal equations' diagonal, whose entries are about 1.

    Returns:
        values ``(b, B, 2 f + c + 2)`` float32: least squares, its probabilities, the own
        class's row over its mean, that mean, the own class's bias gradient; and whether each
        entry of the row was observed, bool ``(b, B, f)``.
    """
    batch = label.shape[1]
    weight = gradient[:, block.weight].unflatten(1, (block.outputs, block.inputs))
    bias = gradient[:, block.bias]
    own = functional.one_hot(label, block.outputs).to(gradient.dtype)
    residual = batch * (weight - bias[:, :, None] * head.mean)
    identity = torch.eye(batch, device=gradient.device)
    probability = head.probability.expand(own.shape)
    deviation = torch.zeros(*label.shape, block.inputs, device=gradient.device)
    for number in range(ROUNDS):
        if number:
            estimate = torch.clamp(head.mean + deviation, head.low, head.high)
            probability = (estimate @ head.weight.T + head.bias).softmax(dim=2)
        u = probability - own
        system = u @ u.transpose(1, 2) + ridge * identity
        deviation = torch.linalg.solve(system, u) @ residual
    row = weight.gather(1, label[:, :, None].expand(-1, -1, block.inputs))
    seen = row != 0
    mean = row.sum(dim=2, keepdim=True) / seen.sum(dim=2, keepdim=True).clamp_min(1)
    mean = torch.where(mean.abs() < TINY, torch.ones_like(mean), mean)
    values = [deviation, probability, row / mean, mean, bias.gather(1, label)[:, :, None]]
    return torch.cat(values, dim=2), seen


def label_features(label: torch.Tensor, classes: int) -> torch.Tensor:
    """Return ``(b, B, 2 classes + B)``: the label, all labels of the batch, and the rank.

    The rank counts the earlier samples of the same label. The factors make up for how few
    these features are beside the others.
    """
    own = functional.one_hot(label, classes).float()
    counts = own.sum(dim=1, keepdim=True).expand(own.shape)
    alike = (label[:, :, None] == label[:, None, :]).tril(-1).sum(dim=2)
    rank = functional.one_hot(alike, label.shape[1]).float()
    return torch.cat([3 * own, counts - counts.mean(dim=2, keepdim=True), 2 * rank], dim=2)
