"""Checks of a configuration's data: data sets, shifts, and the samples that are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lti.data.dataset import DATASETS, Dataset
from lti.data.samples import Modality
from lti.data.synthetic import SyntheticDataset
from lti.data.text import TextDataset
from lti.errors import LTIError

if TYPE_CHECKING:
    from lti.config import Config, Experiment, Shift

__all__ = [
    "include_problems",
    "modality_of",
    "shift_problems",
    "synthetic_problems",
    "tokenizer_problems",
    "unknown",
    "used_shift_problems",
]


def unknown(where: str, value: Any, known: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with a name that is not among the known ones."""
    names = sorted(known)
    if value not in names:
        yield f"{where}: got {value!r}; allowed: {', '.join(names)}"


def modality_of(config: Config, experiment: Experiment) -> Modality | None:
    """Return the modality of an experiment's data set; None if that is wrong itself."""
    try:
        return DATASETS.parse(config.datasets.get(experiment.dataset, {})).modality
    except LTIError:
        return None


def _datasets(config: Config) -> Iterator[tuple[str, Dataset]]:
    """Yield the data sets whose settings are right, by identifier."""
    for key, settings in config.datasets.items():
        try:
            yield key, DATASETS.parse(settings)
        except LTIError:
            continue  # said of the data set itself


def synthetic_problems(config: Config) -> Iterator[str]:
    """Check that synthetic data sets imitate one that is there, read, and of their modality."""
    parsed = dict(_datasets(config))
    for key, dataset in parsed.items():
        if not isinstance(dataset, SyntheticDataset):
            continue
        known = [
            name
            for name, other in parsed.items()
            if other.modality == dataset.modality and not isinstance(other, SyntheticDataset)
        ]
        yield from unknown(f"datasets.{key}.of", dataset.of, known)


def tokenizer_problems(config: Config) -> Iterator[str]:
    """Check that data sets of text that take another's tokenizer name one that has its own."""
    parsed = {k: data for k, data in _datasets(config) if isinstance(data, TextDataset)}
    for key, dataset in parsed.items():
        if dataset.tokenizer is not None:
            known = [name for name, other in parsed.items() if other.tokenizer is None]
            yield from unknown(f"datasets.{key}.tokenizer", dataset.tokenizer, known)


def shift_problems(config: Config, where: str, shift: Shift) -> Iterator[str]:
    """Check that what is shifted is there, and shares no class with what is like the victims."""
    pools = [(None, shift.classes), *((pool.dataset, pool.classes) for pool in shift.shifted)]
    for number, (dataset, classes) in enumerate(pools[1:]):
        place = f"{where}.shifted[{number}]"
        if dataset is not None:
            yield from unknown(f"{place}.dataset", dataset, config.datasets)
        for other, known in pools[: number + 1]:
            if other != dataset:
                continue
            if classes is None or known is None:
                yield f"{place}: got all of a data set that is drawn from before it; name classes"
            elif shared := sorted(set(classes) & set(known)):
                yield f"{place}.classes: got {shared[0]}, drawn from before it; allowed: others"


def used_shift_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Check an experiment's shift, and that its data set has victims."""
    auxiliary = experiment.auxiliary
    parsed = dict(_datasets(config))
    dataset = parsed.get(experiment.dataset)
    if isinstance(dataset, SyntheticDataset):
        yield f"{where}.dataset: got {experiment.dataset!r}, which is synthetic; allowed: others"
    if auxiliary.shift is None:
        if auxiliary.beta != 1:
            yield f"{where}.auxiliary.beta: got {auxiliary.beta:g} without a shift; allowed: 1"
        return
    yield from unknown(f"{where}.auxiliary.shift", auxiliary.shift, config.shifts)
    if dataset is None or auxiliary.shift not in config.shifts:
        return
    shift = config.shifts[auxiliary.shift]
    for pool in shift.shifted:
        other = parsed.get(pool.dataset or experiment.dataset, dataset)
        if other.modality != dataset.modality:
            yield (
                f"{where}.auxiliary.shift: got {auxiliary.shift!r} with {pool.dataset!r} of "
                f"modality {other.modality}; allowed: {dataset.modality}"
            )
    names = [experiment.dataset, *(pool.dataset or experiment.dataset for pool in shift.shifted)]
    for one, two in combinations(dict.fromkeys(names), 2):
        if one in parsed and two in parsed and (shared := parsed[one].shared(parsed[two])):
            yield (
                f"{where}.auxiliary.shift: got {auxiliary.shift!r} with {one} and {two}, which "
                f"both hold {shared}; allowed: data sets that share nothing"
            )
    classes = len(dataset.class_names)
    for label in (shift.classes or ()) if classes else ():  # else the data say how many
        if not 0 <= label < classes:
            yield (
                f"{where}.auxiliary.shift: got {auxiliary.shift!r} with class {label}; allowed: "
                f"the labels of {experiment.dataset}, 0 to {classes - 1}"
            )


def include_problems(config: Config, where: str, experiment: Experiment) -> Iterator[str]:
    """Check the samples that are victims whatever the seed."""
    named, size = experiment.victims.include, experiment.victims.size
    if len(named) > size:
        yield f"{where}: got {len(named)} samples; allowed: up to the number of victims, {size}"
    for value in dict.fromkeys(value for value in named if named.count(value) > 1):
        yield f"{where}: got {value!r} more than once; allowed: once"
    for value in named:
        if isinstance(value, int) and value < 0:
            yield f"{where}: got {value}; allowed: positions of 0 or more"
        elif isinstance(value, str) and modality_of(config, experiment) == "image":
            yield f"{where}: got {value!r} of what is no text; allowed: positions"
