"""Accuracy and loss of an FL model on samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lti.data.samples import as_input
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    from torch import nn

    from lti.fl_models import FLModel

__all__ = ["Judged", "judge"]

# Samples at once; a language model's output is large.
BLOCK, TEXT_BLOCK = 256, 32


@dataclass(frozen=True)
class Judged:
    """How well a network does on n samples."""

    right: torch.Tensor
    """int64 ``(n,)``, right answers: 0 or 1, or next tokens."""
    asked: torch.Tensor
    """int64 ``(n,)``, answers that count: 1, or next tokens that are not special."""
    loss: float
    """Mean loss; infinite where it is no number."""

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return int(self.right.sum()) / int(self.asked.sum())

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy over the choice of samples.

        Wilson's where a sample is one answer (Wilson 1927); of texts, whose tokens go together, a
        bootstrap over texts.
        """
        from scipy.stats import binomtest

        from lti.metrics.summary import CONFIDENCE, bootstrap_interval

        if bool((self.asked == 1).all()):
            test = binomtest(int(self.right.sum()), len(self.right))
            found = test.proportion_ci(CONFIDENCE, method="wilson")
            return float(found.low), float(found.high)
        counted = self.asked > 0
        right, asked = self.right[counted].double(), self.asked[counted].double()
        return bootstrap_interval(
            (right / asked).numpy(),
            numpy_generator(0, "bootstrap", "federated"),
            weights=asked.numpy(),
        )


@torch.no_grad()
def judge(
    model: FLModel,
    network: nn.Module,
    value: torch.Tensor,
    label: torch.Tensor,
    *,
    special: Sequence[int] = (),
) -> Judged:
    """Return how well a network, in evaluation mode, does.

    Args:
        model: has the loss.
        network: the network.
        value: samples as stored, ``(n, ...)``.
        label: int64 ``(n,)``, or the tokens ``(n, T)`` of a language model: what position t
            predicts is then compared with token t + 1.
        special: tokens that do not count as answers, such as padding.
    """
    right, asked, total = [], [], 0.0
    device = next(network.parameters()).device
    block = TEXT_BLOCK if model.label_is_sample else BLOCK
    for x, y in zip(value.split(block), label.split(block), strict=True):
        y = y.to(device)
        output = network(as_input(x.to(device)))
        total += float(model.loss(output, y)) * len(y)
        answer = output.argmax(dim=-1)
        if model.label_is_sample:
            answer, y = answer[:, :-1], y[:, 1:]
            counts = ~torch.isin(y, torch.tensor(list(special), dtype=y.dtype, device=device))
        else:
            answer, y = answer[:, None], y[:, None]
            counts = torch.ones_like(y, dtype=torch.bool)
        right.append(((answer == y) & counts).sum(dim=1).cpu())
        asked.append(counts.sum(dim=1).cpu())
    loss = total / len(value)
    finite = loss if loss == loss else float("inf")
    return Judged(torch.cat(right), torch.cat(asked), finite)
