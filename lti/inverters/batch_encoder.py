"""From the defended gradient of a batch, and its labels, to a network's inputs.

Inputs that all samples of the batch share: every coordinate but the last layer's weights,
standardised. Inputs of each sample: what the last layer says of it
(:mod:`lti.inverters.separate`), standardised and partly whitened, and its label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from lti.compute import matmul_dtype
from lti.gradients.layout import LinearBlock, ParameterLayout
from lti.inverters.encoder import LIMIT, RARE, whitening_matrix
from lti.inverters.head import ClassifierHead
from lti.inverters.separate import label_features, separate

__all__ = ["BatchEncoder", "batch_encoder_statistics"]

Blocks = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def _head_block(layout: ParameterLayout, head: ClassifierHead | None) -> LinearBlock | None:
    """Return where the head lies in a gradient; None where a projection mixed it."""
    if head is None:
        return None
    shape = tuple(head.weight.shape)
    found = [b for b in layout.linear_blocks() if (b.outputs, b.inputs) == shape]
    return found[-1] if found else None


def _shared(gradient: torch.Tensor, block: LinearBlock | None) -> torch.Tensor:
    if block is None:
        return gradient
    return torch.cat([gradient[:, : block.weight.start], gradient[:, block.weight.stop :]], dim=1)


def _own(
    gradient: torch.Tensor,
    label: torch.Tensor,
    block: LinearBlock | None,
    head: ClassifierHead | None,
    ridge: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if block is None or head is None:
        empty = gradient.new_zeros(*label.shape, 0)
        return empty, empty.bool()
    return separate(gradient, label, block=block, head=head, ridge=ridge)


@torch.no_grad()
def batch_encoder_statistics(
    layout: ParameterLayout,
    blocks: Blocks,
    *,
    head: ClassifierHead | None,
    power: float,
    ridge: float,
) -> dict[str, torch.Tensor]:
    """Return the encoder's buffers, fitted to a sample of defended batches.

    Args:
        layout: of the gradients.
        blocks: begins a pass over the sample, pairs of gradients ``(m, p)`` float32 and
            labels ``(m, B)``; two passes are made.
        head: the FL model's last layer, where there is one.
        power: of whitening, from 0 (none) to 1 (full).
        ridge: see :func:`lti.inverters.separate.separate`.
    """
    block = _head_block(layout, head)
    head = head if block is not None else None
    shared, own, seen = _Moments(), _Moments(), _Moments()
    share: torch.Tensor | None = None
    rows = 0
    for gradient, label in blocks():
        part = _shared(gradient, block)
        observed = (part != 0).double().sum(dim=0)
        share = observed if share is None else share + observed
        rows += len(part)
        shared.add(part)
        values, row_seen = _own(gradient, label, block, head, ridge)
        own.add(values.flatten(0, 1))
        seen.add(row_seen.flatten(0, 1).float())
    assert share is not None
    statistics = {
        **shared.statistics("shared", (share / rows > RARE)),
        **own.statistics("own"),
        **seen.statistics("seen"),
        **(head.tensors() if head is not None else {}),
    }
    # The least-squares estimates come first. Where the defense hides entries, they are poor.
    count = int((statistics["own_kept"] < (block.inputs if block is not None else 0)).sum())
    if power == 0 or count < 2 or float(seen.mean.min()) < 1 - 3 * RARE:
        return statistics
    covariance, total = torch.zeros(count, count), 0
    for gradient, label in blocks():
        values = _own(gradient, label, block, head, ridge)[0].flatten(0, 1)
        standard = _standardise(values, statistics, "own")[:, :count]
        covariance.addmm_(standard.T, standard)
        total += len(standard)
    statistics["whiten"] = whitening_matrix(covariance / total, power)
    return statistics


class _Moments:
    """Means and deviations of columns, over parts."""

    def __init__(self) -> None:
        self.count = 0
        self.first = self.second = self.shift = torch.zeros(())

    def add(self, values: torch.Tensor) -> None:
        values = values.double()
        if not self.count:  # the variance of what is far from zero needs an origin nearby
            self.shift = values.mean(dim=0)
        self.count += len(values)
        self.first = self.first + (values - self.shift).sum(dim=0)
        self.second = self.second + (values - self.shift).square().sum(dim=0)

    @property
    def mean(self) -> torch.Tensor:
        return self.shift + self.first / self.count

    def statistics(
        self, prefix: str, allowed: torch.Tensor | bool = True
    ) -> dict[str, torch.Tensor]:
        first, mean = self.first / self.count, self.mean
        deviation = (self.second / self.count - first.square()).clamp_min(0).sqrt()
        kept = ((deviation > 1e-5 * mean.abs().clamp_min(1e-3)) & allowed).nonzero()[:, 0]
        return {
            f"{prefix}_kept": kept,
            f"{prefix}_mean": mean[kept].float(),
            f"{prefix}_scale": deviation[kept].reciprocal().float(),
        }


def _standardise(
    values: torch.Tensor, statistics: Mapping[str, torch.Tensor], prefix: str
) -> torch.Tensor:
    kept, mean, scale = (statistics[f"{prefix}_{name}"] for name in ("kept", "mean", "scale"))
    return ((values.index_select(-1, kept) - mean) * scale).clamp_(-LIMIT, LIMIT)


class BatchEncoder(nn.Module):
    """``(b, p)`` gradients and ``(b, B)`` labels to ``(b, shared + B * own)`` float32 inputs.

    Args:
        layout: of the gradients.
        batch_size: B.
        classes: number of labels.
        ridge: see :func:`lti.inverters.separate.separate`.
        statistics: what :func:`batch_encoder_statistics` returned.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        *,
        batch_size: int,
        classes: int,
        ridge: float,
        statistics: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self.ridge, self.classes = ridge, classes
        for name, value in statistics.items():
            self.register_buffer(name, value.clone())
        self.block = _head_block(layout, ClassifierHead.from_tensors(statistics))
        self.shared_width = len(statistics["shared_kept"])
        self.own_width = len(statistics["own_kept"]) + len(statistics["seen_kept"])
        self.own_width += 2 * classes + batch_size

    @torch.no_grad()
    def forward(self, gradient: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Encode gradients."""
        buffers = dict(self.named_buffers())
        shared = _standardise(_shared(gradient, self.block), buffers, "shared")
        head = ClassifierHead.from_tensors(buffers)
        values, seen = _own(gradient, label, self.block, head, self.ridge)
        own = _standardise(values, buffers, "own")
        if "whiten" in buffers:
            dtype = matmul_dtype(gradient.device)
            matrix = buffers["whiten"].to(dtype)
            part = own[:, :, : len(matrix)]
            own[:, :, : len(matrix)] = (part.to(dtype) @ matrix).clamp_(-LIMIT, LIMIT)
        own = torch.cat(
            [
                own,
                _standardise(seen.float(), buffers, "seen"),
                label_features(label, self.classes),
            ],
            dim=2,
        )
        return torch.cat([shared, own.flatten(1)], dim=1)
