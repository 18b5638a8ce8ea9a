"""The networks of DCGAN (Radford et al. 2016, section 3), for 32x32 images."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from lti.generators.network import GeneratorNetwork

__all__ = ["DCGANGenerator", "dcgan_discriminator"]

KERNEL = 4


class DCGANGenerator(GeneratorNetwork):
    """Transposed 4x4 convolutions, each but the first of stride 2, BatchNorm and ReLU between.

    Args:
        channels: of the images.
        latent: length of a latent.
        width: channels at 16x16.
    """

    def __init__(self, channels: int, *, latent: int, width: int) -> None:
        super().__init__()
        widths = (latent, 4 * width, 2 * width, width)
        self.convolutions = nn.ModuleList(
            # The first makes 4x4 of 1x1, the others double the size.
            nn.ConvTranspose2d(
                inputs, outputs, KERNEL, stride=1 + (k > 0), padding=int(k > 0), bias=False
            )
            for k, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for outputs in widths[1:])
        self.last = nn.ConvTranspose2d(width, channels, KERNEL, stride=2, padding=1)
        self.apply(_initialise)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Map ``(b, latent)`` to images ``(b, channels, 32, 32)`` in [0, 1]."""
        x = latent[:, :, None, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
        return self.last(x).sigmoid()

    def forward_each(
        self, weights: Mapping[str, torch.Tensor], latent: torch.Tensor
    ) -> torch.Tensor:
        """As the base says, by batched matrix products: up to twice as fast on a processor."""
        assert not self.training, "BatchNorm in training mode: call eval() first"
        first, *others = (weights[f"convolutions.{k}.weight"] for k in range(len(self.norms)))
        x = torch.bmm(latent, first.flatten(2)).unflatten(2, first.shape[2:])
        x = self._activate(x, 0, weights)
        for number, kernel in enumerate(others, start=1):
            x = self._activate(_upsample(x, kernel), number, weights)
        x = _upsample(x, weights["last.weight"])
        return (x + weights["last.bias"][:, None, :, None, None]).sigmoid()

    def _activate(
        self, x: torch.Tensor, number: int, weights: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        norm = self.norms[number]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        scale = weights[f"norms.{number}.weight"] * (norm.running_var + norm.eps).rsqrt()
        shift = weights[f"norms.{number}.bias"] - norm.running_mean * scale
        scale, shift = (part[:, None, :, None, None] for part in (scale, shift))
        return functional.relu(x * scale + shift)


def dcgan_discriminator(channels: int, *, width: int) -> nn.Module:
    """Return the mirror image of the generator, ``(b, channels, 32, 32)`` to ``(b,)`` logits."""
    network = nn.Sequential(
        nn.Conv2d(channels, width, KERNEL, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, KERNEL, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, KERNEL, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4 * width, 1, KERNEL),
        nn.Flatten(0),
    )
    return network.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _upsample(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Transposed convolution of stride 2 and padding 1, with a kernel for each of n groups.

    Args:
        x: ``(n, b, inputs, h, w)``.
        kernel: ``(n, inputs, outputs, 4, 4)``.

    Returns:
        ``(n, b, outputs, 2 h, 2 w)``.
    """
    n, b, inputs, h, w = x.shape
    columns = torch.bmm(
        kernel.flatten(2).transpose(1, 2),  # (n, outputs 16, inputs)
        x.transpose(1, 2).reshape(n, inputs, b * h * w),
    )
    columns = columns.view(n, -1, b, h * w).transpose(1, 2).reshape(n * b, -1, h * w)
    folded = functional.fold(columns, (2 * h, 2 * w), KERNEL, padding=1, stride=2)
    return folded.view(n, b, -1, 2 * h, 2 * w)
