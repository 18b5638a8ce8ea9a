"""From numbers to a word and a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lti.metrics.base import METRICS

if TYPE_CHECKING:
    from lti.auditing.result import AttackFinding, Estimate, Level
    from lti.data.samples import Modality

__all__ = ["EXPOSED", "FEWEST", "LEVELS", "PARTLY", "best_attack", "judged", "level_of", "sentence"]

EXPOSED, PARTLY = 0.5, 0.1
"""Shares recovered from which victims are exposed, and partly exposed."""

WORST_EXPOSED, WORST_PARTLY = 0.9, 0.5
"""The same of the 1 % of victims of whom the most comes back."""

FEWEST = 20
"""Victims below which an attack sets no level, unless all attacked so few."""

LEVELS: dict[Level, str] = {
    "exposed": (
        f"at least {EXPOSED * 100:.0f} % of what a constant guess misses comes back, interval "
        f"included, or {WORST_EXPOSED * 100:.0f} % of it for the worst 1 % of victims"
    ),
    "partly exposed": (
        f"at least {PARTLY * 100:.0f} % of it comes back, interval included, or "
        f"{WORST_PARTLY * 100:.0f} % for the worst 1 % of victims"
    ),
    "not recovered": (
        "less than that, or no more than chance recovers, by these attacks, with these auxiliary "
        "data, trained this long; stronger ones may recover more"
    ),
}
"""What each level means."""


def judged(attacks: Sequence[AttackFinding]) -> Sequence[AttackFinding]:
    """Return the attacks on enough victims to say something of others, or all if there are none."""
    return [attack for attack in attacks if attack.recovered.n >= FEWEST] or attacks


def best_attack(attacks: Sequence[AttackFinding]) -> AttackFinding:
    """Return the attack that recovers most, of those on enough victims; of equal ones the first."""
    return max(judged(attacks), key=lambda attack: attack.recovered.mean)


def level_of(attacks: Sequence[AttackFinding]) -> Level:
    """Return the worst level that any of the attacks reaches, beyond what chance does."""
    if any(_reaches(attack, EXPOSED, WORST_EXPOSED) for attack in judged(attacks)):
        return "exposed"
    if any(_reaches(attack, PARTLY, WORST_PARTLY) for attack in judged(attacks)):
        return "partly exposed"
    return "not recovered"


def _reaches(attack: AttackFinding, share: float, worst: float) -> bool:
    low = attack.recovered.mean if math.isnan(attack.recovered.low) else attack.recovered.low
    by_mean = low >= share and low > attack.chance
    return by_mean or (attack.worst.mean >= worst and attack.worst.low > attack.chance_worst)


def sentence(attacks: Sequence[AttackFinding], *, modality: Modality, metric: str) -> str:
    """Return what the best attack recovers, in words.

    Args:
        attacks: on one defense.
        modality: what the victims are.
        metric: the one to state.
    """
    best = best_attack(attacks)
    what = "images" if modality == "image" else "texts"
    worst = max(judged(attacks), key=lambda attack: attack.worst.mean)
    by = "" if worst is best else f", by {worst.attack}"
    unit = METRICS[metric].unit
    value = _number(best.metrics[metric], METRICS[metric].decimals)
    return (
        f"{best.attack} recovers {_percent(best.recovered)} of what the best constant guess misses "
        f"of {best.recovered.n} {what} ({METRICS[metric].label.split(' (')[0]} {value}"
        f"{' ' + unit if unit else ''}); of the worst 1 %, {worst.worst.mean * 100:.0f} %{by}."
    )


def _percent(value: Estimate) -> str:
    mean, low, high = (f"{100 * share:.0f}" for share in (value.mean, value.low, value.high))
    return f"{mean} %" if math.isnan(value.low) else f"{mean} % [{low}, {high}]"


def _number(value: Estimate, decimals: int) -> str:
    text = f"{value.mean:.{decimals}f}"
    if math.isnan(value.low):
        return text
    return f"{text} [{value.low:.{decimals}f}, {value.high:.{decimals}f}]"
