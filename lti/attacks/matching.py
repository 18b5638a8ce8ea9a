"""Distances between dummy gradients and what was received, per defense.

Source: Wu et al. 2023, supplement A, on top of Geiping et al. 2020 (cosine distance).
All take a dummy gradient and an observation, both ``(b, p)``, and return ``(b,)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lti.defenses.base import Matching

__all__ = ["cosine_distance", "matching_distance", "nonzero_cosine_distance", "sign_hinge"]


def cosine_distance(gradient: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine, in [0, 2]."""
    from torch.nn import functional

    return 1.0 - functional.cosine_similarity(gradient, observed, dim=1)


def sign_hinge(gradient: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return sum_i l_i^2 with l_i = max(-g_i s_i, 0): 0 where all signs agree."""
    return (-gradient * observed).clamp_min(0.0).square().sum(dim=1)


def nonzero_cosine_distance(gradient: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine over the coordinates where the observation is not zero."""
    return cosine_distance(gradient * (observed != 0), observed)


def matching_distance(
    matching: Matching,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the distance that a defense's ``matching`` names (batch size 1)."""
    distances: dict[Matching, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "cosine": cosine_distance,
        "sign": sign_hinge,
        "nonzero-cosine": nonzero_cosine_distance,
    }
    return distances[matching]
