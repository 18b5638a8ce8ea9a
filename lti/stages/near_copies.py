"""The stage that finds the victims' near copies in the auxiliary set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["find_near_copies"]


def find_near_copies(
    *,
    victims: Annotated[Path, typer.Option(help="The victims, text.")],
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    output: Output,
    log: Log = None,
) -> None:
    """Find the auxiliary sample that is closest to each victim: one row per victim."""
    from lti.data import near_copies
    from lti.data.selection import read_selection
    from lti.errors import LTIError
    from lti.progress import Progress

    theirs, known = read_selection(victims), read_selection(auxiliary)
    facts = [selection.metadata.get("text", {}) for selection in (theirs, known)]
    if facts[0].get("tokenizer") != facts[1].get("tokenizer"):
        raise LTIError(
            f"{victims} and {auxiliary} have different tokenizers; expected the same. Prepare "
            f"both as parts of one data set."
        )
    progress = Progress("near copies", log=log)
    progress.start(total=len(theirs.samples), unit="victims")
    similarity, position = near_copies.find_near_copies(
        theirs.samples,
        known.samples,
        special=facts[0].get("special", ()),
        on_victims=progress.advance,
    )
    near_copies.write_near_copies(output, similarity, position)
    near = (similarity >= near_copies.NEAR_COPY).sum()
    progress.say(f"{near:,} of {len(similarity):,} victims have one ({near_copies.NEAR_COPY})")
