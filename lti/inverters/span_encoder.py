"""The tuned text inverter's fixed part: what the first layers' gradients span, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lti.errors import LTIError
from lti.gradients.layout import ParameterLayout
from lti.inverters.encoder import GradientEncoder

__all__ = ["SpanEncoder", "span_places"]

TINY = 1e-30


def span_places(layout: ParameterLayout, weights: Sequence[str]) -> torch.Tensor:
    """Return where weights lie in a projected gradient: int64 ``(k, 2)``, start and stop.

    Raises:
        LTIError: one of them is not there.
    """
    places = layout.slices
    if missing := [name for name in weights if name not in places]:
        raise LTIError(
            f"the projected gradient lacks {', '.join(missing)}; expected the weights of the "
            f"layers that see the tokens. Use projection identity, or select with them."
        )
    return torch.tensor([[places[name].start, places[name].stop] for name in weights])


class SpanEncoder(nn.Module):
    """Gradients ``(b, p)`` to ``(b, width)``: features, a spectrum and the basis behind it.

    The weights' gradients, stacked to ``(outputs, d)``, have the singular values
    ``s_1 >= s_2 >= ...`` and the right singular vectors ``q_1, q_2, ...``: the first ``rank`` of
    both are given, the values as ``log(s_k / s_1)``. The features are those of
    :class:`lti.inverters.encoder.GradientEncoder`.

    Args:
        layout: of the gradients.
        places: int64 ``(k, 2)``, where the weights of the layers that see single tokens lie.
        inputs: d, of each of these layers.
        rank: how many.
        statistics: of the features.
    """

    places: torch.Tensor

    def __init__(
        self,
        layout: ParameterLayout,
        places: torch.Tensor,
        *,
        inputs: int,
        rank: int,
        statistics: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self.features = GradientEncoder(layout, statistics, divide_by="parameter")
        self.register_buffer("places", places.clone())
        self.slices = [slice(*place) for place in places.tolist()]
        self.inputs, self.rank = inputs, min(rank, inputs)

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of features, spectrum and basis."""
        return self.features.shared_width, self.rank, self.rank * self.inputs

    @torch.no_grad()
    def forward(self, gradient: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Encode gradients; labels do not matter."""
        stacked = torch.cat(
            [gradient[:, place].unflatten(1, (-1, self.inputs)) for place in self.slices], dim=1
        )
        # Squared below: without this small gradients would leave float32.
        stacked = stacked / stacked.abs().amax(dim=(1, 2), keepdim=True).clamp_min(TINY)
        values, vectors = torch.linalg.eigh(stacked.transpose(1, 2) @ stacked)
        values, vectors = values.flip(1)[:, : self.rank], vectors.flip(2)[:, :, : self.rank]
        spectrum = 0.5 * (values.clamp_min(0) / values[:, :1].clamp_min(TINY) + 1e-8).log()
        basis = vectors.transpose(1, 2).flatten(1)
        return torch.cat([self.features(gradient), spectrum, basis], dim=1)
