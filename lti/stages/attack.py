"""The stage that runs an attack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Gpus, Log, Output, Threads, parse_json

__all__ = ["run_attack"]


def run_attack(
    *,
    observations: Annotated[Path, typer.Option(help="What the server received.")],
    manifest: Annotated[Path, typer.Option(help="The observations' manifest.")],
    fl_model: Annotated[Path, typer.Option(help="The FL model.")],
    attack: Annotated[str, typer.Option(help="JSON settings of the attack.")],
    inverter: Annotated[Path | None, typer.Option(help="The trained inverter, if needed.")] = None,
    names: Annotated[str, typer.Option(help="JSON: the run's identifiers, for the tables.")],
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints, for resuming.")],
    output: Output,
    card: Output,
    threads: Threads = None,
    gpus: Gpus = 0,
    log: Log = None,
) -> None:
    """Reconstruct the victims from what the server received, and nothing else of them."""
    import shutil

    import torch

    from lti.attacks import ATTACKS, Observations
    from lti.compute import acquire
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.files import digest_arrays, digest_json, write_json, write_tensors
    from lti.fl_models import load_fl_model, network_digest
    from lti.gradients.store import GradientStore
    from lti.progress import Progress

    method = ATTACKS.parse(parse_json(attack, option="attack"))
    identifiers = parse_json(names, option="names")
    if method.needs_inverter != (inverter is not None):
        raise LTIError(
            f"attack {method.name} got {'an' if inverter else 'no'} inverter; expected "
            f"{'one' if method.needs_inverter else 'none'}. Correct --inverter."
        )
    compute = acquire(threads=threads, gpus=gpus)
    store = GradientStore.open(observations, manifest)
    facts = store.attributes
    model, network = load_fl_model(fl_model, device=compute.device)
    if network_digest(network) != facts["fl_model_digest"]:
        raise LTIError(
            f"{observations} holds gradients of FL model {facts['fl_model_digest']}, and "
            f"{fl_model} is {network_digest(network)}. Delete the observations and their "
            f"manifest and run the same command again."
        )
    count = min(method.victims or store.n_rows, store.n_rows)
    observed = Observations(
        gradient=store.rows(0, count),
        label=torch.tensor(facts["label"])[:count],
        batch_size=facts["batch_size"],
        model=model,
        network=network,
        defense=DEFENSES.parse(facts["defense"]),
        sample_shape=(3, 32, 32),
    )
    trained = None if inverter is None else method.load_inverter(inverter, compute=compute)
    progress = Progress(f"attack {model.name} {facts['defense']['use']} {method.name}", log=log)
    folder = checkpoints / f"{method.name}-{digest_json([store.digest, method.canonical()])}"
    reconstruction = method.reconstruct(
        observed,
        compute=compute,
        seed=facts["seed"],
        progress=progress,
        checkpoints=folder,
        inverter=trained,
    )
    metadata = {
        **identifiers,
        "attack": method.name,
        "attack_settings": method.canonical(),
        "batch_size": facts["batch_size"],
        "defense_settings": facts["defense"],
        "fl_model_settings": facts["fl_model"],
        "observations": store.digest,
        "seed": facts["seed"],
    }
    write_tensors(output, {"reconstruction": reconstruction}, metadata)
    digest = digest_arrays({"reconstruction": reconstruction.numpy()})
    write_json(card, {**metadata, "digest": digest})
    shutil.rmtree(folder, ignore_errors=True)
    progress.say(f"{len(reconstruction):,} batches reconstructed")
