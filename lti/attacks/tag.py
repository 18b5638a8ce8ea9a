"""TAG: gradient matching for text, in the space of token embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lti.attacks.base import ATTACKS, Observations
from lti.attacks.matching import Distances
from lti.attacks.minimise import Minimum, minimise, warm_up
from lti.attacks.optimise import OptimisationAttack, Problems
from lti.errors import LTIError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["Tag", "nearest_tokens"]

# Geiping et al.'s public code, which Wu et al. use.
START = 0.1  # the standard deviation of the start, and where it is cut off
EPSILON = 1e-6  # of AdamW

COPIES_OF_LOGITS = 3  # with what the softmax keeps
READ_OUT_BYTES = 64 * 2**20  # of similarities at once


@ATTACKS.register("tag", source="Deng et al. 2021 (TAG); Wu et al. 2023, supplement A")
class Tag(OptimisationAttack):
    """AdamW on token embeddings, from small noise; every position reads out its nearest token.

    Objective: 1/2 sum over the attacked parameters of ||g - s||_2^2 + ``l1`` w_l ||g - s||_1,
    with w_l falling linearly from 1 in the network's order, and its changes for the defenses
    (:mod:`lti.attacks.tag_distance`). The read-out is by cosine with the token embedding.

    Labels are given, as in the paper's code. A classifier's are the classes. A language model's
    loss compares with the tokens themselves, so there the attack is handed, as labels, what it
    looks for; neither start nor read-out looks at them.
    """

    modality = "text"

    # Measured: 6.4 with the transformer and 7.6 with a small BERT.
    floats_per_coordinate: ClassVar[int] = 10

    iterations: int = Field(1000, ge=2, description="Steps of AdamW.")
    learning_rate: float = Field(
        0.05, gt=0, description="Of AdamW, at the end of the warm-up; then falls linearly to 0."
    )
    warmup: int = Field(50, ge=0, description="Steps in which the learning rate rises linearly.")
    weight_decay: float = Field(0.01, ge=0, description="Of AdamW.")
    clip: float = Field(
        1.0, gt=0, description="The greatest norm of the gradient of a victim batch's embeddings."
    )
    l1: float = Field(0.1, ge=0, description="Weight of the L1 terms beside the squared L2 terms.")

    @property
    def iterations_in_all(self) -> int:
        """Steps of AdamW."""
        return self.iterations

    def distances(self, observations: Observations) -> Distances:
        """Return TAG's (see :func:`lti.attacks.tag_distance.tag_distances`)."""
        from lti.attacks.tag_distance import layer_weights, tag_distances

        weight = self.l1 * layer_weights(observations.layout)
        device = next(observations.network.parameters()).device
        return tag_distances(weight.to(device))

    def floats_per_problem(self, observations: Observations, knowledge: Any) -> int:
        """Return what matching takes, and what a language model's logits do (see the base)."""
        model, network = observations.model, observations.network
        matching = super().floats_per_problem(observations, knowledge)
        if not model.label_is_sample:
            return matching
        positions = observations.batch_size * observations.sample_shape[0]
        return matching + COPIES_OF_LOGITS * positions * len(model.token_embedding(network))

    def start_shape(self, observations: Observations, knowledge: Any) -> tuple[int, ...]:
        """Return ``(B, T, d)``.

        Raises:
            LTIError: the FL model is not for text.
        """
        if observations.model.modality != "text":
            raise LTIError(
                f"attack {self.name} got observations of FL model {observations.model.name}; "
                f"expected one for text. Use another attack."
            )
        embedding = observations.model.token_embedding(observations.network)
        return (observations.batch_size, *observations.sample_shape, embedding.shape[1])

    def solve(
        self, problems: Problems, start: torch.Tensor, step: torch.Tensor, knowledge: Any
    ) -> Minimum:
        """Return the embeddings of lowest objective (see the base)."""

        def evaluate(variables: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            (embedding,) = variables
            return problems.matching(embedding), embedding

        def adamw(variables: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
            import torch

            return torch.optim.AdamW(
                variables, eps=EPSILON, weight_decay=self.weight_decay, fused=True
            )

        return minimise(
            evaluate,
            [(START * start).clamp(-START, START)],
            iterations=self.iterations,
            schedule=warm_up(self.learning_rate, steps=self.warmup, iterations=self.iterations),
            record=step,
            checkpoint=problems.checkpoint("embeddings"),
            progress=problems.progress,
            optimiser=adamw,
            clip=self.clip,
        )

    def read_out(self, kept: torch.Tensor, observations: Observations) -> torch.Tensor:
        """Return the nearest tokens, int32 ``(n, B, T)``."""
        return nearest_tokens(kept, observations.model.token_embedding(observations.network))


def nearest_tokens(embedding: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the tokens whose embeddings have the greatest cosine with each position's.

    Args:
        embedding: ``(..., d)``.
        table: ``(V, d)``, the tokens' embeddings.

    Returns:
        int32 ``(...)``; of equal cosines the first token's.
    """
    import torch
    from torch.nn import functional

    table = functional.normalize(table.detach(), dim=1)  # a token of zeros has the cosine 0
    rows = functional.normalize(embedding.detach().flatten(0, -2), dim=1)
    block = max(1, READ_OUT_BYTES // (rows.element_size() * len(table)))
    tokens = torch.cat([(part @ table.T).argmax(dim=1) for part in rows.split(block)])
    return tokens.view(embedding.shape[:-1]).int()
