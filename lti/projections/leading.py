"""The first layers' gradients, and the vectors of all: a selection for any network."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from lti.projections.base import PROJECTIONS, Projection
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import ParameterLayout

__all__ = ["Leading"]


@PROJECTIONS.register("leading", source="this project; docs/audit.md")
class Leading(Projection):
    """Keep coordinates of the parameters that lie closest to the data, up to a number.

    The parameters of one dimension come first, of all layers (biases, normalisations), then the
    others in the network's order, each whole while there is room; the last one is sampled. A
    network of no more coordinates is kept whole. What a first layer's gradient says of an image
    is not drowned by a wide layer behind it, as it is in feature hashing.
    """

    coordinates: int = Field(16384, ge=1, description="How many to keep.")
    without: tuple[str, ...] = Field(
        (),
        description="Names of parameters to leave out, where there are any; `*` and `?` match as "
        "in file names.",
    )
    seed: int = Field(0, description="Root seed of the draw within the last parameter.")

    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Return the kept coordinates, in the network's order."""
        kept = self.layout(layout)
        flat = {name: parts[name].flatten(1) for name in kept.names}
        for name, place in self._sampled(layout).items():
            flat[name] = flat[name].index_select(1, place.to(flat[name].device))
        return kept.join(flat)

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return the kept parameters under their names; flat where it is sampled."""
        from lti.gradients.layout import ParameterLayout

        sampled = {name: (len(place),) for name, place in self._sampled(layout).items()}
        kept = _room(self.coordinates, self.without, layout)
        shapes = [(n, s) for n, s in zip(layout.names, layout.shapes, strict=True) if n in kept]
        return ParameterLayout(
            tuple(name for name, _ in shapes),
            tuple(sampled.get(name, shape) for name, shape in shapes),
        )

    def _sampled(self, layout: ParameterLayout) -> dict[str, torch.Tensor]:
        """Return the coordinates of the parameter that is not kept whole, ascending."""
        return _draw(self.coordinates, self.without, self.seed, layout)

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return None: every entry is one coordinate."""
        return None


@cache
def _room(coordinates: int, without: tuple[str, ...], layout: ParameterLayout) -> dict[str, int]:
    """Return how many coordinates of each parameter are kept, of those that are."""
    parameters = [
        parameter
        for parameter in zip(layout.names, layout.shapes, layout.sizes, strict=True)
        if not any(fnmatchcase(parameter[0], pattern) for pattern in without)
    ]
    kept: dict[str, int] = {}
    for name, _, size in sorted(parameters, key=lambda parameter: len(parameter[1]) > 1):
        if left := min(size, coordinates - sum(kept.values())):
            kept[name] = left
    return kept


@cache
def _draw(
    coordinates: int, without: tuple[str, ...], seed: int, layout: ParameterLayout
) -> dict[str, torch.Tensor]:
    import torch

    size = dict(zip(layout.names, layout.sizes, strict=True))
    drawn = {}
    for name, count in _room(coordinates, without, layout).items():
        if count < size[name]:
            generator = torch_generator(seed, "projection", "leading", name)
            drawn[name] = torch.randperm(size[name], generator=generator)[:count].sort().values
    return drawn
