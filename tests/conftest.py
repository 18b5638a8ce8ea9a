"""What several test files share: one torch thread, a LeNet, random images."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

from lti.fl_models import FL_MODELS, FLModel, FLTask

torch.set_num_threads(1)


class Lenet(NamedTuple):
    """A LeNet for ten classes: its settings, and the network in evaluation mode."""

    model: FLModel
    network: nn.Module


@pytest.fixture(scope="session")
def lenet() -> Lenet:
    model = FL_MODELS["lenet"](seed=0)
    return Lenet(model, model.build(FLTask(10)).requires_grad_(False))


@pytest.fixture(scope="session")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 (6, 3, 32, 32) in [0, 1) and labels int64 (6,)."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(6, 3, 32, 32, generator=generator), torch.tensor([3, 0, 9, 1, 7, 3])
