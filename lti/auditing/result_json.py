"""An audit's findings as a file: JSON, images as base64."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.auditing.result import (
    AttackFinding,
    AuditResult,
    DefenseFinding,
    Estimate,
    Example,
    Utility,
)
from lti.errors import LTIError
from lti.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_result", "without_examples", "write_result"]


def without_examples(result: AuditResult) -> AuditResult:
    """Return a result without victims and what came back of them, which are private data."""
    defenses = (replace(finding, examples=(), worst=()) for finding in result.defenses)
    return replace(result, defenses=tuple(defenses))


def write_result(path: Path | str, result: AuditResult) -> None:
    """Write what an audit found, whole or not at all."""
    frame = result.frame
    values = {key: value for key, value in vars(result).items() if key != "frame"}
    table = frame.to_csv(index=False, float_format="%.9g")
    write_json(path, {"frame": table, **_plain(values)})


def read_result(path: Path | str) -> AuditResult:
    """Read what :func:`write_result` wrote.

    Raises:
        LTIError: the file is missing or something else.
    """
    values = read_json(path)
    try:
        return AuditResult(
            **{
                **{key: value for key, value in values.items() if key != "frame"},
                "floor": _numbers(values["floor"]),
                "ceiling": _numbers(values["ceiling"]),
                "defenses": tuple(_defense(finding) for finding in values["defenses"]),
                "frame": _frame(values["frame"]),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LTIError(
            f"{path}: not an audit of this version ({error!r}). Run the same command again."
        ) from None


def _plain(value: Any) -> Any:
    """Return JSON's own types; numbers that JSON does not have as strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return {"png": base64.b64encode(value).decode("ascii")}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _frame(text: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values={"low": "", "high": ""})


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _estimate(values: dict[str, Any]) -> Estimate:
    mean, low, high = (float(values[key]) for key in ("mean", "low", "high"))
    return Estimate(mean, low, high, int(values["n"]))


def _sample(value: Any) -> bytes | tuple[str, ...]:
    return base64.b64decode(value["png"]) if isinstance(value, dict) else tuple(value)


def _example(values: dict[str, Any]) -> Example:
    return Example(
        int(values["victim"]),
        _sample(values["original"]),
        _sample(values["reconstruction"]),
        float(values["recovered"]),
    )


def _attack(values: dict[str, Any]) -> AttackFinding:
    return AttackFinding(
        attack=values["attack"],
        metrics={name: _estimate(value) for name, value in values["metrics"].items()},
        recovered=_estimate(values["recovered"]),
        worst=_estimate(values["worst"]),
        chance=float(values["chance"]),
        chance_worst=float(values["chance_worst"]),
    )


def _utility(values: dict[str, Any] | None) -> Utility | None:
    if values is None:
        return None
    estimate = {"accuracy": _estimate(values["accuracy"])}
    return Utility(**{**values, **estimate, "undefended": float(values["undefended"])})


def _defense(values: dict[str, Any]) -> DefenseFinding:
    return DefenseFinding(
        **{
            **values,
            "attacks": tuple(_attack(attack) for attack in values["attacks"]),
            "examples": tuple(_example(example) for example in values["examples"]),
            "worst": tuple(_example(example) for example in values["worst"]),
            "utility": _utility(values["utility"]),
        }
    )
