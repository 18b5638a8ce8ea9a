"""From an audit's file to a configuration of the workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from lti.auditing.spec import parse_audit
from lti.data.dataset import DATASETS
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import FL_MODELS
from lti.inverters import INVERTERS

if TYPE_CHECKING:
    from lti.auditing.spec import AuditSpec
    from lti.data.dataset import Dataset
    from lti.data.samples import Modality
    from lti.data.text import TextDataset

__all__ = ["ATTACKS_OF", "EXPERIMENT", "expand_audit"]

EXPERIMENT = "audit"
"""The experiment that an audit becomes."""

ATTACKS_OF: dict[Modality, tuple[str, ...]] = {
    "image": ("lti", "lti-map", "ig", "nearest"),
    "text": ("lti", "tag", "nearest"),
}
"""Attacks of an audit, the strongest first."""

MACHINE = ("results", "store")
"""What an audit's file may hold beside the audit."""

DATA, AUXILIARY, MODEL, SEEN = "data", "auxiliary-data", "model", "seen"


def expand_audit(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that runs an audit.

    Args:
        values: a configuration with the key ``audit``. Its other sections are left aside, but for
            the folder of results and the store's layout.

    Raises:
        LTIError: a key or value of the audit is wrong.
    """
    spec = parse_audit(values["audit"])
    data = DATASETS.parse(spec.data, where="audit.data")
    FL_MODELS.parse(spec.model, where="audit.model")
    for name, settings in spec.defenses.items():
        DEFENSES.parse(settings, where=f"audit.defenses.{name}")
    modality = data.modality
    attacks = [*(spec.attacks or ATTACKS_OF[modality])]
    own = spec.attacks if isinstance(spec.attacks, dict) else {}
    unknown = [name for name in attacks if name not in ATTACKS_OF[modality]]
    if unknown:
        raise LTIError(
            f"audit.attacks: got {unknown[0]!r}; allowed for {modality}s: "
            f"{', '.join(ATTACKS_OF[modality])}"
        )
    if spec.batch_size > spec.victims.size:
        raise LTIError(
            f"audit.batch_size: got {spec.batch_size} for {spec.victims.size} victims; expected no "
            f"more than these. Lower it, or raise `victims.size`."
        )
    if "lti-map" in attacks and "lti" not in attacks:
        raise LTIError("audit.attacks: got 'lti-map' without 'lti', which it refines. Add it.")
    defenses = dict(spec.defenses)
    if not any(settings.get("use") == "none" for settings in defenses.values()):
        if "none" in defenses:
            raise LTIError(
                "audit.defenses.none: got other settings; expected `{use: none}`, which all others "
                "are compared with. Rename it."
            )
        defenses = {"none": {"use": "none"}, **defenses}
    attacking = _image_attacks(spec) if modality == "image" else _text_attacks(spec)
    config: dict[str, Any] = {key: values[key] for key in MACHINE if key in values}
    experiment: dict[str, Any] = {
        "title": spec.title,
        "dataset": DATA,
        "fl_models": [MODEL],
        "batch_sizes": [spec.batch_size],
        "defenses": [*defenses],
        "attacks": attacks,
        "auxiliary": {
            "size": spec.auxiliary.size,
            "seed": spec.auxiliary.seed,
            "mirrored": modality == "image" and _mirrors(spec),
        },
        "victims": spec.victims.model_dump(),
        "page": spec.page.model_dump(),
        "pictured": min(spec.page.shown, spec.victims.size),
    }
    if spec.utility is not None:
        experiment["utility"] = spec.utility.model_dump()
    config |= {
        "datasets": {DATA: spec.data},
        "fl_models": {MODEL: spec.model},
        "defenses": defenses,
        "projections": {
            "identity": {"use": "identity"},
            SEEN: spec.projection or _seen(data),
        },
        "inverters": {"audit": spec.inverter or _inverter(spec, modality)},
        "attacks": {
            name: {**attacking[name], **own.get(name, {})}
            for name in ATTACKS_OF[modality]
            if name in attacks
        },
        "experiments": {EXPERIMENT: experiment},
    }
    if spec.auxiliary.data is not None:
        config["datasets"][AUXILIARY] = spec.auxiliary.data
        config["shifts"] = {"separate": {"shifted": [{"dataset": AUXILIARY}]}}
        experiment["auxiliary"] |= {"shift": "separate", "beta": 0.0}
    return config


def _mirrors(spec: AuditSpec) -> bool:
    """Return whether an inverter of the user's own trains on mirrored images."""
    if spec.inverter is None:
        return False
    inverter = INVERTERS.parse(spec.inverter, where="audit.inverter")
    return bool(getattr(inverter, "use_mirrored", False))


def _seen(data: Dataset) -> dict[str, Any]:
    if data.modality == "image":
        return {"use": "leading", "coordinates": 16384}
    # A direction for each position, and some for what tokens differ in.
    directions = cast("TextDataset", data).length + 8
    return {"use": "layer-inputs", "directions": directions, "token_coordinates": 2**18}


def _inverter(spec: AuditSpec, modality: Modality) -> dict[str, Any]:
    if modality == "text":
        epochs = {"quick": 2, "standard": 10, "thorough": 40}[spec.effort]
        return {"use": "tuned-text", "features": "others", "certainty": 1, "epochs": epochs}
    common = {"use": "tuned", "use_mirrored": False, "dropout": 0.1, "whitening": 0}
    if spec.batch_size == 1:
        common["divide_by"] = "parameter"
    return {
        "quick": {**common, "steps": 300, "patience": 100, "hidden": 512, "components": 256},
        "standard": {**common, "steps": 1000, "patience": 250, "hidden": 768},
        "thorough": {**common, "steps": 20000, "patience": 4000, "hidden": 2048},
    }[spec.effort]


def _image_attacks(spec: AuditSpec) -> dict[str, Any]:
    refined, steps, matched = {
        "quick": (8, 4, (4, 100)),
        "standard": (32, 8, (8, 400)),
        "thorough": (256, 15, (64, 4000)),
    }[spec.effort]
    batches = spec.victims.size // spec.batch_size
    return {
        "lti": {"use": "lti", "inverter": "audit", "projection": SEEN},
        "lti-map": {
            "use": "lti-map",
            "start": "lti",
            "priors": ["errors"],
            "victims": min(refined, batches),
            "tuning": max(2, min(16, refined // 2)),
            "iterations": steps,
        },
        "ig": {"use": "ig", "victims": min(matched[0], batches), "iterations": matched[1]},
        "nearest": {"use": "nearest", "projection": SEEN},
    }


def _text_attacks(spec: AuditSpec) -> dict[str, Any]:
    matched, steps = {"quick": (2, 20), "standard": (16, 200), "thorough": (100, 1000)}[spec.effort]
    batches = spec.victims.size // spec.batch_size
    return {
        "lti": {"use": "lti", "inverter": "audit", "projection": SEEN},
        "tag": {"use": "tag", "victims": min(matched, batches), "iterations": steps},
        "nearest": {"use": "nearest", "projection": SEEN},
    }
