"""How near inverter training comes to the rate of its matrix products alone.

Run ``python benchmarks/training.py [--preset P] [--hidden N] [--batch-size N] [--samples N]
[--defense D]``. The loop is the real one (``lti.inverters.train``) with a LeNet's gradients of
the data set ``photos``, drawn with replacement. Its rate counts the decoder's matrix products
only: forward, gradient of the input, gradient of the weight. Everything else (drawing
batches, encoding, normalisation, the optimizer, evaluation) is its loss against the same products,
of the same shapes and format, run alone in the same process. Epochs after the first are counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lti.checkpoint import Checkpoint
from lti.compute import Compute, acquire
from lti.data.dataset import DATASETS
from lti.data.samples import to_float
from lti.defenses import DEFENSES
from lti.fl_models import FL_MODELS, FLTask, attacked
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import StoreSettings, write_store
from lti.inverters import INVERTERS
from lti.inverters.auxiliary_data import AuxiliaryData
from lti.inverters.base import NetworkInverter
from lti.inverters.train import train_inverter
from lti.progress import Progress

SETTINGS = {"prune": {"rate": 0.99}, "gauss": {"sigma": 0.1}}


def auxiliary_data(
    folder: Path, *, samples: int, defense_name: str, compute: Compute
) -> AuxiliaryData:
    """Write a store of gradients as the stage ``compute-gradients`` does, without mirroring."""
    images = DATASETS.parse({"use": "photos"}).load("auxiliary")
    draw = torch.Generator().manual_seed(0)
    index = torch.randint(len(images), (samples,), generator=draw)
    image = torch.from_numpy(images.value)[index]
    label = torch.from_numpy(images.label)[index].to(compute.device)
    model = FL_MODELS.parse({"use": "lenet"})
    network = model.build(FLTask(classes=10)).to(compute.device)
    layout = ParameterLayout.of(attacked(model, network))
    gradients = per_sample_gradient_function(model, network)
    defense = DEFENSES.parse({"use": defense_name, **SETTINGS.get(defense_name, {})})

    def rows(start: int, stop: int) -> torch.Tensor:
        x = to_float(image[start:stop]).to(compute.device)
        return defense.deterministic(gradients(x, label[start:stop]))

    store = write_store(
        folder / "gradients",
        n_rows=samples,
        dim=layout.total,
        encoding=defense.encoding,
        compress=defense.compress,
        compute=rows,
        manifest=folder / "gradients.manifest.json",
        settings=StoreSettings(),
    )
    return AuxiliaryData(
        store=store,
        value=image,
        label=label,
        classes=int(label.max()) + 1,
        views=1,
        defense=defense,
        layout=layout,
    )


def products(decoder: nn.Module) -> list[tuple[int, int, bool, bool]]:
    """Return ``(inputs, outputs, gradient of input, gradient of weight)`` of each product."""
    linear = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    # The first layer's input is data: nothing asks for its gradient.
    result = [
        (layer.in_features, layer.out_features, n > 0, True) for n, layer in enumerate(linear)
    ]
    components = getattr(decoder, "components", None)
    if components is not None:  # a fixed read-out: no gradient of its weight
        result.append((components.shape[0], components.shape[1], True, False))
    return result


def flops(shapes: list[tuple[int, int, bool, bool]]) -> int:
    """Return the floating-point operations of a sample's step."""
    return sum(2 * i * o * (1 + by_input + by_weight) for i, o, by_input, by_weight in shapes)


def rate_alone(
    shapes: list[tuple[int, int, bool, bool]],
    *,
    batch: int,
    dtype: torch.dtype,
    compute: Compute,
    seconds: float = 5.0,
) -> float:
    """Return the operations a second of the products of a step, run by themselves."""
    device = compute.device
    calls: list[Callable[[], torch.Tensor]] = []
    for inputs, outputs, by_input, by_weight in shapes:
        x = torch.randn(batch, inputs, device=device, dtype=dtype)
        w = torch.randn(outputs, inputs, device=device, dtype=dtype)
        g = torch.randn(batch, outputs, device=device, dtype=dtype)
        calls.append(partial(torch.matmul, x, w.T))
        if by_input:
            calls.append(partial(torch.matmul, g, w))
        if by_weight:
            calls.append(partial(torch.matmul, g.T, x))
    step = timer(calls, compute)
    step()
    taken = [step()]
    while sum(taken) < seconds or len(taken) < 3:
        taken.append(step())
    return flops(shapes) * batch / statistics.median(taken)


def timer(calls: list[Callable[[], torch.Tensor]], compute: Compute) -> Callable[[], float]:
    """Return a function that runs all calls and returns the seconds."""

    def run() -> float:
        began = time.perf_counter()
        for call in calls:
            call()
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        return time.perf_counter() - began

    return run


def preset(options: argparse.Namespace) -> NetworkInverter:
    """Return the inverter's settings."""
    given = {"hidden": options.hidden, "batch_size": options.batch_size}
    settings = INVERTERS.parse(
        {
            "use": options.preset,
            "epochs": options.epochs,
            "use_mirrored": False,
            **{key: value for key, value in given.items() if value is not None},
        }
    )
    assert isinstance(settings, NetworkInverter)  # the parser knows no other
    return settings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tuned", choices=["tuned", "paper"])
    parser.add_argument("--hidden", type=int, help="the preset's if not given")
    parser.add_argument("--batch-size", type=int, help="the preset's if not given")
    parser.add_argument("--samples", type=int, default=16_384)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--defense", default="none", choices=["none", "sign", "prune", "gauss"])
    parser.add_argument("--threads", type=int, help="torch's default if not given")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: at least 2, since the first is not counted")
    compute = acquire(threads=options.threads, gpus=1)
    settings = preset(options)
    dtype = torch.float32 if settings.precision == "float32" else compute.dtype
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = auxiliary_data(
            folder, samples=options.samples, defense_name=options.defense, compute=compute
        )
        trained, history = train_inverter(
            settings,
            data,
            compute=compute,
            checkpoint=Checkpoint(folder / "checkpoint", {}, every_seconds=1e9),
            progress=Progress("train"),
        )
    shapes = products(trained.network.decoder)
    rate = statistics.median(record["samples_per_second"] for record in history[1:])
    training = rate * flops(shapes)
    alone = rate_alone(shapes, batch=settings.batch_size, dtype=dtype, compute=compute)
    device = compute.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"{options.preset}, {options.defense}, batch {settings.batch_size}, "
        f"{str(dtype).removeprefix('torch.')}, {where}, {torch.get_num_threads()} threads"
    )
    print("products: " + ", ".join(f"{inputs} x {outputs}" for inputs, outputs, *_ in shapes))
    for label, speed in (("training", training), ("matrix products alone", alone)):
        print(f"{label:40}{speed / flops(shapes):12,.0f} samples/s{speed / 1e9:12,.1f} GFLOP/s")
    print(f"{'ratio':40}{training / alone:12.2f}")


if __name__ == "__main__":
    main()
