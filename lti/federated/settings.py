"""Settings of a federated training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lti.registry import described

__all__ = ["FederatedTraining"]

LEARNING_RATES = [0.0003, 0.001, 0.003, 0.01, 0.03]  # for Adam


class FederatedTraining(BaseModel):
    """Training of the FL model by clients that defend what they send."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(400, ge=1, description="Rounds; the server takes a step in each.")
    clients: int = Field(100, ge=1, description="Clients that the training samples are split to.")
    clients_per_round: int = Field(10, ge=1, description="Clients that send a gradient in a round.")
    batch_size: int = Field(8, ge=1, description="Samples whose mean gradient a client sends.")
    dirichlet: float | None = Field(
        None,
        gt=0,
        description=(
            "Concentration of the clients' shares of the classes: clients are the more alike the "
            "larger it is; null: samples are split at random."
        ),
    )
    optimiser: Literal["sgd", "adam"] = Field(
        "adam", description="The server's, on the mean of what it is sent."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Of `sgd`.")
    learning_rates: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        LEARNING_RATES,
        min_length=1,
        description=(
            "Learning rates to choose from, per defense: the one whose pilot has the lowest "
            "loss on samples held out of the training samples."
        ),
    )
    pilot_rounds: int = Field(
        100, ge=1, description="Rounds of a pilot; a single learning rate has none."
    )
    holdout: float = Field(
        0.1, gt=0, lt=1, description="Share of the training samples held out for the pilots."
    )
    evaluations: int = Field(
        10, ge=1, description="Evaluations on the test samples, beside the one before round 1."
    )
    seed: int = Field(0, description="Root seed of the split, the batches and the defense's draws.")

    @model_validator(mode="after")
    def _check(self) -> FederatedTraining:
        if problems := list(self._problems()):
            raise described(problems)
        return self

    def _problems(self) -> Iterator[str]:
        for key, limit in (
            ("clients_per_round", "clients"),
            ("evaluations", "rounds"),
            ("pilot_rounds", "rounds"),
        ):
            most = getattr(self, limit)
            if key == "pilot_rounds" and not self.pilots:
                continue
            if getattr(self, key) > most:
                yield f"{key}: got {getattr(self, key)}; allowed: 1 to `{limit}`, {most}"
        for rate in dict.fromkeys(self.learning_rates):
            if self.learning_rates.count(rate) > 1:
                yield f"learning_rates: got {rate:g} more than once; allowed: once"

    @property
    def pilots(self) -> int:
        """Trainings from which the learning rate is chosen."""
        return len(self.learning_rates) if len(self.learning_rates) > 1 else 0

    @property
    def evaluated(self) -> list[int]:
        """Rounds after which the test samples are looked at: 0, and evenly up to the last."""
        return [
            round(number * self.rounds / self.evaluations) for number in range(self.evaluations + 1)
        ]
