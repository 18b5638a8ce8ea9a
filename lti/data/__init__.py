"""Data sets, and the selections from them that an experiment uses."""

from lti.data.dataset import DATASETS, IMAGE_SHAPE, LabelledImages, Part, VisionDataset
from lti.data.selection import (
    Selection,
    mix,
    read_selection,
    select,
    to_float,
    write_selection,
)

__all__ = [
    "DATASETS",
    "IMAGE_SHAPE",
    "LabelledImages",
    "Part",
    "Selection",
    "VisionDataset",
    "mix",
    "read_selection",
    "select",
    "to_float",
    "write_selection",
]
