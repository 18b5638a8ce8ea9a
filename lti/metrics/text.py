"""Text metrics: token accuracy, ROUGE and exact sentences, all fractions in [0, 1].

Position by position, or on the decoded texts. Nothing can be won on a victim without a real
token (of padding alone, say): its values are 0, but for ``token_accuracy_padded``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lti.errors import LTIError
from lti.metrics.base import METRICS, Metric

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lti.data.samples import Modality
    from lti.metrics.tokens import Text

    TokenArray = npt.NDArray[np.integer[Any]]
    Float64Array = npt.NDArray[np.float64]

__all__ = ["Exact", "Rouge1", "Rouge2", "RougeL", "TokenAccuracy", "TokenAccuracyPadded"]

_ROUGE_SOURCE = "Lin, ACL workshop Text Summarization Branches Out, 2004; package rouge-score"
_ROUGE_NOTE = (
    "F-measure, in [0, 1], of {}; texts decoded without special tokens, words in lower case and "
    "stemmed (rouge-score)."
)


class _TextMetric(Metric):
    """What all text metrics share."""

    modality: ClassVar[Modality] = "text"

    def __call__(self, truth: TokenArray, reconstruction: TokenArray, text: Text) -> Float64Array:
        """Return (n,) values in [0, 1] for two int (n, length) arrays of tokens."""
        if truth.ndim != 2 or truth.shape != reconstruction.shape:
            raise LTIError(
                f"tokens of shapes {truth.shape} and {reconstruction.shape} cannot be compared; "
                f"expected one shape (n, length) for both. Match them first."
            )
        for array, what in ((truth, "victims"), (reconstruction, "reconstructions")):
            if array.dtype.kind not in "iu":
                raise LTIError(
                    f"{what} of type {array.dtype} are no tokens; expected integers. Run the "
                    f"attack on a text data set."
                )
            text.check(array, what=what)
        return self._compare(truth, reconstruction, text)

    def _compare(self, truth: TokenArray, reconstruction: TokenArray, text: Text) -> Float64Array:
        raise NotImplementedError


@METRICS.register("token_accuracy", source="Wu et al. (UAI 2023), main text; here without padding")
class TokenAccuracy(_TextMetric):
    """Share of the positions with a real token whose token is right.

    A position counts where the victim's token is not special: padding, which is easy to
    guess, and the ends of a sentence, which are always there, win nothing.
    """

    label: ClassVar[str] = "Token accuracy"
    note: ClassVar[str] = (
        "Token accuracy: share of right tokens, position by position, over the positions where "
        "the victim's token is not special (padding, ends of a sentence)."
    )

    def _compare(self, truth: TokenArray, reconstruction: TokenArray, text: Text) -> Float64Array:
        import numpy as np

        real = text.is_real(truth)
        right = (real & (truth == reconstruction)).sum(axis=1)
        return np.asarray(right / np.maximum(real.sum(axis=1), 1), dtype=np.float64)


@METRICS.register("token_accuracy_padded", source="Wu et al. (UAI 2023), public code")
class TokenAccuracyPadded(_TextMetric):
    """Share of all positions whose token is right, special tokens included, as the paper."""

    label: ClassVar[str] = "Token accuracy, padding included"
    note: ClassVar[str] = (
        "Token accuracy, padding included: share of right tokens over all positions, those of "
        "special tokens too, as in the paper's code."
    )

    def _compare(self, truth: TokenArray, reconstruction: TokenArray, text: Text) -> Float64Array:
        import numpy as np

        return np.asarray((truth == reconstruction).mean(axis=1), dtype=np.float64)


@METRICS.register("exact", source="this project")
class Exact(_TextMetric):
    """1 where every real token of a victim is right at its position, else 0.

    The mean is the share of exactly reconstructed sentences.
    """

    label: ClassVar[str] = "Exact sentences"
    note: ClassVar[str] = (
        "Exact sentences: share of the victims whose tokens, but for special ones, are all right."
    )

    def _compare(self, truth: TokenArray, reconstruction: TokenArray, text: Text) -> Float64Array:
        import numpy as np

        real = text.is_real(truth)
        wrong = (real & (truth != reconstruction)).any(axis=1)
        return np.asarray(real.any(axis=1) & ~wrong, dtype=np.float64)


class _Rouge(_TextMetric):
    """What the three share: rouge-score on the decoded texts, stemmed, F-measure.

    Words are runs of a-z and 0-9 after lower-casing; those of more than three letters are
    stemmed (Porter). A text without a word, or for ROUGE-2 without two, scores 0 against
    anything, itself included.
    """

    def _compare(self, truth: TokenArray, reconstruction: TokenArray, text: Text) -> Float64Array:
        import numpy as np
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.name], use_stemmer=True)
        pairs = zip(text.decode(truth), text.decode(reconstruction), strict=True)
        values = [scorer.score(target, found)[self.name].fmeasure for target, found in pairs]
        return np.array(values, dtype=np.float64)


@METRICS.register("rouge1", source=_ROUGE_SOURCE)
class Rouge1(_Rouge):
    """ROUGE-1 of the decoded texts: shared words, stemmed, F-measure."""

    label: ClassVar[str] = "ROUGE-1"
    note: ClassVar[str] = f"ROUGE-1: {_ROUGE_NOTE.format('words')}"


@METRICS.register("rouge2", source=_ROUGE_SOURCE)
class Rouge2(_Rouge):
    """ROUGE-2 of the decoded texts: shared pairs of words, stemmed, F-measure."""

    label: ClassVar[str] = "ROUGE-2"
    note: ClassVar[str] = f"ROUGE-2: {_ROUGE_NOTE.format('pairs of neighbouring words')}"


@METRICS.register("rougeL", source=_ROUGE_SOURCE)
class RougeL(_Rouge):
    """ROUGE-L of the decoded texts: their longest common subsequence, stemmed, F-measure."""

    label: ClassVar[str] = "ROUGE-L"
    note: ClassVar[str] = (
        f"ROUGE-L: {_ROUGE_NOTE.format('the longest common subsequence of words')}"
    )
