"""What every projection states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import ParameterLayout

__all__ = ["PROJECTIONS", "Projection"]


class Projection(Settings):
    """A fixed linear map of gradients. Defended gradients are projected; noise commutes."""

    def project(self, gradient: torch.Tensor, *, layout: ParameterLayout) -> torch.Tensor:
        """Map ``(b, p)`` float32 gradients of ``layout`` to ``(b, k)``, on their device."""
        return self.project_parts(layout.split(gradient), layout=layout)

    @abstractmethod
    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Map gradients that are not joined to rows.

        Args:
            parts: each parameter's, ``(b, *shape)`` or ``(b, size)`` float32, by name.
            layout: of the parameters.

        Returns:
            ``(b, k)``, on their device.
        """

    @abstractmethod
    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return where parameters lie in the result: one nameless block where they mix."""

    @abstractmethod
    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return how many coordinates of ``layout`` each entry sums, ``(k,)``; None: one."""


PROJECTIONS: Registry[Projection] = Registry(
    "projections",
    modules={
        "hash": "lti.projections.hash",
        "identity": "lti.projections.identity",
        "select": "lti.projections.select",
    },
)
