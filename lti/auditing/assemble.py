"""From the files of an audit's stages to what it found."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import lti
from lti.auditing.examples import examples_of
from lti.auditing.measured import Measured, Run, measure_run
from lti.auditing.recovery import (
    constant_guess,
)
from lti.auditing.result import AuditResult, DefenseFinding, Utility
from lti.auditing.verdict import best_attack, level_of, sentence
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import read_arrays
from lti.metrics.base import METRICS
from lti.metrics.matching import match_victims
from lti.report.picture import choose_positions

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from tokenizers import Tokenizer

    from lti.data.samples import Modality, Samples
    from lti.metrics.tokens import Text

    Array = npt.NDArray[Any]

__all__ = ["FIRST", "Page", "Run", "assemble"]

FIRST: dict[Modality, str] = {"image": "psnr", "text": "token_accuracy"}
"""The metric that tables put first."""

LIBRARIES = ("torch", "numpy", "zarr", "torchvision", "transformers", "snakemake")


@dataclass(frozen=True)
class Page:
    """What the page is to show."""

    title: str
    shown: int
    """Victims whose reconstructions stand beside them; as many of the worst."""
    seed: int
    """Root seed of their choice."""
    settings: Mapping[str, Any]
    """Every setting, as the audit ran."""


def assemble(
    runs: Sequence[Run],
    *,
    victims: Mapping[str, Array],
    auxiliary: Samples,
    page: Page,
    facts: Mapping[str, str],
    digests: Mapping[str, str],
    text: Text | None = None,
    tokenizer: Tokenizer | None = None,
    utility: Mapping[str, Utility] | None = None,
) -> AuditResult:
    """Return what an audit found.

    Args:
        runs: those of one defense follow one another, in the order of the audit's file.
        victims: as :func:`lti.metrics.measure.measure` takes them.
        auxiliary: the attacker's data, of which the constant guess is made.
        page: what is shown.
        facts: what was audited, in words.
        digests: of the artifacts, by path.
        text: what is known of the tokens; for text alone.
        tokenizer: the data set's; for text alone.
        utility: of each defense, by identifier, where it was measured.

    Raises:
        LTIError: no runs, or files that do not belong together.
    """
    if not runs:
        raise LTIError("nothing to assemble: got no attacks. Run one.")
    modality: Modality = "image" if "image" in victims else "text"
    guess = constant_guess(auxiliary, special=() if text is None else text.special)
    known = (modality, victims, guess, text)
    measured: dict[str, list[Measured]] = {}
    for run in runs:
        one = measure_run(run, *known)
        measured.setdefault(one.defense, []).append(one)
    positions = choose_positions(
        min(len(one.share) for group in measured.values() for one in group),
        page.shown,
        seed=page.seed,
    )
    defenses = tuple(
        _finding(group, modality, victims, positions, tokenizer, (utility or {}).get(defense))
        for defense, group in measured.items()
    )
    names = [name for name in next(iter(measured.values()))[0].names]
    longest = max((one for group in measured.values() for one in group), key=lambda m: m.n)
    floor = {name: float(longest.floor[name].mean()) for name in names}
    return AuditResult(
        title=page.title,
        modality=modality,
        metric=FIRST[modality],
        floor=floor,
        ceiling={name: _ceiling(name) for name in names},
        defenses=defenses,
        facts=facts,
        settings=page.settings,
        digests=digests,
        versions=_versions(),
        frame=_frame(defenses),
    )


def _finding(
    group: Sequence[Measured],
    modality: Modality,
    victims: Mapping[str, Array],
    positions: Sequence[int],
    tokenizer: Tokenizer | None,
    utility: Utility | None,
) -> DefenseFinding:
    import numpy as np

    attacks = tuple(one.finding for one in group)
    best = next(one for one in group if one.finding is best_attack(attacks))
    truth, matched = match_victims(victims, read_arrays(best.reconstructions)[0])
    worst_first = np.argsort(-best.share, kind="stable")[: len(positions)]
    show = partial(examples_of, truth, matched, best.share, tokenizer=tokenizer)
    defense = DEFENSES.parse_stored(best.settings, where=str(best.reconstructions))
    return DefenseFinding(
        defense=best.defense,
        settings=best.settings,
        source=defense.source,
        level=level_of(attacks),
        verdict=sentence(attacks, modality=modality, metric=FIRST[modality]),
        best=best.finding.attack,
        attacks=attacks,
        examples=show(positions),
        worst=show([int(k) for k in worst_first]),
        utility=utility,
    )


def _ceiling(name: str) -> float:
    """Return a metric's value of the victim itself."""
    if METRICS[name].direction == "lower":
        return 0.0
    return float("inf") if name == "psnr" else 1.0


def _versions() -> dict[str, str]:
    found = {"lti": lti.__version__, "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _frame(defenses: Sequence[DefenseFinding]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for finding in defenses:
        utility = {}
        if finding.utility is not None:
            accuracy = finding.utility.accuracy
            utility = {
                "accuracy": accuracy.mean,
                "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
            }
        for attack in finding.attacks:
            estimates = {
                "recovered": attack.recovered,
                "recovered_worst": attack.worst,
                **attack.metrics,
            }
            for name, value in estimates.items():
                rows.append(
                    {
                        "defense": finding.defense,
                        "attack": attack.attack,
                        "metric": name,
                        **{key: getattr(value, key) for key in ("mean", "low", "high", "n")},
                        **utility,
                    }
                )
    return pd.DataFrame(rows)
