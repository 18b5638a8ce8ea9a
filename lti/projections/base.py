"""What every projection states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PrivateAttr

from lti.errors import LTIError
from lti.files import digest_arrays, read_tensors
from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.gradients.layout import ParameterLayout

__all__ = ["PROJECTIONS", "FitSample", "FittedProjection", "Projection", "load_projection"]


class Projection(Settings):
    """A fixed linear map of gradients. Defended gradients are projected; noise commutes."""

    is_fitted: ClassVar[bool] = False
    """Whether the map is made from auxiliary gradients: see :class:`FittedProjection`."""

    @property
    def digest(self) -> str | None:
        """Digest of what settings do not say; None: they say all."""
        return None

    def project(self, gradient: torch.Tensor, *, layout: ParameterLayout) -> torch.Tensor:
        """Map ``(b, p)`` float32 gradients of ``layout`` to ``(b, k)``, on their device."""
        return self.project_parts(layout.split(gradient), layout=layout)

    @abstractmethod
    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Map gradients that are not joined to rows.

        Args:
            parts: each parameter's, ``(b, *shape)`` or ``(b, size)`` float32, by name.
            layout: of the parameters.

        Returns:
            ``(b, k)``, on their device.
        """

    @abstractmethod
    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return where parameters lie in the result: one nameless block where they mix."""

    def positions(self) -> dict[str, torch.Tensor]:
        """Return what is known of the inputs of linear layers that see sequences.

        Of each weight whose projected gradient is ``(outputs, k)`` along k directions of its
        inputs, by name: the mean inputs of the positions along these, ``(T, k)``.
        """
        return {}

    @abstractmethod
    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return the variance of each entry, ``(k,)``, where every coordinate's is one.

        Of a sum of coordinates, that is their number. None: entries are coordinates.
        """


@dataclass(frozen=True)
class FitSample:
    """The auxiliary set's first ``samples`` samples, as a projection is made from them."""

    value: torch.Tensor
    """``(n, ...)`` in the network's input range, or int64 tokens."""
    network: nn.Module
    """The FL model's network, in evaluation mode."""
    layout: ParameterLayout
    """Of its gradients."""
    gradients: Callable[[], torch.Tensor]
    """Computes the samples' gradients with the deterministic part of a defense: ``(n, p)``
    float32 on the CPU. They may be overwritten."""


class FittedProjection(Projection):
    """A projection that is made from auxiliary data before it projects any gradient."""

    is_fitted = True

    from_gradients: ClassVar[bool] = True
    """Whether gradients are what it is made from; else the samples and the network alone."""

    samples: int = Field(2048, ge=2, description="Auxiliary samples that it is made from.")

    _tensors: Mapping[str, torch.Tensor] | None = PrivateAttr(None)
    _digest: str | None = PrivateAttr(None)

    @abstractmethod
    def fit(self, sample: FitSample) -> dict[str, torch.Tensor]:
        """Return what the projection is made of, on the CPU.

        Raises:
            LTIError: too few samples, or a FL model that does not suit.
        """

    def fitted(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Return the projection made of what :meth:`fit` returned."""
        result = self.model_copy()
        result._tensors = dict(tensors)
        result._digest = digest_arrays({name: t.cpu().numpy() for name, t in tensors.items()})
        return result

    @property
    def digest(self) -> str | None:
        """Digest of what the projection is made of; None before it is fitted."""
        return self._digest

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Return what the projection is made of.

        Raises:
            LTIError: it is not fitted.
        """
        if self._tensors is None:
            raise LTIError(
                f"projection {self.name} is not fitted to gradients; expected the file that "
                f"`lti fit-projection` writes. Give it with --fitted."
            )
        return self._tensors


def load_projection(
    settings: Mapping[str, Any],
    fitted: Path | None,
    *,
    where: str,
    facts: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> Projection:
    """Return a projection ready to project.

    Args:
        settings: a mapping whose key ``use`` names the entry.
        fitted: the file of ``lti fit-projection``; None where the projection needs none.
        where: the place of the settings, for error messages.
        facts: what the gradients to project are of, which the file must have been made for:
            ``defense`` (of the deterministic part) and ``fl_model_digest``.
        device: of the gradients.

    Raises:
        LTIError: wrong settings, a file too many or too few, or one made for other gradients.
    """
    projection = PROJECTIONS.parse(settings, where=where)
    if not isinstance(projection, FittedProjection):
        if fitted is not None:
            raise LTIError(
                f"--fitted: got {fitted}; projection {projection.name} takes none. Leave it out."
            )
        return projection
    if fitted is None:
        raise LTIError(
            f"--fitted: got nothing; projection {projection.name} needs the file that `lti "
            f"fit-projection` writes. Give it."
        )
    tensors, made_for = read_tensors(fitted)
    expected = {"projection": projection.canonical(), **facts}
    for key, value in expected.items():
        if made_for.get(key) != value:
            raise LTIError(
                f"{fitted} was made for {key} {made_for.get(key)}; expected {value}. Delete it "
                f"and run the same command again."
            )
    return projection.fitted({name: tensor.to(device) for name, tensor in tensors.items()})


PROJECTIONS: Registry[Projection] = Registry(
    "projections",
    modules={
        "hash": "lti.projections.hash",
        "identity": "lti.projections.identity",
        "layer-inputs": "lti.projections.layer_inputs",
        "leading": "lti.projections.leading",
        "principal": "lti.projections.principal",
        "select": "lti.projections.select",
    },
)
