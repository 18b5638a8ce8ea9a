"""What optimisation attacks on images share: the total variation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.attacks.optimise import OptimisationAttack, Problems

if TYPE_CHECKING:
    import torch

__all__ = ["ImageMatching", "total_variation"]


class ImageMatching(OptimisationAttack):
    """Base of the attacks that match gradients of images."""

    modality = "image"

    tv: float = Field(1e-4, ge=0, description="Weight of the total variation.")

    def objective(self, problems: Problems, image: torch.Tensor) -> torch.Tensor:
        """Return distance + ``tv`` x mean total variation of ``(n, B, c, h, w)``: ``(n,)``."""
        smooth = total_variation(image.flatten(0, 1)).unflatten(0, image.shape[:2]).mean(dim=1)
        return problems.matching(image) + self.tv * smooth


def total_variation(image: torch.Tensor) -> torch.Tensor:
    """Return the anisotropic total variation of ``(b, c, h, w)`` images, ``(b,)``.

    The mean absolute difference of vertical neighbours plus that of horizontal ones
    (Geiping et al. 2020, public code), summed so that images are independent.
    """
    down = (image[:, :, 1:, :] - image[:, :, :-1, :]).abs().mean(dim=(1, 2, 3))
    right = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().mean(dim=(1, 2, 3))
    return down + right
