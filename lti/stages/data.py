"""Stages that prepare data: a data set's parts, the auxiliary set, the victims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lti.stages.options import Log, Output, parse_json, parse_json_list

if TYPE_CHECKING:
    import numpy as np

    from lti.data.samples import Samples

__all__ = ["prepare_dataset", "select_auxiliary", "select_victims"]

Source = Annotated[Path, typer.Option(help="A prepared part of a data set.")]
Size = Annotated[int, typer.Option(min=1, help="Samples.")]
Seed = Annotated[int, typer.Option(help="Root seed of the selection.")]


def prepare_dataset(
    *,
    dataset: Annotated[str, typer.Option(help="JSON settings of the data set.")],
    part: Annotated[str, typer.Option(help="auxiliary or victims.")],
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Read one part of a data set, from its public home or a local copy, into one file."""
    from lti.data.dataset import DATASETS, check_part
    from lti.progress import Progress

    check_part(part)
    source = DATASETS.parse(parse_json(dataset, option="dataset"))
    progress = Progress(f"data {source.name} {part}", log=log)
    samples = source.load(part)  # type: ignore[arg-type]
    metadata = {
        "dataset": source.name,
        "part": part,
        "seed": None,
        "size": len(samples),
        "class_names": list(source.class_names),
    }
    _write(output, card, samples, metadata)
    progress.say(f"{len(samples):,} samples of {source.num_classes} classes")


def select_auxiliary(
    *, source: Source, size: Size, seed: Seed, output: Output, card: Output, log: Log = None
) -> None:
    """Draw the attacker's auxiliary set: the first ``size`` of a seeded permutation."""
    _select(source, size=size, seed=seed, output=output, card=card, log=log, what="auxiliary")


def select_victims(
    *,
    source: Source,
    size: Size,
    seed: Seed,
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
    samples = select(prepared.samples, size=size, seed=seed, include=first, what=what)
    flags = np.ones(size, dtype=bool) if what == "auxiliary" else None
    metadata = {**prepared.metadata, "seed": seed, "size": size}
    if first:
        metadata["include"] = first
    _write(output, card, samples, metadata, in_distribution=flags)
    Progress(f"{what} {metadata['dataset']}", log=log).say(
        f"{size:,} of {len(prepared.samples):,} samples"
    )


def _write(
    output: Path,
    card: Path,
    samples: Samples,
    metadata: dict[str, Any],
    in_distribution: np.ndarray | None = None,
) -> None:
    from lti.data.selection import write_selection
    from lti.files import digest_arrays, write_json

    write_selection(output, samples, in_distribution=in_distribution, metadata=metadata)
    arrays = {samples.key: samples.value, "label": samples.label, "index": samples.index}
    digest = digest_arrays(arrays)
    write_json(card, {**metadata, "digest": digest})
