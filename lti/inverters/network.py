"""The two parts of an inverter's network, and what its trained part is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from lti.inverters.ordering import matched_mse

__all__ = ["Decoder", "ImageDecoder", "ImageLayers", "InverterNetwork", "RawGradient"]


class Decoder(nn.Module, ABC):
    """The trained part: encoded gradients of client batches, ``(b, k)``, to their samples."""

    @abstractmethod
    def loss(
        self, inputs: torch.Tensor, target: torch.Tensor, label: torch.Tensor | None
    ) -> torch.Tensor:
        """Return each batch's training loss, ``(b,)`` float32, under its best ordering.

        Args:
            inputs: ``(b, k)``.
            target: ``(b, B, *sample_shape)``, images in [0, 1] or int64 tokens.
            label: int64 ``(b, B)`` where only orderings that keep it are allowed; else None.
        """

    @abstractmethod
    def error(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return each batch's held-out loss, ``(b,)`` float32: what the epoch is chosen by."""

    @abstractmethod
    def reconstruct(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``(b, B, *sample_shape)``: float32 images in [0, 1], or int32 tokens."""


class ImageDecoder(Decoder):
    """A decoder whose output is images, ``(b, B, *sample_shape)``, not clamped."""

    def loss(
        self, inputs: torch.Tensor, target: torch.Tensor, label: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean squared errors."""
        return matched_mse(self(inputs).float(), target, label)

    def error(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean squared errors of the clamped images."""
        return matched_mse(self.reconstruct(inputs), target)

    def reconstruct(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the images, float32, clamped to [0, 1]."""
        image: torch.Tensor = self(inputs).float().clamp(0, 1)
        return image


class ImageLayers(ImageDecoder):
    """Layers one after another, the last of which makes images."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the images."""
        image: torch.Tensor = self.layers(inputs)
        return image


class InverterNetwork(nn.Module):
    """A fixed encoder and a trained decoder.

    The encoder maps ``(b, p)`` gradients and the labels ``(b, B)`` of their batches, or None
    where they are not known, to ``(b, k)``.
    """

    def __init__(self, encoder: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder


class RawGradient(nn.Module):
    """The encoder that changes nothing."""

    def forward(self, gradient: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gradient."""
        return gradient
