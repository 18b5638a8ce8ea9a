"""Residual networks for 32x32 images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

__all__ = ["residual_network"]

WIDTHS = (16, 32, 64)  # channels of the three groups of blocks


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the block's input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        # Zeros on both sides of the channels, as in the paper's code; He et al. leave it open.
        self.added = ((outputs - inputs) // 2, outputs - inputs - (outputs - inputs) // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(b, inputs, h, w)`` to ``(b, outputs, h / stride, w / stride)``."""
        residual = functional.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added != (0, 0):
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, *self.added))
        return functional.relu(residual + shortcut)


def residual_network(classes: int, *, blocks: int) -> nn.Sequential:
    """Return the network of ``6 * blocks + 2`` layers, shortcuts without parameters (A).

    Args:
        classes: length of its output, ``(b, classes)`` for ``(b, 3, 32, 32)``.
        blocks: blocks in each of the three groups; 3 for ResNet20.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(WIDTHS[0]),
        relu=nn.ReLU(),
    )
    inputs = WIDTHS[0]
    for group, width in enumerate(WIDTHS, start=1):
        for number in range(1, blocks + 1):
            halves = number == 1 and group > 1
            parts[f"block{group}{number}"] = _Block(inputs, width, 2 if halves else 1)
            inputs = width
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(inputs, classes)
    return nn.Sequential(parts)
