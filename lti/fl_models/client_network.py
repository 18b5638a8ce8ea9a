"""What lies between a sample as this project has it and a user's own network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lti.fl_models.second_derivatives import twice_differentiable

__all__ = ["ImageClassifier", "TextClassifier"]


class ImageClassifier(nn.Module):
    """A network behind resizing and normalisation, both part of what is differentiated.

    Args:
        network: takes float32 ``(b, 3, side, side)``, returns ``(b, classes)`` logits, or an
            object that has them as ``logits``.
        mean: per channel, taken off pixels in [0, 1].
        std: per channel, which pixels are then divided by.
        side: the height and width that the network takes; None: the sample's own.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], side: int | None
    ) -> None:
        super().__init__()
        self.network = network
        self.side = side
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(b, 3, h, w)`` in [0, 1] to ``(b, classes)``."""
        if self.side is not None and x.shape[-1] != self.side:
            x = functional.interpolate(
                x, size=(self.side, self.side), mode="bilinear", align_corners=False
            )
        with twice_differentiable():
            return _logits(self.network((x - self.mean) / self.std))


class TextClassifier(nn.Module):
    """A text classifier with the interface of the ``transformers`` library.

    Args:
        network: takes ``input_ids``, int64 ``(b, T)``, or ``inputs_embeds``, ``(b, T, d)``, and
            returns an object with ``logits``, ``(b, classes)``; has ``get_input_embeddings()``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def token_embedding(self) -> torch.Tensor:
        """The tokens' embeddings, ``(vocabulary, d)``."""
        weight: torch.Tensor = self.network.get_input_embeddings().weight  # type: ignore[operator]
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map int64 ``(b, T)`` or float ``(b, T, d)`` to ``(b, classes)``."""
        given = {"inputs_embeds" if x.is_floating_point() else "input_ids": x}
        with twice_differentiable():
            return _logits(self.network(**given))


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = getattr(output, "logits", output)
    return logits
