"""Two parts of what a user brings: labels as numbers, a split by class, nothing in both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from lti.data.samples import Samples
from lti.errors import LTIError
from lti.seeding import numpy_generator

__all__ = ["name_classes", "number_labels", "split", "without_victims"]

Label = int | str


def name_classes(
    labels: Sequence[Label], declared: Sequence[str] | None, *, where: str
) -> tuple[str, ...]:
    """Return the names of the classes, in the order of their numbers.

    Args:
        labels: of all rows, integers or texts.
        declared: the names that are given, None where the labels alone say them: texts are
            then sorted, and integers name themselves.
        where: what the rows are of, for messages.

    Raises:
        LTIError: labels are neither all integers nor all texts, or undeclared integers are
            not all of 0 to the largest.
    """
    kinds = {type(label) for label in labels}
    if kinds not in ({int}, {str}):
        raise LTIError(
            f"{where}: labels of type {', '.join(sorted(kind.__name__ for kind in kinds))}; "
            f"expected integers alone or texts alone. Correct the column, or name another."
        )
    if declared is not None:
        return tuple(declared)
    known = sorted(set(labels))
    if kinds == {int} and known != list(range(len(known))):
        absent = next(number for number in range(len(known) + 1) if number not in known)
        raise LTIError(
            f"{where}: labels from {known[0]} to {known[-1]}, but none is {absent}; expected all "
            f"integers from 0. Number the classes so, or name them all in `classes`."
        )
    return tuple(str(label) for label in known)


def number_labels(labels: Sequence[Label], names: Sequence[str], *, where: str) -> np.ndarray:
    """Return labels as numbers of classes, int64 (n,).

    Args:
        labels: integers or texts.
        names: of the classes.
        where: what the rows are of, for messages.

    Raises:
        LTIError: an integer is out of range, or a text is no class's name.
    """
    numbers = {name: number for number, name in enumerate(names)}
    numbered = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        number = label if isinstance(label, int) else numbers.get(label, -1)
        if not 0 <= number < len(names):
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise LTIError(
                f"{where}, row {row}: label {label!r}; expected one of {len(names)} classes "
                f"({shown}), by name or as an integer from 0. Correct it, or name its class."
            )
        numbered[row] = number
    return numbered


def split(
    label: np.ndarray, names: Sequence[str], *, share: float, seed: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the auxiliary part and of the victims, drawn class by class.

    Of a class of n rows, ``share`` times n are victims, rounded half up, but at least one row
    is of each part. A class's draw depends on its name, its rows and the seed alone.

    Args:
        label: int64 (n,).
        names: of the classes.
        share: of the victims, above 0 and below 1.
        seed: root seed; the streams are ``split/<name>``.
        where: what the rows are of, for messages.

    Returns:
        int64 (a,) and (v,), sorted, which together are 0 to n - 1.

    Raises:
        LTIError: a class has one row.
    """
    is_victim = np.zeros(len(label), dtype=bool)
    for number in np.unique(label):
        rows = np.flatnonzero(label == number)
        if len(rows) < 2:
            raise LTIError(
                f"{where}: class {names[number]} has one sample; expected two or more, of which "
                f"one is a victim. Add samples, leave the class out, or name victims of their own."
            )
        count = min(max(int(np.floor(len(rows) * share + 0.5)), 1), len(rows) - 1)
        order = numpy_generator(seed, "split", names[number]).permutation(len(rows))
        is_victim[rows[order[:count]]] = True
    return np.flatnonzero(~is_victim), np.flatnonzero(is_victim)


def without_victims(
    auxiliary: Samples, victims: Samples, names: Sequence[str], *, where: str
) -> Samples:
    """Return the auxiliary samples whose values are no victim's.

    An attacker who has a victim's image or sentence need not invert anything.

    Args:
        auxiliary: n samples.
        victims: samples of the same modality.
        names: of the classes.
        where: what the samples are of, for messages.

    Raises:
        LTIError: no sample of a class is left.
    """
    known = {_digest(value) for value in victims.value}
    kept = [row for row, value in enumerate(auxiliary.value) if _digest(value) not in known]
    left = auxiliary.take(kept)
    if lost := sorted({*auxiliary.label.tolist()} - {*left.label.tolist()}):
        raise LTIError(
            f"{where}: every auxiliary sample of class {names[lost[0]]} is also a victim; expected "
            f"others. Add samples, or leave the class out."
        )
    return left


def _digest(value: np.ndarray) -> bytes:
    return hashlib.sha256(value.tobytes()).digest()
