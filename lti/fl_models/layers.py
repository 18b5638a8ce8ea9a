"""Parts of transformers whose gradients, sample by sample, can be differentiated once more.

Gradient matching needs that. Torch's fused attention has no second derivative. Its
normalisation has a wrong one under ``vmap``, which takes mean and deviation for constants
(https://github.com/pytorch/functorch/issues/534). Plain arithmetic has the right one.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["LayerNorm", "attention"]


class LayerNorm(nn.LayerNorm):
    """Torch's normalisation over the last dimension, in plain arithmetic."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(..., d)`` to ``(..., d)``."""
        centred = input - input.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    heads: int,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return attention of several heads, softmax(q k^T / sqrt(d / heads)) v (Vaswani et al. 2017).

    Args:
        query: ``(b, T, d)``.
        key: ``(b, T, d)``.
        value: ``(b, T, d)``.
        heads: a divisor of d.
        hidden: bool, ``(T, T)`` or ``(b, 1, 1, T)``: the keys (last) that a query does not see.

    Returns:
        ``(b, T, d)``.
    """
    # (b, heads, T, d / heads)
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in (query, key, value)
    )
    score = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if hidden is not None:
        score = score.masked_fill(hidden, -torch.inf)
    return (score.softmax(dim=-1) @ value).transpose(-2, -3).flatten(-2)
