"""The classifier of the paper's experiments on CoLA, and smaller ones of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from lti.data.samples import Modality
from lti.errors import LTIError
from lti.fl_models.base import FL_MODELS, FLModel, FLTask
from lti.registry import described
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.fl_models.bert_network import BertClassifier

__all__ = ["Bert"]

BASE = {"layers": 12, "width": 768, "heads": 12, "intermediate": 3072}
BASE_VOCABULARY = 30_522
POSITIONS = 512


@FL_MODELS.register("bert", source="Devlin et al. 2019; Wu et al. 2023, public code")
class Bert(FLModel):
    """BERT for classification, with ReLU and without dropout.

    Input tokens ``(b, T)`` or word embeddings ``(b, T, width)``, T <= 512; output
    ``(b, classes)`` logits. The sizes are those of BERT base unless set: 109,483,778 parameters
    for its 30,522 tokens and two classes, 86,042,882 of them attacked by default. Where there
    are public weights, the last layer, of which there are none, is drawn; otherwise all are:
    N(0, 0.02^2), biases 0.
    """

    modality: ClassVar[Modality] = "text"

    attacked_parameters: tuple[str, ...] = Field(
        (
            "bert.embeddings.position_embeddings.*",
            "bert.embeddings.token_type_embeddings.*",
            "bert.embeddings.LayerNorm.*",
            "bert.encoder.*",
            "bert.pooler.*",
            "classifier.*",
        ),
        min_length=1,
        description=(
            "Names of the parameters whose gradients the attacker sees; `*` and `?` match as in "
            "file names. Without `bert.embeddings.word_embeddings.*`, which give the tokens away."
        ),
    )
    layers: int = Field(BASE["layers"], ge=1, description="Layers of the encoder.")
    width: int = Field(BASE["width"], ge=1, description="Width of the hidden states.")
    heads: int = Field(BASE["heads"], ge=1, description="Heads of the attention.")
    intermediate: int = Field(BASE["intermediate"], ge=1, description="Width inside a layer.")
    mask_padding: bool = Field(
        False,
        description=(
            "Hide the padding from the attention, where tokens are given. The paper's code passes "
            "no mask."
        ),
    )
    pretrained: Literal["if-available", "required", "never"] = Field(
        "if-available",
        description=(
            "Begin with the public weights of bert-base-uncased: where they can be had (the card "
            "says whether), in any case, or never."
        ),
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Bert:
        if problems := list(self._size_problems()):
            raise described(problems)
        return self

    def _size_problems(self) -> Iterator[str]:
        if self.width % self.heads:
            yield f"heads: got {self.heads}; allowed: divisors of the width, {self.width}"
        if self.pretrained == "required" and not self._is_base:
            yield (
                f"pretrained: got 'required'; allowed with other sizes than "
                f"{', '.join(f'{key} {value}' for key, value in BASE.items())}: 'never', since "
                f"there are no public weights"
            )

    @property
    def _is_base(self) -> bool:
        return all(getattr(self, key) == value for key, value in BASE.items())

    def architecture(self, task: FLTask) -> nn.Module:
        """Return the network (see the class).

        Raises:
            LTIError: images, samples longer than 512 tokens, fewer than two classes, or
                padding that is to be masked and is not there.
        """
        if task.vocabulary is None or (task.length or 0) > POSITIONS or task.classes < 2:
            raise LTIError(
                f"bert got samples of {task.length} tokens and {task.classes} classes; expected at "
                f"most {POSITIONS} tokens and at least 2 classes. Use another data set or length."
            )
        if self.mask_padding and task.padding is None:
            raise LTIError(
                "bert.mask_padding: got True, and the data set has no padding; expected False. "
                "Change it."
            )
        from lti.fl_models.bert_network import BertClassifier

        return BertClassifier(
            task.vocabulary,
            task.classes,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            intermediate=self.intermediate,
            positions=POSITIONS,
            padding=task.padding,
            mask_padding=self.mask_padding,
        )

    def initialise(self, network: nn.Module) -> dict[str, Any]:
        """Draw the weights, and replace them by the public ones where asked and possible.

        Returns:
            ``pretrained``, and what is known besides: ``weights``, their public home, or a
            ``note``, why they are not pretrained.

        Raises:
            LTIError: weights are required and cannot be had, or their file is damaged.
        """
        cast("BertClassifier", network).initialise(
            torch_generator(self.seed, "fl_model", self.name)
        )
        reason = self._pretrain(network) if self.pretrained != "never" else "as the settings say"
        if not reason:
            from lti.fl_models.bert_weights import HUB_NAME

            return {"pretrained": True, "weights": HUB_NAME}
        if self.pretrained == "required":
            raise LTIError(
                f"bert.pretrained: got 'required', but {reason}. Put the file there, connect to "
                f"the network once, or set pretrained to 'never'."
            )
        return {"pretrained": False, "note": f"not pretrained: {reason}"}

    def _pretrain(self, network: nn.Module) -> str:
        """Load the public weights; return why that is not possible, or ""."""
        from lti.fl_models.bert_weights import WeightsCannotBeHad, find_weights, load_weights

        if not self._is_base:
            return "there are no public weights of this size"
        if (vocabulary := len(self.token_embedding(network))) != BASE_VOCABULARY:
            return (
                f"the public weights are for {BASE_VOCABULARY:,} tokens, the data set has "
                f"{vocabulary:,}"
            )
        try:
            load_weights(find_weights(), network)
        except WeightsCannotBeHad as error:
            return str(error)
        return ""

    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy."""
        from torch.nn import functional

        return functional.cross_entropy(output, label)

    def token_embedding(self, network: nn.Module) -> torch.Tensor:
        """Return the word embeddings, ``(vocabulary, width)``."""
        return cast("BertClassifier", network).token_embedding
