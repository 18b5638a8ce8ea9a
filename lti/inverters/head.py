"""The FL model's last linear layer, which tells a batch's samples apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["ClassifierHead"]


@dataclass(frozen=True)
class ClassifierHead:
    """The last layer ``logits = weight @ input + bias`` and what usually goes through it.

    All float32: ``weight (c, f)``, ``bias (c,)``; ``mean``, ``low`` and ``high`` ``(f,)`` of
    its inputs and ``probability (c,)``, the mean softmax, over auxiliary data.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    probability: torch.Tensor

    @classmethod
    def of(
        cls, network: nn.Module, sample: torch.Tensor, num_classes: int
    ) -> ClassifierHead | None:
        """Find a network's head and measure it on samples in its input range.

        Returns:
            the head on the CPU; None where the network does not end with a linear layer with
            a bias and ``num_classes`` outputs.
        """
        layers = [m for m in network.modules() if isinstance(m, nn.Linear) and m.bias is not None]
        if not layers or layers[-1].out_features != num_classes:
            return None
        head = layers[-1]
        seen: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        try:
            with torch.no_grad():
                parts = [network(part) for part in sample.split(512)]
        finally:
            hook.remove()
        if not seen or seen[0].ndim != 2:
            return None  # it is never called, or on parts of a sample
        output, inputs = torch.cat(parts), torch.cat(seen)
        with torch.no_grad():
            if not torch.allclose(output, head(inputs), rtol=1e-3, atol=1e-4):
                return None  # something follows it
        measured = (
            head.weight.detach(),
            head.bias.detach(),
            inputs.mean(dim=0),
            inputs.amin(dim=0),
            inputs.amax(dim=0),
            output.softmax(dim=1).mean(dim=0),
        )
        return cls(*(tensor.cpu() for tensor in measured))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors, their names prefixed with ``head_``."""
        return {f"head_{name}": value.float() for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> ClassifierHead | None:
        """Invert :meth:`tensors`; None where there are none."""
        if "head_weight" not in tensors:
            return None
        return cls(**{name: tensors[f"head_{name}"] for name in cls.__dataclass_fields__})
