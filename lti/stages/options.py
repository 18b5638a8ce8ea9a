"""Options that several stages share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lti.errors import LTIError

__all__ = ["Fitted", "Gpus", "Log", "Output", "Threads", "parse_json", "parse_json_list"]

Output = Annotated[Path, typer.Option(help="File to write.")]
Fitted = Annotated[
    Path | None, typer.Option(help="What the projection is made of, where it is fitted.")
]
Log = Annotated[Path | None, typer.Option(help="File for the progress lines.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; torch's default.")]
Gpus = Annotated[int, typer.Option(min=0, help="GPUs granted; 0 computes on the processor.")]


def parse_json(text: str, *, option: str) -> dict[str, Any]:
    """Return the JSON object that an option holds.

    Raises:
        LTIError: it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LTIError(f"--{option}: got {text!r}; expected a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise LTIError(f"--{option}: got {text!r}; expected a JSON object")
    return value


def parse_json_list(text: str, *, option: str) -> list[Any]:
    """Return the JSON list that an option holds.

    Raises:
        LTIError: it is not a JSON list.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LTIError(f"--{option}: got {text!r}; expected a JSON list ({error})") from None
    if not isinstance(value, list):
        raise LTIError(f"--{option}: got {text!r}; expected a JSON list")
    return value
