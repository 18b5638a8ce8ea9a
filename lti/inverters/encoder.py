"""From a defended gradient to inputs that a network learns from easily.

Three fixed steps, none of which knows the FL model beyond its parameters' names and
shapes:

1. *Factors.* The gradient of a linear layer is the outer product of its output's gradient
   ``u`` and its input ``v`` (bias: input 1). Both factors are recovered by alternating
   least squares over the coordinates that the defense left; every other parameter is
   divided by ``|u|``, which takes the loss's magnitude out.
2. *Standardising* over the auxiliary set, among observed entries. Coordinates that never
   vary are dropped; where the defense hides an entry of some samples, whether it was seen
   becomes an input of its own.
3. *Whitening*, in part, of the dense blocks: their principal components are scaled by
   ``eigenvalue ** (-power / 2)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lti.gradients.layout import LinearBlock, ParameterLayout

__all__ = ["GradientEncoder", "encoder_statistics", "factor_features"]

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
    layout: ParameterLayout, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of step 1 and whether each was observed.

    Args:
        layout: of the gradients.
        gradient: ``(b, p)`` float32, defended.

    Returns:
        two tensors ``(b, f)``: float32 values, and bool: False where the defense left
        nothing to compute the value from. Order: per linear layer ``v``, ``u / |u|``,
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
        values.append(gradient[:, rest] / size)
        observed.append((gradient[:, rest] != 0).to(gradient.dtype))
    return torch.cat(values, dim=1), torch.cat(observed, dim=1).bool()


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
    layout: ParameterLayout, rows: torch.Tensor, *, power: float, whiten_all: bool
) -> dict[str, torch.Tensor]:
    """Return the encoder's buffers, fitted to ``(m, p)`` defended gradients.

    Args:
        layout: of the gradients.
        rows: a sample of the auxiliary set's.
        power: of whitening, from 0 (none) to 1 (full).
        whiten_all: whiten every dense parameter, not only the inputs of linear layers.
    """
    values, observed = factor_features(layout, rows)
    seen = observed.float()
    share = seen.mean(dim=0)
    count = seen.sum(dim=0).clamp_min(1)
    mean = (values * seen).sum(dim=0) / count
    deviation = (((values - mean) * seen).square().sum(dim=0) / count).sqrt()
    varies = deviation > 1e-5 * mean.abs().clamp_min(1e-3)
    kept = ((share > RARE) & varies).nonzero()[:, 0]
    hidden = ((share > RARE) & (share < 1 - RARE)).nonzero()[:, 0]
    p = share[kept]
    statistics = {
        "kept": kept,
        "mean": mean[kept],
        # Entries that are rarely seen are boosted, so that zeros counted in they have unit
        # variance too.
        "scale": p.rsqrt().clamp_max(5.0) / deviation[kept],
        "hidden": hidden,
        "hidden_mean": share[hidden],
        "hidden_scale": (share[hidden] * (1 - share[hidden])).rsqrt(),
    }
    standard = _standardise(values, observed, statistics)
    number = 0
    for start, stop, is_linear in _feature_blocks(layout):
        place = ((kept >= start) & (kept < stop)).nonzero()[:, 0]
        dense = len(place) >= SMALLEST_BLOCK and bool(p[place].min() > 1 - 3 * RARE)
        if power == 0 or not dense or not (is_linear or whiten_all):
            continue
        part = standard[:, place]
        eigenvalues, vectors = torch.linalg.eigh(part.T @ part / len(part))
        matrix = vectors * (eigenvalues.clamp_min(0) + FLOOR * eigenvalues.mean()) ** (-power / 2)
        statistics[f"whiten{number}"] = matrix / (part @ matrix).square().mean().sqrt()
        statistics[f"place{number}"] = place[[0, -1]]
        number += 1
    return {key: value.contiguous() for key, value in statistics.items()}


def _standardise(
    values: torch.Tensor, observed: torch.Tensor, statistics: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    kept = statistics["kept"]
    standard = (values[:, kept] - statistics["mean"]) * statistics["scale"] * observed[:, kept]
    return standard.clamp_(-LIMIT, LIMIT)


class GradientEncoder(nn.Module):
    """The three steps with given statistics: ``(b, p)`` float32 to ``(b, width)`` float32.

    Args:
        layout: of the gradients.
        statistics: what :func:`encoder_statistics` returned.
    """

    def __init__(self, layout: ParameterLayout, statistics: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.layout = layout
        for name, value in statistics.items():
            self.register_buffer(name, value.clone())
        self.width = len(statistics["kept"]) + len(statistics["hidden"])
        self.whitened = sum(name.startswith("whiten") for name in statistics)

    @torch.no_grad()
    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Encode gradients."""
        values, observed = factor_features(self.layout, gradient)
        buffers = dict(self.named_buffers())
        standard = _standardise(values, observed, buffers)
        for number in range(self.whitened):
            first, last = buffers[f"place{number}"].tolist()
            part = slice(first, last + 1)
            matrix = buffers[f"whiten{number}"]
            standard[:, part] = (standard[:, part] @ matrix).clamp_(-LIMIT, LIMIT)
        seen = observed[:, buffers["hidden"]].float()
        seen = (seen - buffers["hidden_mean"]) * buffers["hidden_scale"]
        return torch.cat([standard, seen.clamp_(-LIMIT, LIMIT)], dim=1)
