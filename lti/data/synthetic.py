"""What synthetic data are: samples drawn from a distribution that is fitted to real ones."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.data.dataset import Dataset, Part
from lti.data.samples import Samples
from lti.data.selection import of_classes
from lti.errors import LTIError
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

__all__ = ["SyntheticDataset"]


class SyntheticDataset(Dataset):
    """Base of data sets that imitate the auxiliary part of another one.

    They have an auxiliary part alone: nobody's data are synthetic.
    """

    of: str = Field(description="A key of `datasets`: what is imitated.")
    classes: list[int] | None = Field(None, description="Labels of what is imitated; null: all.")
    samples: int | None = Field(None, ge=1, description="How many; null: as many as there are.")
    seed: int = Field(0, description="Root seed of the draws.")

    def load(self, part: Part) -> Samples:
        """Refuse: there is nothing to read.

        Raises:
            LTIError: always.
        """
        raise LTIError(
            f"data set {self.name} is synthetic and not read; expected the data set that it "
            f"imitates ({self.of}). Call `imitate` with its samples."
        )

    def imitate(self, source: Samples, facts: Mapping[str, Any] | None = None) -> Samples:
        """Return synthetic samples; ``index`` counts them.

        Labels are drawn from those of what is imitated.

        Args:
            source: the auxiliary part of what is imitated.
            facts: of its tokens (:func:`lti.data.tokenizer.text_facts`), where it is text.

        Raises:
            LTIError: samples of another modality, or a class that has none.
        """
        import numpy as np

        if source.modality != self.modality:
            raise LTIError(
                f"data set {self.name} got samples of modality {source.modality} to imitate; "
                f"expected {self.modality}. Name another data set under `of`."
            )
        real = of_classes(source, self.classes, what=f"data set {self.name}")
        count = self.samples or len(real)
        generator = numpy_generator(self.seed, self.name)
        label = real.label[generator.integers(len(real), size=count)]
        value = self.draw(real.value, count, generator, facts or {})
        return Samples(value, label, np.arange(count))

    @abstractmethod
    def draw(
        self,
        value: np.ndarray,
        count: int,
        generator: np.random.Generator,
        facts: Mapping[str, Any],
    ) -> np.ndarray:
        """Return ``count`` values of the distribution that is fitted to ``value``."""
