"""The stage that trains an inverter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Fitted, Gpus, Log, Output, Threads, parse_json

__all__ = ["train_inverter"]


def train_inverter(
    *,
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    gradients: Annotated[Path, typer.Option(help="The auxiliary set's gradient store.")],
    manifest: Annotated[Path, typer.Option(help="The store's manifest.")],
    fl_model: Annotated[Path, typer.Option(help="The FL model.")],
    defense: Annotated[str, typer.Option(help="JSON settings of the defense.")],
    projection: Annotated[
        str, typer.Option(help="JSON settings of the projection.")
    ] = '{"use": "identity"}',
    fitted: Fitted = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per client batch.")] = 1,
    inverter: Annotated[str, typer.Option(help="JSON settings of the inverter.")],
    memory_mib: Annotated[float, typer.Option(help="Host memory for training rows.")] = 4096.0,
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints, for resuming.")],
    output: Output,
    card: Output,
    history: Output,
    threads: Threads = None,
    gpus: Gpus = 0,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that train together; with several GPUs, as many.")
    ] = 1,
    log: Log = None,
) -> None:
    """Fit an inverter, which maps a defended gradient back to the data.

    With several GPUs, or processes, this process starts as many of the same command, each with
    its part of every batch.
    """
    if _trained_together(inverter, gpus, processes):
        return

    from math import inf

    import pandas as pd
    import torch

    from lti.checkpoint import Checkpoint
    from lti.compute import acquire, hardware, peak_memory
    from lti.data.selection import read_selection
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.files import atomic_path, digest_json, write_card
    from lti.fl_models import load_fl_model, network_digest
    from lti.gradients.layout import ParameterLayout
    from lti.gradients.store import GradientStore
    from lti.inverters import INVERTERS
    from lti.inverters.auxiliary_data import AuxiliaryData
    from lti.modules import source_digest
    from lti.process_group import join_group, member
    from lti.progress import Progress
    from lti.projections import PROJECTIONS, load_projection

    preset = INVERTERS.parse(parse_json(inverter, option="inverter"))
    defended = DEFENSES.parse(parse_json(defense, option="defense"))
    size = member().size
    granted = threads or torch.get_num_threads()
    each = threads if size == 1 else max(1, granted // size)
    compute = acquire(threads=each, gpus=gpus)
    store = GradientStore.open(gradients, manifest)
    selection = read_selection(auxiliary)
    samples = selection.samples
    digest, stored_size = selection.stored
    if digest != store.attributes["auxiliary_digest"]:
        raise LTIError(
            f"{gradients} holds gradients of auxiliary set {store.attributes['auxiliary_digest']}, "
            f"and {auxiliary} is {digest}. Delete the store and its manifest and run the same "
            f"command again."
        )
    network = load_fl_model(fl_model, device=compute.device)[1]
    if network_digest(network) != store.attributes["fl_model_digest"]:
        raise LTIError(
            f"{gradients} holds gradients of FL model {store.attributes['fl_model_digest']}, and "
            f"{fl_model} is {network_digest(network)}. Delete the store and its manifest and run "
            f"the same command again."
        )
    projected = load_projection(
        parse_json(projection, option="projection"),
        fitted,
        where="--projection",
        facts={key: store.attributes[key] for key in ("defense", "fl_model_digest")},
        device=compute.device,
    )
    if projected.digest != store.attributes["projection_digest"]:
        raise LTIError(
            f"{gradients} holds rows under a projection made of "
            f"{store.attributes['projection_digest']}, and {fitted} is {projected.digest}. Delete "
            f"the store and its manifest and run the same command again."
        )
    classes = len(selection.metadata["class_names"])
    data = AuxiliaryData(
        store=store,
        value=torch.from_numpy(samples.value),
        label=torch.from_numpy(samples.label).to(compute.device),
        classes=classes,
        views=store.attributes["views"],
        defense=defended,
        layout=ParameterLayout.from_json(store.attributes["layout"]),
        projection=projected,
        batch_size=batch_size,
        stored=stored_size,
        network=network,
        vocabulary=selection.metadata.get("text", {}).get("vocabulary"),
    )
    stored = PROJECTIONS.parse(
        {"use": "identity"} if defended.waits_for_mean(batch_size) else projected.canonical()
    )
    if store.attributes["projection"] != stored.canonical():
        raise LTIError(
            f"{gradients} holds rows projected by {store.attributes['projection']}; expected "
            f"{stored.canonical()}. Give the store that compute-gradients wrote for it."
        )
    settings = {
        "inverter": preset.canonical(),
        "defense": defended.canonical(),
        "projection": projected.canonical(),
        "batch_size": batch_size,
        "auxiliary": samples.digest,  # sets of several sizes share a store
        "gradients": store.digest,
        "code": source_digest(
            "train",
            (INVERTERS, preset.name),
            (DEFENSES, defended.registered_names()),
            (PROJECTIONS, projected.name),
        ),
        "device": hardware(compute),
        "threads": granted,
        "memory_mib": memory_mib,  # decides the order of rows that are streamed
    }
    checkpoint = Checkpoint(
        checkpoints / f"inverter-{digest_json(settings)}.safetensors",
        settings,
    )
    name = store.attributes["fl_model"]["use"]
    title = f"train {name} B={batch_size} {defended.name} {preset.name}"
    with join_group(compute.device) as group:
        shown = {"log": log} if group.is_first else {"every_seconds": inf}
        progress = Progress(title, **shown)
        trained, epochs = preset.fit(
            data,
            compute=compute,
            checkpoint=checkpoint,
            progress=progress,
            memory_mib=memory_mib,
            group=group,
        )
    if not group.is_first:
        return
    trained.save(output)
    with atomic_path(history) as temporary:
        pd.DataFrame(epochs).to_csv(temporary, index=False, lineterminator="\n")
    best = min(epochs, key=lambda epoch: epoch["held_out_loss"])
    write_card(
        card,
        {
            "inverter": preset.canonical(),
            "defense": defended.canonical(),
            "projection": projected.canonical(),
            "batch_size": batch_size,
            "gradients": store.digest,
            "parameters": sum(p.numel() for p in trained.network.parameters()),
            "epoch": best["epoch"],
            "held_out_loss": best["held_out_loss"],
            "digest": network_digest(trained.network),
        },
    )
    checkpoint.clear()
    progress.say(
        f"held-out loss {best['held_out_loss']:.5f} after epoch {best['epoch']}, "
        f"{peak_memory(compute)}"
    )


def _trained_together(inverter: str, gpus: int, processes: int) -> bool:
    """Train in several processes, each of this very command, where that is asked for and can be."""
    import sys

    from lti.compute import WAIT_SECONDS
    from lti.gpu_lease import lease_gpus
    from lti.inverters import INVERTERS
    from lti.launch import run_together
    from lti.process_group import member

    if max(gpus, processes) <= 1 or member().size > 1:
        return False
    preset = INVERTERS.parse(parse_json(inverter, option="inverter"))
    if not preset.shared:
        print(f"inverter {preset.name} is fitted by one process, on one device.", file=sys.stderr)
        return False
    devices = lease_gpus(gpus, WAIT_SECONDS) if gpus > 1 else []
    size = len(devices) or processes
    if size > 1:
        run_together([sys.executable, "-m", "lti", *sys.argv[1:]], size=size, devices=devices)
    return size > 1
