"""What each position of a sequence adds to the gradients of linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from lti.gradients.layout import ParameterLayout

__all__ = ["PositionParts", "part_statistics", "ridged"]

LIMIT = 8.0  # standard deviations; a part beyond it is clamped
RIDGE_INPUTS = 1e-4  # relative to the mean square of the known factor
RIDGE_OUTPUTS = 0.1
TINY = 1e-20


class PositionParts(nn.Module):
    """Projected gradients ``(b, p)`` to parts of the positions, ``(b, T, width)``.

    The gradient of a linear layer that sees a sequence is ``G = sum_t g_t h_t'``. With the mean
    inputs of the positions for ``h_t``, least squares gives the outputs' gradients ``g_t``; with
    these, least squares gives the inputs ``h_t`` of this sample. Both, of all layers, are the
    parts, standardised.

    Args:
        statistics: what :func:`part_statistics` returned.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, statistics: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in statistics.items():
            self.register_buffer(name, value.clone())
        self.slices = [slice(*place) for place in statistics["places"].tolist()]

    @torch.no_grad()
    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the parts."""
        inverses = [self.get_buffer(f"inverse{number}") for number in range(len(self.slices))]
        parts = _parts(gradient, self.slices, inverses)
        return parts.sub_(self.mean).mul_(self.scale).clamp_(-LIMIT, LIMIT)


def _parts(
    gradient: torch.Tensor, slices: Sequence[slice], inverses: Sequence[torch.Tensor]
) -> torch.Tensor:
    parts = []
    for place, inverse in zip(slices, inverses, strict=True):
        weight = gradient[:, place].unflatten(1, (-1, inverse.shape[1]))
        outputs = inverse @ weight.transpose(1, 2)  # (b, T, outputs)
        square = ridged(outputs @ outputs.transpose(1, 2), RIDGE_OUTPUTS)
        parts += [outputs, torch.linalg.solve(square, outputs @ weight)]
    return torch.cat(parts, dim=2)


def ridged(square: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return ``(..., d, d)`` matrices with ``ridge`` times their mean diagonal added to it."""
    mean = square.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    return square + (ridge * mean + TINY) * torch.eye(square.shape[-1], device=square.device)


@torch.no_grad()
def part_statistics(
    layout: ParameterLayout,
    positions: Mapping[str, torch.Tensor],
    blocks: Callable[[], Iterator[torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Return the buffers of :class:`PositionParts`, fitted to a sample of defended gradients.

    Args:
        layout: of the gradients.
        positions: mean inputs ``(T, k)``, by weight (see
            :meth:`lti.projections.Projection.positions`).
        blocks: begins a pass over the sample, ``(m, p)`` float32 at a time.
    """
    places = [layout.slices[name] for name in positions]
    inverses = [
        torch.linalg.solve(ridged(known @ known.T, RIDGE_INPUTS), known)
        for known in (position.cpu() for position in positions.values())
    ]
    total = 0
    first = second = torch.zeros((), dtype=torch.float64)
    for rows in blocks():
        part = _parts(rows.cpu(), places, inverses).double()
        total += len(part)
        first = first + part.sum(dim=0)
        second = second + part.square().sum(dim=0)
    mean = first / total
    deviation = (second / total - mean.square()).clamp_min(0).sqrt()
    varies = deviation > 1e-6 * deviation.mean()  # what hardly does stays at zero
    return {
        "places": torch.tensor([[place.start, place.stop] for place in places]),
        **{f"inverse{number}": inverse for number, inverse in enumerate(inverses)},
        "mean": mean.float(),
        "scale": torch.where(varies, 1 / deviation.clamp_min(TINY), 0.0).float(),
    }
