"""An audit as one web page that stands alone: nothing is loaded, nothing runs."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lti.auditing.verdict import FEWEST, LEVELS, judged
from lti.errors import LTIError
from lti.files import atomic_path
from lti.report import audit_text
from lti.report.audit_examples import BLUR_SIDE, Examples, example_view
from lti.report.audit_plot import Plot, Point, frontier, lay_out
from lti.report.labels import defense_label

if TYPE_CHECKING:
    from jinja2 import Template

    from lti.auditing.result import AttackFinding, AuditResult, DefenseFinding, Estimate

__all__ = ["audit_page", "write_audit_page"]

_WIDE, _NARROW = (760, 440), (328, 400)  # the plot's sizes on a desktop and on a phone, in pixels
# Of a scale: shares below this stand at its left end, marked as an arrow.
_LOWEST = -0.1
_SHOWN_FACTS = 5


def write_audit_page(path: Path | str, result: AuditResult, *, examples: Examples = "show") -> None:
    """Write :func:`audit_page` to a file, atomically; equal audits give equal bytes."""
    text = audit_page(result, examples=examples)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def audit_page(result: AuditResult, *, examples: Examples = "show") -> str:
    """Return the page, HTML 5 with its style, plot and images inside.

    Its content security policy forbids scripts and everything from elsewhere. It reads on a
    phone, in the dark and in print.

    Args:
        result: the audit; of its images and texts the page holds all that are given.
        examples: ``"show"`` victims and what came back of them; ``"blur"`` images to
            :data:`lti.report.audit_examples.BLUR_SIDE` pixels a side, and texts to which tokens
            came back; or ``"omit"`` both.

    Raises:
        LTIError: no defense, another value of ``examples``, or an example that is not as
            :class:`lti.auditing.result.Example` says.
    """
    if examples not in get_args(Examples):
        raise LTIError(
            f"examples is {examples!r}; expected one of {', '.join(get_args(Examples))}. Use one."
        )
    if not result.defenses:
        raise LTIError("an audit without a defense; expected at least one. Add one to its file.")
    style = files("lti.report").joinpath("audit_page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    judged = [d for d in result.defenses if not audit_text.is_baseline(d)]
    metrics = list(dict.fromkeys([result.metric, *_metrics(result)]))
    return _template().render(
        result=result,
        # The policy allows exactly this style.
        style=style,
        style_digest=f"sha256-{digest}",
        examples=examples,
        example_view=lambda example: example_view(example, blur=examples == "blur"),
        blur_side=BLUR_SIDE,
        answer=audit_text.answer(result.defenses),
        shown_levels=[n for n in LEVELS if any(d.level == n for d in result.defenses)],
        worst_level=min((d.level for d in judged or result.defenses), key=list(LEVELS).index),
        levels=LEVELS,
        shown_facts=list(result.facts.items())[:_SHOWN_FACTS],
        metrics=[(name, *audit_text.metric_label(name)) for name in metrics],
        attacks=list(dict.fromkeys(a.attack for d in result.defenses for a in d.attacks)),
        few=_few(result),
        fewest=FEWEST,
        **_utility(result),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lti.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=audit_text.clean,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        attack_note=audit_text.attack_note,
        by_share=_by_share,
        defense_label=defense_label,
        defense_settings=audit_text.defense_settings,
        has_interval=lambda e: math.isfinite(e.low) and math.isfinite(e.high),
        interval=audit_text.interval,
        is_baseline=audit_text.is_baseline,
        number=audit_text.number,
        percent=audit_text.percent,
        position=_position,
        share=audit_text.share,
        short=audit_text.short,
        spelled_json=audit_text.spelled_json,
        tied=audit_text.tied,
        victims=_victims,
    )
    environment.tests["learning_lost"] = lambda u: u.accuracy.mean < u.undefended / 2
    # Named here, so that both are known as files of this module.
    environment.get_template("audit_page_parts.html.j2")
    return environment.get_template("audit_page.html.j2")


def _few(result: AuditResult) -> list[tuple[str, int]]:
    """Return the attacks that no defense is judged by, and how many victims each attacked."""
    found: dict[str, int] = {}
    for finding in result.defenses:
        counted = judged(finding.attacks)
        found |= {a.attack: a.recovered.n for a in finding.attacks if a not in counted}
    return list(found.items())


def _metrics(result: AuditResult) -> Sequence[str]:
    return [name for d in result.defenses for attack in d.attacks for name in attack.metrics]


def _by_share(attacks: Sequence[AttackFinding]) -> list[AttackFinding]:
    """Sort by what comes back, most first; those without a value last."""

    def key(finding: AttackFinding) -> float:
        mean = finding.recovered.mean
        return math.inf if math.isnan(mean) else -mean

    return sorted(attacks, key=key)


def _position(value: float) -> str:
    """Return where a share lies on a scale, in percent of its width; ends at both edges."""
    kept = min(max(value, _LOWEST), 1.0)
    return f"{3 + 94 * (kept - _LOWEST) / (1.0 - _LOWEST):.2f}%"


def _victims(estimates: Sequence[Estimate]) -> str:
    """Return ``"200"`` or ``"100 to 200"``: over how many victims means are."""
    numbers = sorted({estimate.n for estimate in estimates})
    if not numbers:
        return "0"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _best(finding: DefenseFinding) -> AttackFinding:
    for attack in finding.attacks:
        if attack.attack == finding.best:
            return attack
    raise LTIError(
        f"defense {finding.defense!r}: the best attack is {finding.best!r}; expected one of "
        f"{', '.join(attack.attack for attack in finding.attacks)}. Fix the audit."
    )


def _worst(finding: DefenseFinding) -> AttackFinding:
    """Return the attack that recovers most of the worst 1 % of victims, on which levels rest."""

    def key(attack: AttackFinding) -> float:
        return -math.inf if math.isnan(attack.worst.mean) else attack.worst.mean

    return max(judged(finding.attacks), key=key)


def _utility(result: AuditResult) -> dict[str, Any]:
    """Return what the template needs of privacy against utility."""
    points: dict[int, Point] = {}
    for key, finding in enumerate(result.defenses):
        share = _best(finding).recovered
        if finding.utility is None:
            continue
        accuracy = finding.utility.accuracy
        if math.isfinite(share.mean) and math.isfinite(accuracy.mean):
            values = [(e.mean, e.low, e.high) for e in (share, accuracy)]
            points[key] = Point(defense_label(finding.defense), finding.level, *values)
    undefended = {d.utility.undefended for d in result.defenses if d.utility is not None}
    line = undefended.pop() if len(undefended) == 1 else None
    if line is not None and not math.isfinite(line):
        line = None
    plots: list[tuple[str, Plot]] = []
    if points:
        for name, (width, height) in (("wide", _WIDE), ("narrow", _NARROW)):
            plots.append(
                (name, lay_out(list(points.values()), width=width, height=height, undefended=line))
            )
    best = {id(point) for point in frontier(list(points.values()))}
    return {
        "plots": plots,
        "undefended": line,
        "measured": [
            (finding, id(points.get(key)) in best)
            for key, finding in enumerate(result.defenses)
            if finding.utility is not None
        ],
        "frontier_size": len(best),
        "best_of": _best,
        "worst_of": _worst,
    }
