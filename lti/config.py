"""The configuration: one typed schema, checked before the first job."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lti.attacks import ATTACKS
from lti.config_checks import (
    attack_problems,
    experiment_problems,
    parsed_attacks,
    report_problems,
)
from lti.config_data_checks import (
    shift_problems,
    synthetic_problems,
    tokenizer_problems,
    unknown,
)
from lti.data.dataset import DATASETS
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.federated import FederatedTraining
from lti.fl_models import FL_MODELS
from lti.generators import GENERATORS
from lti.gradients.store_format import StoreSettings
from lti.inverters import INVERTERS
from lti.metrics import METRICS
from lti.projections import PROJECTIONS
from lti.registry import Registry, describe_validation_error

__all__ = [
    "Auxiliary",
    "Config",
    "Experiment",
    "Page",
    "Pool",
    "Report",
    "Shift",
    "Utility",
    "Variation",
    "Victims",
    "parse_config",
]

IDENTIFIER = re.compile(r"[a-z0-9]+([-._][a-z0-9]+)*")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pool(_Section):
    """Samples that an auxiliary set draws from."""

    dataset: str | None = Field(
        None,
        description="A key of `datasets`, of which it is the auxiliary part; null: the "
        "experiment's.",
    )
    classes: list[int] | None = Field(None, min_length=1, description="Labels; null: all.")


class Shift(_Section):
    """What is like the victims and what is not."""

    classes: list[int] | None = Field(
        None,
        min_length=1,
        description="Labels of the victims and of the auxiliary samples like them; null: all.",
    )
    shifted: list[Pool] = Field(
        min_length=1,
        description="What the other auxiliary samples are drawn from, in equal parts.",
    )


class Auxiliary(_Section):
    """The attacker's auxiliary set."""

    size: int = Field(ge=16, description="Samples.")
    seed: int = Field(0, description="Root seed of the selection.")
    shift: str | None = Field(
        None, description="A key of `shifts`; null: all are like the victims."
    )
    beta: float = Field(
        1.0, ge=0.0, le=1.0, description="Share of samples like the victims, with a shift."
    )
    mirrored: bool = Field(
        True,
        description="Also store the gradients of the mirrored images, for augmentation. Not of "
        "text.",
    )


class Variation(_Section):
    """Auxiliary sets that differ from an experiment's: every combination of what is listed."""

    size: list[Annotated[int, Field(ge=16)]] | None = Field(
        None,
        min_length=1,
        description="Samples; null: the experiment's. Smaller sets are the beginning of the "
        "largest of their seed, and share its gradient store.",
    )
    beta: list[Annotated[float, Field(ge=0.0, le=1.0)]] | None = Field(
        None, min_length=1, description="Shares like the victims; null: the experiment's."
    )
    seed: list[int] | None = Field(
        None, min_length=1, description="Root seeds of the selection; null: the experiment's."
    )


class Victims(_Section):
    """The clients' data."""

    size: int = Field(ge=1, description="Samples.")
    seed: int = Field(0, description="Root seed of the selection and of the defense's draws.")
    include: list[int | str] = Field(
        default=[],
        description=(
            "Samples that come first, whatever the seed: positions in the source's split or, of a "
            "text data set, texts that whole samples read as; the others follow in the seed's "
            "order."
        ),
    )


class Page(_Section):
    """An experiment's page: verdicts, numbers and examples, for who decides on a defense."""

    examples: Literal["show", "blur", "omit"] = Field(
        "show", description="Show victims and what came back of them, which are private data."
    )
    shown: int = Field(8, ge=1, description="Victims shown, chosen by chance, and of the worst.")
    seed: int = Field(0, description="Root seed of that choice.")


class Utility(FederatedTraining):
    """Training of the FL models under each defense, for accuracy beside leakage."""

    metric: str | None = Field(
        None,
        description="The metric of leakage, one of the experiment's; null: `psnr` or "
        "`token_accuracy`, where it has that, or else its first.",
    )


class Experiment(_Section):
    """A grid of cells, reported together."""

    title: str = Field(description="Heading of the table.")
    dataset: str = Field(description="A key of `datasets`.")
    fl_models: list[str] = Field(min_length=1, description="Keys of `fl_models`.")
    batch_sizes: list[int] = Field([1], min_length=1, description="Samples per client batch.")
    defenses: list[str] = Field(min_length=1, description="Keys of `defenses`.")
    attacks: list[str] = Field(min_length=1, description="Keys of `attacks`.")
    auxiliary: Auxiliary
    variations: list[Variation] = Field(
        default=[],
        description="Auxiliary sets in place of `auxiliary`, one after another: a curve over "
        "their size or beta.",
    )
    victims: Victims
    metrics: list[str] | None = Field(
        None,
        min_length=1,
        description="Metrics, of the data set's modality; null: the usual ones, see "
        "[metrics](metrics.md).",
    )
    page: Page | None = Field(
        None, description="Write `audit.html`, for a single FL model and batch size; null: none."
    )
    utility: Utility | None = Field(
        None,
        description="How accuracy is measured beside leakage, see [utility](utility.md); null: it "
        "is not.",
    )
    pictured: int = Field(12, ge=1, description="Victims shown in the picture or as sentences.")
    picture_seed: int = Field(0, description="Root seed of the choice of the pictured victims.")


class Report(_Section):
    """Experiments reported together."""

    title: str = Field(description="Heading of the tables.")
    experiments: list[str] = Field(
        min_length=1, description="Keys of `experiments`, in the order of the tables."
    )


class MetricRules(_Section):
    """What is asked of the metrics, whatever the experiment."""

    require: list[str] = Field(
        default=[],
        description="Metrics without which nothing is computed (those that need a download).",
    )


class Config(_Section):
    """The whole configuration."""

    results: str = Field(
        "results",
        description=(
            "Folder for everything that is computed, below the working folder; an absolute one "
            "only inside a folder that `LTI_ALLOWED_FOLDERS` names (several with `:` between)."
        ),
    )
    store: StoreSettings = Field(
        default_factory=StoreSettings, description="The gradient store's layout."
    )
    attack_batches_per_job: int = Field(
        1000,
        ge=1,
        description="An attack by optimisation, or LTI-MAP, on more victim batches is run by "
        "several jobs, of about so many each.",
    )
    datasets: dict[str, dict[str, Any]] = Field(description="Data sets by identifier.")
    fl_models: dict[str, dict[str, Any]] = Field(description="FL models by identifier.")
    projections: dict[str, dict[str, Any]] = Field(
        default={"identity": {"use": "identity"}},
        description="Projections of gradients by identifier.",
    )
    defenses: dict[str, dict[str, Any]] = Field(description="Defenses by identifier.")
    inverters: dict[str, dict[str, Any]] = Field(description="Inverters by identifier.")
    generators: dict[str, dict[str, Any]] = Field(
        default={}, description="Image priors, trained on the auxiliary set, by identifier."
    )
    attacks: dict[str, dict[str, Any]] = Field(description="Attacks by identifier.")
    metrics: MetricRules = Field(
        default_factory=MetricRules, description="What is asked of the metrics."
    )
    shifts: dict[str, Shift] = Field(
        default={}, description="Shifts of the auxiliary set's distribution by identifier."
    )
    experiments: dict[str, Experiment] = Field(description="Experiments by identifier.")
    reports: dict[str, Report] = Field(default={}, description="Reports by identifier.")

    @field_validator("results")
    @classmethod
    def _stays_inside(cls, results: str) -> str:
        if not re.fullmatch(r"/?[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*", results):
            raise ValueError(
                "expected names of folders, with / between them, of letters, digits, _.+-"
            )
        path = PurePosixPath(results)
        if ".." in path.parts:
            raise ValueError("leads out of the working folder by '..'; expected a folder inside it")
        if path.is_absolute():
            allowed = os.environ.get("LTI_ALLOWED_FOLDERS", "")
            folders = [PurePosixPath(folder) for folder in allowed.split(":") if folder]
            if not any(path.is_relative_to(folder) for folder in folders):
                raise ValueError(
                    f"is absolute; expected a folder inside the working folder, or one that "
                    f"LTI_ALLOWED_FOLDERS allows (it is {allowed!r})"
                )
        return results


RULES = {
    *("all", "default", "draw_fl_model", "compute_gradients", "observe", "train_inverter"),
    *("compute_gradient_shards", "attack_victim_blocks", "write_audit"),
    *("train_generator", "fetch_backbone", "tabulate_metric"),
    *("prepare_tokenizer", "prepare_dataset", "select_auxiliary", "select_victims", "run_attack"),
    *("table1", "table2", "table3", "table_mse", "figure3", "figure4", "figure5", "figure6"),
    *("measure_attack", "summarise_experiment", "draw_reconstructions", "draw_texts"),
    *("find_near_copies", "table_text", "fit_prior"),
    *("train_federated", "draw_utility"),
    *("fit_projection", "combine_summaries", "draw_curves", "figure1", "figure2"),
}
"""Names that an experiment or a report, which are rules too, cannot have."""

SECTIONS: dict[str, Registry[Any]] = {
    "datasets": DATASETS,
    "fl_models": FL_MODELS,
    "projections": PROJECTIONS,
    "defenses": DEFENSES,
    "inverters": INVERTERS,
    "generators": GENERATORS,
    "attacks": ATTACKS,
}


def parse_config(values: Mapping[str, Any]) -> Config:
    """Check a configuration, references and every entry's settings included.

    Raises:
        LTIError: a key or value is wrong; the message has the key, the value and what is
            allowed, a line a problem.
    """
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        raise LTIError(describe_validation_error(error, where="", model=Config)) from None
    problems: list[str] = []

    def attempt(check: Any) -> None:
        try:
            check()
        except LTIError as error:
            problems.append(str(error))

    for section, registry in SECTIONS.items():
        for key, settings in getattr(config, section).items():
            where = f"{section}.{key}"
            attempt(lambda where=where, key=key: _check_identifier(where, key))
            attempt(lambda r=registry, s=settings, where=where: r.parse(s, where=where))
    problems += synthetic_problems(config)
    problems += tokenizer_problems(config)
    for key, shift in config.shifts.items():
        attempt(lambda key=key: _check_identifier(f"shifts.{key}", key))
        problems += shift_problems(config, f"shifts.{key}", shift)
    for key, experiment in config.experiments.items():
        attempt(lambda key=key: _check_identifier(f"experiments.{key}", key))
        if key in RULES:
            problems.append(f"experiments.{key}: got the name of a rule; allowed: any other name")
        problems += experiment_problems(config, f"experiments.{key}", experiment)
    for key, report in config.reports.items():
        attempt(lambda key=key: _check_identifier(f"reports.{key}", key))
        if key in RULES or key in config.experiments:
            problems.append(
                f"reports.{key}: got the name of a rule or of an experiment; allowed: any other"
            )
        problems += report_problems(config, f"reports.{key}", report)
    for key, attack in parsed_attacks(config):
        problems += attack_problems(config, f"attacks.{key}", attack)
    for name in config.metrics.require:
        problems += unknown("metrics.require", name, METRICS)
    if problems:
        raise LTIError("\n".join(problems))
    return config


def _check_identifier(where: str, key: str) -> None:
    if not IDENTIFIER.fullmatch(key):
        raise LTIError(
            f"{where}: got identifier {key!r}; expected lower-case letters, digits, single dots, "
            f"dashes and underscores, since it becomes part of file names. Rename it."
        )
