"""The tuned text inverter's trained part: which tokens fit the span, and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from lti.fl_models.token_inputs import TokenInputs
from lti.inverters.ordering import matched_cross_entropy
from lti.inverters.text_decoder import TokenDecoder

__all__ = ["SpanDecoder"]

SPECTRUM_WIDTH = 32  # of the network that weighs directions
CERTAIN = 4.0  # logit at which weights start: for directions that tokens can fill, or against


class SpanDecoder(TokenDecoder):
    """Logits over tokens from what :class:`lti.inverters.span_encoder.SpanEncoder` gives.

    A token v fits position t as far as its input c(v, t) lies in the span:
    ``sum_k w_k (q_k . c(v, t))^2 / |c(v, t)|^2``. How much a direction counts, ``w_k`` in
    [0, 1], a small network reads off the spectrum, starting with as many directions as there
    are tokens, which is right without a defense. To this, times a learned factor, is
    added what a residual network on the features says: a vector for each position, times the
    tokens' embeddings, and a bias for each token. Where there are parts of the positions, it is
    one network for all positions, which sees, besides the features, the parts of the position
    and of the one before it.

    In training, logits are made for the batch's own tokens and random others only.

    Args:
        sizes: B, length and vocabulary.
        widths: of features, spectrum, basis and the parts of all positions.
        inputs: what the FL model's first layers see of tokens.
        frequency: ``(vocabulary,)``, the tokens' shares in auxiliary data, where the biases
            start; None: they are read.
        hidden: width of the residual network.
        dropout: share of hidden units dropped in training.
        others: random tokens in training.
        certainty: factor of the fit at the start: more than any difference of log frequencies
            where the span is seen.
    """

    token: torch.Tensor
    position: torch.Tensor
    embedding: torch.Tensor
    gain: torch.Tensor
    shift: torch.Tensor
    eps: torch.Tensor

    def __init__(
        self,
        sizes: tuple[int, int, int],
        *,
        widths: Sequence[int],
        inputs: TokenInputs,
        frequency: torch.Tensor | None,
        hidden: int,
        dropout: float,
        others: int,
        certainty: float,
    ) -> None:
        super().__init__(sizes)
        batch, length, vocabulary = sizes
        self.widths, self.others = list(widths), others
        width = inputs.token.shape[1]
        token, position = inputs.token, inputs.position
        if inputs.normalisation is not None:
            token, position = (part - part.mean(dim=1, keepdim=True) for part in (token, position))
        self.is_normalised = inputs.normalisation is not None
        for name, value in (inputs.tensors() | {"token": token, "position": position}).items():
            self.register_buffer(name, value.clone())
        embedding = token - token.mean(dim=0)
        self.register_buffer("embedding", embedding / embedding.square().mean().sqrt())

        weigh = nn.Linear(SPECTRUM_WIDTH, 1)
        self.weigh = nn.Sequential(nn.Linear(2, SPECTRUM_WIDTH), nn.GELU(), weigh)
        self.factor = nn.Parameter(torch.tensor(math.log(certainty)))
        self.first = nn.Linear(widths[0], hidden)
        self.block = nn.Linear(hidden, hidden)
        parts = widths[3] // length
        self.near = nn.Linear(2 * parts, hidden, bias=False) if parts else None
        self.place = nn.Parameter(torch.zeros(length, hidden)) if parts else None
        self.last = nn.Linear(hidden, batch * width * (1 if parts else length))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        start = torch.zeros(vocabulary) if frequency is None else frequency.log()
        self.bias = nn.Parameter(start)
        for layer in (self.first, self.block):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        if self.near is not None and self.place is not None:
            nn.init.kaiming_normal_(self.near.weight, nonlinearity="relu")
            nn.init.normal_(self.place)
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(hidden * width))
        nn.init.zeros_(self.last.bias)
        nn.init.zeros_(weigh.weight)
        nn.init.zeros_(weigh.bias)

    def forward(self, inputs: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of ``tokens`` (m,), or of all: ``(b, B, length, m)``."""
        features, spectrum, basis, parts = inputs.split(self.widths, dim=1)
        states = self._states(features, parts)
        embedding = self.embedding if tokens is None else self.embedding[tokens]
        bias = self.bias if tokens is None else self.bias[tokens]
        logits = states @ embedding.T + bias
        fit = self._fit(
            spectrum.float(), basis.float().unflatten(1, (spectrum.shape[1], -1)), tokens
        )
        return logits.float() + self.factor.exp() * fit[:, None]

    def loss(
        self, inputs: torch.Tensor, target: torch.Tensor, label: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean cross-entropies; in training over some tokens only."""
        if not self.training:
            return super().loss(inputs, target, label)
        other = torch.randint(self.sizes[2], (self.others,), device=target.device)
        tokens, place = torch.cat([target.flatten(), other]).unique(return_inverse=True)
        found = place[: target.numel()].view_as(target)
        return matched_cross_entropy(self(inputs, tokens), found, label)

    def _states(self, features: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        batch, length, _ = self.sizes
        state = self.first(features)
        if self.near is not None and self.place is not None:
            own = parts.unflatten(1, (length, -1))
            before = functional.pad(own, (0, 0, 1, 0))[:, :length]
            state = state[:, None] + self.near(torch.cat([before, own], dim=2)) + self.place
        state = functional.gelu(self.norms[0](state))
        state = state + functional.gelu(self.block(self.dropout(self.norms[1](state))))
        states: torch.Tensor = self.last(self.dropout(self.norms[2](state)))
        if self.near is None:
            return states.unflatten(1, (batch, length, -1))
        return states.unflatten(2, (batch, -1)).transpose(1, 2)

    def _fit(
        self, spectrum: torch.Tensor, basis: torch.Tensor, tokens: torch.Tensor | None
    ) -> torch.Tensor:
        """Return how far tokens lie in the spans, ``(b, length, m)`` in [0, 1]."""
        filled = self.sizes[0] * self.sizes[1]
        rank = torch.arange(spectrum.shape[1], device=spectrum.device)
        start = torch.where(rank < filled, CERTAIN, -CERTAIN)
        seen = torch.stack([spectrum, (rank / filled).expand_as(spectrum)], dim=2)
        weight = (start + self.weigh(seen)[..., 0].float()).sigmoid()
        token = self.token if tokens is None else self.token[tokens]
        # In float32: squares of small differences.
        with torch.autocast(spectrum.device.type, enabled=False):
            scaled = basis * self.gain
            along_token = scaled @ token.T  # (b, k, m)
            along_position = scaled @ self.position.T  # (b, k, length)
            along_shift = basis @ self.shift  # (b, k)
            deviation = self._deviation(token)  # (length, m)
            weighed = weight[:, :, None] * along_position
            quadratic = (weight[:, None] @ along_token.square()) + 2 * (
                weighed.transpose(1, 2) @ along_token
            )
            quadratic = quadratic + (weighed * along_position).sum(dim=1)[:, :, None]
            mixed = weight * along_shift
            linear = (mixed[:, None] @ along_token) + (mixed[:, None] @ along_position).transpose(
                1, 2
            )
            constant = (mixed * along_shift).sum(dim=1)[:, None, None]
            square = quadratic / deviation.square() + 2 * linear / deviation + constant
            return square / self._square(token, deviation)

    def _deviation(self, token: torch.Tensor) -> torch.Tensor:
        """Return what normalisation divides by, ``(length, m)``; ones where there is none."""
        if not self.is_normalised:
            return torch.ones(len(self.position), len(token), device=token.device)
        square = self.position.square().sum(dim=1)[:, None] + token.square().sum(dim=1)
        square = square + 2 * self.position @ token.T
        return (square / token.shape[1] + self.eps).sqrt()

    def _square(self, token: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        """Return the squared lengths of the inputs, ``(length, m)``."""
        gained, placed = token * self.gain, self.position * self.gain
        square = placed.square().sum(dim=1)[:, None] + gained.square().sum(dim=1)
        square = square + 2 * placed @ gained.T
        along = (placed @ self.shift)[:, None] + gained @ self.shift
        return square / deviation.square() + 2 * along / deviation + self.shift.square().sum()
