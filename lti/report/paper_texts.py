"""The sentences that the paper shows, with its reconstructions, for comparison beside ours."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["PAPER", "PaperText", "paper_line", "paper_texts"]

PAPER = "Wu et al., Learning To Invert (UAI 2023)"

# Settings of the defenses in the language experiments (section 5).
_DEFENSES: dict[str, dict[str, dict[str, float]]] = {
    dataset: {"none": {}, "sign": {}, "prune": {"rate": 0.99}, "gauss": {"sigma": sigma}}
    for dataset, sigma in (("cola", 0.001), ("wikitext", 0.01))
}


@dataclass(frozen=True)
class PaperText:
    """One sentence of the paper, as it is printed there.

    Attributes:
        figure: where it stands, for example ``"Supplement Figure 5"``.
        dataset: name of its data set.
        fl_model: name of the FL model that was attacked.
        example: its number in the figure, from 1.
        row: its row in the validation split; None where the paper's split has no rows.
        truth: the sentence, special tokens included.
        reconstructions: by the names of defense and attack.
    """

    figure: str
    dataset: str
    fl_model: str
    example: int
    row: int | None
    truth: str
    reconstructions: Mapping[tuple[str, str], str]


@cache
def paper_texts(dataset: str) -> tuple[PaperText, ...]:
    """Return the paper's sentences of a data set, in its order; none of most data sets.

    Source: supplementary Figures 5 (CoLA, BERT) and 6 (WikiText, 3-layer transformer).
    """
    text = files("lti.report").joinpath("paper_texts.csv").read_text(encoding="utf-8")
    found: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(text.splitlines()):
        if row["dataset"] == dataset:
            found.setdefault(row["example"], []).append(row)
    return tuple(_example(rows) for rows in found.values())


def _example(rows: list[dict[str, str]]) -> PaperText:
    (truth,) = (row for row in rows if row["attack"] == "truth")
    return PaperText(
        figure=truth["source"],
        dataset=truth["dataset"],
        fl_model=truth["fl_model"],
        example=int(truth["example"]),
        row=int(truth["validation_row"]) if truth["validation_row"] else None,
        truth=truth["text"],
        reconstructions={
            (row["defense"], row["attack"]): row["text"] for row in rows if row is not truth
        },
    )


def paper_line(paper: PaperText, *, defense: Mapping[str, Any], attack: str) -> str | None:
    """Return the paper's reconstruction of a sentence, or None where its setting is another.

    Args:
        paper: the sentence.
        defense: settings of the defense, the name under ``use``. Sentences of the paper come
            one a batch, so that ``defense_at`` makes no difference.
        attack: registered name of the attack.

    Source: section 5 and supplement A.
    """
    name = str(defense.get("use", ""))
    rest = {key: value for key, value in defense.items() if key not in ("use", "defense_at")}
    if _DEFENSES[paper.dataset].get(name) != rest:
        return None
    return paper.reconstructions.get((name, attack))
