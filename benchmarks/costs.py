"""What a gradient costs: parameters, coordinates, FLOPs and bytes of each FL model.

``python benchmarks/costs.py`` prints the table of ``docs/scaling.md``. FLOPs are counted by torch
while one sample's gradient is computed, forward and backward; a multiplication and an addition
are two.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lti.fl_models import FL_MODELS, FLModel, FLTask, attacked

CONFIG = yaml.safe_load((Path(__file__).resolve().parents[1] / "config.yaml").read_text())
IMAGES = FLTask(classes=10)
TEXT = {
    "transformer3": FLTask(classes=1, vocabulary=50_257, length=16),
    "bert": FLTask(classes=2, vocabulary=30_522, length=16, padding=0),
}


def flops_of_gradient(model: FLModel, network: nn.Module, task: FLTask) -> int:
    """Return the operations of one sample's gradient."""
    sample = torch.zeros(1, 3, 32, 32)
    if task.length is not None:
        sample = torch.ones(1, task.length, dtype=torch.int64)
    label = sample if model.label_is_sample else torch.zeros(1, dtype=torch.int64)
    seen = list(attacked(model, network).values())
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in seen:
        parameter.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(model.loss(network(sample), label), seen)
    return counter.get_total_flops()


def main() -> None:
    print("| FL model | parameters | attacked | GFLOP a gradient | KB a row, float16, whole |")
    print("| :-- | --: | --: | --: | --: |")
    for key in ("lenet", "resnet20", "transformer3", "bert-small", "bert"):
        settings = CONFIG["fl_models"][key]
        if settings["use"] == "bert":
            settings = {**settings, "pretrained": "never"}
        model = FL_MODELS.parse(settings)
        task = TEXT.get(settings["use"], IMAGES)
        network = model.build(task)
        parameters = sum(value.numel() for value in network.parameters())
        seen = sum(value.numel() for value in attacked(model, network).values())
        flops = flops_of_gradient(model, network, task)
        print(
            f"| `{key}` | {parameters:,} | {seen:,} | {flops / 1e9:.3g} | {2 * seen / 1e3:,.0f} |"
        )


if __name__ == "__main__":
    main()
