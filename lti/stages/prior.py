"""The stage that takes a prior from held-out auxiliary data, for LTI-MAP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Fitted, Gpus, Log, Output, Threads, parse_json

__all__ = ["fit_prior"]

ERRORS = 4  # samples, at least, whose errors make the prior


def fit_prior(
    *,
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    fl_model: Annotated[Path, typer.Option(help="The FL model.")],
    inverter: Annotated[Path, typer.Option(help="The inverter whose output is refined.")],
    fitted: Fitted = None,
    attack: Annotated[str, typer.Option(help="JSON settings of the attack that refines.")],
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints, for resuming.")],
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
    from lti.attacks.calibrate import TRIED, HeldOut, calibrate
    from lti.attacks.lti_map import MaximumAPosteriori
    from lti.attacks.refinement import Client
    from lti.checkpoint import Checkpoint
    from lti.compute import acquire, hardware, peak_memory
    from lti.data.samples import as_input
    from lti.data.selection import read_selection
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.files import atomic_path, digest_json, write_card
    from lti.fl_models import FL_MODELS, load_fl_model, network_digest
    from lti.gradients.per_sample import block_rows
    from lti.inverters import INVERTERS
    from lti.inverters.base import held_out_size
    from lti.inverters.trained import TrainedInverter
    from lti.modules import source_digest
    from lti.progress import Progress
    from lti.projections import PROJECTIONS, load_projection
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
    if projection.digest != trained.projection_digest:
        raise LTIError(
            f"{inverter} was trained on rows under a projection made of "
            f"{trained.projection_digest}, and {fitted} is {projection.digest}. Delete the "
            f"inverter and run the same command again."
        )
    client = Client(model, network, defense, size)
    kept_apart = held_out_size(len(samples), size, trained.settings.holdout)
    count = min(kept_apart, method.held_out) // size
    least = 2 * method.tuning + -(-ERRORS // size)
    if count < least:
        raise LTIError(
            f"{auxiliary}: got {count} held-out client batches of {size} (the inverter keeps "
            f"{kept_apart} of {len(samples)} samples apart, `held_out` is {method.held_out}); "
            f"expected {least} or more: twice `tuning`, and {ERRORS} samples for the prior. Use "
            f"more auxiliary samples, raise `held_out` or lower `tuning`."
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
        kept.append(received[: max(0, 2 * method.tuning - sum(len(part) for part in kept))].cpu())
        progress.advance(len(x))
    device = compute.device
    ordered = trained.settings.ordered_by_label or size == 1
    held_out = HeldOut(
        value.to(device),
        label.to(device),
        torch.cat(start).to(device),
        ordered,
        torch.cat(kept).to(device),
    )
    images = as_input(torch.from_numpy(samples.value[: min(first, method.images)]))
    decisive = {
        "attack": method.tuned,
        "auxiliary": samples.digest,
        "fl_model": network_digest(network),
        "inverter": network_digest(trained.network),
        "code": source_digest(
            "prior",
            (ATTACKS, method.name),
            (DEFENSES, defense.registered_names()),
            (FL_MODELS, model.name),
            (INVERTERS, trained.settings.name),
            (PROJECTIONS, projection.name),
        ),
        "device": hardware(compute),
        "threads": torch.get_num_threads(),
    }
    checkpoint = Checkpoint(checkpoints / f"prior-{digest_json(decisive)}.safetensors", decisive)
    found = calibrate(
        method,
        client,
        held_out,
        images.to(device),
        layout=trained.layout,
        checkpoint=checkpoint,
        progress=progress,
    )
    facts = {
        "attack": method.tuned,
        "auxiliary_digest": samples.digest,
        "batch_size": size,
        "defense": defense.canonical(),
        "fl_model_digest": trained.fl_model_digest,
        "helps": found.helps,
        "inverter_digest": network_digest(trained.network),
        "ordered": ordered,
        "reason": found.reason,
    }
    chosen = found.refinement
    chosen.save(output, facts)
    with atomic_path(tried) as temporary:
        frame = pd.DataFrame(found.tried, columns=list(TRIED))
        frame.to_csv(temporary, index=False, lineterminator="\n")
    settings = {"prior": chosen.prior, "width": chosen.width, "weight": chosen.weight}
    write_card(card, {**facts, **settings, "digest": chosen.digest})
    checkpoint.clear()
    progress.say(f"{found.reason}, {peak_memory(compute)}")
