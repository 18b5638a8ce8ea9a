"""What every FL model states, and how one is stored: safetensors with a card inside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lti.data.samples import Modality, Samples
from lti.errors import LTIError
from lti.files import digest_arrays, read_tensors, write_card, write_tensors
from lti.gradients.layout import matching_names
from lti.imports import check_allowed
from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = [
    "FL_MODELS",
    "FLModel",
    "FLTask",
    "attacked",
    "calibrated",
    "load_fl_model",
    "network_digest",
    "save_fl_model",
]


@dataclass(frozen=True)
class FLTask:
    """What a network is for: facts of a data set."""

    classes: int
    vocabulary: int | None = None
    """Number of tokens; None: images."""
    length: int | None = None
    """Tokens of a sample."""
    padding: int | None = None
    """The token that fills short texts, where there is one."""

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> FLTask:
        """Return the task of a prepared data set, from its card."""
        text = card.get("text", {})
        facts = {key: text.get(key) for key in ("vocabulary", "length", "padding")}
        return cls(classes=len(card["class_names"]), **facts)

    @property
    def modality(self) -> Modality:
        """What a sample is."""
        return "image" if self.vocabulary is None else "text"


class FLModel(Settings):
    """An architecture and how its weights are drawn; ``build`` makes the network.

    A network takes images, float32 ``(b, 3, 32, 32)`` in [0, 1]; one for text takes tokens,
    int64 ``(b, T)``, or, where its input is of a floating-point type, the tokens' embeddings,
    ``(b, T, d)``.
    """

    modality: ClassVar[Modality] = "image"
    label_is_sample: ClassVar[bool] = False
    """Whether the loss compares with the sample itself, as a language model's does."""

    seed: int = Field(0, description="Root seed of the initial weights.")
    attacked_parameters: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description=(
            "Names of the parameters whose gradients the attacker sees; `*` and `?` match as in "
            "file names."
        ),
    )

    def build(self, task: FLTask) -> nn.Module:
        """Return the network with initial weights, in evaluation mode, float32, on the CPU."""
        network = self.architecture(task)
        self.initialise(network)
        return network.eval()

    @abstractmethod
    def architecture(self, task: FLTask) -> nn.Module:
        """Return the network, float32, on the CPU; its weights do not matter.

        Raises:
            LTIError: it cannot be made for this task.
        """

    @abstractmethod
    def initialise(self, network: nn.Module) -> dict[str, Any]:
        """Write the initial weights into a network of this architecture.

        Returns:
            what the card says of them: ``{}`` if they are drawn; else ``pretrained`` and, where
            there is something to know, a ``note``.
        """

    @abstractmethod
    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the client's training loss, mean over the batch: a scalar.

        Args:
            output: what the network returns for a batch.
            label: int64 ``(b,)``, or the tokens, ``(b, T)``, where ``label_is_sample``;
                instead of integers also their probabilities, with one more dimension.
        """

    def loss_at(
        self,
        network: nn.Module,
        weights: Mapping[str, torch.Tensor],
        fixed: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of inputs under given parameters, for derivatives.

        Args:
            network: the architecture.
            weights: parameters that may be differentiated, by name.
            fixed: all others: no gradient is asked of them.
            x: ``(b, ...)``.
            label: as of ``loss``.
        """
        from torch.func import functional_call

        return self.loss(functional_call(network, {**fixed, **weights}, (x,)), label)

    @property
    def calibration_samples(self) -> int:
        """How many of the auxiliary set's first samples its weights depend on."""
        return 0

    def withheld(self, network: nn.Module) -> tuple[str, ...]:
        """Return names of parameters that the attacker sees only where they are named whole."""
        return ()

    def objects(self) -> tuple[str, ...]:
        """Return the names, ``module:name``, of the user's objects that it calls."""
        return ()

    def files(self) -> tuple[str, ...]:
        """Return the user's files that it is made of: with another content it is another model."""
        return ()

    def labels(self, samples: Samples) -> np.ndarray:
        """Return what the loss compares with: int64 ``(n,)``, or tokens ``(n, T)``."""
        return samples.value.astype("int64") if self.label_is_sample else samples.label

    def token_embedding(self, network: nn.Module) -> torch.Tensor:
        """Return the tokens' embeddings, ``(vocabulary, d)``, as the network takes them.

        Raises:
            LTIError: the network is not one for text.
        """
        raise LTIError(f"{self.name} has no token embedding; expected an FL model for text.")


FL_MODELS: Registry[FLModel] = Registry(
    "fl_models",
    modules={
        "bert": "lti.fl_models.bert",
        "factory": "lti.fl_models.own",
        "lenet": "lti.fl_models.lenet",
        "program": "lti.fl_models.own",
        "resnet20": "lti.fl_models.resnet20",
        "text-factory": "lti.fl_models.own",
        "transformer3": "lti.fl_models.transformer3",
    },
)


def attacked(model: FLModel, network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters whose gradients the attacker sees, in the network's order.

    Raises:
        LTIError: one of ``attacked_parameters`` matches no parameter.
    """
    parameters = dict(network.named_parameters())
    names = matching_names(
        parameters, model.attacked_parameters, where=f"{model.name}.attacked_parameters"
    )
    withheld = {*model.withheld(network)} - {*model.attacked_parameters}
    names = [name for name in names if name not in withheld]
    return {name: parameters[name] for name in names}


def network_digest(network: nn.Module) -> str:
    """Return 16 hex digits over a network's parameters and buffers."""
    return digest_arrays({k: v.cpu().numpy() for k, v in network.state_dict().items()})


def save_fl_model(
    path: Path | str,
    card_path: Path | str,
    model: FLModel,
    task: FLTask,
    *,
    x: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Make a model's initial weights, write them with their card, and return the card.

    The card states architecture, settings, task, numbers of parameters, whether pretrained, and
    a digest.

    Args:
        path: where the weights go.
        card_path: where the card goes.
        model: the settings.
        task: what the network is for.
        x: ``(n, ...)``, in the network's input range: the samples that BatchNorm's statistics
            are made from, where there are ``calibration_samples``.

    Raises:
        LTIError: the model is not for such samples, or ``attacked_parameters`` are not there.
    """
    if model.modality != task.modality:
        raise LTIError(
            f"FL model {model.name} got a data set of modality {task.modality}; expected "
            f"{model.modality}. Use another FL model."
        )
    network = model.architecture(task)
    seen = attacked(model, network)
    card: dict[str, Any] = {
        "fl_model": model.canonical(),
        "task": asdict(task),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "attacked": sum(parameter.numel() for parameter in seen.values()),
        "pretrained": False,
        "source": model.source,
        **model.initialise(network),
    }
    if model.files():  # with other code, the same weights are another model
        content = (Path(file).read_bytes() for file in model.files())
        card["files"] = [sha256(part).hexdigest()[:16] for part in content]
    if x is not None:
        card["calibrated"] = {"layers": calibrated(model, network, x), "samples": len(x)}
    write_tensors(path, dict(network.state_dict()), card)
    card["digest"] = network_digest(network)
    write_card(card_path, card)
    return card


def calibrated(model: FLModel, network: nn.Module, x: torch.Tensor) -> int:
    """Set BatchNorm's statistics to those of samples, and return the number of layers.

    Raises:
        LTIError: there is no such layer.
    """
    from lti.fl_models.batch_norm import set_statistics

    if not (layers := set_statistics(network, x)):
        raise LTIError(
            f"{model.name}.calibrate: got {model.calibration_samples}, and the network has no "
            f"BatchNorm layer whose statistics could be set (in a saved program they are part of "
            f"the graph); expected 0. Change it."
        )
    return layers


def load_fl_model(
    path: Path | str, *, device: torch.device | str = "cpu"
) -> tuple[FLModel, nn.Module]:
    """Read a stored model.

    Returns:
        its settings (for the loss) and the network in evaluation mode on ``device``, with
        parameters that ask for no gradient (:mod:`lti.gradients` differentiates
        functionally).

    Raises:
        LTIError: the file is missing, damaged, holds another architecture's weights, or names
            code of the user's that is not allowed (:func:`lti.imports.check_allowed`).
    """
    tensors, card = read_tensors(path)
    if not {"fl_model", "task"} <= set(card):
        raise LTIError(f"{path}: not an FL model. Give the file that draw-fl-model wrote.")
    model = FL_MODELS.parse_stored(card["fl_model"], where=str(path))
    check_allowed(model.objects(), where=str(path))
    network = model.architecture(FLTask(**card["task"]))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise LTIError(
            f"{path}: its weights do not fit {model.name} ({error}). Delete it and run the "
            f"same command again."
        ) from None
    return model, network.requires_grad_(False).eval().to(device)
