"""Of a layer's gradient, what lies in the directions of the layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from lti.errors import LTIError
from lti.projections.base import PROJECTIONS, FitSample, FittedProjection

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.gradients.layout import ParameterLayout

__all__ = ["LayerInputs"]

ROWS = 128  # samples at once
BASIS, POSITION, WITHOUT = "basis.", "position.", "without."  # of what it is made of, by name


@PROJECTIONS.register("layer-inputs", source="this project; docs/inverters.md")
class LayerInputs(FittedProjection):
    """Keep linear layers' gradients along the leading directions of the layers' inputs.

    A linear layer that sees a sequence has the gradient ``G = sum_t g_t h_t'``: position t's
    output gradient times its input. ``G Q``, with orthonormal directions Q, is what of it lies
    along them: first the span of the mean inputs of the positions, then the principal
    directions of what the inputs are besides. Orthonormal directions keep noise's variance.
    Tables of embeddings are left out, unless `whole` names them.
    """

    from_gradients = False

    parameters: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="Names of parameters to keep; `*` and `?` match as in file names.",
    )
    whole: tuple[str, ...] = Field(
        (), description="Of these, names of those to keep coordinate by coordinate."
    )
    token_coordinates: int = Field(
        0,
        ge=0,
        description="Keep so many coordinates of the layers that see single tokens, layer by "
        "layer, at least one whole; 0: none but those that `whole` names.",
    )
    directions: int = Field(
        48, ge=1, description="Of a layer's inputs; layers with no more inputs are kept whole."
    )

    def fit(self, sample: FitSample) -> dict[str, torch.Tensor]:
        """Return each such layer's ``basis.<weight>``, ``(k, d)``, and ``position.<weight>``.

        The latter are the mean inputs of the positions along these directions, ``(T, k)``. The
        layers are those that see sequences, ``(n, T, d)`` with d above ``directions``. Names of
        what is left out are those of the empty tensors ``without.<weight>``.

        Raises:
            LTIError: no such layer, or fewer directions than positions.
        """
        import torch

        kept = self._kept(sample.layout)
        whole = {*self._whole(kept), *self._of_tokens(kept, sample)}
        tables = {name for name in _tables(sample.network) if name in kept and name not in whole}
        wanted = {
            name: shape
            for name, shape in kept.items()
            if name not in whole | tables and len(shape) == 2
        }
        result = {WITHOUT + name: torch.zeros(0) for name in sorted(tables)}
        for name, (mean, second) in _moments(sample.network, sample.value, wanted).items():
            length, width = mean.shape
            if width <= self.directions:
                continue
            if length > self.directions:
                raise LTIError(
                    f"projection {self.name}: got {self.directions} directions for {length} "
                    f"positions; expected as many or more. Raise `directions`."
                )
            first = torch.linalg.qr(mean.T).Q
            rest = torch.eye(width) - first @ first.T
            vectors = torch.linalg.eigh(rest @ second @ rest).eigenvectors.flip(1)
            basis = torch.linalg.qr(torch.cat([first, vectors[:, : self.directions - length]], 1)).Q
            result[BASIS + name] = basis.T.contiguous()
            result[POSITION + name] = mean @ basis
        if not any(name.startswith(BASIS) for name in result):
            raise LTIError(
                f"projection {self.name} found no linear layer that sees sequences of more than "
                f"{self.directions} numbers among {', '.join(kept)}. Use projection select."
            )
        return result

    def positions(self) -> dict[str, torch.Tensor]:
        """Return what it is made of about positions (see the base)."""
        return {
            name.removeprefix(POSITION): value
            for name, value in self.tensors().items()
            if name.startswith(POSITION)
        }

    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Return the kept parts, joined in their order (see the base).

        Raises:
            LTIError: not fitted, or to another FL model's layers.
        """
        kept, tensors = self._kept(layout), self.tensors()
        result = {name: parts[name] for name in kept if WITHOUT + name not in tensors}
        for name in result:
            if BASIS + name in tensors:
                weight = parts[name].flatten(1).unflatten(1, kept[name])
                result[name] = weight @ tensors[BASIS + name].T
        return self.layout(layout).join(result)

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return the kept parameters, under their names; weights have directions for inputs.

        Raises:
            LTIError: not fitted, to other layers, or a pattern that matches no parameter.
        """
        from lti.gradients.layout import ParameterLayout

        kept = self._kept(layout)
        self._whole(kept)
        for key, basis in self.tensors().items():
            if not key.startswith(BASIS):
                continue
            name = key.removeprefix(BASIS)
            if name not in kept or kept[name][1:] != basis.shape[1:]:
                raise LTIError(
                    f"projection {self.name} was fitted to a layer {name} of {basis.shape[1]} "
                    f"inputs; got {kept.get(name, 'none')}. Fit it to this FL model."
                )
            kept[name] = (kept[name][0], len(basis))
        for key in self.tensors():
            if key.startswith(WITHOUT):
                kept.pop(key.removeprefix(WITHOUT), None)
        return ParameterLayout(tuple(kept), tuple(kept.values()))

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return ones: directions are orthonormal."""
        import torch

        return torch.ones(self.layout(layout).total)

    def _kept(self, layout: ParameterLayout) -> dict[str, tuple[int, ...]]:
        from lti.gradients.layout import matching_names

        shape = dict(zip(layout.names, layout.shapes, strict=True))
        names = matching_names(shape, self.parameters, where="layer-inputs.parameters")
        return {name: shape[name] for name in names}

    def _of_tokens(self, kept: Mapping[str, tuple[int, ...]], sample: FitSample) -> list[str]:
        """Return the layers that see single tokens, as many as are to be kept whole."""
        if not self.token_coordinates:
            return []
        if sample.value.is_floating_point():
            raise LTIError(
                f"projection {self.name}: got token_coordinates for samples that are no tokens. "
                f"Leave it out."
            )
        from lti.fl_models.token_inputs import token_layers

        vocabulary, length = int(sample.value.max()) + 1, sample.value.shape[1]
        found: list[str] = []
        left = self.token_coordinates
        for name in token_layers(sample.network, vocabulary, length):
            if name not in kept:
                continue
            size = math.prod(kept[name])
            if found and size > left:
                break
            found.append(name)
            left -= size
        return found

    def _whole(self, kept: Mapping[str, tuple[int, ...]]) -> list[str]:
        from lti.gradients.layout import matching_names

        return matching_names(kept, self.whole, where="layer-inputs.whole")


def _tables(network: nn.Module) -> list[str]:
    """Return the names of the weights of embeddings."""
    from torch import nn

    return [
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding)
    ]


def _moments(
    network: nn.Module, value: torch.Tensor, weights: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the inputs' means by position ``(T, d)`` and second moments ``(d, d)``, by weight.

    Only of linear layers that see sequences, ``(n, T, d)``.
    """
    import torch
    from torch import nn

    device = next(network.parameters()).device
    total: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def called(weight: str, entering: torch.Tensor) -> None:
        if entering.ndim != 3:
            return
        flat = entering.float().flatten(0, 1)
        first, second = entering.float().sum(dim=0), flat.T @ flat / entering.shape[1]
        if weight in total:
            first, second = first + total[weight][0], second + total[weight][1]
        total[weight] = first, second

    hooks = []
    for name, module in network.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, nn.Linear) and weight in weights:
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, inputs, weight=weight: called(weight, inputs[0])
                )
            )
    try:
        with torch.no_grad():
            for rows in value.split(ROWS):
                network(rows.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    count = len(value)
    return {
        weight: (mean.cpu() / count, second.cpu() / count)
        for weight, (mean, second) in total.items()
    }
