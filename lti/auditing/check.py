"""Looking at all that an audit needs, on one batch, before hours are spent."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lti.auditing.cost import stated_cost
from lti.auditing.expand import AUXILIARY, DATA, EXPERIMENT, MODEL, SEEN, expand_audit
from lti.config import parse_config
from lti.errors import LTIError
from lti.fl_models import FLTask, attacked
from lti.fl_models.base import calibrated
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.data.samples import Samples
    from lti.data.text import TextDataset
    from lti.fl_models import FLModel

__all__ = ["Line", "check_audit"]

BATCH = 8
FITTED = 64  # samples that a projection is made from, to see that it can be
TWICE = ("lti-map", "ig", "tag")  # attacks that differentiate the gradient
MANY = 0.2  # share of the parameters
FADED = 1e-12  # squared norm, relative to the largest, of a parameter without a gradient


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    mark: Literal["ok", "WARNING", "ERROR"]
    what: str
    text: str


def check_audit(values: Mapping[str, Any], *, folder: Path) -> Iterator[Line]:
    """Yield what was found, one thing after another; nothing follows an error that hides it.

    Args:
        values: the content of an audit's file.
        folder: of that file, where its modules are.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        plan = Plan(parse_config(expand_audit(values)))
    except LTIError as error:
        yield Line("ERROR", "file", str(error))
        return
    cells = list(plan.cells(EXPERIMENT))
    yield Line("ok", "file", f"{len(cells)} attacks on {len(plan.defenses)} defenses")
    try:
        parts, task = _data(plan)
        yield from _sizes(plan, parts, task.classes)
        yield from _clients(plan, parts["auxiliary"])
        model, network = _model(plan, task, parts["auxiliary"])
        layout = ParameterLayout.of(attacked(model, network))
        gradient, seconds = _gradients(model, network, parts["auxiliary"], task)
    except LTIError as error:
        yield Line("ERROR", "model and data", str(error))
        return
    yield from _gradient_lines(gradient, layout)
    yield from _matching(plan, model, network, parts["auxiliary"])
    try:
        seen = _seen(plan, network, parts["auxiliary"], layout)
    except LTIError as error:
        yield Line("ERROR", "seen", str(error))
        return
    if seen is not None:
        yield Line("ok", "seen", f"{seen:,} of {layout.total:,} coordinates")
    yield from _defenses(plan, model, network, parts["auxiliary"], gradient)
    yield Line("ok", "cost", stated_cost(plan, seconds, seen or layout.total))


def _data(plan: Plan) -> tuple[dict[str, Samples], FLTask]:
    source = plan.datasets[DATA]
    if source.modality == "image":
        parts = {part: source.load(part) for part in ("auxiliary", "victims")}
        return parts, FLTask(classes=len(source.read_class_names()))
    import tempfile

    text = cast("TextDataset", source)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        of = cast("TextDataset", plan.datasets[plan.tokenizer_of(DATA) or DATA])
        of.write_tokenizer(tokenizer)
        read = {part: text.read(part, tokenizer) for part in ("auxiliary", "victims")}
    facts = read["auxiliary"][1]
    keys = ("vocabulary", "length", "padding")
    task = FLTask(classes=len(text.read_class_names()), **{key: facts.get(key) for key in keys})
    return {part: samples for part, (samples, _) in read.items()}, task


def _sizes(plan: Plan, parts: Mapping[str, Samples], classes: int) -> Iterator[Line]:
    experiment = plan.experiment(EXPERIMENT)
    separate = experiment.auxiliary.shift is not None
    if separate:
        own = plan.datasets[AUXILIARY]
        there = len(own.load("auxiliary")) if own.modality == "image" else None
        if there is not None and there < experiment.auxiliary.size:
            text = f"got {experiment.auxiliary.size:,} asked for; there are {there:,}. Lower size."
            yield Line("ERROR", "auxiliary data", text)
    for what, asked in (
        ("auxiliary", 0 if separate else experiment.auxiliary.size),
        ("victims", experiment.victims.size),
    ):
        there = len(parts[what])
        text = f"{there:,} samples, {asked:,} of them asked for" if asked else f"{there:,} samples"
        if asked > there:
            yield Line("ERROR", what, f"got {asked:,} asked for; there are {there:,}. Lower size.")
        else:
            yield Line("ok", what, text)
        highest = int(parts[what].label.max()) if there else 0
        if highest >= classes:
            yield Line("ERROR", what, f"got the label {highest}; there are {classes} classes.")


def _clients(plan: Plan, auxiliary: Samples) -> Iterator[Line]:
    """Divide the auxiliary samples among clients, where they are to train."""
    from lti.federated.split import hold_out, split_to_clients

    experiment = plan.experiment(EXPERIMENT)
    if experiment.utility is None:
        return
    try:
        label = auxiliary.label[: experiment.auxiliary.size]
        learned, _ = hold_out(len(label), experiment.utility)
        parts = split_to_clients(label[learned], experiment.utility)
    except LTIError as error:
        yield Line("ERROR", "clients", str(error))
    else:
        fewest = min(len(part) for part in parts)
        yield Line("ok", "clients", f"{len(parts)} with {fewest:,} samples or more")


def _model(plan: Plan, task: FLTask, auxiliary: Samples) -> tuple[FLModel, nn.Module]:
    import torch

    from lti.data.samples import as_input

    model = plan.fl_models[MODEL]
    network = model.build(task)
    if model.calibration_samples:
        value = auxiliary.value[: model.calibration_samples]
        calibrated(model, network, as_input(torch.from_numpy(value)))
    return model, network.requires_grad_(False).eval()


def _gradients(
    model: FLModel, network: nn.Module, samples: Samples, task: FLTask
) -> tuple[torch.Tensor, float]:
    """Return gradients of a few samples, ``(b, p)``, and the seconds that one took."""
    import torch

    from lti.data.samples import as_input

    x = as_input(torch.from_numpy(samples.value[:BATCH]))
    label = torch.from_numpy(model.labels(samples)[:BATCH])
    try:
        with torch.no_grad():
            output = network(x)
            loss = model.loss(output, label)
    except LTIError:
        raise
    except Exception as error:
        raise LTIError(
            f"the network failed on {tuple(x.shape)} {x.dtype} ({type(error).__name__}: {error}). "
            f"Correct it, or its `side`."
        ) from error
    if not model.label_is_sample and tuple(output.shape) != (len(x), task.classes):
        raise LTIError(
            f"the network returned {tuple(output.shape)}; expected logits {(len(x), task.classes)} "
            f"for {task.classes} classes. Correct its number of classes."
        )
    if loss.ndim or not math.isfinite(float(loss)):
        raise LTIError(
            f"the loss of {len(x)} samples is {loss.tolist()}; expected one finite number. Correct "
            f"the loss function or the normalisation."
        )
    compute = per_sample_gradient_function(model, network)
    try:
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            gradient = compute(x, label)
            taken.append(time.perf_counter() - began)
    except LTIError:
        raise
    except Exception as error:
        raise LTIError(
            f"gradients of single samples cannot be computed ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). The network must be made of operations that "
            f"torch.func can map over samples: no .item(), no branch on values, no change in place "
            f"of its buffers."
        ) from error
    if not bool(gradient.isfinite().all()):
        raise LTIError("gradients are not finite; expected numbers. Correct the normalisation.")
    return gradient, min(taken) / len(x)


def _matching(plan: Plan, model: FLModel, network: nn.Module, samples: Samples) -> Iterator[Line]:
    """Differentiate a gradient once more, if an attack does."""
    import torch

    from lti.data.samples import as_input

    asked = [name for name in plan.experiment(EXPERIMENT).attacks if name in TWICE]
    if not asked:
        return
    x = as_input(torch.from_numpy(samples.value[:1]))
    if not x.is_floating_point():
        x = model.token_embedding(network).detach()[x]
    x.requires_grad_()
    label = torch.from_numpy(model.labels(samples)[:1])
    try:
        per_sample_gradient_function(model, network)(x, label).square().sum().backward()
    except Exception as error:
        line = str(error).splitlines()[0]
        yield Line(
            "ERROR",
            "second derivative",
            f"{', '.join(asked)} differentiate the gradient once more, which fails "
            f"({type(error).__name__}: {line}). Use other operations, or leave these attacks out.",
        )
    else:
        yield Line("ok", "second derivative", f"is there, for {', '.join(asked)}")


def _seen(plan: Plan, network: nn.Module, samples: Samples, layout: ParameterLayout) -> int | None:
    """Return how many coordinates attacks see; None where that takes an auxiliary set's gradients.

    Raises:
        LTIError: the projection does not suit the network.
    """
    import torch

    from lti.data.samples import as_input
    from lti.projections import FitSample, FittedProjection

    seen = plan.projections[SEEN]
    if isinstance(seen, FittedProjection):
        if seen.from_gradients:
            return None
        value = as_input(torch.from_numpy(samples.value[:FITTED]))
        seen = seen.fitted(seen.fit(FitSample(value, network, layout, lambda: torch.empty(0))))
    return seen.layout(layout).total


def _gradient_lines(gradient: torch.Tensor, layout: ParameterLayout) -> Iterator[Line]:
    norms = {
        name: float(gradient[:, place].square().sum()) for name, place in layout.slices.items()
    }
    largest = max(norms.values())
    faded = [name for name, norm in norms.items() if norm <= FADED * largest]
    yield Line(
        "ok" if largest else "ERROR",
        "gradient",
        f"{layout.total:,} coordinates of {len(norms)} parameters, norm "
        f"{float(gradient.norm(dim=1).median()):.3g}",
    )
    # A few have none by construction, such as the bias of an attention's keys.
    if largest and len(faded) > MANY * len(norms):
        yield Line(
            "WARNING",
            "gradient",
            f"next to nothing reaches {len(faded)} of {len(norms)} parameters ({faded[0]}, ...): "
            f"there is little to invert. An untrained network with BatchNorm needs `calibrate`, "
            f"and any network its own initialisation.",
        )


def _defenses(
    plan: Plan, model: FLModel, network: nn.Module, samples: Samples, gradient: torch.Tensor
) -> Iterator[Line]:
    import torch

    from lti.attacks.likelihood import likelihood_of
    from lti.data.samples import as_input
    from lti.gradients.sent import sent_function
    from lti.seeding import torch_generator

    experiment = plan.experiment(EXPERIMENT)

    x = as_input(torch.from_numpy(samples.value[:BATCH]))[:, None]
    label = torch.from_numpy(model.labels(samples)[:BATCH])[:, None]
    for name, defense in plan.defenses.items():
        generators = [torch_generator(0, "check", name, row) for row in range(len(x))]
        try:
            sent = sent_function(defense, model, network)
            rows = zip(x, label, generators, strict=True)
            defended = torch.cat([sent(a[None], b[None], [c]) for a, b, c in rows])
        except Exception as error:
            kind = "" if isinstance(error, LTIError) else f"{type(error).__name__}: "
            yield Line("ERROR", f"defense {name}", f"{kind}{error}")
            continue
        if defended.shape != gradient.shape or not bool(defended.isfinite().all()):
            finite = "finite" if bool(defended.isfinite().all()) else "not finite"
            yield Line(
                "ERROR",
                f"defense {name}",
                f"returned {tuple(defended.shape)}, {finite}; expected {tuple(gradient.shape)}, "
                f"finite.",
            )
            continue
        cosine = float(
            (defended * gradient).sum(1).div(defended.norm(dim=1) * gradient.norm(dim=1)).median()
        )
        kept = float((defended != 0).float().mean())
        text = f"{kept:.1%} of the entries are not zero, cosine with the gradient {cosine:.3f}"
        width = torch.ones_like(gradient[0])
        stated = likelihood_of(defense, batch_size=experiment.batch_sizes[0], width=width)
        if "lti-map" in experiment.attacks and stated is None:
            text += "; it states no likelihood, so that lti-map keeps what lti makes"
        yield Line("ok" if kept else "WARNING", f"defense {name}", text)
