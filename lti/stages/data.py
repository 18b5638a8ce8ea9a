"""Stages that prepare data: a data set's parts, the auxiliary set, the victims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lti.stages.options import Log, Output, parse_json, parse_json_list

if TYPE_CHECKING:
    import numpy as np

    from lti.data.samples import Samples
    from lti.data.text import TextDataset

__all__ = ["prepare_dataset", "prepare_tokenizer", "select_auxiliary", "select_victims"]

DatasetJson = Annotated[str, typer.Option(help="JSON settings of the data set.")]
Source = Annotated[Path, typer.Option(help="A prepared part of a data set.")]
Size = Annotated[int, typer.Option(min=1, help="Samples.")]
Seed = Annotated[int, typer.Option(help="Root seed of the selection.")]


def prepare_tokenizer(*, dataset: DatasetJson, output: Output, log: Log = None) -> None:
    """Write the tokenizer of a data set of text, a published one or one that is trained."""
    from lti.data.dataset import DATASETS
    from lti.errors import LTIError
    from lti.progress import Progress

    source = DATASETS.parse(parse_json(dataset, option="dataset"))
    if source.modality != "text":
        raise LTIError(
            f"--dataset: got {source.name}, which consists of images; expected text. Only text "
            f"has a tokenizer."
        )
    progress = Progress(f"tokenizer {source.name}", log=log)
    progress.say(f"{cast('TextDataset', source).write_tokenizer(output):,} tokens")


def prepare_dataset(
    *,
    dataset: DatasetJson,
    part: Annotated[str, typer.Option(help="auxiliary or victims.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="The data set's tokenizer; for text alone.")
    ] = None,
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Read one part of a data set, from its public home or a local copy, into one file."""
    from lti.data.dataset import DATASETS, Part, check_part
    from lti.errors import LTIError
    from lti.progress import Progress

    check_part(part)
    source = DATASETS.parse(parse_json(dataset, option="dataset"))
    if (source.modality == "text") != (tokenizer is not None):
        raise LTIError(
            f"--tokenizer: got {tokenizer} for the data set {source.name}; expected the file of "
            f"`lti prepare-tokenizer` for text, and none for images. Correct it."
        )
    progress = Progress(f"data {source.name} {part}", log=log)
    facts: dict[str, Any] = {}
    if tokenizer is None:
        samples = source.load(cast("Part", part))
    else:
        samples, facts["text"] = cast("TextDataset", source).read(cast("Part", part), tokenizer)
    metadata = {
        "dataset": source.name,
        "part": part,
        "seed": None,
        "size": len(samples),
        "class_names": list(source.class_names),
        **facts,
    }
    _write(output, card, samples, metadata)
    of = facts["text"]["corpus"] if facts else f"{source.num_classes} classes"
    progress.say(f"{len(samples):,} samples of {of}")


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
