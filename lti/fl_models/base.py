"""What every FL model states, and how one is stored: safetensors with a card inside."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.errors import LTIError
from lti.files import digest_arrays, read_tensors, write_json, write_tensors
from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FL_MODELS", "FLModel", "load_fl_model", "network_digest", "save_fl_model"]


class FLModel(Settings):
    """An architecture and how its weights are drawn; ``build`` makes the network."""

    seed: int = Field(0, description="Root seed of the initial weights.")

    @abstractmethod
    def build(self, num_classes: int) -> nn.Module:
        """Return the network with initial weights, in evaluation mode, float32, on the CPU."""

    @abstractmethod
    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the client's training loss, mean over the batch: a scalar.

        Args:
            output: what the network returns for a batch.
            label: int64 ``(b,)``.
        """


FL_MODELS: Registry[FLModel] = Registry(
    "fl_models",
    modules={"lenet": "lti.fl_models.lenet", "resnet20": "lti.fl_models.resnet20"},
)


def network_digest(network: nn.Module) -> str:
    """Return 16 hex digits over a network's parameters and buffers."""
    return digest_arrays({k: v.cpu().numpy() for k, v in network.state_dict().items()})


def save_fl_model(
    path: Path | str, card_path: Path | str, model: FLModel, num_classes: int
) -> dict[str, Any]:
    """Draw a model's weights, write them with their card, and return the card.

    The card states architecture, settings, parameters, whether pretrained, and a digest.
    """
    network = model.build(num_classes)
    tensors = dict(network.state_dict())
    card: dict[str, Any] = {
        "fl_model": model.canonical(),
        "num_classes": num_classes,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "pretrained": False,
        "source": model.source,
    }
    write_tensors(path, tensors, card)
    card["digest"] = network_digest(network)
    write_json(card_path, card)
    return card


def load_fl_model(
    path: Path | str, *, device: torch.device | str = "cpu"
) -> tuple[FLModel, nn.Module]:
    """Read a stored model.

    Returns:
        its settings (for the loss) and the network in evaluation mode on ``device``, with
        parameters that ask for no gradient (:mod:`lti.gradients` differentiates
        functionally).

    Raises:
        LTIError: the file is missing, damaged, or holds another architecture's weights.
    """
    tensors, card = read_tensors(path)
    if not {"fl_model", "num_classes"} <= set(card):
        raise LTIError(f"{path}: not an FL model. Give the file that draw-fl-model wrote.")
    model = FL_MODELS.parse(card["fl_model"], where=str(path))
    network = model.build(card["num_classes"])
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise LTIError(
            f"{path}: its weights do not fit {model.name} ({error}). Delete it and run the "
            f"same command again."
        ) from None
    return model, network.requires_grad_(False).eval().to(device)
