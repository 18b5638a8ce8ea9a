"""Selection: some coordinates of the gradient as they are, the others left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lti.projections.base import PROJECTIONS, Projection
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import ParameterLayout

__all__ = ["Selection"]


@PROJECTIONS.register("select", source="this project; docs/inverters.md")
class Selection(Projection):
    """Keep the gradients of the parameters whose names match, or a share of their coordinates.

    Unlike a bin of feature hashing, a coordinate keeps its own scale and its sign.
    """

    parameters: tuple[str, ...] = Field(
        min_length=1, description="Names of parameters; `*` and `?` match as in file names."
    )
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={},
        description="Of parameters whose names match: the share of coordinates that is kept, "
        "drawn once from the seed. The first match counts; others are kept whole.",
    )
    seed: int = Field(0, description="Root seed of that draw.")

    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Return the kept coordinates, joined in their order."""
        kept = self.layout(layout)
        drawn = {name: part.flatten(1) for name, part in parts.items() if name in kept.slices}
        for name, place in self._places(layout).items():
            drawn[name] = drawn[name].index_select(1, place.to(drawn[name].device))
        return kept.join(drawn)

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return the kept parameters, under their names; flat where only a share is kept.

        Raises:
            LTIError: a pattern matches no parameter.
        """
        from lti.gradients.layout import ParameterLayout, matching_names

        shape = dict(zip(layout.names, layout.shapes, strict=True))
        kept = matching_names(shape, self.parameters, where="select.parameters")
        for name, place in self._places(layout).items():
            shape[name] = (len(place),)
        return ParameterLayout(tuple(kept), tuple(shape[name] for name in kept))

    def _places(self, layout: ParameterLayout) -> dict[str, torch.Tensor]:
        """Return the coordinates of each parameter of which a share is kept, ascending."""
        return _draw(self.parameters, tuple(self.shares.items()), self.seed, layout)

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return None: every entry is one coordinate."""
        return None


@cache
def _draw(
    parameters: tuple[str, ...],
    shares: tuple[tuple[str, float], ...],
    seed: int,
    layout: ParameterLayout,
) -> dict[str, torch.Tensor]:
    import torch

    from lti.gradients.layout import matching_names

    size = dict(zip(layout.names, layout.sizes, strict=True))
    kept = matching_names(size, parameters, where="select.parameters")
    drawn: dict[str, torch.Tensor] = {}
    for pattern, share in shares:
        for name in matching_names(kept, [pattern], where="select.shares"):
            if name not in drawn:
                generator = torch_generator(seed, "projection", "select", name)
                order = torch.randperm(size[name], generator=generator)
                drawn[name] = order[: max(1, round(share * size[name]))].sort().values
    return drawn
