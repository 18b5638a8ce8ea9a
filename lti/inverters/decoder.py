"""The tuned inverter's trained part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from lti.inverters.network import ImageDecoder
from lti.inverters.refiner import Refiner

__all__ = ["ResidualDecoder", "image_components"]


def image_components(image: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean ``(d,)`` and the leading principal components ``(k, d)`` of images.

    Args:
        image: ``(n, *sample_shape)`` float32, d numbers each.
        count: components; at most ``min(n, d)`` are returned.
    """
    flat = image.flatten(1)
    mean = flat.mean(dim=0)
    centred = flat - mean
    if len(flat) < flat.shape[1]:  # few images: their covariance would be far larger than they
        return mean, torch.linalg.svd(centred, full_matrices=False)[2][:count].contiguous()
    vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return mean, vectors[:, -count:].flip(1).T.contiguous()


class ResidualDecoder(ImageDecoder):
    """Encoded gradients to the images of a batch, ``(b, B, *sample_shape)``, not clamped.

    A linear layer, one residual block (layer normalisation, linear, GELU) and a linear
    read-out of the images' principal components, applied to each sample of a batch: its
    inputs are those that the batch shares and its own. A convolutional network may correct
    the images; it learns along with the rest.

    Args:
        shared: inputs that a batch shares.
        own: inputs of each sample besides.
        batch_size: B. Encoded gradients are ``(b, shared + B * own)``.
        sample_shape: of one sample.
        hidden: width.
        dropout: share of hidden units dropped in training.
        mean: of the images, ``(d,)``.
        components: principal components of the images, ``(k, d)``.
        channels: of the correcting network (:class:`lti.inverters.refiner.Refiner`); 0: none.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(
        self,
        shared: int,
        own: int = 0,
        *,
        batch_size: int = 1,
        sample_shape: Sequence[int],
        hidden: int,
        dropout: float,
        mean: torch.Tensor,
        components: torch.Tensor,
        channels: int = 0,
    ) -> None:
        super().__init__()
        self.split = (shared, batch_size * own)
        self.batch_size = batch_size
        self.sample_shape = tuple(sample_shape)
        self.first = nn.Linear(shared, hidden)
        self.own = nn.Linear(own, hidden, bias=False) if own else None
        self.block = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, len(components))
        self.dropout = nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("components", components.clone())
        for layer in (self.first, self.own, self.block):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for layer in (self.first, self.block):
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(hidden))
        nn.init.zeros_(self.last.bias)
        self.refiner = Refiner(self.sample_shape, channels=channels) if channels else None

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        """Return the images."""
        shared, own = encoded.split(self.split, dim=1)
        state = self.first(shared)[:, None]
        if self.own is not None:
            state = state + self.own(own.unflatten(1, (self.batch_size, -1)))
        state = functional.gelu(self.norms[0](state))
        state = state + functional.gelu(self.block(self.dropout(self.norms[1](state))))
        coefficients = self.last(self.dropout(self.norms[2](state)))
        image = (self.mean + coefficients @ self.components).unflatten(2, self.sample_shape)
        if self.refiner is None:
            return image
        flat = image.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        refined: torch.Tensor = self.refiner(flat)
        return refined.unflatten(0, image.shape[:2])
