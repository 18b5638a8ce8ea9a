"""What an FL model's first linear layers see of a token, which their gradients span.

The gradient of a linear layer's weight is the sum over positions of (gradient of its output)
x (its input). Where the inputs are those of single tokens, its rows lie in the span of the
inputs of the sample's own tokens, at most one dimension each.

Source: Petrov et al. 2024 (DAGER), for gradients without a defense; here the observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["TokenInputs", "token_layers"]

ROWS = 256  # sequences at once
TOLERANCE = 1e-3  # relative to the inputs' root mean square


class _Seen(Exception):
    """All that is to be seen has been seen."""


class _Call(NamedTuple):
    """A linear layer's call: its weight's name and its input, and what that was made of."""

    weight: str
    entering: torch.Tensor
    summed: torch.Tensor
    norm: nn.LayerNorm | None


@dataclass(frozen=True)
class TokenInputs:
    """The input of token v at position t: ``token[v] + position[t]``, perhaps normalised."""

    weights: tuple[str, ...]
    """Names of the weights of the linear layers with these inputs, ``(outputs, d)`` each."""
    token: torch.Tensor
    """``(V, d)`` float32."""
    position: torch.Tensor
    """``(length, d)`` float32."""
    normalisation: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    """gain ``(d,)``, shift ``(d,)`` and eps ``()``: the sum's mean is taken out, it is divided
    by its standard deviation (eps added to the variance), multiplied by the gain, and the shift
    is added. None: it stays as it is."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all but the names, ``normalised`` and what changes nothing included."""
        width = self.token.shape[1]
        none = (torch.ones(width), torch.zeros(width), torch.zeros(()))
        gain, shift, eps = self.normalisation or none
        return {
            "token": self.token,
            "position": self.position,
            "gain": gain,
            "shift": shift,
            "eps": eps,
            "normalised": torch.tensor(self.normalisation is not None),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], *, prefix: str) -> TokenInputs:
        """Invert :meth:`tensors`, under names with a prefix; without the names of weights."""
        token, position, gain, shift, eps, normalised = (
            tensors[prefix + name]
            for name in ("token", "position", "gain", "shift", "eps", "normalised")
        )
        return cls((), token, position, (gain, shift, eps) if bool(normalised) else None)

    @classmethod
    def of(cls, network: nn.Module, vocabulary: int, length: int) -> TokenInputs | None:
        """Look at the first layers of a network, in evaluation mode, while it runs.

        Returns:
            what was found, on the CPU; None where no linear layer sees single tokens, or a
            token's and a position's parts do not add up.
        """
        device = next(network.parameters()).device
        tokens = _two_sequences(vocabulary, length)
        calls = _token_calls(network, tokens)
        if not calls:
            return None
        names, norm = [call.weight for call in calls], calls[0].norm

        def summed(rows: torch.Tensor) -> torch.Tensor:
            found = _calls(network, rows.to(device), until=names[0])
            return found[-1].summed.float().cpu()

        first = summed(torch.zeros(1, length, dtype=torch.int64))[0]
        position = first - first[0]
        # Every token once, wherever it falls.
        padded = -(-vocabulary // length) * length
        every = torch.arange(padded).clamp_max(vocabulary - 1).unflatten(0, (-1, length))
        parts = torch.cat([summed(rows) for rows in every.split(ROWS)])
        token = (parts - position).flatten(0, 1)[:vocabulary].contiguous()
        expected = token[tokens] + position
        error = (summed(tokens) - expected).square().mean().sqrt()
        if error > TOLERANCE * expected.square().mean().sqrt():
            return None
        if norm is None:
            return cls(tuple(names), token, position)
        shift = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        factors = (norm.weight.detach().float().cpu(), shift.detach().float().cpu())
        return cls(tuple(names), token, position, (*factors, torch.tensor(norm.eps)))


def token_layers(network: nn.Module, vocabulary: int, length: int) -> list[str]:
    """Return the names of the weights of the linear layers that see single tokens, all the same."""
    return [call.weight for call in _token_calls(network, _two_sequences(vocabulary, length))]


def _two_sequences(vocabulary: int, length: int) -> torch.Tensor:
    """Return two sequences of random tokens ``(2, length)`` that begin with the same one."""
    tokens = torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    tokens[1, 0] = tokens[0, 0]
    return tokens


def _token_calls(network: nn.Module, tokens: torch.Tensor) -> list[_Call]:
    """Return the calls of layers that see of two sequences' first token that it is the same."""
    calls = [
        call
        for call in _calls(network, tokens.to(next(network.parameters()).device))
        if call.entering.ndim == 3
        and torch.equal(call.entering[0, 0], call.entering[1, 0])
        and not torch.allclose(call.entering[0, 1:], call.entering[1, 1:])
    ]
    return [call for call in calls if torch.equal(call.entering, calls[0].entering)]


@torch.no_grad()
def _calls(network: nn.Module, tokens: torch.Tensor, *, until: str | None = None) -> list[_Call]:
    """Run a network on tokens ``(b, length)`` and return its linear layers' calls in order.

    Args:
        network: in evaluation mode.
        tokens: int64.
        until: stop at the layer with this weight.
    """
    found: list[_Call] = []
    norms: list[tuple[nn.LayerNorm, torch.Tensor, torch.Tensor]] = []

    def normalised(
        module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        assert isinstance(module, nn.LayerNorm)
        norms.append((module, inputs[0], output))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm):
            hooks.append(module.register_forward_hook(normalised))
        elif isinstance(module, nn.Linear):
            weight = f"{name}.weight" if name else "weight"

            def called(
                module: nn.Module, inputs: tuple[torch.Tensor, ...], weight: str = weight
            ) -> None:
                entering = inputs[0]
                source = next(((n, x) for n, x, y in reversed(norms) if y is entering), None)
                norm, summed = (None, entering) if source is None else source
                found.append(_Call(weight, entering, summed, norm))
                if weight == until:
                    raise _Seen

            hooks.append(module.register_forward_pre_hook(called))
    try:
        network(tokens)
    except _Seen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
