"""BERT with a linear layer on top (Devlin et al. 2019), under the public weights' names."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from lti.fl_models.layers import LayerNorm, attention

__all__ = ["BertClassifier"]

EPSILON = 1e-12  # of the normalisations; this and the next: bert-base-uncased's configuration
DEVIATION = 0.02  # of initial weights


class _Dense(nn.Module):
    """A linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        return self.dense(x)


class _Added(_Dense):
    """A linear layer whose output is added to what came before, and normalised."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.LayerNorm = LayerNorm(outputs, eps=EPSILON)

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Map ``(..., inputs)`` and ``(..., outputs)`` to ``(..., outputs)``."""
        return self.LayerNorm(before + self.dense(x))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Map ``(b, T, width)`` to ``(b, T, width)``; see :func:`attention` of ``hidden``."""
        parts = self.query(x), self.key(x), self.value(x)
        return attention(*parts, heads=self.heads, hidden=hidden)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self = _SelfAttention(width, heads)
        self.output = _Added(width, width)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Map ``(b, T, width)`` to ``(b, T, width)``."""
        return self.output(self.self(x, hidden), x)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.intermediate = _Dense(width, intermediate)
        self.output = _Added(intermediate, width)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Map ``(b, T, width)`` to ``(b, T, width)``."""
        x = self.attention(x, hidden)
        return self.output(functional.relu(self.intermediate(x)), x)


class _Embeddings(nn.Module):
    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = LayerNorm(width, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map int64 ``(b, T)`` or float ``(b, T, width)`` to ``(b, T, width)``."""
        if not x.is_floating_point():
            x = self.word_embeddings(x)
        position = self.position_embeddings.weight[: x.shape[-2]]
        return self.LayerNorm(x + self.token_type_embeddings.weight[0] + position)


class _Encoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(width, heads, intermediate) for _ in range(layers))

    def forward(self, x: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Map ``(b, T, width)`` to ``(b, T, width)``."""
        for layer in self.layer:
            x = layer(x, hidden)
        return x


class _Bert(nn.Module):
    def __init__(
        self,
        vocabulary: int,
        *,
        layers: int,
        width: int,
        heads: int,
        intermediate: int,
        positions: int,
    ) -> None:
        super().__init__()
        self.embeddings = _Embeddings(vocabulary, positions, width)
        self.encoder = _Encoder(layers, width, heads, intermediate)
        self.pooler = _Dense(width, width)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Map int64 ``(b, T)`` or float ``(b, T, width)`` to ``(b, width)``."""
        x = self.encoder(self.embeddings(x), hidden)
        return torch.tanh(self.pooler(x[:, 0]))


class BertClassifier(nn.Module):
    """Tokens or their word embeddings to the logits of classes.

    Parameters have the names, order and shapes of ``BertForSequenceClassification`` of the
    ``transformers`` library. There is no dropout; all tokens have the type 0.

    Args:
        vocabulary: number of tokens.
        classes: number of classes.
        layers: of the encoder.
        width: of the hidden states.
        heads: of the attention.
        intermediate: width inside a layer.
        positions: the longest sequence.
        padding: the token whose embedding begins at 0; None: no such token.
        mask_padding: whether ``padding`` is hidden from the attention, where tokens are given.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        layers: int,
        width: int,
        heads: int,
        intermediate: int,
        positions: int,
        padding: int | None,
        mask_padding: bool,
    ) -> None:
        super().__init__()
        self.bert = _Bert(
            vocabulary,
            layers=layers,
            width=width,
            heads=heads,
            intermediate=intermediate,
            positions=positions,
        )
        self.classifier = nn.Linear(width, classes)
        self.padding = padding
        self.masked = padding if mask_padding else None

    @property
    def token_embedding(self) -> torch.Tensor:
        """The tokens' embeddings, ``(vocabulary, width)``."""
        return self.bert.embeddings.word_embeddings.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map int64 ``(b, T)`` or float ``(b, T, width)`` to ``(b, classes)``."""
        hidden = None
        if self.masked is not None and not x.is_floating_point():
            hidden = torch.eq(x, self.masked)[:, None, None]
        return self.classifier(self.bert(x, hidden))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights as the ``transformers`` library does.

        N(0, 0.02^2), but for the embedding of padding and all biases, which are 0, and the
        weights of normalisations, which are 1.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif name.endswith("LayerNorm.weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, DEVIATION, generator=generator)
        if self.padding is not None:
            self.token_embedding[self.padding].zero_()
