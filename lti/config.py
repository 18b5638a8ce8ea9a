"""The configuration: one typed schema, checked before the first job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lti.attacks import ATTACKS, Attack
from lti.attacks.base import as_list
from lti.data.dataset import DATASETS
from lti.data.samples import Modality
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import FL_MODELS
from lti.generators import GENERATORS
from lti.gradients.store_format import StoreSettings
from lti.inverters import INVERTERS
from lti.metrics import METRICS
from lti.projections import PROJECTIONS
from lti.registry import Registry, describe_validation_error

__all__ = ["Auxiliary", "Config", "Experiment", "Victims", "parse_config"]

IDENTIFIER = re.compile(r"[a-z0-9]+([-._][a-z0-9]+)*")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Auxiliary(_Section):
    """The attacker's auxiliary set."""

    size: int = Field(ge=16, description="Samples.")
    seed: int = Field(0, description="Root seed of the selection.")
    mirrored: bool = Field(
        True,
        description="Also store the gradients of the mirrored images, for augmentation. Not of "
        "text.",
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


class Experiment(_Section):
    """A grid of cells, reported together."""

    title: str = Field(description="Heading of the table.")
    dataset: str = Field(description="A key of `datasets`.")
    fl_models: list[str] = Field(min_length=1, description="Keys of `fl_models`.")
    batch_sizes: list[int] = Field([1], min_length=1, description="Samples per client batch.")
    defenses: list[str] = Field(min_length=1, description="Keys of `defenses`.")
    attacks: list[str] = Field(min_length=1, description="Keys of `attacks`.")
    auxiliary: Auxiliary
    victims: Victims
    metrics: list[str] | None = Field(
        None,
        min_length=1,
        description="Metrics, of the data set's modality; null: the usual ones, see "
        "[metrics](metrics.md).",
    )
    pictured: int = Field(12, ge=1, description="Victims shown in the picture or as sentences.")
    picture_seed: int = Field(0, description="Root seed of the choice of the pictured victims.")


class MetricRules(_Section):
    """What is asked of the metrics, whatever the experiment."""

    require: list[str] = Field(
        default=[],
        description="Metrics without which nothing is computed (those that need a download).",
    )


class Config(_Section):
    """The whole configuration."""

    results: str = Field("results", description="Folder for everything that is computed.")
    store: StoreSettings = Field(
        default_factory=StoreSettings, description="The gradient store's layout."
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
    experiments: dict[str, Experiment] = Field(description="Experiments by identifier.")


RULES = {
    *("all", "default", "draw_fl_model", "compute_gradients", "observe", "train_inverter"),
    *("train_generator", "fetch_backbone", "tabulate_metric"),
    *("prepare_tokenizer", "prepare_dataset", "select_auxiliary", "select_victims", "run_attack"),
    *("table1", "table2", "table3", "table_mse", "figure3", "figure4", "figure5", "figure6"),
    *("measure_attack", "summarise_experiment", "draw_reconstructions", "draw_texts"),
    *("find_near_copies", "table_text"),
}
"""Names that an experiment, which is a rule too, cannot have."""

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
    for key, experiment in config.experiments.items():
        attempt(lambda key=key: _check_identifier(f"experiments.{key}", key))
        if key in RULES:
            problems.append(f"experiments.{key}: got the name of a rule; allowed: any other name")
        problems += _experiment_problems(config, f"experiments.{key}", experiment)
    for key, attack in _parsed_attacks(config):
        problems += _attack_problems(config, f"attacks.{key}", attack)
    for name in config.metrics.require:
        problems += _unknown("metrics.require", name, METRICS)
    if problems:
        raise LTIError("\n".join(problems))
    return config


def _check_identifier(where: str, key: str) -> None:
    if not IDENTIFIER.fullmatch(key):
        raise LTIError(
            f"{where}: got identifier {key!r}; expected lower-case letters, digits, single dots, "
            f"dashes and underscores, since it becomes part of file names. Rename it."
        )


def _unknown(where: str, value: Any, known: Iterable[str]) -> Iterator[str]:
    names = sorted(known)
    if value not in names:
        yield f"{where}: got {value!r}; allowed: {', '.join(names)}"


REFERENCES = {"inverter": "inverters", "projection": "projections", "generator": "generators"}
"""Settings of attacks that name other entries, and the section of these."""


def _parsed_attacks(config: Config) -> Iterator[tuple[str, Attack]]:
    for key, settings in config.attacks.items():
        try:
            yield key, ATTACKS.parse(settings)
        except LTIError:
            continue  # said of the attack itself


def _attack_problems(config: Config, where: str, attack: Attack) -> Iterator[str]:
    """Check the names of other entries in an attack's settings and overrides."""
    for key, section in REFERENCES.items():
        if key in type(attack).model_fields:
            yield from _unknown(f"{where}.{key}", getattr(attack, key), getattr(config, section))
    for number, override in enumerate(attack.overrides):
        place = f"{where}.overrides[{number}]"
        for axis, known in (("fl_model", config.fl_models), ("defense", config.defenses)):
            for value in as_list(override["when"].get(axis, [])):
                yield from _unknown(f"{place}.when.{axis}", value, known)
        for key, section in REFERENCES.items():
            if key in override:
                yield from _unknown(f"{place}.{key}", override[key], getattr(config, section))


def _modality(config: Config, experiment: Experiment) -> Modality | None:
    """Return the modality of an experiment's data set; None if that is wrong itself."""
    try:
        return DATASETS.parse(config.datasets.get(experiment.dataset, {})).modality
    except LTIError:
        return None


def _mirror_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """An inverter that asks for mirrored images needs their gradients; text has none."""
    if _modality(config, experiment) == "text":
        return
    cells: list[dict[str, Any]] = [
        {"fl_model": fl_model, "batch_size": batch_size, "defense": defense}
        for fl_model in experiment.fl_models
        for batch_size in experiment.batch_sizes
        for defense in experiment.defenses
    ]
    named: set[Any] = {
        getattr(attack.on(**cell), "inverter", None)
        for key, attack in _parsed_attacks(config)
        if key in experiment.attacks
        for cell in cells
    }
    for name in sorted(named & set(config.inverters)):
        try:
            inverter = INVERTERS.parse(config.inverters[name])
        except LTIError:
            continue  # said of the inverter itself
        if inverter.use_mirrored and not experiment.auxiliary.mirrored:
            yield (
                f"{where}.auxiliary.mirrored: got False, where inverters.{name}.use_mirrored is "
                f"True; allowed: both True, or use_mirrored False"
            )


def _fl_model_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """FL models must be known, and take what the data set holds."""
    modality = _modality(config, experiment)
    for value in experiment.fl_models:
        yield from _unknown(where, value, config.fl_models)
        try:
            taken = FL_MODELS.parse(config.fl_models.get(value, {})).modality
        except LTIError:
            continue  # said of the FL model itself
        if modality not in (None, taken):
            yield (
                f"{where}: got {value!r}, which takes samples of modality {taken}, where data set "
                f"{experiment.dataset} is of modality {modality}; allowed: one for {modality}"
            )


def _metric_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Metrics must be known, and compare what the data set holds."""
    modality = _modality(config, experiment)
    for value in experiment.metrics or ():
        if value not in METRICS or modality in (None, METRICS[value].modality):
            yield from _unknown(where, value, METRICS)
            continue
        fitting = [name for name in METRICS if METRICS[name].modality == modality]
        yield (
            f"{where}: got {value!r}, a metric of modality {METRICS[value].modality}, where data "
            f"set {experiment.dataset} is of modality {modality}; allowed: {', '.join(fitting)}"
        )


def _include_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    named, size = experiment.victims.include, experiment.victims.size
    if len(named) > size:
        yield f"{where}: got {len(named)} samples; allowed: up to the number of victims, {size}"
    for value in dict.fromkeys(value for value in named if named.count(value) > 1):
        yield f"{where}: got {value!r} more than once; allowed: once"
    for value in named:
        if isinstance(value, int) and value < 0:
            yield f"{where}: got {value}; allowed: positions of 0 or more"
        elif isinstance(value, str) and _modality(config, experiment) == "image":
            yield f"{where}: got {value!r} of what is no text; allowed: positions"


def _experiment_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    yield from _unknown(f"{where}.dataset", experiment.dataset, config.datasets)
    for axis in ("fl_models", "batch_sizes", "defenses", "attacks", "metrics"):
        values = getattr(experiment, axis) or []
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            yield f"{where}.{axis}: got {value!r} more than once; allowed: once"
    for axis in ("defenses", "attacks"):
        for value in getattr(experiment, axis):
            yield from _unknown(f"{where}.{axis}", value, getattr(config, axis))
    yield from _fl_model_problems(config, f"{where}.fl_models", experiment)
    yield from _metric_problems(config, f"{where}.metrics", experiment)
    yield from _mirror_problems(config, where, experiment)
    for batch_size in experiment.batch_sizes:
        if not 1 <= batch_size <= experiment.victims.size:
            yield (
                f"{where}.batch_sizes: got {batch_size}; allowed: 1 to the number of victims, "
                f"{experiment.victims.size}"
            )
    yield from _include_problems(config, f"{where}.victims.include", experiment)
    if experiment.pictured > experiment.victims.size:
        yield (
            f"{where}.pictured: got {experiment.pictured}; allowed: 1 to the number of victims, "
            f"{experiment.victims.size}"
        )
