"""Sentences beside what each attack makes of them, token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lti.data.find import find_texts
from lti.errors import LTIError
from lti.metrics.matching import match_victims
from lti.report.labels import attack_label, defense_label, setting_label
from lti.report.paper_texts import PaperText, paper_line
from lti.report.picture import choose_positions
from lti.report.pieces import known_pieces
from lti.report.text_lines import TextLine, TrueText

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

__all__ = [
    "TextBlock",
    "TextExample",
    "TextRow",
    "TextRun",
    "find_paper_texts",
    "shown_positions",
    "text_blocks",
]

SETTING = ("dataset", "fl_model", "batch_size")
"""What runs of one block have in common."""


@dataclass(frozen=True)
class TextRow:
    """What one attack made of a victim behind one defense.

    Attributes:
        defense: as shown, for example ``"no defense"``.
        attack: as shown, for example ``"LTI"``.
        ours: this run's reconstruction.
        paper: the paper's of the same sentence in the same setting; None where it has none.
    """

    defense: str
    attack: str
    ours: TextLine
    paper: TextLine | None = None


@dataclass(frozen=True)
class TextExample:
    """One victim.

    Attributes:
        title: where it is from.
        truth: the sentence itself.
        rows: those of one defense should follow one another.
    """

    title: str
    truth: TextLine
    rows: tuple[TextRow, ...]


@dataclass(frozen=True)
class TextBlock:
    """The victims in one setting, for example with batches of one size.

    Attributes:
        title: the setting.
        batch_size: samples a batch.
        examples: the victims.
    """

    title: str
    batch_size: int
    examples: tuple[TextExample, ...]


@dataclass(frozen=True)
class TextRun:
    """What one attack made of the victims behind one defense.

    Attributes:
        reconstruction: int32 (n_batches, B, length), in the attack's own order; batch k is of
            the victims ``[k * B, (k + 1) * B)``.
        metadata: at least ``dataset``, ``fl_model``, ``batch_size``, ``defense``,
            ``defense_settings``, ``attack`` and ``variant``, as the attack stage writes them.
    """

    reconstruction: npt.NDArray[Any]
    metadata: Mapping[str, Any]


def find_paper_texts(
    token: npt.NDArray[Any], tokenizer: Tokenizer, paper: Iterable[PaperText]
) -> dict[int, PaperText]:
    """Return which victims, int (n, length), are sentences of the paper, in the paper's order.

    See :func:`lti.data.find.find_texts`.
    """
    entries = list(paper)
    places = find_texts(token, tokenizer, [entry.truth for entry in entries])
    found = zip(places, entries, strict=True)
    return {position: entry for position, entry in found if position is not None}


def shown_positions(n: int, count: int, *, first: Iterable[int] = (), seed: int) -> list[int]:
    """Return ``count`` of n victims (all, if there are fewer).

    Args:
        n: victims that every run covers: positions from 0 to n - 1.
        count: how many to show.
        first: positions that come first, in this order; those beyond n are left out.
        seed: root seed of the choice of the others, by chance alone; they are ascending.
    """
    chosen = [position for position in first if position < n][:count]
    rest = [position for position in range(n) if position not in chosen]
    return chosen + [rest[k] for k in choose_positions(len(rest), count - len(chosen), seed=seed)]


def text_blocks(
    victims: Mapping[str, npt.NDArray[Any]],
    runs: Sequence[TextRun],
    *,
    tokenizer: Tokenizer,
    special: Collection[int],
    positions: Sequence[int],
    paper: Iterable[PaperText] = (),
) -> list[TextBlock]:
    """Line up victims and reconstructions, inside each batch, and compare them by token.

    Args:
        victims: ``token`` int32 (n, length) and ``index`` int64 (n,).
        runs: in the order of the rows; every setting has a block, in the order met.
        tokenizer: of the data set.
        special: tokens that stand for no text, such as padding.
        positions: of the victims shown, in this order.
        paper: the paper's sentences; its reconstructions are of batches of one.

    Raises:
        LTIError: no runs or positions, reconstructions of another shape, tokens outside the
            vocabulary, or a position that a run does not cover.
    """
    if not runs or not positions:
        raise LTIError(
            f"{len(runs)} runs and {len(positions)} victims to draw; expected at least one of "
            f"each. Run an attack."
        )
    token = victims["token"]
    matched = [_matched(run, token, tokenizer, positions) for run in runs]
    truths = [TrueText(token[position], tokenizer, special) for position in positions]
    of_paper = find_paper_texts(token[list(positions)], tokenizer, paper)
    vocabulary = known_pieces(tokenizer) if of_paper else frozenset()
    names = {(run.metadata["attack"], run.metadata["variant"]) for run in runs}
    variants = Counter(attack for attack, _ in names)

    def row(run: TextRun, found: npt.NDArray[Any], number: int) -> TextRow:
        meta, entry = run.metadata, of_paper.get(number)
        printed = None
        if entry is not None and meta["batch_size"] == 1:
            printed = paper_line(entry, defense=meta["defense_settings"], attack=meta["attack"])
        variant = meta["variant"] if variants[meta["attack"]] > 1 else ""
        return TextRow(
            defense=defense_label(meta["defense"]),
            attack=attack_label(meta["attack"], {"variant": variant}),
            ours=truths[number].compare(found[number]),
            paper=None if printed is None else truths[number].read(printed, vocabulary),
        )

    titles = [f"Position {victims['index'][position]} in its split" for position in positions]
    for number, entry in of_paper.items():
        titles[number] += f"; {entry.figure}, example {entry.example}"
    settings: dict[tuple[str, int], list[tuple[TextRun, npt.NDArray[Any]]]] = {}
    for run, found in zip(runs, matched, strict=True):
        dataset, fl_model, batch_size = (run.metadata[key] for key in SETTING)
        key = (setting_label(dataset, fl_model, batch_size), int(batch_size))
        settings.setdefault(key, []).append((run, found))
    return [
        TextBlock(
            title,
            batch_size,
            tuple(
                TextExample(titles[k], truths[k].line, tuple(row(*pair, k) for pair in pairs))
                for k in range(len(positions))
            ),
        )
        for (title, batch_size), pairs in settings.items()
    ]


def _matched(
    run: TextRun, token: npt.NDArray[Any], tokenizer: Tokenizer, positions: Sequence[int]
) -> npt.NDArray[Any]:
    """Return a run's reconstructions of the victims at these positions."""
    name = f"{run.metadata['attack']} on {run.metadata['defense']}"
    _, matched = match_victims({"token": token}, {"reconstruction": run.reconstruction})
    outside = [position for position in positions if not 0 <= position < len(matched)]
    if outside:
        raise LTIError(
            f"victim {outside[0]} cannot be drawn: {name} covers only the first {len(matched)}. "
            f"Choose positions from 0 to {len(matched) - 1}."
        )
    size = tokenizer.get_vocab_size()
    for array, what in ((token, "the victims hold"), (matched, f"{name} gives")):
        if array.max() >= size:
            raise LTIError(
                f"{what} the token {array.max()}; expected tokens of the tokenizer, 0 to "
                f"{size - 1}. Give that of the data set."
            )
    return matched[list(positions)]
