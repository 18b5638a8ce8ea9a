"""Where each parameter lies in a flattened gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LinearBlock", "ParameterLayout"]


@dataclass(frozen=True)
class LinearBlock:
    """A linear layer with a bias inside a flattened gradient."""

    weight: slice
    """``outputs * inputs`` coordinates, row-major ``(outputs, inputs)``."""
    bias: slice
    """``outputs`` coordinates."""
    outputs: int
    inputs: int


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the parameters, in the order in which they are flattened."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, network: nn.Module) -> ParameterLayout:
        """Return a network's layout: the order of ``named_parameters``."""
        named = list(network.named_parameters())
        return cls(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> ParameterLayout:
        """Invert :meth:`to_json`."""
        return cls(tuple(name for name, _ in value), tuple(tuple(shape) for _, shape in value))

    def to_json(self) -> list[list[Any]]:
        """Return ``[[name, [dimensions]], ...]``."""
        return [[n, list(s)] for n, s in zip(self.names, self.shapes, strict=True)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Coordinates of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def total(self) -> int:
        """Coordinates in all."""
        return sum(self.sizes)

    @property
    def slices(self) -> dict[str, slice]:
        """Each parameter's coordinates, by name."""
        result, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            result[name] = slice(start, start + size)
            start += size
        return result

    def linear_blocks(self) -> list[LinearBlock]:
        """Return the linear layers that have a bias (a 2-d ``x.weight`` beside ``x.bias``)."""
        shapes = dict(zip(self.names, self.shapes, strict=True))
        slices = self.slices
        blocks = []
        for name, shape in shapes.items():
            prefix, _, kind = name.rpartition(".")
            bias = f"{prefix}.bias" if prefix else "bias"
            if kind == "weight" and len(shape) == 2 and shapes.get(bias) == (shape[0],):
                blocks.append(LinearBlock(slices[name], slices[bias], shape[0], shape[1]))
        return blocks
