"""Gaussian priors of images: a diagonal in frequencies and, on top of it, a low rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch

from lti.errors import LTIError

__all__ = ["Covariance", "dct_matrix"]

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the diagonal
FLOOR = 1e-6  # least variance of a frequency


@dataclass(frozen=True)
class Covariance:
    """``L L'`` of images ``(c, h, w)``, with a square root L that is cheap to apply.

    In a basis of rotated channels times a discrete cosine transform, ``L = [diag(std), U']``: the
    variance of each frequency, and r directions in which frequencies vary together. Coordinates
    are whitened: under the prior they are independent, of variance 1.
    """

    rotation: torch.Tensor
    """``(c, c)``, orthogonal."""
    std: torch.Tensor
    """``(c, h, w)``."""
    low_rank: torch.Tensor
    """U, ``(r, c h w)``."""

    @classmethod
    def isotropic(cls, shape: tuple[int, ...], variance: float) -> Self:
        """Return a multiple of the identity."""
        size = math.prod(shape)
        std = torch.full(shape, variance**0.5)
        return cls(torch.eye(shape[0]), std, torch.empty(0, size))

    @classmethod
    def fit(cls, deviation: torch.Tensor, *, rank: int) -> Covariance:
        """Estimate a covariance about 0 from a sample of it.

        Of the sample covariance S, ``rank`` directions are kept and shrunk; the diagonal gets
        what they lack, so that all variances are those of the sample. How far to shrink is chosen
        by the likelihood of either half of the sample under what the other half says.

        Args:
            deviation: ``(n, c, h, w)`` float32.
            rank: the most directions.

        Raises:
            LTIError: n is below 2.
        """
        if len(deviation) < 2:
            raise LTIError(
                f"a covariance of {len(deviation)} samples; expected at least 2. Give more."
            )
        rotation = torch.linalg.eigh(_channels(deviation)).eigenvectors.T.contiguous()
        basis = cls(rotation, deviation.new_zeros(deviation.shape[1:]), deviation.new_zeros(0, 1))
        spectrum = basis.analyse(deviation)
        first, second = (Sample.of(half) for half in (spectrum[::2], spectrum[1::2]))
        total = [
            sum(
                cls(rotation, *known.estimate(rank, share))._log_density(other.spectrum)
                for known, other in ((first, second), (second, first))
            )
            for share in SHARES
        ]
        share = SHARES[max(range(len(SHARES)), key=total.__getitem__)]
        return cls(rotation, *Sample.of(spectrum).estimate(rank, share))

    @property
    def dimension(self) -> int:
        """Number of coordinates, ``c h w + r``."""
        return self.std.numel() + len(self.low_rank)

    def to(self, device: torch.device) -> Self:
        """Return it on a device."""
        return type(self)(self.rotation.to(device), self.std.to(device), self.low_rank.to(device))

    def to_image(self, z: torch.Tensor) -> torch.Tensor:
        """Apply L: from coordinates ``(..., d)`` to images ``(..., c, h, w)``."""
        size = self.std.numel()
        spectrum = z[..., :size] * self.std.flatten() + z[..., size:] @ self.low_rank
        return self._synthesise(spectrum.unflatten(-1, self.std.shape))

    def to_coordinates(self, image: torch.Tensor) -> torch.Tensor:
        """Apply L': from images ``(..., c, h, w)`` to coordinates ``(..., d)``."""
        spectrum = self.analyse(image).flatten(-3)
        return torch.cat([spectrum * self.std.flatten(), spectrum @ self.low_rank.T], dim=-1)

    def whiten(self, image: torch.Tensor) -> torch.Tensor:
        """Return the shortest coordinates of images ``(..., c, h, w)``: L' (L L')^-1 image."""
        spectrum = self.analyse(image).flatten(-3)
        std = self.std.flatten()
        scaled = self.low_rank / std.square()
        inner = torch.eye(len(scaled)).to(scaled) + scaled @ self.low_rank.T
        along = torch.linalg.solve(inner, (spectrum @ scaled.T)[..., None])[..., 0]
        return torch.cat([(spectrum - along @ self.low_rank) / std, along], dim=-1)

    def analyse(self, image: torch.Tensor) -> torch.Tensor:
        """Return the frequencies of images, in their shape."""
        down, right = (dct_matrix(side).to(image) for side in self.std.shape[1:])
        return down @ torch.einsum("kc,...cij->...kij", self.rotation, image) @ right.T

    def _synthesise(self, spectrum: torch.Tensor) -> torch.Tensor:
        down, right = (dct_matrix(side).to(spectrum) for side in self.std.shape[1:])
        return torch.einsum("kc,...kij->...cij", self.rotation, down.T @ spectrum @ right)

    def _log_density(self, spectrum: torch.Tensor) -> float:
        """Return the mean log-density, without constants, of frequencies ``(n, c, h, w)``."""
        variance = self.std.flatten().double().square()
        rows, low = spectrum.flatten(1).double(), self.low_rank.double()
        scaled = low / variance
        factor = torch.linalg.cholesky(torch.eye(len(low)).to(low) + scaled @ low.T)
        along = torch.linalg.solve_triangular(factor, scaled @ rows.T, upper=False)
        squares = (rows.square() / variance).sum(dim=1) - along.square().sum(dim=0)
        logarithm = variance.log().sum() + 2 * factor.diagonal().log().sum()
        return float(-0.5 * (squares.mean() + logarithm))


def dct_matrix(side: int) -> torch.Tensor:
    """Return the orthonormal discrete cosine transform (II), ``(side, side)``, by frequency."""
    place = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi * (place + 0.5) * place[:, None] / side) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _channels(image: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ncij,nkij->ck", image, image)


@dataclass(frozen=True)
class Sample:
    """Frequencies of n deviations, and the directions in which they vary together."""

    spectrum: torch.Tensor
    """``(n, c, h, w)``."""
    length: torch.Tensor
    """Standard deviations along the directions, descending."""
    direction: torch.Tensor
    """``(k, c h w)``, orthonormal."""

    @classmethod
    def of(cls, spectrum: torch.Tensor) -> Self:
        """Return it of a sample."""
        rows = spectrum.flatten(1) / len(spectrum) ** 0.5
        _, length, direction = torch.linalg.svd(rows, full_matrices=False)
        return cls(spectrum, length, direction)

    def estimate(self, rank: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``std`` and ``low_rank``; ``share`` of the variance is left to the diagonal."""
        variance = self.spectrum.flatten(1).square().mean(dim=0)
        low = (1 - share) ** 0.5 * self.length[:rank, None] * self.direction[:rank]
        if share == 1:
            low = low[:0]
        left = torch.maximum(variance - low.square().sum(dim=0), share * variance)
        return left.clamp_min(FLOOR).sqrt().view(self.spectrum.shape[1:]), low
