"""The stage that takes a prior from held-out auxiliary data, for LTI-MAP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Fitted, Gpus, Log, Output, Threads, parse_json

__all__ = ["fit_prior"]


def fit_prior(
    *,
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    fl_model: Annotated[Path, typer.Option(help="The FL model.")],
    inverter: Annotated[Path, typer.Option(help="The inverter whose output is refined.")],
    fitted: Fitted = None,
    attack: Annotated[str, typer.Option(help="JSON settings of the attack that refines.")],
    output: Output,
    card: Output,
    tried: Output,
    threads: Threads = None,
    gpus: Gpus = 0,
    log: Log = None,
) -> None:
    """Take a prior from an inverter's errors on held-out samples, and choose how to refine.

    The samples are those on which the inverter was measured; no victim is seen.
    """
    import pandas as pd
    import torch

    from lti.attacks import ATTACKS
    from lti.attacks.calibrate import HeldOut, calibrate
    from lti.attacks.lti_map import MaximumAPosteriori
    from lti.attacks.refinement import Client
    from lti.compute import acquire
    from lti.data.samples import as_input
    from lti.data.selection import read_selection
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.files import atomic_path, digest_arrays, write_json
    from lti.fl_models import load_fl_model, network_digest
    from lti.gradients.per_sample import block_rows
    from lti.inverters.base import held_out_size
    from lti.inverters.ordering import best_order, squared_distance
    from lti.inverters.trained import TrainedInverter
    from lti.progress import Progress
    from lti.projections import load_projection
    from lti.seeding import torch_generator

    method = ATTACKS.parse(parse_json(attack, option="attack"))
    if not isinstance(method, MaximumAPosteriori):
        raise LTIError(f"--attack: got {method.name}, which takes no prior; expected lti-map.")
    compute = acquire(threads=threads, gpus=gpus)
    samples = read_selection(auxiliary).samples
    if samples.modality != "image":
        raise LTIError(f"{auxiliary} holds text; lti-map refines images. Use another attack.")
    model, network = load_fl_model(fl_model, device=compute.device)
    trained = TrainedInverter.load(inverter, compute=compute)
    defense, size = trained.defense, trained.batch_size
    if trained.fl_model_digest != network_digest(network):
        raise LTIError(
            f"{inverter} was trained against FL model {trained.fl_model_digest}, and {fl_model} is "
            f"{network_digest(network)}. Delete the inverter and run the same command again."
        )
    stored = DEFENSES["none"]() if defense.is_deterministic_identity else defense
    projection = load_projection(
        trained.projection.canonical(),
        fitted,
        where=str(inverter),
        facts={"defense": stored.canonical(), "fl_model_digest": trained.fl_model_digest},
        device=compute.device,
    )
    client = Client(model, network, defense, size)
    kept_apart = held_out_size(len(samples), size, trained.settings.holdout)
    held = min(kept_apart, method.held_out)
    count = held // size
    if count <= method.tuning:
        raise LTIError(
            f"{auxiliary}: {count} held-out client batches; expected more than the "
            f"{method.tuning} that settings are compared on. Use more auxiliary samples, or lower "
            f"`tuning`."
        )
    first = len(samples) - count * size
    value = as_input(torch.from_numpy(samples.value[first:])).unflatten(0, (count, size))
    label = torch.from_numpy(samples.label[first:]).unflatten(0, (count, size))
    progress = Progress(f"prior {model.name} B={size} {defense.name}", log=log)
    progress.start(total=count, unit="batches")
    noise = torch_generator(method.seed, "prior", "observe", device=compute.device)
    start: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    at_once = max(1, block_rows(trained.layout.total) // size)
    for x, y in zip(value.split(at_once), label.split(at_once), strict=True):
        x, y = x.to(compute.device), y.to(compute.device)
        received = client.receive(client.gradients(x, y).detach(), noise)
        rows = projection.project(received, layout=trained.layout)
        start.append(trained.invert(rows, y).float().cpu())
        kept.append(received[: max(0, method.tuning - sum(len(part) for part in kept))].cpu())
        progress.advance(len(x))
    facts = {
        "attack": method.canonical(),
        "auxiliary_digest": samples.digest,
        "batch_size": size,
        "defense": defense.canonical(),
        "fl_model_digest": trained.fl_model_digest,
        "inverter_digest": network_digest(trained.network),
        "ordered": trained.settings.ordered_by_label or size == 1,
    }
    found = torch.cat(start)
    if not facts["ordered"]:  # the attack puts them in order by what explains the gradient
        order = best_order(squared_distance(value, found))
        found = found[torch.arange(count)[:, None], order]
    tensors = (value, label, found, torch.cat(kept))
    held_out = HeldOut(*(tensor.to(compute.device) for tensor in tensors))
    images = as_input(torch.from_numpy(samples.value[: min(first, method.images)]))
    calibration = calibrate(
        client,
        held_out,
        images.to(compute.device),
        layout=trained.layout,
        priors=method.priors,
        rank=method.rank,
        iterations=method.iterations,
        inner=method.inner,
        progress=progress,
    )
    facts |= {"helps": calibration.helps, "reason": calibration.reason}
    calibration.refinement.save(output, facts)
    with atomic_path(tried) as temporary:
        pd.DataFrame(calibration.tried).to_csv(temporary, index=False, lineterminator="\n")
    chosen = calibration.refinement
    digest = digest_arrays(
        {"off": chosen.off.cpu().numpy(), "std": chosen.covariance.std.cpu().numpy()}
    )
    numbers = {"width": chosen.width, "evidence": chosen.evidence, "farthest": chosen.farthest}
    write_json(card, {**facts, **numbers, "prior": chosen.prior, "digest": digest})
    progress.say(calibration.reason)
