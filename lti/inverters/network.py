"""The two parts of an inverter's network."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["InverterNetwork", "RawGradient"]


class InverterNetwork(nn.Module):
    """A fixed encoder and a trained decoder.

    The encoder maps ``(b, p)`` gradients and the labels ``(b, B)`` of their batches, or None
    where they are not known, to ``(b, k)``; the decoder maps these to
    ``(b, B, *sample_shape)`` images.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, gradient: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``(b, B, *sample_shape)`` images."""
        image: torch.Tensor = self.decoder(self.encoder(gradient, label))
        return image


class RawGradient(nn.Module):
    """The encoder that changes nothing."""

    def forward(self, gradient: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gradient."""
        return gradient
