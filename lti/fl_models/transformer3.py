"""The language model of the paper's experiments on WikiText."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

from lti.data.samples import Modality
from lti.errors import LTIError
from lti.fl_models.base import FL_MODELS, FLModel, FLTask
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.fl_models.transformer import Transformer

__all__ = ["Transformer3"]

POSITIONS = 1024


@FL_MODELS.register(
    "transformer3",
    source="Wu et al. 2023, public code; Wang et al. 2021, A Field Guide to Federated Optimization",
)
class Transformer3(FLModel):
    """A transformer of three layers that predicts the next token, untrained.

    Input tokens ``(b, T)`` or embeddings ``(b, T, 96)``, T <= 1024; output
    ``(b, T, vocabulary)`` logits. Embeddings of 96, layers of 8 heads and 1536 inside,
    normalised behind each sum, ReLU, no dropout, learned positions, a decoder of its own.
    With GPT-2's 50,257 tokens it has 10,800,433 parameters, of which 1,100,832 are attacked
    by default. :meth:`lti.fl_models.transformer.Transformer.initialise` says how weights are
    drawn.
    """

    modality: ClassVar[Modality] = "text"
    label_is_sample: ClassVar[bool] = True

    attacked_parameters: tuple[str, ...] = Field(
        ("position.*", "layers.*"),
        min_length=1,
        description=(
            "Names of the parameters whose gradients the attacker sees; `*` and `?` match as in "
            "file names. Without `token.*` and `decoder.*`, which give the tokens away."
        ),
    )
    causal: bool = Field(
        False,
        description=(
            "Whether a position sees itself and earlier ones alone. The paper's code sets no such "
            "mask."
        ),
    )

    def architecture(self, task: FLTask) -> nn.Module:
        """Return the network (see the class).

        Raises:
            LTIError: images, or samples of other than 2 to 1024 tokens.
        """
        from lti.fl_models.transformer import Transformer

        if task.vocabulary is None or not 2 <= (task.length or 0) <= POSITIONS:
            raise LTIError(
                f"transformer3 got samples of {task.length} tokens; expected 2 to {POSITIONS}. Use "
                f"another data set or length."
            )
        return Transformer(
            task.vocabulary,
            width=96,
            feed_forward=1536,
            heads=8,
            layers=3,
            positions=POSITIONS,
            causal=self.causal,
        )

    def initialise(self, network: nn.Module) -> dict[str, Any]:
        """Draw the weights (see the class)."""
        cast("Transformer", network).initialise(torch_generator(self.seed, "fl_model", self.name))
        return {}

    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of the tokens 2 to T, each given those before it.

        Args:
            output: ``(b, T, vocabulary)``; what position t says of token t + 1.
            label: the tokens, int64 ``(b, T)``, or their probabilities
                ``(b, T, vocabulary)``.
        """
        # All positions go through the softmax, since a part of the logits would be a copy of
        # most of the memory that is touched here; a third of the time.
        logarithm = output.log_softmax(dim=-1)
        following = label.roll(-1, dims=1)
        if label.is_floating_point():
            score = (logarithm * following).sum(dim=-1)
        else:
            score = logarithm.gather(-1, following[..., None])[..., 0]
        return -score[:, :-1].mean()

    def loss_at(
        self,
        network: nn.Module,
        weights: Mapping[str, torch.Tensor],
        fixed: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss (see the base), fast where the decoder is fixed."""
        weight, bias = fixed.get("decoder.weight"), fixed.get("decoder.bias")
        if weight is None or bias is None or label.is_floating_point():
            return super().loss_at(network, weights, fixed, x, label)
        from torch.func import functional_call

        from lti.fl_models.head import decoder_cross_entropy

        hidden = functional_call(network, {**fixed, **weights}, (x,), {"decode": False})
        return decoder_cross_entropy(hidden[:, :-1], weight, bias, label[:, 1:]).mean()

    def token_embedding(self, network: nn.Module) -> torch.Tensor:
        """Return the tokens' embeddings, ``(vocabulary, 96)``."""
        return cast("Transformer", network).token.weight
