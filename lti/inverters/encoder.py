"""From a defended gradient to inputs that a network learns from easily.

Three fixed steps, none of which knows the FL model beyond its parameters' names and
shapes:

1. *Factors.* The gradient of a linear layer is the outer product of its output's gradient
   ``u`` and its input ``v`` (bias: input 1). Both factors are recovered by alternating
   least squares over the coordinates that the defense left; every other parameter is
   divided by ``|u|`` or by its own norm, which takes the loss's magnitude out.
2. *Standardising* over the auxiliary set, among observed entries. Coordinates that never
   vary are dropped; where the defense hides an entry of some samples, whether it was seen
   becomes an input of its own.
3. *Whitening*, in part, of dense blocks (the inputs of linear layers, or else every other
   parameter): their principal components are scaled by ``eigenvalue ** (-power / 2)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeAlias

import torch
from torch import nn

from lti.compute import matmul_dtype
from lti.gradients.layout import LinearBlock, ParameterLayout

__all__ = [
    "DivideBy",
    "GradientEncoder",
    "encoder_statistics",
    "factor_features",
    "whitening_matrix",
]

DivideBy: TypeAlias = Literal["head", "parameter"]

LIMIT = 8.0  # standard deviations; an input beyond it is clamped
RARE = 0.003  # an entry seen in a smaller share of the samples is dropped
FLOOR = 0.003  # of whitening: added to each eigenvalue, times their mean
SMALLEST_BLOCK = 32  # coordinates; fewer are not worth whitening
TINY = 1e-6


def _factors(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return ``u (b, out)``, ``v (b, in + 1)`` and where each was seen.

    Two rounds of alternating least squares on the entries that are not zero, started at
    v = 1. The scale is fixed by a mean of 1 over the seen entries of v.
    """
    joined = torch.cat([weight, bias[:, :, None]], dim=2)
    seen = (joined != 0).to(joined.dtype)
    v = torch.ones_like(joined[:, 0])
    for _ in range(2):
        u = torch.einsum("boi,bi->bo", joined, v)
        u = u / torch.einsum("boi,bi->bo", seen, v * v).clamp_min(TINY)
        v = torch.einsum("bo,boi->bi", u, joined)
        v = v / torch.einsum("bo,boi->bi", u * u, seen).clamp_min(TINY)
    v_seen, u_seen = seen.amax(dim=1), seen.amax(dim=2)
    scale = (v * v_seen).sum(1, keepdim=True) / v_seen.sum(1, keepdim=True).clamp_min(1)
    scale = torch.where(scale.abs() < TINY, torch.ones_like(scale), scale)
    return u * scale, v / scale, u_seen, v_seen


def factor_features(
    layout: ParameterLayout, gradient: torch.Tensor, *, divide_by: DivideBy = "head"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of step 1 and whether each was observed.

    Args:
        layout: of the gradients.
        gradient: ``(b, p)`` float32, defended.
        divide_by: what parameters of no linear layer are divided by: the last ``|u|``
            (``head``) or the parameter's own root mean square.

    Returns:
        two float32 tensors ``(b, f)``: values, and 1, or 0 where the defense left nothing to
        compute the value from. Order: per linear layer ``v``, ``u / |u|``,
        ``log |u|``; then the other parameters in order.
    """
    values, observed = [], []
    size = gradient.norm(dim=1, keepdim=True).clamp_min(TINY)
    blocks = layout.linear_blocks()
    for block in blocks:
        weight = gradient[:, block.weight].unflatten(1, (block.outputs, block.inputs))
        u, v, u_seen, v_seen = _factors(weight, gradient[:, block.bias])
        size = u.norm(dim=1, keepdim=True).clamp_min(TINY)
        values += [v, u / size, size.log()]
        observed += [v_seen, u_seen, torch.ones_like(size)]
    for rest in _others(layout, blocks):
        if divide_by == "parameter":
            size = gradient[:, rest].square().mean(dim=1, keepdim=True).sqrt().clamp_min(TINY)
        values.append(gradient[:, rest] / size)
        observed.append((gradient[:, rest] != 0).to(gradient.dtype))
    return torch.cat(values, dim=1), torch.cat(observed, dim=1)


def _others(layout: ParameterLayout, blocks: list[LinearBlock]) -> list[slice]:
    """Return the parameters that belong to no linear layer."""
    linear = {b.weight.start for b in blocks} | {b.bias.start for b in blocks}
    return [place for place in layout.slices.values() if place.start not in linear]


def _feature_blocks(layout: ParameterLayout) -> list[tuple[int, int, bool]]:
    """Return ``(start, stop, is linear)`` of each block of features worth whitening."""
    result, start = [], 0
    blocks = layout.linear_blocks()
    for block in blocks:
        result.append((start, start + block.inputs, True))
        start += block.inputs + 1 + block.outputs + 1
    for rest in _others(layout, blocks):
        result.append((start, start + rest.stop - rest.start, False))
        start += rest.stop - rest.start
    return result


@torch.no_grad()
def encoder_statistics(
    layout: ParameterLayout,
    blocks: Callable[[], Iterator[torch.Tensor]],
    *,
    power: float,
    divide_by: DivideBy = "head",
) -> dict[str, torch.Tensor]:
    """Return the encoder's buffers, fitted to a sample of defended gradients.

    Args:
        layout: of the gradients.
        blocks: begins a pass over the sample, ``(m, p)`` float32 at a time; two passes are
            made, so memory stays that of a block.
        power: of whitening, from 0 (none) to 1 (full).
        divide_by: see :func:`factor_features`.
    """

    def features(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return factor_features(layout, rows, divide_by=divide_by)

    statistics, share = _moments(features, blocks)
    kept = statistics["kept"]
    places = []
    for start, stop, is_linear in _feature_blocks(layout):
        inside = ((kept >= start) & (kept < stop)).nonzero()[:, 0]
        if len(inside) >= SMALLEST_BLOCK and bool(share[kept[inside]].min() > 1 - 3 * RARE):
            places.append((is_linear, slice(int(inside[0]), int(inside[-1]) + 1)))
    # A linear layer's inputs come first. Where the defense left nothing of them (signs of
    # a layer whose inputs are positive), the other parameters are whitened instead.
    if any(is_linear for is_linear, _ in places):
        places = [(is_linear, place) for is_linear, place in places if is_linear]
    if power == 0 or not places:
        return statistics
    covariances = [torch.zeros(p.stop - p.start, p.stop - p.start) for _, p in places]
    count = 0
    for rows in blocks():
        standard = _standardise(*features(rows), statistics)
        count += len(standard)
        for (_, place), covariance in zip(places, covariances, strict=True):
            covariance.addmm_(standard[:, place].T, standard[:, place])
    for number, ((_, place), covariance) in enumerate(zip(places, covariances, strict=True)):
        statistics[f"whiten{number}"] = whitening_matrix(covariance / count, power)
        statistics[f"place{number}"] = torch.tensor([place.start, place.stop])
    return statistics


def whitening_matrix(covariance: torch.Tensor, power: float) -> torch.Tensor:
    """Return the ``(d, d)`` matrix of step 3; inputs times it have a mean variance of 1."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    floored = eigenvalues.clamp_min(0) + FLOOR * eigenvalues.mean()
    matrix = vectors * floored ** (-power / 2)
    variance = (matrix * (covariance @ matrix)).sum(dim=0).mean()
    return (matrix / variance.sqrt()).contiguous()


def _moments(
    features: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    blocks: Callable[[], Iterator[torch.Tensor]],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the statistics of step 2, and the share of samples in which each was seen."""
    total = 0
    count = first = second = torch.zeros(())
    shift: torch.Tensor | None = None
    for rows in blocks():
        values, seen = features(rows)
        if shift is None:  # the variance of what is far from zero needs an origin nearby
            shift = (values * seen).sum(0) / seen.sum(0).clamp_min(1)
        centred = (values - shift) * seen
        total += len(rows)
        count = count + seen.sum(dim=0, dtype=torch.float64)
        first = first + centred.sum(dim=0, dtype=torch.float64)
        second = second + centred.square_().sum(dim=0, dtype=torch.float64)
    assert shift is not None
    share = count / total
    mean = first / count.clamp_min(1)
    deviation = (second / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
    mean = mean + shift
    varies = deviation > 1e-5 * mean.abs().clamp_min(1e-3)
    kept = ((share > RARE) & varies).nonzero()[:, 0]
    hidden = ((share > RARE) & (share < 1 - RARE)).nonzero()[:, 0]
    p = share[kept]
    statistics = {
        "kept": kept,
        "mean": mean[kept].float(),
        # Rarely seen entries are boosted: with the zeros counted in, they too have a
        # variance of one.
        "scale": (p.rsqrt().clamp_max(5.0) / deviation[kept]).float(),
        "hidden": hidden,
        "hidden_mean": share[hidden].float(),
        "hidden_scale": (share[hidden] * (1 - share[hidden])).rsqrt().float(),
    }
    return statistics, share


def _standardise(
    values: torch.Tensor, observed: torch.Tensor, statistics: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    kept = statistics["kept"]
    standard = (values.index_select(1, kept) - statistics["mean"]) * statistics["scale"]
    return standard.mul_(observed.index_select(1, kept)).clamp_(-LIMIT, LIMIT)


class GradientEncoder(nn.Module):
    """The three steps with given statistics: ``(b, p)`` float32 to ``(b, width)`` float32.

    Args:
        layout: of the gradients.
        statistics: what :func:`encoder_statistics` returned.
        divide_by: see :func:`factor_features`.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        statistics: Mapping[str, torch.Tensor],
        *,
        divide_by: DivideBy = "head",
    ) -> None:
        super().__init__()
        self.layout, self.divide_by = layout, divide_by
        for name, value in statistics.items():
            self.register_buffer(name, value.clone())
        self.shared_width = len(statistics["kept"]) + len(statistics["hidden"])
        self.own_width = 0
        # As plain numbers: reading them from a GPU would make it wait at every batch.
        numbers = range(sum(name.startswith("whiten") for name in statistics))
        self.whitened = [slice(*statistics[f"place{n}"].tolist()) for n in numbers]

    @torch.no_grad()
    def forward(self, gradient: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Encode gradients, which give their labels away."""
        values, observed = factor_features(self.layout, gradient, divide_by=self.divide_by)
        buffers = dict(self.named_buffers())
        dtype = matmul_dtype(gradient.device)
        standard = _standardise(values, observed, buffers)
        for number, part in enumerate(self.whitened):
            matrix = buffers[f"whiten{number}"].to(dtype)
            standard[:, part] = (standard[:, part].to(dtype) @ matrix).clamp_(-LIMIT, LIMIT)
        seen = observed.index_select(1, buffers["hidden"])
        seen = (seen - buffers["hidden_mean"]) * buffers["hidden_scale"]
        return torch.cat([standard, seen.clamp_(-LIMIT, LIMIT)], dim=1)
