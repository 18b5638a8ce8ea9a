"""Parts beside one another in rows, with a derivative that is fast to differentiate again."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd import Function

__all__ = ["join"]


class _Join(Function):
    """``torch.cat(parts, dim=1)``.

    The derivative of ``torch.cat`` cuts a row part by part, and the derivative of each cut is a
    whole row of zeros around it: with ResNet20's sixty parameters more than half of the time of a
    Jacobian's product with a vector. Here all parts are cut at once, which a single ``torch.cat``
    undoes. The numbers are the same.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.sizes = [part.shape[1] for part in inputs]

    @staticmethod
    def backward(ctx: Any, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return rows[0].split(ctx.sizes, dim=1)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        return torch.cat(tangents, dim=1)


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return parts ``(b, size)`` beside one another, ``(b, total)``."""
    return cast("torch.Tensor", _Join.apply(*parts))
