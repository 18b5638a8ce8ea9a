"""A small transformer over tokens (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from lti.fl_models.layers import LayerNorm, attention

__all__ = ["Transformer"]


class _Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(b, T, d)`` to ``(b, T, d)``."""
        later = torch.ones(2 * x.shape[-2:-1], dtype=torch.bool, device=x.device).triu(1)
        return self.output(
            attention(
                *self.qkv(x).chunk(3, dim=-1),
                heads=self.heads,
                hidden=later if self.causal else None,
            )
        )


class _Layer(nn.Module):
    """Attention and a feed-forward network, each added to its input and then normalised."""

    def __init__(self, width: int, feed_forward: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.attention = _Attention(width, heads, causal=causal)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(b, T, d)`` to ``(b, T, d)``."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.linear2(functional.relu(self.linear1(x))))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights.

        Queries, keys and values are Glorot-uniform, the other layers U(-1/sqrt(f), 1/sqrt(f))
        with f inputs, and the biases of the attention 0.
        """
        width = self.norm1.normalized_shape[0]
        _uniform(self.attention.qkv.weight, math.sqrt(6 / (4 * width)), generator)
        _uniform(self.attention.output.weight, 1 / math.sqrt(width), generator)
        for linear in (self.linear1, self.linear2):
            for parameter in (linear.weight, linear.bias):
                _uniform(parameter, 1 / math.sqrt(linear.in_features), generator)
        for bias in (self.attention.qkv.bias, self.attention.output.bias):
            bias.zero_()
        for norm in (self.norm1, self.norm2):
            norm.reset_parameters()


class Transformer(nn.Module):
    """Tokens or their embeddings to the logits of the next tokens.

    Embeddings are multiplied by sqrt(d) and learned positions added; there is no dropout, and
    no normalisation behind the last layer.

    Args:
        vocabulary: number of tokens.
        width: length d of an embedding.
        feed_forward: width inside a layer.
        heads: of the attention.
        layers: their number.
        positions: the longest sequence.
        causal: whether a position attends to itself and earlier ones alone.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int,
        feed_forward: int,
        heads: int,
        layers: int,
        positions: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.position = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(
            _Layer(width, feed_forward, heads, causal=causal) for _ in range(layers)
        )
        self.token = nn.Embedding(vocabulary, width)
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, x: torch.Tensor, *, decode: bool = True) -> torch.Tensor:
        """Map int64 ``(b, T)`` or float ``(b, T, d)`` to ``(b, T, vocabulary)``.

        Args:
            x: tokens or embeddings.
            decode: False returns what the decoder would be given, ``(b, T, d)``.
        """
        if not x.is_floating_point():
            x = self.token(x)
        x = x * math.sqrt(x.shape[-1]) + self.position.weight[: x.shape[-2]]
        for layer in self.layers:
            x = layer(x)
        return self.decoder(x) if decode else x

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights as Geiping et al.'s code does, with torch's transformer layers.

        Positions are N(0, 1), token embeddings U(-0.1, 0.1). All layers begin with the same
        weights, since that code copies the first. The decoder begins with the token embeddings,
        as in Wu et al.'s code.
        """
        width = self.token.embedding_dim
        self.position.weight.normal_(generator=generator)
        _uniform(self.token.weight, 0.1, generator)
        self.decoder.weight.copy_(self.token.weight)
        _uniform(self.decoder.bias, 1 / math.sqrt(width), generator)
        first, *others = cast("list[_Layer]", list(self.layers))
        first.initialise(generator)
        for layer in others:
            layer.load_state_dict(first.state_dict())


def _uniform(parameter: torch.Tensor, bound: float, generator: torch.Generator) -> None:
    parameter.uniform_(-bound, bound, generator=generator)
