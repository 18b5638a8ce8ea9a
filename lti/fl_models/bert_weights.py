"""The public weights of BERT: where they come from, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lti.errors import LTIError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["HUB_NAME", "WeightsCannotBeHad", "find_weights", "load_weights"]

HUB_NAME = "google-bert/bert-base-uncased"
FILE = "model.safetensors"
PROBE_SECONDS = 5.0
# TensorFlow's names of a normalisation's parameters, which the published file has kept.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class WeightsCannotBeHad(Exception):
    """The message says where they were looked for."""


def find_weights() -> Path:
    """Return the published file, a local copy first.

    In this order: ``$LTI_DATA_MIRROR/models/bert-base-uncased``, the Hugging Face cache, the
    Hugging Face hub, which is asked once, briefly.

    Raises:
        WeightsCannotBeHad: it is in none of them.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import get_session

    mirror = os.environ.get("LTI_DATA_MIRROR")
    if mirror and (path := Path(mirror) / "models" / HUB_NAME.split("/")[1] / FILE).exists():
        return path
    # Whatever the client raises, the ways out are the same.
    try:
        return Path(hf_hub_download(HUB_NAME, FILE, local_files_only=True))
    except Exception:
        pass
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        return Path(hf_hub_download(HUB_NAME, FILE))
    except Exception:
        raise WeightsCannotBeHad(
            f"{FILE} of {HUB_NAME} is neither in $LTI_DATA_MIRROR/models/"
            f"{HUB_NAME.split('/')[1]} nor in the Hugging Face cache, and the hub does not answer"
        ) from None


def load_weights(path: Path, network: nn.Module) -> None:
    """Write the published weights into a network; what the file has besides is left out.

    Args:
        path: a safetensors file with ``bert.*`` tensors.
        network: whose parameters ``bert.*`` are replaced, all of them.

    Raises:
        LTIError: the file cannot be read, or its tensors are not those of the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = f"Get it from {HUB_NAME} again."
    try:
        found = {_renamed(name): value for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise LTIError(f"{path}: cannot be read ({error}). {remedy}") from None
    expected: dict[str, torch.Tensor] = {
        name: value for name, value in network.named_parameters() if name.startswith("bert.")
    }
    for name, value in expected.items():
        if name not in found or found[name].shape != value.shape:
            got = f"shape {tuple(found[name].shape)}" if name in found else "nothing"
            raise LTIError(
                f"{path}: got {got} for {name}; expected shape {tuple(value.shape)}. {remedy}"
            )
    network.load_state_dict({name: found[name] for name in expected}, strict=False)


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
