"""Principal components: the directions in which auxiliary gradients differ the most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from lti.errors import LTIError
from lti.projections.base import PROJECTIONS, FitSample, FittedProjection

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import ParameterLayout

__all__ = ["PrincipalComponents"]

COLUMNS = 16384  # coordinates taken to float64 at once


@PROJECTIONS.register("principal", source="this project; docs/inverters.md")
class PrincipalComponents(FittedProjection):
    """Keep a gradient's coefficients of orthonormal directions, the variance falling.

    The directions are those of the auxiliary set's defended gradients, without their random
    part: noise of one variance has that variance in every coefficient too. A sum of many
    coordinates, as in feature hashing, has as much more of it, and the same signal.
    """

    components: int = Field(512, ge=1, description="Directions; at most the coordinates.")

    def fit(self, sample: FitSample) -> dict[str, torch.Tensor]:
        """Return ``basis``, float32 ``(k, p)`` with orthonormal rows.

        The rows' products are summed in float64, since variances may differ by a factor of
        10^8. Memory: that of the gradients twice.

        Raises:
            LTIError: no more gradients than directions.
        """
        import torch

        gradient = sample.gradients()
        count, parameters = gradient.shape
        wanted = min(self.components, parameters)
        if count <= wanted:
            raise LTIError(
                f"projection {self.name}: got {count} gradients for {wanted} components; expected "
                f"more gradients. Raise `samples` or the auxiliary set's size, or lower "
                f"`components`."
            )
        gradient -= gradient.mean(dim=0)
        products = torch.zeros(count, count, dtype=torch.float64)
        for part in gradient.split(COLUMNS, dim=1):
            wide = part.double()
            products.addmm_(wide, wide.T)
        vectors = torch.linalg.eigh(products).eigenvectors[:, -wanted:].flip(1)
        directions = gradient.T @ vectors.float()
        # Those of hardly any variance are not orthogonal to the others as they are.
        basis, triangle = torch.linalg.qr(directions)
        basis *= triangle.diagonal().sign()  # of the two signs, that of the direction
        return {"basis": basis.T.contiguous()}

    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Return the coefficients; the projection is loaded to the parts' device.

        Raises:
            LTIError: not fitted, or to gradients of another size.
        """
        basis = self.tensors()["basis"]
        if basis.shape[1] != layout.total:
            raise LTIError(
                f"projection {self.name} was fitted to gradients of {basis.shape[1]} coordinates; "
                f"got gradients of {layout.total}. Fit it to this FL model's."
            )
        some = next(iter(parts.values()))
        result = some.new_zeros(len(some), len(basis))
        for name, place in layout.slices.items():
            result.addmm_(parts[name].flatten(1), basis[:, place].T)
        return result

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return one block of ``min(components, p)``."""
        from lti.gradients.layout import ParameterLayout

        return ParameterLayout(("principal",), ((min(self.components, layout.total),),))

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return ones: directions are orthonormal."""
        import torch

        return torch.ones(self.layout(layout).total)
