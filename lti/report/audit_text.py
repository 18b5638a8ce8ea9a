"""How an audit's numbers and strings read on its page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lti.report.labels import attack_label, defense_label

if TYPE_CHECKING:
    from lti.auditing.result import DefenseFinding, Estimate

__all__ = [
    "answer",
    "attack_note",
    "clean",
    "defense_settings",
    "interval",
    "is_baseline",
    "metric_label",
    "number",
    "percent",
    "share",
    "short",
    "spelled_json",
    "tied",
]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Control characters; embeddings, overrides and isolates of direction, since a name must not turn
# the text around it; halves of surrogate pairs, which no file can hold.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MINUS = "\N{MINUS SIGN}"
_PERCENT = "\N{NARROW NO-BREAK SPACE}%"
_NOT_DEFINED = "n/a"


def clean(value: Any) -> Any:
    """Return a value whose text may stand in a page; templates call it for everything printed.

    What cannot be shown, or turns the direction of text, becomes a replacement character.
    Finished markup stays.
    """
    if isinstance(value, Markup):
        return value
    return _NOT_SHOWN.sub(_REPLACEMENT, str(value))


def number(value: float, decimals: int = 3) -> str:
    """Return ``"−1.50"``, ``"∞"``, or ``"n/a"`` for NaN."""
    if math.isnan(value):
        return _NOT_DEFINED
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    text = f"{value:.{decimals}f}"
    if not text.strip("-0."):  # no negative zero
        text = text.lstrip("-")
    return text.replace("-", _MINUS)


def share(value: float) -> str:
    """Return ``"41.3"`` for 0.413: a share in percent without its sign."""
    return number(100 * value, 1)


def percent(value: float) -> str:
    """Return ``"41.3 %"`` for 0.413."""
    return share(value) + (_PERCENT if math.isfinite(value) else "")


def short(value: float) -> str:
    """Return ``"8"``, ``"0.6"`` or ``"1e−05"``: three significant digits."""
    return number(value) if not math.isfinite(value) else f"{value:.3g}".replace("-", _MINUS)


def tied(text: str) -> str:
    """Return a sentence that breaks neither before a percent sign nor inside an interval."""
    text = re.sub(r"(?<=\d) %", _PERCENT, text)
    return re.sub(r"(?<=,) (?=[^\[\] ]{1,12}\])", "\N{NO-BREAK SPACE}", text)


def interval(estimate: Estimate, decimals: int | None = None) -> str:
    """Return ``"[40.6, 41.9]"``, or ``""`` where there is no interval.

    Args:
        estimate: a share, written in percent; or another number, where ``decimals`` says how.
        decimals: digits after the point of another number.
    """
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    ends = (estimate.low, estimate.high)
    written = [share(end) if decimals is None else number(end, decimals) for end in ends]
    return f"[{', '.join(written)}]"


def metric_label(name: str) -> tuple[str, int]:
    """Return a metric's heading and its digits after the point; an unknown one is its name."""
    from lti.metrics import METRICS

    if name not in METRICS:
        return name, 3
    metric = METRICS[name]
    return metric.label or name, metric.decimals


def attack_note(label: str) -> tuple[str, str]:
    """Return what an attack does, in one line, and its source; empty where it is not known.

    Args:
        label: the attack's label, perhaps with a variant in parentheses.
    """
    from lti.attacks import ATTACKS

    for name in ATTACKS:
        known = attack_label(name)
        if label == known or label.startswith(f"{known} ("):
            attack = ATTACKS[name]
            return (attack.__doc__ or "").strip().partition("\n")[0].replace(
                "``", ""
            ), attack.source
    return "", ""


def is_baseline(finding: DefenseFinding) -> bool:
    """Return whether this is no defense at all."""
    return finding.settings.get("use") == "none"


def answer(findings: Sequence[DefenseFinding]) -> tuple[str, str]:
    """Return the audit's answer, how many defenses leave victims exposed, and what else to know.

    No defense at all is not counted as one; the second text, which may be empty, tells of it.
    """
    judged = [finding for finding in findings if not is_baseline(finding)]
    without = "".join(
        "Even without a defense, victims were not recovered."
        if finding.level == "not recovered"
        else f"Without a defense, victims are {finding.level}."
        for finding in findings
        if is_baseline(finding)
    )
    if not judged:
        return without, ""
    levels = [finding.level for finding in judged]
    exposed, partly = levels.count("exposed"), levels.count("partly exposed")
    if len(judged) == 1:
        name = defense_label(judged[0].defense)
        if not exposed + partly:
            return f"With {name}, victims were not recovered.", without
        return f"{name} leaves victims {levels[0]}.", without
    rest = f"{partly} {_leave(partly)} them partly exposed." if partly else ""
    if exposed:
        first = f"{_count(exposed, len(judged))} defenses {_leave(exposed)} victims exposed."
    elif partly:
        first = f"{_count(partly, len(judged))} defenses {_leave(partly)} victims partly exposed."
        rest = "None leaves them exposed."
    else:
        first = f"None of {len(judged)} defenses leaves victims exposed."
        rest = "That is what these attacks could do, no proof that none can."
    return first, f"{rest} {without}".strip()


def _count(some: int, of: int) -> str:
    if some < of:
        return f"{some} of {of}"
    return "Both" if of == 2 else f"All {of}"


def _leave(number_of_defenses: int) -> str:
    return "leaves" if number_of_defenses == 1 else "leave"


def defense_settings(settings: Mapping[str, Any]) -> str:
    """Return ``"prune, rate 0.99"`` for ``{"use": "prune", "rate": 0.99}``."""
    rest = [f"{key} {_short(value)}" for key, value in settings.items() if key != "use"]
    return ", ".join([*([str(settings["use"])] if "use" in settings else []), *rest])


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)


def spelled_json(value: Any) -> str:
    """Return indented JSON in the order given; what JSON has no form for is its own text."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)
