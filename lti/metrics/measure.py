"""The metric stage: one tidy row per victim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.checksums import read_checked, write_checked
from lti.errors import LTIError
from lti.metrics.base import DEFAULT_METRICS, METRICS, Metric
from lti.metrics.matching import match_victims, victims_key

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from lti.data.samples import Modality
    from lti.metrics.tokens import Text

__all__ = ["RUN_COLUMNS", "VICTIM_COLUMNS", "measure", "read_metrics", "write_metrics"]

RUN_COLUMNS = (
    "dataset",
    "fl_model",
    "batch_size",
    "defense",
    "attack",
    "variant",
    "auxiliary",
    "aux_size",
    "aux_seed",
    "beta",
    "seed",
)
"""What every victim of one run shares; taken from the reconstructions' metadata. The auxiliary
set's identifier, size, seed and share like the victims are empty where there is none."""

OPTIONAL_COLUMNS = dict.fromkeys(("variant", "auxiliary", "aux_size", "aux_seed", "beta"), "")

VICTIM_COLUMNS = ("victim", "index", "label")
"""The position among the victims, the index in the source split, the class."""


def measure(
    victims: Mapping[str, npt.NDArray[Any]],
    reconstructions: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, Any],
    *,
    metrics: Sequence[str | Metric] | None = None,
    backbones: Mapping[str, Path] | None = None,
    text: Text | None = None,
) -> pd.DataFrame:
    """Compare every reconstruction with its victim.

    Inside a batch the reconstructions are first matched to the victims
    (:func:`lti.metrics.matching.match_victims`); all metrics of images clamp to [0, 1].

    Args:
        victims: ``image`` uint8 (n, 3, 32, 32) or ``token`` int32 (n, length), ``label`` and
            ``index`` int64 (n,).
        reconstructions: ``reconstruction`` float32 (n_batches, B, 3, 32, 32) or int32
            (n_batches, B, length).
        metadata: of the reconstructions; the keys of :data:`RUN_COLUMNS`, of which
            ``variant`` and what is of the auxiliary set may be absent or empty.
        metrics: names of registered metrics or metrics with settings of their own; by
            default those of the victims' modality in
            :data:`lti.metrics.base.DEFAULT_METRICS`.
        backbones: fetched files of the backbones of metrics that are given by name.
        text: what is known of the tokens; needed by text alone.

    Returns:
        One row per covered victim, in the victims' order: :data:`RUN_COLUMNS`,
        :data:`VICTIM_COLUMNS`, then one column per metric: NaN throughout where its
        backbone's weights cannot be had.

    Raises:
        LTIError: metadata missing, arrays that do not fit, values that are not finite, a
            metric of another modality, or a backbone or ``text`` not given.
    """
    import numpy as np
    import pandas as pd

    run = {**OPTIONAL_COLUMNS, **metadata}
    missing = [key for key in RUN_COLUMNS if key not in run]
    if missing:
        raise LTIError(
            f"the reconstructions' metadata lacks {', '.join(missing)}; expected all of "
            f"{', '.join(RUN_COLUMNS)}. Run the attack again with this version."
        )
    key = victims_key(victims)
    modality: Modality = "image" if key == "image" else "text"
    chosen = [
        _by_name(entry, backbones or {}) if isinstance(entry, str) else entry
        for entry in (DEFAULT_METRICS[modality] if metrics is None else metrics)
    ]
    context = _context(modality, chosen, text)
    truth, matched = match_victims(victims, reconstructions)
    batch_size = reconstructions["reconstruction"].shape[1]
    if run["batch_size"] != batch_size:
        raise LTIError(
            f"metadata says batch size {run['batch_size']!r}, the reconstructions hold batches "
            f"of {batch_size}; expected the same. Run the attack again."
        )
    n = len(truth)
    columns: dict[str, Any] = {key: run[key] for key in RUN_COLUMNS}
    columns["victim"] = range(n)
    for name in ("index", "label"):
        if name not in victims or len(victims[name]) != len(victims[key]):
            raise LTIError(
                f"the victims need an array {name!r} with one value per {key}; got arrays "
                f"{sorted(victims)}. Write the victims again."
            )
        columns[name] = victims[name][:n]
    for metric in chosen:
        values = np.nan if metric.unavailable() else metric(truth, matched, *context)
        columns[metric.name] = values
    return pd.DataFrame(columns)


def _context(modality: Modality, metrics: Sequence[Metric], text: Text | None) -> tuple[Text, ...]:
    """Return what metrics get beside the samples, and refuse those of another modality."""
    for metric in metrics:
        if metric.modality != modality:
            raise LTIError(
                f"metric {metric.name} compares samples of modality {metric.modality}; the victims "
                f"are of modality {modality}. Use metrics of theirs, such as "
                f"{', '.join(DEFAULT_METRICS[modality])}."
            )
    if modality == "image":
        return ()
    if text is None:
        raise LTIError(
            "text metrics need to know of the tokens; got nothing. Pass the data set's tokenizer "
            "with --tokenizer."
        )
    return (text,)


def _by_name(name: str, backbones: Mapping[str, Path]) -> Metric:
    needed = METRICS[name].backbone
    if needed and needed not in backbones:
        given = ", ".join(sorted(backbones)) or "none"
        raise LTIError(
            f"metric {name} needs the backbone {needed}; got {given}. Fetch it with "
            f"`lti fetch-backbone` and pass the file with --backbone."
        )
    settings = {"weights": backbones[needed]} if needed else {}
    return METRICS.parse({"use": name, **settings})


def write_metrics(path: Path | str, frame: pd.DataFrame) -> None:
    """Write the rows of :func:`measure` as CSV with a checksum: equal rows give equal bytes."""
    write_checked(path, frame.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


def read_metrics(path: Path | str) -> pd.DataFrame:
    """Read what :func:`write_metrics` wrote.

    Raises:
        LTIError: the file is missing, damaged or not such a table.
    """
    from io import StringIO

    import pandas as pd

    remedy = "Delete it and run the same command again."
    # Names stay text: 'none' and an empty auxiliary set are values here, not missing data.
    text = dict.fromkeys(("dataset", "fl_model", "defense", "attack", "variant", "auxiliary"), str)
    try:
        frame = pd.read_csv(
            StringIO(read_checked(path)),
            dtype=text,
            keep_default_na=False,
            na_values={name: [""] for name in METRICS},
        )
    except ValueError as error:
        raise LTIError(f"{path}: cannot be read as a table ({error}). {remedy}") from None
    required = [key for key in RUN_COLUMNS if key not in OPTIONAL_COLUMNS]
    missing = [key for key in (*required, *VICTIM_COLUMNS) if key not in frame]
    if missing:
        raise LTIError(f"{path}: lacks the columns {', '.join(missing)}. {remedy}")
    return frame
