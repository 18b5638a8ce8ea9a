"""A convolutional network that corrects blurred reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Refiner"]

GROUPS = 8  # of channels, normalised together
SMALLEST = 4  # pixels of a side that is not halved
STEP = 0.1  # of the output, which begins at zero


class Refiner(nn.Module):
    """Add a correction to images: a U-Net with a residual block at each scale.

    Both orientations are corrected and averaged outside of training. It begins as the identity.

    Args:
        shape: of an image, ``(c, h, w)``.
        channels: at full resolution, a multiple of 8; twice as many below.

    Source: Ronneberger et al. 2015, "U-Net"; this project: trained on leave-one-out
    reconstructions.
    """

    def __init__(self, shape: Sequence[int], *, channels: int) -> None:
        super().__init__()
        side, scales = min(shape[1:]), 0
        while side >= 2 * SMALLEST and scales < 3:
            side, scales = side // 2, scales + 1
        widths = [channels] + [2 * channels] * scales
        self.enter = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.down = nn.ModuleList(_Block(width) for width in widths)
        self.halve = nn.ModuleList(
            nn.Conv2d(wide, narrow, 2, stride=2) for wide, narrow in pairwise(widths)
        )
        self.widen = nn.ModuleList(nn.Conv2d(narrow, wide, 1) for wide, narrow in pairwise(widths))
        self.up = nn.ModuleList(_Block(width) for width in widths[:-1])
        self.leave = nn.Conv2d(channels, shape[0], 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the images ``(b, c, h, w)``, corrected."""
        if self.training:
            return self._corrected(image)
        return (self._corrected(image) + self._corrected(image.flip(3)).flip(3)) / 2

    def _corrected(self, image: torch.Tensor) -> torch.Tensor:
        state = self.enter((image - 0.5) * 4)  # of unit scale
        seen = []
        for number, block in enumerate(self.down):
            state = block(state)
            if number < len(self.halve):
                seen.append(state)
                state = self.halve[number](state)
        for number in reversed(range(len(self.up))):
            there = seen[number]
            wider = functional.interpolate(state, size=there.shape[2:], mode="nearest")
            state = self.up[number](there + self.widen[number](wider))
        return image + STEP * self.leave(state)


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        correction: torch.Tensor = self.second(functional.gelu(self.first(self.norm(state))))
        return state + correction
