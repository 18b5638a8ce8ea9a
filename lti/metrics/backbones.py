"""Pretrained networks that metrics look through: where they come from, and how they are read.

Their weights are published by torchvision. They are fetched by a stage, checked, and kept
without their classifiers as safetensors with a card. Where they cannot be had, the stage
writes a card that says why, and the metrics that need them stay empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pickle
import shutil
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.files import digest_arrays, read_arrays, read_card, read_tensors, write_card, write_tensors
from lti.metrics.base import METRICS

if TYPE_CHECKING:
    import torch

__all__ = [
    "BACKBONES",
    "Backbone",
    "check_available",
    "fetch_backbone_weights",
    "missing_reasons",
    "read_backbone",
    "read_pickled_tensors",
    "unavailable_reason",
]

HOME = "https://download.pytorch.org/models"
TIMEOUT_SECONDS = 5.0
FETCH_AGAIN = "put it into $LTI_DATA_MIRROR/backbones and force the rule fetch_backbone"


@dataclass(frozen=True)
class Backbone:
    """Published weights.

    Attributes:
        file: the name under :data:`HOME`, which holds the beginning of the checksum.
        sha256: 64 hex digits.
        size: in bytes.
    """

    file: str
    sha256: str
    size: int

    @property
    def url(self) -> str:
        """Their public home."""
        return f"{HOME}/{self.file}"


BACKBONES: dict[str, Backbone] = {
    "alexnet": Backbone(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244_408_911,
    ),
    "vgg16": Backbone(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
    ),
}
"""ImageNet weights of torchvision (``IMAGENET1K_V1``), by the network's name there."""


class _CannotBeHad(Exception):
    """The public home gave no sound file; the message says why."""


def fetch_backbone_weights(name: str, output: Path, card: Path, *, required: bool) -> str:
    """Write a backbone's convolutions and its card; without them where they cannot be had.

    The file of ``$LTI_DATA_MIRROR/backbones`` is used if it is there, else the public home is
    asked once.

    Args:
        name: a key of :data:`BACKBONES`.
        output: safetensors to write; without tensors where they cannot be had.
        card: JSON to write, with ``available`` and ``reason``.
        required: whether it is an error that the weights cannot be had.

    Returns:
        Why they cannot be had, or "".

    Raises:
        LTIError: unknown name, a damaged file in the mirror, a file that is not a network's
            weights, or weights that are required and cannot be had.
    """
    backbone = _backbone(name)
    tensors: dict[str, torch.Tensor] = {}
    reason = ""
    try:
        with _sound_file(backbone) as file:
            state = read_pickled_tensors(file)
        tensors = {key: value for key, value in state.items() if key.startswith("features.")}
        if not tensors:
            raise LTIError(f"{backbone.file}: no entry features.*; expected weights of {name}.")
    except _CannotBeHad as error:
        reason = f"the weights {backbone.file} cannot be had ({error}); {FETCH_AGAIN}"
        if required:
            raise LTIError(f"{name}: {reason}. Or leave `metrics.require` empty.") from None
    facts = {
        "backbone": name,
        "available": not reason,
        "reason": reason,
        "sha256": backbone.sha256,
        "url": backbone.url,
    }
    write_tensors(output, tensors, facts)
    digest = digest_arrays({key: value.numpy() for key, value in tensors.items()})
    write_card(card, {**facts, "digest": digest})
    return reason


def read_pickled_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a PyTorch file of named tensors, on the CPU, without running code from it.

    Raises:
        LTIError: the file is damaged, or holds anything but named tensors.
    """
    import torch
    from safetensors import SafetensorError

    refusals = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)
    try:
        # The only place that reads pickles: these weights are published as nothing else.
        # `weights_only` builds tensors and plain containers, and refuses all other objects.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*refusals, SafetensorError) as error:  # torch goes by the file's ending
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise LTIError(
            f"{path}: refused: not a file of tensors alone ({detail}). Get it from its public home."
        ) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in state.items()
    ):
        raise LTIError(f"{path}: expected named tensors. Get it from its public home.")
    return dict(state)


def unavailable_reason(path: Path | str) -> str:
    """Return why the weights of a fetched file cannot be had, or "" where it has them."""
    return str(read_arrays(path)[1]["reason"])


def read_backbone(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the weights of a fetched file, by torchvision's names (``features.0.weight``)."""
    return read_tensors(path)[0]


def missing_reasons(metrics: Iterable[str], cards: Iterable[Path | str]) -> dict[str, str]:
    """Return why metrics have no values, for the footnotes of tables.

    Args:
        metrics: names of metrics.
        cards: of the backbones.
    """
    found = {card["backbone"]: card["reason"] for card in map(read_card, cards)}
    reasons = {name: found.get(METRICS[name].backbone, "") for name in metrics}
    return {name: reason for name, reason in reasons.items() if reason}


def check_available(names: Iterable[str], folder: Path | str) -> None:
    """Check, before work starts, that metrics which must have values can have them.

    A card that says that weights cannot be had, where they now can, is removed: its rule
    then runs again.

    Args:
        names: metrics, of which some need a backbone.
        folder: where fetched backbones are: ``<name>.json``.

    Raises:
        LTIError: weights are neither fetched, nor in the mirror, nor does their public home
            answer.
    """
    needed = sorted({METRICS[name].backbone for name in names} - {""})
    problems = []
    for name in needed:
        card = Path(folder) / f"{name}.json"
        if card.exists() and read_card(card)["available"]:
            continue
        backbone = _backbone(name)
        local = _in_mirror(backbone)
        try:
            if local is None:
                with _open(backbone, method="HEAD"):
                    pass
            card.unlink(missing_ok=True)
        except _CannotBeHad as error:
            problems.append(f"{backbone.file} ({error})")
    if problems:
        raise LTIError(
            f"metrics.require: the weights {', '.join(problems)} cannot be had. Put them into "
            f"$LTI_DATA_MIRROR/backbones, connect to the network, or leave `require` empty."
        )


def _backbone(name: str) -> Backbone:
    if name not in BACKBONES:
        raise LTIError(
            f"unknown backbone {name!r}; known: {', '.join(sorted(BACKBONES))}. Use one of these."
        )
    return BACKBONES[name]


def _in_mirror(backbone: Backbone) -> Path | None:
    mirror = os.environ.get("LTI_DATA_MIRROR")
    path = Path(mirror) / "backbones" / backbone.file if mirror else None
    return path if path is not None and path.exists() else None


@contextlib.contextmanager
def _sound_file(backbone: Backbone) -> Iterator[Path]:
    """Yield a file with the published checksum."""
    local = _in_mirror(backbone)
    if local is not None:
        with local.open("rb") as file:
            problem = _problem(file, backbone)
        if problem:
            raise LTIError(f"{local}: {problem}. Copy {backbone.url} there again.")
        yield local
        return
    with tempfile.NamedTemporaryFile(prefix="lti-", suffix=".pth") as copy:
        with _open(backbone) as answer:
            try:
                shutil.copyfileobj(answer, copy, 2**20)
            except (OSError, http.client.HTTPException) as error:
                raise _CannotBeHad(f"the download broke off: {error}") from None
        copy.seek(0)
        if problem := _problem(copy, backbone):
            raise _CannotBeHad(f"the download {problem}")
        yield Path(copy.name)


def _problem(file: Any, backbone: Backbone) -> str:
    """Return what is wrong with an open file's content, or ""."""
    size = os.fstat(file.fileno()).st_size
    if size != backbone.size:
        return f"has {size:,} bytes; expected {backbone.size:,}"
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != backbone.sha256:
        return f"has SHA-256 {found}; expected {backbone.sha256}"
    return ""


@contextlib.contextmanager
def _open(backbone: Backbone, *, method: str = "GET") -> Iterator[IO[bytes]]:
    """Ask the public home once, briefly."""
    request = urllib.request.Request(backbone.url, method=method)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise _CannotBeHad(f"{backbone.url} does not answer: {error}") from None
    with answer:
        yield answer
