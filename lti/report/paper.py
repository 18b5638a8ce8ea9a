"""The numbers that the paper reports, for comparison beside ours."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["PAPER", "paper_defense", "paper_value"]

PAPER = "Wu et al., Learning To Invert (UAI 2023), supplementary Tables 1-3"

# The paper feeds LPIPS unnormalised images. Its numbers compare with `lpips_paper`, which
# does the same, and not with `lpips`, which does it right.
_PAPER_NAME = {"lpips_paper": "lpips", "lpips": None}

# Settings of the defenses in the vision experiments (section 5).
_DEFENSES: dict[str, dict[str, float]] = {
    "none": {},
    "sign": {},
    "prune": {"rate": 0.99},
    "gauss": {"sigma": 0.1},
}

# Of the attacker: all training images.
_AUXILIARY_SIZE = {"cifar10": 50_000}

_Key = tuple[str, str, int, str, str, str]


@cache
def _values() -> dict[_Key, float]:
    text = files("lti.report").joinpath("paper_values.csv").read_text(encoding="utf-8")
    return {
        (
            row["dataset"],
            row["fl_model"],
            int(row["batch_size"]),
            row["defense"],
            row["attack"],
            row["metric"],
        ): float(row["value"])
        for row in csv.DictReader(text.splitlines())
    }


def paper_value(
    *,
    dataset: str,
    fl_model: str,
    batch_size: int,
    defense: str,
    attack: str,
    metric: str,
    aux_size: int | None = None,
) -> float | None:
    """Return what the paper reports for a cell, or None where it reports nothing.

    The defenses are the paper's own settings: pruning rate 0.99, Gaussian sigma 0.1. The
    caller decides whether its setting is the same. An attack with an auxiliary set of another
    size than the paper's has no value; ``aux_size`` is None for one without any.

    Source: supplementary Tables 1-3, which give PSNR (dB), LPIPS and SSIM on CIFAR10.
    """
    name = _PAPER_NAME.get(metric, metric)
    if name is None or aux_size not in (None, _AUXILIARY_SIZE.get(dataset)):
        return None
    return _values().get((dataset, fl_model, int(batch_size), defense, attack, name))


def paper_defense(settings: Mapping[str, Any], *, batch_size: int | None = None) -> str:
    """Return the paper's name of a defense with these settings, or "" where it has none.

    The paper defends each sample's gradient (``defense_at: sample``) and averages the batch.

    Args:
        settings: of the defense, the name under ``use``; without ``defense_at``: per sample.
        batch_size: B. At 1 a batch is a sample, so ``defense_at`` makes no difference; None
            stands for an unknown one.

    Source: section 5 and supplement A.
    """
    name = str(settings.get("use", ""))
    rest = {key: value for key, value in settings.items() if key not in ("use", "defense_at")}
    per_sample = batch_size == 1 or settings.get("defense_at", "sample") == "sample"
    return name if per_sample and _DEFENSES.get(name) == rest else ""
