"""Stages that prepare data: a data set's parts, the auxiliary set, the victims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lti.errors import LTIError
from lti.stages.options import Log, Output, parse_json, parse_json_list

if TYPE_CHECKING:
    import numpy as np

    from lti.data.samples import Samples
    from lti.data.synthetic import SyntheticDataset
    from lti.data.text import TextDataset

__all__ = ["prepare_dataset", "prepare_tokenizer", "select_auxiliary", "select_victims"]

DatasetJson = Annotated[str, typer.Option(help="JSON settings of the data set.")]
Source = Annotated[Path, typer.Option(help="A prepared part of a data set.")]
Size = Annotated[int, typer.Option(min=1, help="Samples.")]
Seed = Annotated[int, typer.Option(help="Root seed of the selection.")]
Classes = Annotated[str, typer.Option(help="JSON list of the classes to draw from; null: all.")]


def parse_classes(text: str) -> list[int] | None:
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
    metadata = {
        "dataset": source.name,
        "part": part,
        "seed": None,
        "size": len(samples),
        "class_names": list(source.class_names),
        **facts,
    }
    _write(output, card, samples, metadata)
    told = facts["text"]["corpus"] if facts else f"{source.num_classes} classes"
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
        "of": imitated.metadata["dataset"],
        "classes": source.classes,
    }
    _write(output, card, samples, metadata)
    progress = Progress(f"data {source.name} {part}", log=log)
    progress.say(f"{len(samples):,} samples like those of {metadata['of']}")


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
    whose digest is written beside it.
    """
    from itertools import combinations

    import numpy as np

    from lti.data.selection import mix, of_classes, read_selection
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
            of=of,
            output=output,
            card=card,
            log=log,
            what="auxiliary",
        )
        return
    chosen = [(source, parse_classes(classes))]
    chosen += [(Path(entry["source"]), entry["classes"]) for entry in entries]
    read = {path: read_selection(path) for path, _ in chosen}
    pools = [
        of_classes(read[path].samples, labels, what=f"auxiliary, from {path}")
        for path, labels in chosen
    ]
    for (one, (first, _)), (two, (second, _)) in combinations(enumerate(chosen), 2):
        shared = np.intersect1d(pools[one].index, pools[two].index)
        if first == second and len(shared):
            raise LTIError(
                f"{len(shared)} samples of {first} are in two parts of the auxiliary set, the "
                f"first at index {shared[0]}; expected none. Choose disjoint classes."
            )
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
    whole, flags = mix(pools[0], pools[1:], size=of or size, beta=beta, seed=seed)
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
    _write(output, card, samples, metadata, in_distribution=flags)
    Progress(f"auxiliary {metadata['dataset']}", log=log).say(
        f"{size:,} samples, {int(flags.sum()):,} of them in-distribution"
    )


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
    labels = parse_classes(classes)
    whole = select(
        prepared.samples, size=of or size, seed=seed, classes=labels, include=first, what=what
    )
    samples, facts = _beginning(whole, size, of)
    flags = np.ones(size, dtype=bool) if what == "auxiliary" else None
    metadata = {**prepared.metadata, "seed": seed, "size": size, **facts}
    if first:
        metadata["include"] = first
    if labels is not None:
        metadata["classes"] = labels
    _write(output, card, samples, metadata, in_distribution=flags)
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
