"""What an audit's file says."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lti.config import Page, Utility
from lti.errors import LTIError
from lti.registry import describe_validation_error

__all__ = ["AuditSpec", "AuxiliaryData", "VictimData", "parse_audit"]

Effort = Literal["quick", "standard", "thorough"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AuxiliaryData(_Section):
    """The attacker's data."""

    size: int = Field(5000, ge=16, description="Samples.")
    seed: int = Field(0, description="Root seed of their choice.")
    data: dict[str, Any] | None = Field(
        None,
        description="Another data set that they are drawn from, as in `datasets`; null: the "
        "auxiliary part of `data`.",
    )


class VictimData(_Section):
    """The clients' data."""

    size: int = Field(200, ge=2, description="Samples, of the victims' part of `data`.")
    seed: int = Field(0, description="Root seed of their choice and of the defense's draws.")


class AuditSpec(_Section):
    """One model, one data set, and defenses under attack."""

    title: str = Field("Audit", description="Heading of the page.")
    model: dict[str, Any] = Field(description="The FL model: an entry of `fl_models`.")
    data: dict[str, Any] = Field(description="The data: an entry of `datasets`.")
    defenses: dict[str, dict[str, Any]] = Field(
        min_length=1, description="Entries of `defenses`, by the name that the page calls them."
    )
    auxiliary: AuxiliaryData = Field(
        default_factory=AuxiliaryData, description="What the attacker knows of such data."
    )
    victims: VictimData = Field(default_factory=VictimData, description="Who is attacked.")
    batch_size: int = Field(1, ge=1, description="Samples of a client batch.")
    attacks: list[str] | dict[str, dict[str, Any]] | None = Field(
        None,
        min_length=1,
        description="Among `lti`, `lti-map`, `ig`, `nearest` for images and `lti`, `tag`, "
        "`nearest` for text, perhaps with settings that replace those of `effort`; null: all.",
    )
    effort: Effort = Field(
        "standard",
        description="How long attacks train and search: `quick` is to see that all runs, "
        "`thorough` is for a GPU or a night.",
    )
    projection: dict[str, Any] | None = Field(
        None,
        description="What of a gradient the inverter and the nearest neighbour see: an entry of "
        "`projections`; null: the first layers and the vectors of all.",
    )
    inverter: dict[str, Any] | None = Field(
        None, description="An entry of `inverters`; null: by `effort`."
    )
    utility: Utility | None = Field(
        None, description="Federated training under each defense; null: none."
    )
    page: Page = Field(default_factory=Page, description="What the page shows.")


def parse_audit(values: Any, *, where: str = "audit") -> AuditSpec:
    """Check an audit's file.

    Raises:
        LTIError: a key or value is wrong; one line a problem.
    """
    if not isinstance(values, dict):
        raise LTIError(
            f"{where}: got {type(values).__name__}; expected a mapping with model, data and "
            f"defenses. `lti audit init` writes one."
        )
    try:
        return AuditSpec.model_validate(values)
    except ValidationError as error:
        raise LTIError(describe_validation_error(error, where=where, model=AuditSpec)) from None
