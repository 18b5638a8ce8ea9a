"""The stage that shows sentences beside their reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log

__all__ = ["draw_texts"]


def draw_texts(
    *,
    victims: Annotated[Path, typer.Option(help="The victims, of a text data set.")],
    tokenizer: Annotated[Path, typer.Option(help="The data set's tokenizer.")],
    fl_model_card: Annotated[
        Path | None,
        typer.Option(help="The FL model's card, which says where its weights are from."),
    ] = None,
    reconstructions: Annotated[list[Path], typer.Option(help="A row of each victim; repeated.")],
    title: Annotated[str, typer.Option(help="Heading of the web page.")] = "Reconstructions",
    count: Annotated[int, typer.Option(min=1, help="Victims shown.")] = 12,
    seed: Annotated[int, typer.Option(help="Root seed of the choice of victims.")] = 0,
    html: Annotated[Path, typer.Option(help="Web page to write.")],
    pdf: Annotated[Path, typer.Option(help="Figure to write, PDF.")],
    png: Annotated[Path, typer.Option(help="Figure to write, PNG.")],
    log: Log = None,
) -> None:
    """Show the same victims above what each attack made of them, and the paper's beside ours.

    Victims that are sentences of the paper come first; a seed chooses the others from those
    that every attack covers. There is a block for every FL model and batch size among the
    reconstructions, in the order given.
    """
    from lti.data.tokenizer import read_tokenizer
    from lti.errors import LTIError
    from lti.files import read_arrays, read_card
    from lti.progress import Progress
    from lti.report.paper_texts import paper_texts
    from lti.report.text_examples import (
        TextRun,
        find_paper_texts,
        shown_positions,
        text_blocks,
    )
    from lti.report.text_html import write_text_html
    from lti.report.text_notes import text_notes
    from lti.report.text_plot import plot_texts

    truth, metadata = read_arrays(victims)
    if "token" not in truth or "text" not in metadata:
        raise LTIError(
            f"{victims} holds {', '.join(sorted(truth))}; expected an array 'token'. Only victims "
            f"of a text data set are shown as sentences."
        )
    words = read_tokenizer(tokenizer, metadata["text"])
    runs = []
    for path in reconstructions:
        arrays, run = read_arrays(path)
        runs.append(TextRun(arrays["reconstruction"], run))
    paper = paper_texts(metadata["dataset"])
    covered = min(run.reconstruction.shape[0] * run.reconstruction.shape[1] for run in runs)
    first = find_paper_texts(truth["token"], words, paper)
    blocks = text_blocks(
        truth,
        runs,
        tokenizer=words,
        special=metadata["text"]["special"],
        positions=shown_positions(covered, count, first=first, seed=seed),
        paper=paper,
    )
    notes = text_notes(
        blocks,
        paper=paper,
        fl_model=None if fl_model_card is None else read_card(fl_model_card),
    )
    write_text_html(html, blocks, title=title, notes=notes)
    for path in (pdf, png):
        plot_texts(path, blocks, notes=notes)
    Progress("texts", log=log).say(f"{html}\n{pdf}\n{png}")
