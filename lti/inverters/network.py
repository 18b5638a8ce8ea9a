"""The two parts of an inverter's network."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["InverterNetwork"]


class InverterNetwork(nn.Module):
    """A fixed encoder, ``(b, p)`` gradients to ``(b, k)``, and a trained decoder to images."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return ``(b, *sample_shape)`` images."""
        image: torch.Tensor = self.decoder(self.encoder(gradient))
        return image
