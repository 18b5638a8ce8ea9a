"""No projection: the whole gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lti.projections.base import PROJECTIONS, Projection

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import ParameterLayout

__all__ = ["Identity"]


@PROJECTIONS.register("identity", source="Wu et al. 2023, public code: LeNet")
class Identity(Projection):
    """Keep the gradient as it is."""

    def project(self, gradient: torch.Tensor, *, layout: ParameterLayout) -> torch.Tensor:
        """Return the gradient."""
        return gradient

    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Return the parts, joined."""
        return layout.join(parts)

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return the layout."""
        return layout

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return None: every entry is one coordinate."""
        return None
