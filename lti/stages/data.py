"""Stages that prepare data sets: their tokenizers and their parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lti.errors import LTIError
from lti.stages.options import Log, Output, parse_json

if TYPE_CHECKING:
    import numpy as np

    from lti.data.samples import Samples
    from lti.data.synthetic import SyntheticDataset
    from lti.data.text import TextDataset

__all__ = ["prepare_dataset", "prepare_tokenizer", "write_part"]

DatasetJson = Annotated[str, typer.Option(help="JSON settings of the data set.")]


def prepare_tokenizer(*, dataset: DatasetJson, output: Output, log: Log = None) -> None:
    """Write the tokenizer of a data set of text, a published one or one that is trained."""
    from lti.data.dataset import DATASETS
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
    of: Annotated[
        Path | None, typer.Option(help="The auxiliary part that a synthetic data set imitates.")
    ] = None,
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Read one part of a data set, from its public home or a local copy, into one file."""
    from lti.data.dataset import DATASETS, Part, check_part
    from lti.data.synthetic import SyntheticDataset
    from lti.progress import Progress

    check_part(part)
    source = DATASETS.parse(parse_json(dataset, option="dataset"))
    if isinstance(source, SyntheticDataset):
        _imitate(source, part, of, output=output, card=card, log=log)
        return
    if of is not None:
        raise LTIError(
            f"--of: got {of}; data set {source.name} imitates no other. Leave the option out."
        )
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
    names = source.read_class_names()
    metadata = {
        "dataset": source.name,
        "part": part,
        "seed": None,
        "size": len(samples),
        "class_names": list(names),
        **facts,
    }
    write_part(output, card, samples, metadata)
    told = facts["text"]["corpus"] if facts else f"{len(names)} classes"
    progress.say(f"{len(samples):,} samples of {told}")


def _imitate(
    source: SyntheticDataset,
    part: str,
    of: Path | None,
    *,
    output: Path,
    card: Path,
    log: Path | None,
) -> None:
    from lti.data.selection import read_selection
    from lti.progress import Progress

    if part != "auxiliary" or of is None:
        raise LTIError(
            f"data set {source.name}: got part {part} and {of} to imitate; expected part auxiliary "
            f"and the auxiliary part of another data set. Give it with --of."
        )
    imitated = read_selection(of)
    samples = source.imitate(imitated.samples, imitated.metadata.get("text"))
    metadata = {
        **imitated.metadata,
        "dataset": source.name,
        "size": len(samples),
        "imitates": imitated.metadata["dataset"],
        "classes": source.classes,
    }
    write_part(output, card, samples, metadata)
    progress = Progress(f"data {source.name} {part}", log=log)
    progress.say(f"{len(samples):,} samples like those of {metadata['imitates']}")


def write_part(
    output: Path,
    card: Path,
    samples: Samples,
    metadata: dict[str, Any],
    in_distribution: np.ndarray | None = None,
) -> None:
    """Write samples, and a card with their metadata and a digest of their content."""
    from lti.data.selection import write_selection
    from lti.files import digest_arrays, write_card

    write_selection(output, samples, in_distribution=in_distribution, metadata=metadata)
    arrays = {samples.key: samples.value, "label": samples.label, "index": samples.index}
    digest = digest_arrays(arrays)
    write_card(card, {**metadata, "digest": digest})
