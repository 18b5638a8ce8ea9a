"""Splits of a data set and files of a repository: from the Hugging Face hub or a mirror folder.

A mirror is a folder with the parquet files of the public homes, for machines without a
network. Nothing is downloaded where one is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lti.errors import LTIError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MIRROR_VARIABLE", "Home", "fetch_file", "from_environment", "read_hub", "read_mirror"]

MIRROR_VARIABLE = "LTI_DATA_MIRROR"
PROBE_SECONDS = 5.0

T = TypeVar("T")
Decode = Callable[[Iterator["pa.Table"], int], T]
"""Makes something of the rows of one file, given their number; wrong rows: a ValueError."""


@dataclass(frozen=True)
class Home:
    """Where a data set is read from.

    Attributes:
        name: of the data set, for messages.
        repository: on the hub.
        config: of that repository; None where there is only one.
        folder: below a mirror.
        rows: of each split that is read; another number is refused. Of one that is not
            named, any number is read from the hub.
        ways: beside a network, ways to have the data, for the message that it cannot be had.
        embedded: a data set that needs none of them.
    """

    name: str
    repository: str
    config: str | None
    folder: str
    rows: Mapping[str, int]
    ways: Sequence[str]
    embedded: str


def from_environment(variable: str) -> Path | None:
    """Return the folder that an environment variable names; None if it is unset or empty."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def read_mirror(mirror: Path, home: Home, split: str, decode: Decode[T]) -> list[T]:
    """Return what ``decode`` makes of each file of a split, in the order of the rows.

    Args:
        mirror: the folder that holds ``home.folder``.
        home: what is read.
        split: a key of ``home.rows``.
        decode: called once a file.

    Raises:
        LTIError: a file is missing, damaged or of other rows, or rows are missing.
    """
    folder = mirror / home.folder
    remedy = (
        f"Copy the parquet files of {home.repository} there again, or leave the mirror (setting "
        f"'mirror', environment variable {MIRROR_VARIABLE}) unset."
    )
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    if not shards:
        raise LTIError(f"{folder}: no file {split}-*.parquet in this mirror. {remedy}")
    totals = {int(found[1]) for path in shards if (found := re.search(r"-of-(\d+)\.", path.name))}
    for total in totals:
        for number in range(total):
            path = folder / f"{split}-{number:05d}-of-{total:05d}.parquet"
            if not path.exists():
                raise LTIError(f"{path}: this shard of the mirror is missing. {remedy}")
    parts, counts = [], []
    for path in shards:
        try:
            part, count = _read_shard(path, decode)
        except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
            raise LTIError(f"{path}: cannot be read ({error}). {remedy}") from None
        parts.append(part)
        counts.append(count)
    if sum(counts) != home.rows[split]:
        held = ", ".join(f"{path.name} {n}" for path, n in zip(shards, counts, strict=True))
        raise LTIError(
            f"{folder}: {sum(counts)} rows in the {split} split ({held}), expected "
            f"{home.rows[split]}. {remedy}"
        )
    return parts


def _read_shard(path: Path, decode: Decode[T]) -> tuple[T, int]:
    import pyarrow.parquet as pq

    count = pq.read_metadata(path).num_rows
    with _hub_switched_off():
        from datasets import load_dataset

        # Streaming copies nothing to the cache; the folder takes the lock file that is left.
        with tempfile.TemporaryDirectory(prefix="lti-") as cache:
            rows = load_dataset(
                "parquet", data_files=str(path), split="train", streaming=True, cache_dir=cache
            )
            batches = rows.with_format("arrow").iter(batch_size=1000)
            return decode(_counted(batches, count, path.name), count), count


def read_hub(home: Home, split: str, decode: Decode[T]) -> T:
    """Return what ``decode`` makes of a split from the hub or its local cache.

    Raises:
        LTIError: the split cannot be had, or is not as expected; the message has the ways out.
    """
    # Asking once, briefly: the client itself retries for half a minute or more.
    reachable, reason = _hub_answers()
    with contextlib.nullcontext() if reachable else _hub_switched_off():
        from datasets import load_dataset

        try:
            rows = load_dataset(home.repository, home.config, split=split)
            batches = rows.with_format("arrow").iter(batch_size=1000)
            count = home.rows.get(split, len(rows))
            return decode(_counted(batches, count, home.repository), count)
        except LTIError:
            raise  # of what is in the rows
        except Exception as error:  # whatever the client raises, the ways out are the same
            raise _cannot_be_had(home, home.repository, error, reason) from None


def fetch_file(home: Home, name: str) -> Path:
    """Return the local path of a file of the home's repository, downloaded where needed.

    Raises:
        LTIError: it cannot be had; the message has the ways out.
    """
    from huggingface_hub import hf_hub_download

    reachable, reason = _hub_answers()
    try:
        return Path(hf_hub_download(home.repository, name, local_files_only=not reachable))
    except Exception as error:  # as above
        raise _cannot_be_had(home, f"{name} of {home.repository}", error, reason) from None


def _cannot_be_had(home: Home, what: str, error: Exception, reason: str) -> LTIError:
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    ways = (
        "connect to the network once, after which the Hugging Face cache (HF_HOME) serves it",
        *home.ways,
    )
    listed = "; ".join(f"({number}) {way}" for number, way in enumerate(ways, 1))
    return LTIError(
        f"{home.name}: {what} cannot be loaded ({detail}{reason}). One of {len(ways)} ways: "
        f"{listed}. The data set '{home.embedded}' needs none of them."
    )


def _counted(batches: Iterator[pa.Table], count: int, where: str) -> Iterator[pa.Table]:
    """Pass batches on; raise a ValueError as soon as the rows are known not to be ``count``."""
    seen = 0
    for batch in batches:
        seen += batch.num_rows
        if seen > count:
            raise ValueError(f"{where} has more than {count} rows")
        yield batch
    if seen != count:
        raise ValueError(f"{where} has {seen} rows, expected {count}")


def _hub_answers() -> tuple[bool, str]:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # the client's classes differ between its versions
        return False, f"; the hub does not answer: {type(error).__name__}"
    return True, ""


@contextlib.contextmanager
def _hub_switched_off() -> Iterator[None]:
    """Keep ``datasets`` off the network for a while: local files and its cache only."""
    import datasets
    import huggingface_hub

    holders: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    try:
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value
