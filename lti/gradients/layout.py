"""Where each parameter lies in a flattened gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError

if TYPE_CHECKING:
    import torch

__all__ = ["LinearBlock", "ParameterLayout", "matching_names"]


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
    def of(cls, parameters: Mapping[str, torch.Tensor]) -> ParameterLayout:
        """Return the layout of parameters, :func:`lti.fl_models.attacked` ones above all."""
        return cls(tuple(parameters), tuple(tuple(value.shape) for value in parameters.values()))

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

    def split(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts ``(b, size)`` of flattened gradients ``(b, total)``: views, by name."""
        return {name: rows[:, place] for name, place in self.slices.items()}

    def join(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Invert :meth:`split`: flatten gradients ``(b, *shape)``, by name, to ``(b, total)``."""
        from lti.gradients.joining import join

        return join([parts[name].flatten(1) for name in self.names])

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


def matching_names(names: Iterable[str], patterns: Iterable[str], *, where: str) -> list[str]:
    """Return the names that match one of the patterns, in their order.

    Args:
        names: of parameters.
        patterns: ``*`` and ``?`` match as in file names.
        where: the setting, for the error message.

    Raises:
        LTIError: a pattern matches no name.
    """
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise LTIError(
                f"{where}: got {pattern!r}, which matches no parameter; there are "
                f"{', '.join(names)}. Correct the pattern."
            )
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
