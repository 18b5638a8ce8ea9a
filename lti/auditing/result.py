"""What an audit found, as plain values: the report page, the table and callers read these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lti.data.samples import Modality

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "AttackFinding",
    "AuditResult",
    "DefenseFinding",
    "Estimate",
    "Example",
    "Level",
    "Utility",
]

Level = Literal["exposed", "partly exposed", "not recovered"]
"""How much comes back: see :mod:`lti.auditing.verdict`."""


@dataclass(frozen=True)
class Estimate:
    """A mean over victims with its 95 % bootstrap interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    n: int
    """Number of victims."""


@dataclass(frozen=True)
class AttackFinding:
    """One attack on one defense."""

    attack: str
    """Its label, ``"LTI"``."""
    metrics: Mapping[str, Estimate]
    """By name (``psnr``, ``ssim``, ``mse``, ``token_accuracy``, ...)."""
    recovered: Estimate
    """Share of a victim that comes back: 0 is the best constant guess, 1 the victim itself; below
    0 is worse than guessing."""
    worst: Estimate
    """``recovered`` of the 1 % of victims of whom the most comes back, at least one."""
    chance: float
    """``recovered`` where the reconstructions of victims of one label are exchanged: no gradient is
    needed for it."""
    chance_worst: float
    """The most that ``worst`` reaches in several such exchanges."""


@dataclass(frozen=True)
class Example:
    """One victim beside what came back of it."""

    victim: int
    """Its position among the victims, from 0."""
    original: bytes | tuple[str, ...]
    """A PNG, or tokens as readable strings (a leading space begins a word)."""
    reconstruction: bytes | tuple[str, ...]
    """Likewise, of the same size or length."""
    recovered: float
    """As of :class:`AttackFinding`."""


@dataclass(frozen=True)
class Utility:
    """What federated training under a defense reaches."""

    accuracy: Estimate
    """Test accuracy after the last round, in [0, 1], over n test samples."""
    undefended: float
    """The same without a defense."""
    rounds: int
    epsilon: float | None = None
    """Of (epsilon, delta)-differential privacy after all rounds; None where not defined."""
    delta: float | None = None


@dataclass(frozen=True)
class DefenseFinding:
    """All attacks on one defense."""

    defense: str
    """Its identifier in the audit's file."""
    settings: Mapping[str, Any]
    """``use`` and its other settings."""
    source: str
    """Where it is described; empty for a user's own."""
    level: Level
    verdict: str
    """One or two sentences with the numbers and intervals behind the level."""
    best: str
    """Label of the attack that recovers most."""
    attacks: tuple[AttackFinding, ...]
    examples: tuple[Example, ...]
    """By the best attack: the same victims, chosen by chance, for every defense."""
    worst: tuple[Example, ...]
    """By the best attack: those of whom the most comes back, worst first."""
    utility: Utility | None = None


@dataclass(frozen=True)
class AuditResult:
    """One audit: a model, data, and defenses under attack."""

    title: str
    modality: Modality
    metric: str
    """The metric that tables put first: ``psnr`` or ``token_accuracy``."""
    floor: Mapping[str, float]
    """Each metric's mean over victims for the best constant guess."""
    ceiling: Mapping[str, float]
    """Each metric's value of the victims themselves; infinite for PSNR."""
    defenses: tuple[DefenseFinding, ...]
    """In the order of the audit's file."""
    facts: Mapping[str, str]
    """What was audited, in words, for the report's head: model, data, victims, batch size, ..."""
    settings: Mapping[str, Any]
    """Every setting, as the audit ran."""
    digests: Mapping[str, str]
    """Of every artifact that numbers come from, by path."""
    versions: Mapping[str, str]
    """Of this project, Python and the libraries."""
    frame: pd.DataFrame
    """A row per defense, attack and metric: ``defense, attack, metric, mean, low, high, n``, and
    the columns ``accuracy, accuracy_low, accuracy_high`` where utility was measured."""
