"""Settings of data sets that a user has in files of tables or on the Hugging Face hub."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path, PurePath
from typing import ClassVar

from pydantic import Field, field_validator

from lti.data.dataset import Part
from lti.data.hub import Home
from lti.data.own import OwnData
from lti.data.rows import HubRows, Rows, TableRows
from lti.errors import LTIError

__all__ = ["HubSplits", "Tables"]


class Labelled(OwnData):
    """Base of data sets of rows with a column for the label."""

    label: str = Field("label", description="Column of the labels, integers from 0 or texts.")
    classes: list[str] | None = Field(
        None,
        min_length=1,
        description="Names of the classes, in the order of integer labels; null: what a "
        "`ClassLabel` of the table names, or else the labels themselves, texts sorted. A named "
        "class can be without samples.",
    )

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("expected every name once")
        return classes

    @property
    @abstractmethod
    def value_column(self) -> str:
        """Column of the values."""

    def named_classes(self) -> tuple[str, ...] | None:
        """Return the names of the settings."""
        return None if self.classes is None else tuple(self.classes)


class Tables(Labelled):
    """Base of data sets in files of tables."""

    folder: Path = Field(description="Folder of the files; relative to the working folder.")
    auxiliary: str = Field(
        "*.parquet",
        description="Pattern of the names of files in `folder`, such as `train-*.parquet`: the "
        "auxiliary part, in the order of their names.",
    )
    victims: str | None = Field(
        None,
        description="Pattern of the names of the victims' files; null: a share of each class of "
        "the others.",
    )

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    @field_validator("auxiliary", "victims")
    @classmethod
    def _stays_below(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        path = PurePath(pattern)
        if not path.name or path.is_absolute() or ".." in path.parts or "\0" in pattern:
            raise ValueError("expected a pattern of names below `folder`")
        if path.suffix not in cls.suffixes:
            raise ValueError(f"expected a pattern that ends in {' or '.join(cls.suffixes)}")
        return pattern

    def own_rows(self, part: Part) -> Rows | None:
        """Return the rows of the files that fit a part's pattern.

        Raises:
            LTIError: no file fits, or one is of both parts.
        """
        pattern = self.auxiliary if part == "auxiliary" else self.victims
        if pattern is None:
            return None
        files = self._files(pattern)
        other = self.victims if part == "auxiliary" else self.auxiliary
        if other is not None and (both := sorted({*files} & {*self._files(other)})):
            raise LTIError(
                f"{both[0]}: fits both {self.auxiliary} and {self.victims}; expected files of one "
                f"part each. Correct `auxiliary` or `victims`."
            )
        return TableRows(files, value=self.value_column, label=self.label)

    def _files(self, pattern: str) -> list[Path]:
        files = sorted(path for path in self.folder.glob(pattern) if path.is_file())
        if not files:
            raise LTIError(
                f"{self.folder}: no file {pattern} here; expected one or more. Correct the folder "
                f"or the pattern."
            )
        return files

    def places(self) -> set[str]:
        """Return the patterns with their folder."""
        patterns = (self.auxiliary, self.victims)
        return {os.path.abspath(self.folder / pattern) for pattern in patterns if pattern}


class HubSplits(Labelled):
    """Base of data sets on the Hugging Face hub."""

    repository: str = Field(
        pattern=r"/[^/]+$",
        description="A data set of the hub, such as `uoft-cs/cifar100`, or a local folder with "
        "the same files.",
    )
    config: str | None = Field(
        None, description="A configuration of that data set; null: the only one."
    )
    auxiliary: str = Field(
        "train", min_length=1, description="Split of the auxiliary part; `train[:1000]` is one too."
    )
    victims: str | None = Field(
        "test",
        min_length=1,
        description="Split of the victims; null: a share of each class of the other.",
    )

    def own_rows(self, part: Part) -> Rows | None:
        """Return the rows of a split."""
        split = self.auxiliary if part == "auxiliary" else self.victims
        if split is None:
            return None
        home = Home(
            name=self.name,
            repository=self.repository,
            config=self.config,
            folder="",
            rows={},
            ways=(
                f"a local folder with the files of {self.repository}, in the setting 'repository'",
                f"its parquet files in a data set '{self.name.replace('hub', 'table')}'",
            ),
            embedded="photos" if self.modality == "image" else "python-docs",
        )
        return HubRows(home, split, value=self.value_column, label=self.label)

    def places(self) -> set[str]:
        """Return the splits."""
        splits = (self.auxiliary, self.victims)
        return {f"{self.repository} {self.config or ''} {split}" for split in splits if split}
