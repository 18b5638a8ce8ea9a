"""A user's own network: what a function makes, or a saved program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from lti.data.samples import Modality
from lti.errors import LTIError
from lti.fl_models.base import FL_MODELS, FLModel, FLTask
from lti.imports import OBJECT_PATTERN, import_object, object_module
from lti.registry import described
from lti.seeding import derive_seed

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FactoryModel", "OwnModel", "ProgramModel", "TextFactoryModel"]

ObjectName = Annotated[str, Field(pattern=f"^{OBJECT_PATTERN}$")]


class OwnModel(FLModel):
    """Base of FL models that this project does not define."""

    loss_function: ObjectName | None = Field(
        None,
        description="`package.module:function` of (logits, label), which returns the mean loss of "
        "a batch; null: the cross-entropy.",
    )
    calibrate: int = Field(
        0,
        ge=0,
        # One sample has no variance where a layer sees a single pixel.
        description="Set BatchNorm's running statistics to those of the first so many auxiliary "
        "samples, as in a network that is being trained; 0: leave them.",
    )

    def objects(self) -> tuple[str, ...]:
        """Return the names of the user's objects."""
        names = (getattr(self, "factory", None), self.loss_function)
        return tuple(name for name in names if name is not None)

    def files(self) -> tuple[str, ...]:
        """Return the modules of the user's objects, as far as they are found."""
        found = map(object_module, self.objects())
        return tuple(dict.fromkeys(file for file in found if file is not None))

    @property
    def calibration_samples(self) -> int:
        """Auxiliary samples that its weights depend on."""
        return self.calibrate

    def initialise(self, network: nn.Module) -> dict[str, Any]:
        """Leave the weights as they were made."""
        return {}

    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return what ``loss_function`` returns."""
        from torch.nn import functional

        if self.loss_function is None:
            return functional.cross_entropy(output, label)
        function = import_object(self.loss_function, where=f"{self.name}.loss_function")
        loss: torch.Tensor = function(output, label)
        return loss


class _ImageModel(OwnModel):
    mean: tuple[float, float, float] = Field(
        (0.0, 0.0, 0.0), description="Taken off the pixels in [0, 1], per channel."
    )
    std: tuple[float, float, float] = Field(
        (1.0, 1.0, 1.0), description="What pixels are then divided by, per channel."
    )
    side: int | None = Field(
        None,
        ge=1,
        description="Height and width that the network takes: samples are interpolated to it, as "
        "part of the network; null: their own.",
    )

    @model_validator(mode="after")
    def _check_calibration(self) -> _ImageModel:
        if self.calibrate == 1:
            raise described(["calibrate: got 1, of which there is no variance; allowed: 0 or 2"])
        return self

    @model_validator(mode="after")
    def _check_std(self) -> _ImageModel:
        if min(self.std) <= 0:
            raise described([f"std: got {list(self.std)}; allowed: above 0"])
        return self

    def network(self, task: FLTask) -> nn.Module:
        """Return the user's network."""
        raise NotImplementedError

    def architecture(self, task: FLTask) -> nn.Module:
        """Return the network behind resizing and normalisation.

        Raises:
            LTIError: it cannot be made.
        """
        from lti.fl_models.client_network import ImageClassifier

        return ImageClassifier(self.network(task), mean=self.mean, std=self.std, side=self.side)


class _Made(FLModel):
    """What a function of the user makes."""

    factory: ObjectName = Field(
        description="`package.module:function` that returns the network, a `torch.nn.Module`."
    )
    arguments: Mapping[str, Any] = Field(
        default={}, description="Keyword arguments of that function."
    )

    def made(self) -> nn.Module:
        """Call the function, with torch's draws from the seed, and return the network.

        Raises:
            LTIError: it cannot be imported, fails, or returns something else.
        """
        import torch
        from torch import nn

        where = f"{self.name}.factory"
        function = import_object(self.factory, where=where)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "fl_model", self.name))
            try:
                network = function(**self.arguments)
            except LTIError:
                raise
            except Exception as error:
                raise LTIError(
                    f"{where}: {self.factory} with arguments {dict(self.arguments)} failed with "
                    f"{type(error).__name__}: {error}. Correct the arguments or the function."
                ) from error
        if not isinstance(network, nn.Module):
            raise LTIError(
                f"{where}: {self.factory} returned {type(network).__name__}; expected a "
                f"torch.nn.Module. Return the network."
            )
        return network.float().cpu()


@FL_MODELS.register("factory", source="the user")
class FactoryModel(_ImageModel, _Made):
    """A network for images that a function makes.

    It takes float32 ``(b, 3, side, side)``, normalised, and returns ``(b, classes)`` logits, or an
    object that has them as ``logits``. The function is called in every process that needs the
    network, its weights are stored once.
    """

    def network(self, task: FLTask) -> nn.Module:
        """Return what the function makes."""
        return self.made()


@FL_MODELS.register("text-factory", source="the user")
class TextFactoryModel(OwnModel, _Made):
    """A text classifier that a function makes, with the interface of ``transformers``.

    It takes ``input_ids``, int64 ``(b, T)``, or ``inputs_embeds``, ``(b, T, d)``, and returns an
    object with ``logits``, ``(b, classes)``. The attacker is not given the gradients of tables of
    token embeddings, which name the tokens, unless ``attacked_parameters`` says so.
    """

    modality: ClassVar[Modality] = "text"

    attacked_parameters: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="Names of the parameters whose gradients the attacker sees; `*` and `?` match "
        "as in file names. The table of token embeddings counts only where it is named whole.",
    )

    def withheld(self, network: nn.Module) -> tuple[str, ...]:
        """Return the names of the table of token embeddings."""
        table = self.token_embedding(network)
        parameters = network.named_parameters(remove_duplicate=False)
        return tuple(name for name, parameter in parameters if parameter is table)

    def architecture(self, task: FLTask) -> nn.Module:
        """Return the network.

        Raises:
            LTIError: it cannot be made, or has no such interface.
        """
        from lti.fl_models.client_network import TextClassifier

        made = self.made()
        if not callable(getattr(made, "get_input_embeddings", None)):
            raise LTIError(
                f"{self.name}.factory: {self.factory} returned {type(made).__name__}, which has no "
                f"get_input_embeddings(); expected a model of the transformers library, or one "
                f"with its interface. Add the method."
            )
        network = TextClassifier(made)
        if task.vocabulary is not None and len(network.token_embedding) < task.vocabulary:
            raise LTIError(
                f"{self.name}.factory: got a network for {len(network.token_embedding):,} tokens; "
                f"the data set has {task.vocabulary:,}. Make it for that vocabulary."
            )
        return network

    def token_embedding(self, network: nn.Module) -> torch.Tensor:
        """Return the tokens' embeddings, ``(vocabulary, d)``."""
        from lti.fl_models.client_network import TextClassifier

        assert isinstance(network, TextClassifier)
        return network.token_embedding


@FL_MODELS.register("program", source="the user")
class ProgramModel(_ImageModel):
    """A network for images, saved with ``torch.export.save`` (.pt2) or as TorchScript.

    It takes float32 ``(b, 3, side, side)`` for any b from 1 on (export with a dynamic batch
    dimension), normalised, and returns ``(b, classes)`` logits.
    """

    file: Path = Field(description="The saved program.")

    def files(self) -> tuple[str, ...]:
        """Return the saved program, and the modules of the user's objects."""
        return (str(self.file), *super().files())

    def network(self, task: FLTask) -> nn.Module:
        """Return the saved network.

        Raises:
            LTIError: the file is missing, damaged, holds more than tensors, or is of another kind.
        """
        from lti.fl_models.program import load_program

        return load_program(self.file, side=self.side)
