"""Data sets, and the selections from them that an experiment uses."""

from lti.data.dataset import DATASETS, Dataset, Part
from lti.data.mixture import mix
from lti.data.samples import IMAGE_SHAPE, Modality, Samples, as_input, to_float
from lti.data.selection import Selection, read_selection, select, write_selection

__all__ = [
    "DATASETS",
    "IMAGE_SHAPE",
    "Dataset",
    "Modality",
    "Part",
    "Samples",
    "Selection",
    "as_input",
    "mix",
    "read_selection",
    "select",
    "to_float",
    "write_selection",
]
