"""What stands below the sentences: what the marks, colours and numbers mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lti.report.labels import setting_label
from lti.report.paper_texts import PAPER, PaperText

if TYPE_CHECKING:
    from lti.report.text_examples import TextBlock
    from lti.report.text_lines import TextLine

__all__ = ["has_paper", "lines_of", "text_notes"]

_MARKS = {
    "␣": "a space",
    "↵": "the end of a line",
    "⇥": "a tab",
    "\N{REPLACEMENT CHARACTER}": "no character",
}


def lines_of(blocks: Iterable[TextBlock]) -> Iterator[TextLine]:
    """Yield every line of some blocks."""
    for block in blocks:
        for example in block.examples:
            yield example.truth
            for row in example.rows:
                yield row.ours
                if row.paper is not None:
                    yield row.paper


def has_paper(block: TextBlock) -> bool:
    """Return whether a block has a reconstruction of the paper."""
    return any(row.paper is not None for example in block.examples for row in example.rows)


def text_notes(
    blocks: Sequence[TextBlock],
    *,
    fl_model: Mapping[str, Any] | None = None,
    paper: Iterable[PaperText] = (),
) -> list[str]:
    """Return the notes below the sentences, a sentence or two each.

    Args:
        blocks: what is shown.
        fl_model: the FL model's card, which says where its weights are from.
        paper: the paper's sentences, as they were given for the blocks.
    """
    notes = [
        "Red and underlined: not the true token at this position. Grey: special tokens. "
        "Percentage: share of right tokens where the true one is not special."
    ]
    if fl_model is not None:
        notes.append(f"FL model: {_weights(fl_model)}.")
    if any(block.batch_size > 1 for block in blocks):
        notes.append(
            "B > 1: inside a batch, reconstructions are matched to victims so that the fewest "
            "tokens are wrong."
        )
    if any(has_paper(block) for block in blocks):
        figures = {
            f"{entry.figure} ({setting_label(entry.dataset, entry.fl_model)})": None
            for entry in paper
        }
        notes.append(
            f"The paper: {PAPER}, {', '.join(figures)}; shown where the defense has its settings. "
            f"Print does not show where tokens part, so its sentences are read in the way that "
            f"agrees with the truth the most."
        )
    shown = "".join(token.text for line in lines_of(blocks) for token in line.tokens)
    if marks := [f"{mark} {words}" for mark, words in _MARKS.items() if mark in shown]:
        notes.append(f"{', '.join(marks)}.")
    return notes


def _weights(card: Mapping[str, Any]) -> str:
    """Return in words where an FL model's weights are from."""
    if card["pretrained"]:
        return f"pretrained ({card['weights']})" if "weights" in card else "pretrained"
    reason = str(card.get("note", "not pretrained")).rstrip(".")
    return f"{reason}; weights drawn from seed {card['fl_model']['seed']}"
