"""Decoders whose output is a distribution over tokens at every position."""

from __future__ import annotations

import torch
from torch import nn

from lti.inverters.network import Decoder
from lti.inverters.ordering import matched_cross_entropy

__all__ = ["TokenDecoder", "TokenLayers"]

LOGITS = 2**25  # at a time, where nothing is differentiated: 128 MiB of float32


class TokenDecoder(Decoder):
    """A decoder whose output is logits, ``(b, B, length, vocabulary)``.

    Args:
        sizes: B, length and vocabulary.
    """

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.sizes = sizes

    def loss(
        self, inputs: torch.Tensor, target: torch.Tensor, label: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean cross-entropies, in nats."""
        return matched_cross_entropy(self(inputs).float(), target, label)

    def error(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropies, a part of the batches at a time."""
        parts = zip(self._parts(inputs), self._parts(target), strict=True)
        return torch.cat([self.loss(part, wanted, None) for part, wanted in parts])

    def reconstruct(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the most probable tokens, int32."""
        return torch.cat([self(part).argmax(dim=-1).int() for part in self._parts(inputs)])

    def _parts(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, length, vocabulary = self.sizes
        return rows.split(max(1, LOGITS // (batch * length * vocabulary)))


class TokenLayers(TokenDecoder):
    """Layers one after another, then a layer to logits that all positions share.

    Args:
        sizes: B, length and vocabulary.
        layers: maps ``(b, k)`` to ``(b, B * length * width)``.
        width: of a position's state.
    """

    def __init__(self, sizes: tuple[int, int, int], layers: nn.Module, *, width: int) -> None:
        super().__init__(sizes)
        self.layers = layers
        self.shared = nn.Linear(width, sizes[2])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        state: torch.Tensor = self.layers(inputs).unflatten(1, (*self.sizes[:2], -1))
        logits: torch.Tensor = self.shared(state)
        return logits
