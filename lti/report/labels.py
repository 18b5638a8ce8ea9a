"""How names read in tables and figures; a name without an entry stands for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "attack_label",
    "attack_labels",
    "dataset_label",
    "defense_label",
    "further_columns",
    "setting_label",
    "subset_label",
]

_DATASETS = {"cifar10": "CIFAR10", "cola": "CoLA", "wikitext": "WikiText"}
_MODELS = {
    "lenet": "LeNet",
    "resnet20": "ResNet20",
    "transformer3": "3-layer transformer",
    "bert": "BERT",
    "bert-small": "small BERT",
}
_DEFENSES = {"none": "no defense"}
_ATTACKS = {
    "lti": "LTI",
    "lti-map": "LTI-MAP",
    "ig": "IG",
    "gi-gip": "GI-GIP",
    "tag": "TAG",
    "nearest": "nearest",
}
_SUBSETS = {"all": "all victims", "novel": "victims without a near copy"}
_USUAL = {
    *("dataset", "fl_model", "batch_size", "defense", "attack", "victims"),
    *("metric", "mean", "low", "high", "n", "paper"),
}


def dataset_label(name: str) -> str:
    """Return ``"CIFAR10"`` for ``"cifar10"``."""
    return _DATASETS.get(name, name)


def defense_label(name: str) -> str:
    """Return ``"no defense"`` for ``"none"``."""
    return _DEFENSES.get(name, name)


def attack_label(name: str, further: Mapping[str, Any] | None = None) -> str:
    """Return ``"LTI"`` for ``"lti"``, with what tells it apart from its like in parentheses.

    Args:
        name: the attack.
        further: values of the summary's further columns; empty ones and a variant named
            like the attack are left out.
    """
    parts = []
    for key, value in (further or {}).items():
        if value == "" or value != value or (key == "variant" and value == name):
            continue
        parts.append(str(value) if key == "variant" else f"{key} {value}")
    label = _ATTACKS.get(name, name)
    return f"{label} ({', '.join(parts)})" if parts else label


def attack_labels(summary: pd.DataFrame) -> list[str]:
    """Return the :func:`attack_label` of every row of a summary."""
    further = further_columns(summary.columns)
    return [
        attack_label(row["attack"], {key: row[key] for key in further})
        for _, row in summary.iterrows()
    ]


def setting_label(dataset: str, fl_model: str, batch_size: int | None = None) -> str:
    """Return ``"CIFAR10, LeNet, B = 1"``, without the end where no batch size is given."""
    label = f"{dataset_label(dataset)}, {_MODELS.get(fl_model, fl_model)}"
    return label if batch_size is None else f"{label}, B = {batch_size}"


def subset_label(victims: str) -> str:
    """Return ``"victims without a near copy"`` for ``"novel"``."""
    return _SUBSETS.get(victims, victims)


def further_columns(columns: Any) -> list[str]:
    """Return the columns of a summary beyond the usual ones, such as ``variant``."""
    return [column for column in columns if column not in _USUAL]
