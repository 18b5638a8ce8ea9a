"""Checks of a configuration beyond its schema: names of other entries, and what goes together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lti.attacks import ATTACKS, Attack
from lti.attacks.base import as_list
from lti.config_data_checks import include_problems, modality_of, unknown, used_shift_problems
from lti.errors import LTIError
from lti.fl_models import FL_MODELS
from lti.inverters import INVERTERS, Inverter
from lti.metrics import METRICS
from lti.metrics.base import DEFAULT_METRICS

if TYPE_CHECKING:
    from lti.config import Config, Experiment, Report

__all__ = [
    "attack_problems",
    "experiment_problems",
    "parsed_attacks",
    "report_problems",
]


REFERENCES = {
    "inverter": "inverters",
    "projection": "projections",
    "generator": "generators",
    "start": "attacks",
}
"""Settings of attacks that name other entries, and the section of these."""


def parsed_attacks(config: Config) -> Iterator[tuple[str, Attack]]:
    """Yield the attacks whose settings are right, by identifier."""
    for key, settings in config.attacks.items():
        try:
            yield key, ATTACKS.parse(settings)
        except LTIError:
            continue  # said of the attack itself


def attack_problems(config: Config, where: str, attack: Attack) -> Iterator[str]:
    """Check the names of other entries in an attack's settings and overrides."""
    for key in REFERENCES:
        if key in type(attack).model_fields:
            yield from unknown(f"{where}.{key}", getattr(attack, key), _named_by(config, key))
    for number, override in enumerate(attack.overrides):
        place = f"{where}.overrides[{number}]"
        for axis, known in (("fl_model", config.fl_models), ("defense", config.defenses)):
            for value in as_list(override["when"].get(axis, [])):
                yield from unknown(f"{place}.when.{axis}", value, known)
        for key in REFERENCES:
            if key in override:
                yield from unknown(f"{place}.{key}", override[key], _named_by(config, key))


def _named_by(config: Config, key: str) -> list[str]:
    """Return the entries that a setting of an attack may name."""
    if key == "start":  # those that invert
        return [name for name, attack in parsed_attacks(config) if "inverter" in attack.needs]
    return list(getattr(config, REFERENCES[key]))


def _variation_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Check that variations are along one axis, and of attacks that use an auxiliary set."""
    if not experiment.variations:
        return
    base = experiment.auxiliary
    sizes = {size for part in experiment.variations for size in part.size or [base.size]}
    betas = {beta for part in experiment.variations for beta in part.beta or [base.beta]}
    if len(sizes) > 1 and len(betas) > 1:
        yield f"{where}.variations: got several sizes and several betas; allowed: one of them"
    if base.shift is None and betas != {1.0}:
        yield f"{where}.variations: got beta {min(betas):g} without a shift; allowed: 1"
    for key, attack in parsed_attacks(config):
        if key in experiment.attacks and not attack.needs:
            yield f"{where}.attacks: got {key!r}, which uses no auxiliary set; allowed: others"


def _utility_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Clients train on the auxiliary set: there must be one, all like the victims."""
    if experiment.utility is None:
        return
    if experiment.variations:
        yield f"{where}: got a training beside `variations`; allowed: one of both"
    if experiment.auxiliary.shift is not None:
        yield (
            f"{where}: got a training on an auxiliary set with the shift "
            f"{experiment.auxiliary.shift!r}; allowed: one that is all like the victims"
        )
    modality, metric = modality_of(config, experiment), experiment.utility.metric
    if metric is not None and modality is not None:
        metrics = experiment.metrics or DEFAULT_METRICS[modality]
        yield from unknown(f"{where}.metric", metric, metrics)


def report_problems(config: Config, where: str, report: Report) -> Iterator[str]:
    """Check that a report's experiments are there, once each."""
    for number, name in enumerate(report.experiments):
        yield from unknown(f"{where}.experiments[{number}]", name, config.experiments)
        if name in report.experiments[:number]:
            yield f"{where}.experiments[{number}]: got {name!r} again; expected each once"


def _inverters(config: Config, experiment: Experiment) -> Iterator[tuple[str, Inverter, int]]:
    """Yield the inverters of an experiment's cells whose settings are right.

    Each with its identifier and the largest B that it is used for.
    """
    cells: list[dict[str, Any]] = [
        {"fl_model": fl_model, "batch_size": batch_size, "defense": defense}
        for fl_model in experiment.fl_models
        for batch_size in experiment.batch_sizes
        for defense in experiment.defenses
    ]
    named: dict[Any, int] = {}
    parsed = dict(parsed_attacks(config))
    for key in experiment.attacks:
        for cell in cells if key in parsed else []:
            attack = parsed[key].on(**cell)
            if (start := parsed.get(getattr(attack, "start", ""))) is not None:
                attack = start.on(**cell)
            name = getattr(attack, "inverter", None)
            named[name] = max(cell["batch_size"], named.get(name, 1))
    for name in sorted(set(named) & set(config.inverters)):
        try:
            yield name, INVERTERS.parse(config.inverters[name]), named[name]
        except LTIError:
            continue  # said of the inverter itself


def _attack_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Attacks must reconstruct what the data set holds."""
    modality = modality_of(config, experiment)
    parsed = dict(parsed_attacks(config))
    for value in experiment.attacks:
        made = parsed[value].modality if value in parsed else None
        if None not in (modality, made) and made != modality:
            yield (
                f"{where}: got {value!r}, which reconstructs samples of modality {made}, where "
                f"data set {experiment.dataset} is of modality {modality}; allowed: one for "
                f"{modality}"
            )


def _inverter_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Inverters must make what the data set holds, and find the mirrored images they ask for."""
    modality = modality_of(config, experiment)
    for name, inverter, batch_size in _inverters(config, experiment):
        if inverter.single and batch_size > 1:
            yield (
                f"{where}.attacks: got one with inverters.{name} where B = {batch_size}; allowed: "
                f"an inverter for client batches of several samples"
            )
        if modality not in (None, inverter.modality):
            yield (
                f"{where}.attacks: got one with inverters.{name}, which makes samples of modality "
                f"{inverter.modality}, where data set {experiment.dataset} is of modality "
                f"{modality}; allowed: an inverter for {modality}"
            )
        elif inverter.use_mirrored and modality == "image" and not experiment.auxiliary.mirrored:
            yield (
                f"{where}.auxiliary.mirrored: got False, where inverters.{name}.use_mirrored is "
                f"True; allowed: both True, or use_mirrored False"
            )


def _fl_model_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """FL models must be known, and take what the data set holds."""
    modality = modality_of(config, experiment)
    for value in experiment.fl_models:
        yield from unknown(where, value, config.fl_models)
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
    modality = modality_of(config, experiment)
    for value in experiment.metrics or ():
        if value not in METRICS or modality in (None, METRICS[value].modality):
            yield from unknown(where, value, METRICS)
            continue
        fitting = [name for name in METRICS if METRICS[name].modality == modality]
        yield (
            f"{where}: got {value!r}, a metric of modality {METRICS[value].modality}, where data "
            f"set {experiment.dataset} is of modality {modality}; allowed: {', '.join(fitting)}"
        )


def experiment_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Check the names of other entries in an experiment, and what must go together."""
    yield from unknown(f"{where}.dataset", experiment.dataset, config.datasets)
    yield from used_shift_problems(config, where, experiment)
    yield from _variation_problems(config, where, experiment)
    for axis in ("fl_models", "batch_sizes", "defenses", "attacks", "metrics"):
        values = getattr(experiment, axis) or []
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            yield f"{where}.{axis}: got {value!r} more than once; allowed: once"
    for axis in ("defenses", "attacks"):
        for value in getattr(experiment, axis):
            yield from unknown(f"{where}.{axis}", value, getattr(config, axis))
    yield from _fl_model_problems(config, f"{where}.fl_models", experiment)
    if experiment.page is not None:
        for axis in ("fl_models", "batch_sizes"):
            if len(getattr(experiment, axis)) > 1:
                yield f"{where}.page: got several {axis}, which a page would mix; allowed: one"
        if experiment.variations:
            yield f"{where}.page: got variations, which a page would mix; allowed: none"
    yield from _utility_problems(config, f"{where}.utility", experiment)
    yield from _metric_problems(config, f"{where}.metrics", experiment)
    yield from _attack_problems(config, f"{where}.attacks", experiment)
    yield from _inverter_problems(config, where, experiment)
    for batch_size in experiment.batch_sizes:
        if not 1 <= batch_size <= experiment.victims.size:
            yield (
                f"{where}.batch_sizes: got {batch_size}; allowed: 1 to the number of victims, "
                f"{experiment.victims.size}"
            )
    yield from include_problems(config, f"{where}.victims.include", experiment)
    if experiment.pictured > experiment.victims.size:
        yield (
            f"{where}.pictured: got {experiment.pictured}; allowed: 1 to the number of victims, "
            f"{experiment.victims.size}"
        )
