"""Labelled rows that a user brings, read only as far as they are asked for."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lti.data.division import Label
from lti.data.hub import Home, read_hub
from lti.errors import LTIError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["HubRows", "Rows", "TableRows", "files_digest", "files_of"]

Use = Callable[[int, Any], None]
"""Takes a cell and its number among those that are visited; wrong ones: a ValueError."""

BATCH = 256
"""Rows of a table in memory at a time."""

SHOWN = 10
INTEGER = re.compile(r"-?[0-9]{1,18}")


class Rows(ABC):
    """Rows in a fixed order, each a value and a label.

    Attributes:
        where: what they are rows of, for messages.
    """

    where: str

    @abstractmethod
    def labels(self) -> tuple[list[Label], tuple[str, ...] | None]:
        """Return the labels of all rows, and the names of the classes if the source states them.

        Raises:
            LTIError: they cannot be read.
        """

    @abstractmethod
    def visit(self, rows: np.ndarray, use: Use) -> None:
        """Call ``use`` with the values of some rows, in order.

        Args:
            rows: int64 (n,), sorted.
            use: called n times.

        Raises:
            LTIError: values cannot be read, or ``use`` refuses some; the first ten are named.
        """

    def content(self) -> str:
        """Return a digest that changes when files of the user do; "": there are none."""
        return ""


class Refusals:
    """Collects what ``use`` refuses, up to ten."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lines: list[str] = []

    def call(self, use: Use, number: int, cell: Any, place: str) -> None:
        """Call ``use``; raise what is collected when there is enough of it."""
        try:
            use(number, cell)
        except ValueError as error:
            self._lines.append(f"{place} ({error})")
            if len(self._lines) == SHOWN:
                self.end()

    def end(self) -> None:
        """Raise an :class:`LTIError` if something was refused."""
        if self._lines:
            more = "; there may be more" if len(self._lines) == SHOWN else ""
            raise LTIError(
                f"{self._where}: cannot be used: {'; '.join(self._lines)}{more}. Replace or remove "
                f"them."
            )


class ArrowRows(Rows):
    """Rows of Arrow tables.

    Args:
        where: what they are rows of, for messages.
        value: column of the values.
        label: column of the labels.
    """

    def __init__(self, where: str, *, value: str, label: str) -> None:
        self.where, self._value, self._label = where, value, label

    @abstractmethod
    def _consume(self, column: str, use: Callable[[Iterator[pa.Table]], None]) -> None:
        """Call ``use`` with all batches, which have at least this column."""

    def labels(self) -> tuple[list[Label], tuple[str, ...] | None]:
        """Return the labels, and the names that a ``ClassLabel`` of ``datasets`` has."""
        labels: list[Label] = []
        names: list[tuple[str, ...] | None] = []

        def use(batches: Iterator[pa.Table]) -> None:
            for batch in batches:
                if not names:
                    names.append(_class_names(batch.schema, self._label))
                labels.extend(_column(batch, self._label, self.where).to_pylist())

        self._consume(self._label, use)
        return labels, names[0] if names else None

    def visit(self, rows: np.ndarray, use: Use) -> None:
        """Call ``use`` with cells of the value's column."""
        refusals = Refusals(self.where)

        def consume(batches: Iterator[pa.Table]) -> None:
            first = 0
            for batch in batches:
                begin, end = np.searchsorted(rows, [first, first + batch.num_rows])
                wanted = rows[begin:end] - first
                cells = _column(batch, self._value, self.where).take(wanted).to_pylist()
                for number, cell in enumerate(cells, int(begin)):
                    refusals.call(use, number, cell, f"row {rows[number]}")
                first += batch.num_rows

        self._consume(self._value, consume)
        refusals.end()


class TableRows(ArrowRows):
    """Rows of parquet or CSV files, one file after another.

    Args:
        files: their paths, ``.parquet`` or ``.csv`` with a header. Labels of CSV are integers
            if all of them look so, or else texts.
        value: column of the values.
        label: column of the labels.
    """

    def __init__(self, files: Sequence[Path], *, value: str, label: str) -> None:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        super().__init__(f"{files[0]}{more}", value=value, label=label)
        self._files = files

    def _consume(self, column: str, use: Callable[[Iterator[pa.Table]], None]) -> None:
        use(batch for path in self._files for batch in _batches(path, column))

    def labels(self) -> tuple[list[Label], tuple[str, ...] | None]:
        """Return the labels, and the names that the schema of parquet states."""
        labels, names = super().labels()
        if self._files[0].suffix == ".csv" and all(INTEGER.fullmatch(str(one)) for one in labels):
            labels = [int(one) for one in labels]
        return labels, names

    def content(self) -> str:
        """Return a digest over the files' names, sizes and times."""
        return files_digest((path.name, path) for path in self._files)


class HubRows(ArrowRows):
    """Rows of a split on the Hugging Face hub, or of a local folder laid out like one there.

    Args:
        home: where it is.
        split: its name; slices such as ``train[:1000]`` too.
        value: column of the values.
        label: column of the labels.
    """

    def __init__(self, home: Home, split: str, *, value: str, label: str) -> None:
        super().__init__(f"{home.repository}, split {split}", value=value, label=label)
        self._home, self._split = home, split

    def _consume(self, column: str, use: Callable[[Iterator[pa.Table]], None]) -> None:
        def decode(batches: Iterator[pa.Table], count: int) -> None:
            from datasets.table import embed_table_storage

            # What a table holds only the path of, a folder of images say, is read.
            known = (
                embed_table_storage(batch.select([column]))
                if column in batch.schema.names
                else batch
                for batch in batches
            )
            use(known)

        read_hub(self._home, self._split, decode)

    def content(self) -> str:
        """Return a digest over the files of a local folder."""
        folder = Path(self._home.repository)
        return files_digest(files_of(folder)) if folder.is_dir() else ""


def _column(batch: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in batch.schema.names:
        raise _no_column(name, batch.schema.names, where)
    return batch.column(name)


def _no_column(name: str, known: Sequence[str], where: str) -> LTIError:
    return LTIError(
        f"{where}: no column {name!r}; expected one of {', '.join(known)}. Name the column in the "
        f"data set's settings."
    )


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    if b"huggingface" not in (schema.metadata or {}):
        return None
    from datasets import ClassLabel, Features

    feature = Features.from_arrow_schema(schema).get(label)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _batches(path: Path, column: str) -> Iterator[pa.Table]:
    """Yield one column of a file."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".csv":
            texts = csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()})
            rows = csv.ParseOptions(newlines_in_values=True)
            with csv.open_csv(path, parse_options=rows, convert_options=texts) as reader:
                yield from (pa.Table.from_batches([batch]) for batch in reader)
            return
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise _no_column(column, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(BATCH, columns=[column]):
                yield pa.Table.from_batches([batch])
    except pa.ArrowKeyError:
        raise _no_column(column, ["those of its header"], str(path)) from None
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise LTIError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}). Expected a file of "
            f"{'comma-separated values' if path.suffix == '.csv' else 'parquet'}. Write it again."
        ) from None


def files_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files below a folder as relative names and paths, sorted by name.

    What begins with a dot is left out. Links to files are followed, the folder itself may be
    one, and a link to a folder below it is refused, since it could lead back.

    Raises:
        LTIError: the folder cannot be read, or has a link to a folder.
    """

    def fail(error: OSError) -> None:
        raise LTIError(f"{error.filename}: cannot be read ({error.strerror}). Correct the path.")

    found = []
    base = os.fspath(folder)
    # Plain strings: paths as objects take three times as long.
    for where, folders, files in os.walk(base, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(link := os.path.join(where, name)):
                raise LTIError(
                    f"{link}: a link to a folder; expected files and folders. Put its files there."
                )
        inner = "" if where == base else os.path.relpath(where, base) + "/"
        shown = [name for name in files if not name.startswith(".")]
        found += [(inner + name, os.path.join(where, name)) for name in shown]
    yield from sorted(found)


def files_digest(files: Iterable[tuple[str, Path | str]]) -> str:
    """Return 16 hex digits over files' relative names, sizes and times of modification.

    Raises:
        LTIError: a file is not there.
    """
    state = hashlib.sha256()
    for name, path in files:
        try:
            facts = os.stat(path)
        except OSError as error:
            raise LTIError(
                f"{path}: cannot be read ({error.strerror}). Replace or remove it."
            ) from None
        state.update(os.fsencode(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n"))
    return state.hexdigest()[:16]
