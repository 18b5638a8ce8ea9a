"""What several test files share: one torch thread, a LeNet, random images; what all clean up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from lti.fl_models import FL_MODELS, FLModel, FLTask

torch.set_num_threads(1)

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _users_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules of temporary folders and examples: the next test has its own."""
    yield
    folders = (str(tmp_path_factory.getbasetemp()), str(EXAMPLES))
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(folders):
            del sys.modules[name]


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
