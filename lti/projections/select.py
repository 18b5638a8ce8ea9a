"""Selection: some parameters' gradients as they are, the others left out."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from lti.errors import LTIError
from lti.projections.base import PROJECTIONS, Projection

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import ParameterLayout

__all__ = ["Selection"]


@PROJECTIONS.register("select", source="this project; docs/inverters.md")
class Selection(Projection):
    """Keep the gradients of the parameters whose names match, coordinate by coordinate.

    Unlike a bin of feature hashing, a coordinate keeps its own scale and its sign.
    """

    parameters: tuple[str, ...] = Field(
        min_length=1, description="Names of parameters; `*` and `?` match as in file names."
    )

    def project(self, gradient: torch.Tensor, *, layout: ParameterLayout) -> torch.Tensor:
        """Return the kept coordinates, in their order."""
        return gradient.index_select(1, _kept(self, layout).to(gradient.device))

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return the kept parameters, under their names.

        Raises:
            LTIError: a pattern matches no parameter.
        """
        from lti.gradients.layout import ParameterLayout

        for pattern in self.parameters:
            if not any(fnmatchcase(name, pattern) for name in layout.names):
                raise LTIError(
                    f"projection select: {pattern!r} matches no parameter; there are "
                    f"{', '.join(layout.names)}. Correct the pattern."
                )
        kept = [
            (name, shape)
            for name, shape in zip(layout.names, layout.shapes, strict=True)
            if any(fnmatchcase(name, pattern) for pattern in self.parameters)
        ]
        return ParameterLayout(tuple(n for n, _ in kept), tuple(s for _, s in kept))

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return None: every entry is one coordinate."""
        return None


@cache
def _kept(selection: Selection, layout: ParameterLayout) -> torch.Tensor:
    import torch

    places = layout.slices
    names = selection.layout(layout).names
    return torch.cat([torch.arange(places[n].start, places[n].stop) for n in names])
