"""Gradients that are scaled down to a norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["clipped"]


def clipped(gradient: torch.Tensor, norm: float) -> torch.Tensor:
    """Return ``g / max(1, |g|_2 / norm)`` of each row of ``(..., p)``."""
    import torch

    length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return gradient / (length / norm).clamp_min(1.0)
