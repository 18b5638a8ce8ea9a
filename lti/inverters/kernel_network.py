"""Kernel values of a gradient with the auxiliary ones, and the images that they add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from lti.inverters.network import ImageDecoder
from lti.inverters.refiner import Refiner

__all__ = ["KernelDecoder", "KernelEncoder", "Landmarks", "neural_tangent_kernel"]

BLOCK = 1024  # landmarks at a time
TINY = 1e-30


def neural_tangent_kernel(cosine: torch.Tensor) -> torch.Tensor:
    """Return the neural tangent kernel of one hidden layer of rectifiers, between 0 and 2.

    Training so wide a network to the end, from small outputs, is regression with this kernel.

    Args:
        cosine: of the angle between two inputs; it is overwritten.

    Source: Jacot et al. 2018, "Neural Tangent Kernel"; Cho and Saul 2009, "Kernel Methods for
    Deep Learning" (its arc-cosine kernels of order 0 and 1).
    """
    cosine.clamp_(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    # (pi - a) c / pi of both layers' weights, and sin(a) / pi of the first.
    return cosine.mul_(2).mul_(math.pi - angle).add_(sine).div_(math.pi)


class Landmarks(nn.Module):
    """Gradients kept as they were, ``(n, p)``: signs in two bits each, others in float16.

    Rows of float16 are kept over their root mean square.
    """

    packed: torch.Tensor
    norm: torch.Tensor

    def __init__(self, count: int, size: int, *, signs: bool) -> None:
        super().__init__()
        self.count, self.size, self.signs = count, size, signs
        shape = (count, 2, -(-size // 8)) if signs else (count, size)
        dtype = torch.uint8 if signs else torch.float16
        self.register_buffer("packed", torch.zeros(shape, dtype=dtype))
        self.register_buffer("norm", torch.zeros(count))

    def write(self, start: int, rows: torch.Tensor) -> None:
        """Keep rows, float32 ``(b, size)``, from number ``start`` on."""
        stop = start + len(rows)
        if self.signs:
            self.packed[start:stop, 0] = _pack(rows > 0)
            self.packed[start:stop, 1] = _pack(rows < 0)
        else:
            size = rows.square().mean(dim=1, keepdim=True).sqrt().clamp_min(TINY)
            self.packed[start:stop] = (rows / size).half()
            rows = self.packed[start:stop].float()
        self.norm[start:stop] = torch.linalg.vector_norm(rows, dim=1)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return rows ``(stop - start, size)``: signs as int8, others as float32."""
        packed = self.packed[start:stop]
        if not self.signs:
            return packed.float()
        positive, negative = (_unpack(packed[:, plane], self.size) for plane in (0, 1))
        return positive.to(torch.int8).sub_(negative.to(torch.int8))


class KernelEncoder(nn.Module):
    """Kernel values of gradients with the landmarks.

    The kernel is :func:`neural_tangent_kernel` of the cosine between two gradients.

    Args:
        landmarks: ``(n, p)``.
    """

    def __init__(self, landmarks: Landmarks) -> None:
        super().__init__()
        self.landmarks = landmarks

    def values(self, rows: torch.Tensor, norm: torch.Tensor, places: range) -> torch.Tensor:
        """Return the kernel, float32 ``(b, len(places))``, with some of the landmarks.

        Args:
            rows: gradients ``(b, p)``, of the type that landmarks are read in.
            norm: theirs, ``(b,)``.
            places: numbers of the landmarks, consecutive.
        """
        place = slice(places.start, places.stop)
        cosine = _products(rows, self.landmarks.read(place.start, place.stop))
        cosine.div_(norm[:, None].clamp_min(TINY)).div_(self.landmarks.norm[place].clamp_min(TINY))
        return neural_tangent_kernel(cosine)

    def forward(self, gradient: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel values ``(b, n)`` of gradients ``(b, p)``."""
        norm = torch.linalg.vector_norm(gradient, dim=1)
        rows = gradient.to(torch.int8) if self.landmarks.signs else gradient
        blocks = [
            self.values(rows, norm, range(start, min(start + BLOCK, self.landmarks.count)))
            for start in range(0, self.landmarks.count, BLOCK)
        ]
        return torch.cat(blocks, dim=1)


class KernelDecoder(ImageDecoder):
    """The mean image, and components that the kernel values add up to.

    Args:
        count: landmarks.
        sample_shape: of one sample.
        mean: of the images, ``(d,)``.
        components: principal components of the images, ``(k, d)``.
        channels: of the network that refines; 0: none.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(
        self,
        count: int,
        *,
        sample_shape: Sequence[int],
        mean: torch.Tensor,
        components: torch.Tensor,
        channels: int = 0,
    ) -> None:
        super().__init__()
        depth, height, width = sample_shape
        self.sample_shape = (depth, height, width)
        self.refiner = Refiner(self.sample_shape, channels=channels) if channels else None
        self.dual = nn.Parameter(torch.zeros(count, len(components)), requires_grad=False)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("components", components.clone())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the images ``(b, 1, *sample_shape)`` of kernel values ``(b, n)``."""
        image = self.images(values @ self.dual)
        return (image if self.refiner is None else self.refiner(image))[:, None]

    def images(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the images ``(b, *sample_shape)`` of components ``(b, k)``, not refined."""
        image = self.mean + coefficients @ self.components
        return image.unflatten(1, self.sample_shape)


def _products(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return ``rows @ others.T`` in float32; of signs it is exact."""
    if rows.dtype == torch.int8 and rows.device.type == "cpu":
        # Twice as fast as bfloat16, whose sums are rounded to 8 bits: too few for a kernel
        # matrix to stay positive definite.
        return torch._int_mm(rows, others.T).float()
    return rows.float() @ others.float().T


def _pack(bits: torch.Tensor) -> torch.Tensor:
    """Return ``(b, size)`` truth values as ``(b, ceil(size / 8))`` bytes, first bit lowest."""
    padded = nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8))
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return padded.unflatten(1, (-1, 8)).mul_(powers).sum(dim=2, dtype=torch.uint8)


def _unpack(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Invert :func:`_pack`: ``(b, size)`` of 0 and 1."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = packed[:, :, None].bitwise_right_shift(shifts).bitwise_and_(1)
    return bits.flatten(1)[:, :size]
