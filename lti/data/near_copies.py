"""How close the auxiliary set comes to each victim, for text.

An attacker that has a near copy of a victim need not invert anything to look good, so
results are also shown for the victims without one.

The similarity of two samples is the length of the longest common subsequence of their real
tokens (those that stand for text), divided by the number of real tokens of the longer one:
the tokens that one can take over from the other in order, as ROUGE-L counts them. Two
samples of the same words in another order are less than copies, and padding counts for
nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lti.data.samples import Samples
from lti.errors import LTIError
from lti.files import write_arrays

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["NEAR_COPY", "find_near_copies", "write_near_copies"]

NEAR_COPY = 0.75
"""Similarity from which on a sample is a near copy.

At three of four tokens, CoLA's pairs are a sentence and a variation of it ("Any ..." and
"Every senator seems to become more corrupt, ..."); below, they share a pattern ("The dog
stole the turkey." and "The dog caught the cat.") or, in WikiText, ``<unk>`` and punctuation.
"""

DEFINITION = "longest common subsequence of real tokens over the longer one's length"
MAX_LENGTH = 64
# Victims and auxiliary samples at a time: a product of 4 MB stays in the cache. Pairs at a
# time bound the memory for longest common subsequences.
VICTIMS_BLOCK, AUXILIARY_BLOCK, PAIRS_BLOCK = 256, 16_384, 1 << 18


def find_near_copies(
    victims: Samples,
    auxiliary: Samples,
    *,
    special: Sequence[int],
    on_victims: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarity of each victim to its closest auxiliary sample, and which that is.

    Exact: a pair's number of common tokens, whatever their order, bounds its similarity, so
    that subsequences are computed only for pairs that can be closer than the closest so far.

    Args:
        victims: n token sequences.
        auxiliary: 1 or more token sequences of the same length, at most 64.
        special: tokens that are not counted, such as padding.
        on_victims: called with numbers of finished victims.

    Returns:
        similarity float64 (n,), 0 to 1, and position int64 (n,) in ``auxiliary``, the first
        one of the closest.

    Raises:
        LTIError: images, no auxiliary sample, or lengths that differ or are above 64.
    """
    _check(victims, auxiliary)
    search = _Search(auxiliary.value, special)
    blocks = []
    for start in range(0, len(victims), VICTIMS_BLOCK):
        block = victims.value[start : start + VICTIMS_BLOCK]
        blocks.append(search.closest(block))
        if on_victims is not None:
            on_victims(len(block))
    none = (np.empty(0), np.empty(0, dtype=np.int64))
    similarity, position = zip(none, *blocks, strict=True)
    return np.concatenate(similarity), np.concatenate(position)


def _check(victims: Samples, auxiliary: Samples) -> None:
    for what, samples in (("victims", victims), ("auxiliary", auxiliary)):
        if samples.modality != "text":
            raise LTIError(f"{what}: got images; near copies are found for text. Give tokens.")
    lengths = victims.value.shape[1], auxiliary.value.shape[1]
    if lengths[0] != lengths[1] or lengths[0] > MAX_LENGTH:
        raise LTIError(
            f"victims of {lengths[0]} tokens and auxiliary samples of {lengths[1]}; expected the "
            f"same, at most {MAX_LENGTH}. Prepare both with one length."
        )
    if not len(auxiliary):
        raise LTIError("auxiliary: no samples; expected 1 or more. Give the attacker's data.")


class _Search:
    """The auxiliary samples, ordered by their number of real tokens."""

    def __init__(self, token: np.ndarray, special: Sequence[int]) -> None:
        self._special = np.asarray(special, dtype=np.int64)
        is_real = self._is_real(token)
        size = is_real.sum(axis=1)
        # A stable order: of equal size, the first comes first.
        self._position = np.argsort(size, kind="stable")
        self._token = token[self._position]
        self._size = size[self._position]
        self._counted, self._features = _features(self._token, is_real[self._position])

    def _is_real(self, token: np.ndarray) -> np.ndarray:
        return ~np.isin(token, self._special)

    def closest(self, victims: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return similarity and position for a block of victims, int32 (b, length)."""
        is_real = self._is_real(victims)
        size = is_real.sum(axis=1)
        counted, numbers = _features(victims, is_real)
        known = np.intersect1d(numbers, self._features)
        rows = counted[:, np.searchsorted(numbers, known)].T.toarray()
        mine = self._counted[:, np.searchsorted(self._features, known)]
        matcher = _Matcher(victims, is_real)
        similarity, position = np.zeros(len(victims)), np.zeros(len(victims), dtype=np.int64)

        def consider(row: np.ndarray, victim: np.ndarray) -> None:
            """Compute these pairs and keep what is closer, or as close and earlier."""
            for start in range(0, len(row), PAIRS_BLOCK):
                some, whose = row[start : start + PAIRS_BLOCK], victim[start : start + PAIRS_BLOCK]
                common = matcher.common(self._token[some], whose)
                found = common / np.maximum(np.maximum(self._size[some], size[whose]), 1)
                where = self._position[some]
                better = np.lexsort((where, -found, whose))
                first = better[np.unique(whose[better], return_index=True)[1]]
                whose, found, where = whose[first], found[first], where[first]
                closer = (found > similarity[whose]) | (
                    (found == similarity[whose]) & (where < position[whose])
                )
                similarity[whose[closer]] = found[closer]
                position[whose[closer]] = where[closer]

        for start, stop in self._blocks():
            longer = np.maximum(np.maximum(self._size[start], size), 1)
            shared = mine[start:stop] @ rows
            # The most promising ones first: what they reach rules out most of the others.
            consider(start + shared.argmax(axis=0), np.arange(len(victims)))
            # Counts are whole numbers: far less than 1e-6 is rounding.
            needed = np.maximum(np.ceil(similarity * longer - 1e-6), 1).astype(np.int8)
            row, victim = np.nonzero(shared >= needed)
            closer = shared[row, victim] > similarity[victim] * longer[victim] + 1e-6
            earlier = self._position[start + row] < position[victim]
            row, victim = row[closer | earlier], victim[closer | earlier]
            consider(start + row, victim)
        return similarity, position

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of samples with equal numbers of real tokens."""
        edges = [0, *(np.flatnonzero(np.diff(self._size)) + 1), len(self._size)]
        for first, last in itertools.pairwise(edges):
            for start in range(first, last, AUXILIARY_BLOCK):
                yield start, min(start + AUXILIARY_BLOCK, last)


def _features(token: np.ndarray, is_real: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return which tokens samples have, the second "the" being another one than the first.

    The product of two samples' rows is the number of tokens that they share, repetitions
    included.

    Args:
        token: int32 (n, length).
        is_real: bool (n, length), which are counted.

    Returns:
        int8 (n, m), ones and zeros, and int64 (m,), sorted, what the columns stand for.
    """
    from scipy import sparse

    n, length = token.shape
    occurrence = np.zeros(token.shape, dtype=np.int64)
    for place in range(1, length):
        occurrence[:, place] = (token[:, :place] == token[:, place, None]).sum(axis=1)
    numbers, column = np.unique(
        (token * np.int64(length) + occurrence)[is_real], return_inverse=True
    )
    start = np.concatenate([[0], is_real.sum(axis=1).cumsum()])
    ones = np.ones(len(column), dtype=np.int8)
    return sparse.csr_matrix((ones, column, start), shape=(n, len(numbers))), numbers


class _Matcher:
    """Lengths of longest common subsequences with a block of victims, many pairs at once.

    Source: Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004.
    """

    def __init__(self, victims: np.ndarray, is_real: np.ndarray) -> None:
        self._vocabulary = np.unique(victims[is_real])
        # Bit i of places[victim, token]: whether the victim's token i is that one. The last
        # column is that of tokens that no victim has.
        self._places = np.zeros((len(victims), len(self._vocabulary) + 1), dtype=np.uint64)
        victim, place = np.nonzero(is_real)
        column = np.searchsorted(self._vocabulary, victims[victim, place])
        bit = np.left_shift(np.uint64(1), place.astype(np.uint64))
        np.bitwise_or.at(self._places, (victim, column), bit)

    def common(self, token: np.ndarray, victim: np.ndarray) -> np.ndarray:
        """Return the lengths, int64 (p,), for pairs of a sequence (p, length) and a victim (p,)."""
        column = np.searchsorted(self._vocabulary, token)
        known = np.append(self._vocabulary, -1)
        column[known[column] != token] = len(self._vocabulary)
        # Bits that are zero are the ends of common subsequences that are longer than those
        # that end before.
        state = np.full(len(token), ~np.uint64(0))
        for place in range(token.shape[1]):
            match = state & self._places[victim, column[:, place]]
            state = (state + match) | (state - match)
        return np.unpackbits((~state)[:, None].view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)


def write_near_copies(path: Path | str, similarity: np.ndarray, position: np.ndarray) -> None:
    """Write what :func:`find_near_copies` found, with the threshold and what it is of.

    :func:`lti.metrics.near_copies.read_near_copies` reads it.
    """
    arrays = {"similarity": similarity, "position": position}
    write_arrays(path, arrays, {"threshold": NEAR_COPY, "similarity": DEFINITION})
