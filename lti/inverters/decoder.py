"""The tuned inverter's trained part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ResidualDecoder", "image_components"]


def image_components(image: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean ``(d,)`` and the leading principal components ``(k, d)`` of images.

    Args:
        image: ``(n, *sample_shape)`` float32, d numbers each.
        count: components; at most ``min(n, d)`` are returned.
    """
    flat = image.flatten(1)
    mean = flat.mean(dim=0)
    count = min(count, *flat.shape)
    covariance = (flat - mean).T @ (flat - mean)
    vectors = torch.linalg.eigh(covariance).eigenvectors
    return mean, vectors[:, -count:].flip(1).T.contiguous()


class ResidualDecoder(nn.Module):
    """Encoded gradients ``(b, inputs)`` to images ``(b, *sample_shape)``, not clamped.

    A linear layer, one residual block (layer normalisation, linear, GELU) and a linear
    read-out of the images' principal components.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(
        self,
        inputs: int,
        sample_shape: Sequence[int],
        *,
        hidden: int,
        dropout: float,
        mean: torch.Tensor,
        components: torch.Tensor,
    ) -> None:
        super().__init__()
        self.sample_shape = tuple(sample_shape)
        self.first = nn.Linear(inputs, hidden)
        self.block = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, len(components))
        self.dropout = nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("components", components.clone())
        for layer in (self.first, self.block):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(hidden))
        nn.init.zeros_(self.last.bias)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        """Return the images."""
        state = functional.gelu(self.norms[0](self.first(encoded)))
        state = state + functional.gelu(self.block(self.dropout(self.norms[1](state))))
        coefficients = self.last(self.dropout(self.norms[2](state)))
        return (self.mean + coefficients @ self.components).unflatten(1, self.sample_shape)
