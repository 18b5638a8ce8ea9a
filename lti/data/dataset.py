"""What a data set is: labelled samples in two parts that share nothing."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from lti.data.samples import Modality, Samples
from lti.errors import LTIError
from lti.registry import Registry, Settings

__all__ = ["DATASETS", "Dataset", "Part", "check_part"]

Part = Literal["auxiliary", "victims"]
"""``auxiliary`` is what an attacker may train on; ``victims`` is what is attacked."""


class Dataset(Settings):
    """Base of every registered data set."""

    modality: ClassVar[Modality] = "image"
    """What the samples are."""

    class_names: ClassVar[tuple[str, ...]] = ()
    """One name per label, in the order of the labels; empty where the data alone say them."""

    def read_class_names(self) -> tuple[str, ...]:
        """Return one name per label, in the order of the labels, from the data if need be.

        Raises:
            LTIError: the data cannot be found or are damaged.
        """
        return self.class_names

    def corpus(self, part: Part) -> str:
        """Return in a few words what a part is read from, where settings do not say it all.

        Rules have it as a parameter: the part is made anew where it changes.
        """
        return ""

    def shared(self, other: Dataset) -> str:
        """Return in a few words what this and another data set both hold; "": nothing known.

        Parts of an auxiliary set must not share samples.
        """
        return "everything" if self == other else ""

    @abstractmethod
    def load(self, part: Part) -> Samples:
        """Return all samples of one part, always the same ones in the same order.

        Raises:
            LTIError: the data cannot be found or is damaged, or ``part`` is unknown.
        """


DATASETS: Registry[Dataset] = Registry(
    "datasets",
    modules={
        "cifar10": "lti.data.cifar10",
        "cola": "lti.data.cola",
        "dct-gaussian": "lti.data.dct_gaussian",
        "image-folder": "lti.data.image_folder",
        "image-hub": "lti.data.image_hub",
        "image-table": "lti.data.image_table",
        "photos": "lti.data.photos",
        "python-docs": "lti.data.python_docs",
        "text-hub": "lti.data.text_hub",
        "text-table": "lti.data.text_table",
        "wikitext": "lti.data.wikitext",
        "word-histogram": "lti.data.word_histogram",
    },
)
"""The known data sets."""


def check_part(part: str) -> None:
    """Raise an :class:`LTIError` unless ``part`` is a :data:`Part`."""
    if part not in ("auxiliary", "victims"):
        raise LTIError(f"part {part!r} is unknown; expected 'auxiliary' or 'victims'. Use one.")
