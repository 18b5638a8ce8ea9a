"""Selection: some parameters' gradients as they are, the others left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

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

    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Return the kept parts, joined in their order."""
        return self.layout(layout).join(parts)

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return the kept parameters, under their names.

        Raises:
            LTIError: a pattern matches no parameter.
        """
        from lti.gradients.layout import ParameterLayout, matching_names

        shape = dict(zip(layout.names, layout.shapes, strict=True))
        kept = matching_names(shape, self.parameters, where="select.parameters")
        return ParameterLayout(tuple(kept), tuple(shape[name] for name in kept))

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return None: every entry is one coordinate."""
        return None
