"""Stages that draw what an experiment uses: the auxiliary set and the victims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lti.errors import LTIError
from lti.stages.data import write_part
from lti.stages.options import Log, Output, parse_json_list

if TYPE_CHECKING:
    from lti.data.samples import Samples
    from lti.data.selection import Selection

__all__ = ["select_auxiliary", "select_victims"]

Source = Annotated[Path, typer.Option(help="A prepared part of a data set.")]
Size = Annotated[int, typer.Option(min=1, help="Samples.")]
Seed = Annotated[int, typer.Option(help="Root seed of the selection.")]
Classes = Annotated[str, typer.Option(help="JSON list of the classes to draw from; null: all.")]


def _parse_classes(text: str) -> list[int] | None:
    """Return the labels that an option holds, or None for all.

    Raises:
        LTIError: it is neither a JSON list of numbers nor null.
    """
    if text == "null":
        return None
    labels = parse_json_list(text, option="classes")
    if wrong := [label for label in labels if not isinstance(label, int)]:
        raise LTIError(f"--classes: got {wrong[0]!r}; expected whole numbers. Give labels.")
    return labels


def select_auxiliary(
    *,
    source: Source,
    size: Size,
    seed: Seed,
    classes: Classes = "null",
    shifted: Annotated[
        str,
        typer.Option(
            help="JSON list of what is not like the victims: objects with `source` and `classes`."
        ),
    ] = "[]",
    beta: Annotated[float, typer.Option(help="Share of what is like the victims.")] = 1.0,
    victims: Annotated[
        Path | None, typer.Option(help="The prepared part that victims are drawn from.")
    ] = None,
    of: Annotated[
        int | None,
        typer.Option(min=1, help="Samples of the larger set whose gradients are stored; none."),
    ] = None,
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Draw the attacker's auxiliary set: the first ``size`` of a seeded permutation.

    With a distribution shift a share ``beta`` of the set is from the source, and the rest in
    equal parts from what is shifted. With ``of`` it is the beginning of a set of so many samples,
    whose digest is written beside it. No image may be one of the victims'.
    """
    from lti.data.mixture import mix
    from lti.data.selection import of_classes, read_selection
    from lti.progress import Progress

    entries = parse_json_list(shifted, option="shifted")
    if not entries:
        if beta != 1:
            raise LTIError(
                f"--beta: got {beta} and nothing shifted; expected 1. Name what is shifted with "
                f"--shifted, or leave --beta out."
            )
        _select(
            source,
            size=size,
            seed=seed,
            classes=classes,
            apart_from=victims,
            of=of,
            output=output,
            card=card,
            log=log,
            what="auxiliary",
        )
        return
    chosen = [(source, _parse_classes(classes))]
    chosen += [(Path(entry["source"]), entry["classes"]) for entry in entries]
    read = {path: read_selection(path) for path, _ in chosen}
    pools = [
        of_classes(read[path].samples, labels, what=f"auxiliary, from {path}")
        for path, labels in chosen
    ]
    _check_pools(chosen, pools, read)
    prepared = read[source].metadata
    whole, flags = mix(pools[0], pools[1:], size=of or size, beta=beta, seed=seed)
    _check_apart(whole, victims)
    samples, facts = _beginning(whole, size, of)
    flags = flags[:size]
    parts = [
        {"dataset": read[path].metadata["dataset"], "classes": labels} for path, labels in chosen
    ]
    metadata = {
        **prepared,
        "seed": seed,
        "size": size,
        "beta": beta,
        "in_distribution": parts[0],
        "shifted": parts[1:],
        **facts,
    }
    write_part(output, card, samples, metadata, in_distribution=flags)
    Progress(f"auxiliary {metadata['dataset']}", log=log).say(
        f"{size:,} samples, {int(flags.sum()):,} of them in-distribution"
    )


def _check_pools(
    chosen: Sequence[tuple[Path, list[int] | None]],
    pools: Sequence[Samples],
    read: Mapping[Path, Selection],
) -> None:
    """Refuse pools that share samples, and data sets that do not go with the first."""
    from itertools import combinations

    import numpy as np

    for (one, (first, _)), (two, (second, _)) in combinations(enumerate(chosen), 2):
        shared = np.intersect1d(pools[one].index, pools[two].index)
        if first == second and len(shared):
            raise LTIError(
                f"{len(shared)} samples of {first} are in two parts of the auxiliary set, the "
                f"first at index {shared[0]}; expected none. Choose disjoint classes."
            )
    source = chosen[0][0]
    prepared = read[source].metadata
    for path in read:
        other = read[path].metadata
        labels = int(read[path].samples.label.max(initial=0))
        if other.get("text", {}).get("tokenizer") != prepared.get("text", {}).get("tokenizer"):
            raise LTIError(
                f"{path} was made with another tokenizer than {source}; expected the same. Give "
                f"the data set the tokenizer of the other."
            )
        if labels >= len(prepared["class_names"]):
            raise LTIError(
                f"{path} has a label {labels}, and {source} {len(prepared['class_names'])} "
                f"classes; expected labels below that. Choose other classes."
            )


def _check_apart(auxiliary: Samples, victims: Path | None) -> None:
    """Refuse an auxiliary set that holds a victim."""
    from lti.data.mixture import refuse_victims
    from lti.data.selection import read_selection

    if victims is not None:
        refuse_victims(auxiliary, read_selection(victims).samples, what=str(victims))


def select_victims(
    *,
    source: Source,
    size: Size,
    seed: Seed,
    classes: Classes = "null",
    include: Annotated[
        str, typer.Option(help="JSON list of the samples that come first: positions or texts.")
    ] = "[]",
    tokenizer: Annotated[
        Path | None, typer.Option(help="The data set's tokenizer, for texts to include.")
    ] = None,
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Draw the victims: those to include, then the first of a seeded permutation."""
    _select(
        source,
        size=size,
        seed=seed,
        classes=classes,
        include=include,
        tokenizer=tokenizer,
        output=output,
        card=card,
        log=log,
        what="victims",
    )


def _select(
    source: Path,
    *,
    size: int,
    seed: int,
    classes: str,
    apart_from: Path | None = None,
    of: int | None = None,
    include: str = "[]",
    tokenizer: Path | None = None,
    output: Path,
    card: Path,
    log: Path | None,
    what: str,
) -> None:
    import numpy as np

    from lti.data.find import indices_of
    from lti.data.selection import read_selection, select
    from lti.data.tokenizer import read_tokenizer
    from lti.progress import Progress

    prepared = read_selection(source)
    words = None
    if tokenizer is not None:
        words = read_tokenizer(tokenizer, prepared.metadata.get("text"))
    first = indices_of(
        prepared.samples,
        parse_json_list(include, option="include"),
        tokenizer=words,
    )
    labels = _parse_classes(classes)
    whole = select(
        prepared.samples, size=of or size, seed=seed, classes=labels, include=first, what=what
    )
    _check_apart(whole, apart_from)
    samples, facts = _beginning(whole, size, of)
    flags = np.ones(size, dtype=bool) if what == "auxiliary" else None
    metadata = {**prepared.metadata, "seed": seed, "size": size, **facts}
    if first:
        metadata["include"] = first
    if labels is not None:
        metadata["classes"] = labels
    write_part(output, card, samples, metadata, in_distribution=flags)
    Progress(f"{what} {metadata['dataset']}", log=log).say(
        f"{size:,} of {len(prepared.samples):,} samples"
    )


def _beginning(whole: Samples, size: int, of: int | None) -> tuple[Samples, dict[str, Any]]:
    """Return the first ``size`` samples, and what their metadata say of the whole."""
    if of is None or of == size:
        return whole, {}
    if of < size:
        raise LTIError(
            f"--of: got {of} for a set of {size}; expected {size} or more. A set is the beginning "
            f"of a larger one."
        )
    return whole.take(range(size)), {"of": of, "of_digest": whole.digest}
