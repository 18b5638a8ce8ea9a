"""Functions of torch that have a first derivative and no second, written as others that have both.

Gradient matching and LTI-MAP differentiate a client's gradient once more. Of torch's activations,
pooling and normalisations, ``hardsigmoid`` alone has none (torch 2.15), and scaled dot product
attention where a fused kernel computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["replace_in_program", "twice_differentiable"]


def _hardsigmoid(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return ``clamp(x + 3, 0, 6) / 6``, what ``hardsigmoid`` is."""
    return (x + 3).clamp(0, 6) / 6


_FUNCTIONS: dict[Any, Callable[..., torch.Tensor]] = {
    functional.hardsigmoid: _hardsigmoid,
    torch.ops.aten.hardsigmoid.default: _hardsigmoid,
}


class _Replaced(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _FUNCTIONS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Let what is computed inside have second derivatives, where torch can have them."""
    with _Replaced(), sdpa_kernel(SDPBackend.MATH):
        yield


def replace_in_program(program: fx.GraphModule) -> None:
    """Do the same to the graph of an exported program, which calls torch's operators directly."""
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
    program.recompile()
