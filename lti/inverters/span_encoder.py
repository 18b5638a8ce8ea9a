"""The tuned text inverter's fixed part: what layers' gradients say of tokens, and the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from lti.errors import LTIError
from lti.gradients.layout import ParameterLayout
from lti.inverters.encoder import GradientEncoder
from lti.inverters.position_parts import PositionParts, ridged

__all__ = ["OtherParameters", "SpanEncoder", "span_places"]

TINY = 1e-30
# Of a few entries that pruning left, with zero rows, the decomposition may not converge; of
# float32's precision.
RIDGE = 1e-6


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


class OtherParameters:
    """A gradient's parameters without some.

    Args:
        layout: of the whole gradients.
        starts: where the parameters to leave out begin.

    Raises:
        LTIError: none is left.
    """

    def __init__(self, layout: ParameterLayout, starts: Collection[int]) -> None:
        shape = dict(zip(layout.names, layout.shapes, strict=True))
        kept = {name: place for name, place in layout.slices.items() if place.start not in starts}
        if not kept:
            raise LTIError(
                f"the projected gradient has the parameters {', '.join(layout.names)}, and none is "
                f"left for the network's features; expected others too. Keep more of the gradient, "
                f"or set the inverter's features to 'all'."
            )
        self.layout = ParameterLayout(tuple(kept), tuple(shape[name] for name in kept))
        self._slices = list(kept.values())
        self._are_all = len(kept) == len(shape)

    def of(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return theirs of gradients ``(b, p)``."""
        if self._are_all:
            return gradient
        return torch.cat([gradient[:, place] for place in self._slices], dim=1)


class SpanEncoder(nn.Module):
    """Gradients ``(b, p)`` to ``(b, width)``: features, a spectrum, the basis behind it, parts.

    The weights' gradients, stacked to ``(outputs, d)``, have the singular values
    ``s_1 >= s_2 >= ...`` and the right singular vectors ``q_1, q_2, ...``: the first ``rank`` of
    both are given, the values as ``log(s_k / s_1)``. The parts are those of
    :class:`lti.inverters.position_parts.PositionParts`. The features are those of
    :class:`lti.inverters.encoder.GradientEncoder`, of all other parameters; with
    ``span_features``, of these weights too.

    Args:
        layout: of the gradients.
        places: int64 ``(k, 2)``, where the weights of the layers that see single tokens lie.
        inputs: d, of each of these layers.
        rank: how many.
        statistics: of the features.
        span_features: whether the weights of these layers are among the features.
        parts: statistics of the parts; None: there are none.
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
        span_features: bool = True,
        parts: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.parts = PositionParts(parts) if parts else None
        self.register_buffer("places", places.clone())
        self.slices = [slice(*place) for place in places.tolist()]
        without = (self.parts.slices if self.parts else []) + ([] if span_features else self.slices)
        self._others = OtherParameters(layout, {place.start for place in without})
        self.features = GradientEncoder(self._others.layout, statistics, divide_by="parameter")
        self.inputs, self.rank = inputs, min(rank, inputs)

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Of features, spectrum, basis and the parts of all positions."""
        parts = self.parts.mean.numel() if self.parts else 0
        return self.features.shared_width, self.rank, self.rank * self.inputs, parts

    @torch.no_grad()
    def forward(self, gradient: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Encode gradients; labels do not matter."""
        stacked = torch.cat(
            [gradient[:, place].unflatten(1, (-1, self.inputs)) for place in self.slices], dim=1
        )
        # Squared below: without this small gradients would leave float32.
        stacked = stacked / stacked.abs().amax(dim=(1, 2), keepdim=True).clamp_min(TINY)
        values, vectors = torch.linalg.eigh(ridged(stacked.transpose(1, 2) @ stacked, RIDGE))
        values, vectors = values.flip(1)[:, : self.rank], vectors.flip(2)[:, :, : self.rank]
        spectrum = 0.5 * (values.clamp_min(0) / values[:, :1].clamp_min(TINY) + 1e-8).log()
        basis = vectors.transpose(1, 2).flatten(1)
        encoded = [self.features(self._others.of(gradient)), spectrum, basis]
        if self.parts is not None:
            encoded.append(self.parts(gradient).flatten(1))
        return torch.cat(encoded, dim=1)
