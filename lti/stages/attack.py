"""The stage that runs an attack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Gpus, Log, Output, Threads, parse_json, parse_json_list

__all__ = ["FILES", "run_attack"]

FILES = {
    "inverter": ("inverter",),
    "generator": ("generator",),
    "prior": ("prior",),
    "start": ("start",),
    "gradients": ("gradients", "manifest", "auxiliary"),
}
"""The files behind each of an attack's needs."""


def run_attack(
    *,
    observations: Annotated[
        Path, typer.Option(help="What the server received, under the attack's projection.")
    ],
    manifest: Annotated[Path, typer.Option(help="The observations' manifest.")],
    fl_model: Annotated[Path, typer.Option(help="The FL model.")],
    attack: Annotated[str, typer.Option(help="JSON settings of the attack.")],
    knowledge: Annotated[
        str, typer.Option(help="JSON: files made of auxiliary data, by what they are.")
    ] = "{}",
    names: Annotated[str, typer.Option(help="JSON: the run's identifiers, for the tables.")],
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints, for resuming.")],
    output: Output,
    card: Output,
    part: Annotated[int | None, typer.Option(help="Attack only this part of the victims.")] = None,
    parts: Annotated[int, typer.Option(min=1, help="How many parts there are.")] = 1,
    join: Annotated[
        str, typer.Option(help="JSON: the files of all parts, to put together.")
    ] = "[]",
    threads: Threads = None,
    gpus: Gpus = 0,
    log: Log = None,
) -> None:
    """Reconstruct the victims from what the server received, and nothing else of them.

    With ``part``, only some victim batches are attacked, by one of several jobs; with ``join``,
    none: what they found is checked and put together.
    """
    import shutil

    import torch

    from lti.attacks import ATTACKS, Observations
    from lti.attacks.parts import WHOLE, Part, read_parts, write_part
    from lti.compute import acquire, hardware, peak_memory
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.files import digest_arrays, digest_json, write_card, write_tensors
    from lti.fl_models import FL_MODELS, load_fl_model, network_digest
    from lti.gradients.rows import StoredRows
    from lti.gradients.store import GradientStore
    from lti.modules import source_digest
    from lti.progress import Progress
    from lti.projections import PROJECTIONS

    method = ATTACKS.parse(parse_json(attack, option="attack"))
    identifiers = parse_json(names, option="names")
    files = {key: Path(path) for key, path in parse_json(knowledge, option="knowledge").items()}
    expected = {file for need in method.needs for file in FILES[need]}
    if set(files) != expected:
        raise LTIError(
            f"--knowledge: got {', '.join(sorted(files)) or 'nothing'}; attack {method.name} needs "
            f"{', '.join(sorted(expected)) or 'nothing'}."
        )
    own = WHOLE if part is None else Part(part, parts)
    if own.of > 1 and not method.is_divisible:
        raise LTIError(
            f"--parts: got {parts}; expected 1: attack {method.name} is not divided. Leave it out."
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
    count = min(method.victims or facts["batches"], facts["batches"])
    if count > store.n_rows:
        raise LTIError(
            f"{observations} holds {store.n_rows} of {facts['batches']} victim batches; attack "
            f"{method.name} takes {count}. Lower its `victims` or observe more batches."
        )
    observed = Observations(
        gradient=StoredRows(store, count),
        label=torch.tensor(facts["label"])[:count],
        tokens=None if facts["tokens"] is None else torch.tensor(facts["tokens"])[:count],
        batch_size=facts["batch_size"],
        model=model,
        network=network,
        defense=DEFENSES.parse_stored(facts["defense"], where=str(observations)),
        sample_shape=tuple(facts["sample_shape"]),
        projection=PROJECTIONS.parse_stored(facts["projection"], where=str(observations)),
        projection_digest=facts["projection_digest"],
    )
    progress = Progress(f"attack {model.name} {facts['defense']['use']} {method.name}", log=log)
    prepared = method.load(files, compute=compute)
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
    code = source_digest(
        "attack",
        (ATTACKS, method.name),
        (DEFENSES, observed.defense.registered_names()),
        (FL_MODELS, model.name),
    )
    attacked = {**metadata, "knowledge": getattr(prepared, "digest", None), "code": code}
    folder = None
    if files_of_parts := [Path(file) for file in parse_json_list(join, option="join")]:
        tensors = read_parts(files_of_parts, count=count, facts=attacked)
    else:
        decisive = [
            *(store.digest, method.canonical(), identifiers, attacked["knowledge"]),
            *(code, hardware(compute), torch.get_num_threads()),
            *([] if own == WHOLE else [own.number, own.of]),
        ]
        folder = checkpoints / f"{method.name}-{digest_json(decisive)}"
        tensors = method.reconstruct(
            observed,
            compute=compute,
            seed=facts["seed"],
            progress=progress,
            checkpoints=folder,
            knowledge=prepared,
            **({"part": own} if method.is_divisible else {}),
        ).tensors
    if part is None:
        write_tensors(output, tensors, metadata)
    else:
        write_part(output, own, tensors, attacked)
    digest = digest_arrays({key: value.numpy() for key, value in tensors.items()})
    write_card(card, {**metadata, "digest": digest})
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    batches = len(tensors.get("reconstruction", ()))
    progress.say(f"{batches:,} batches reconstructed, {peak_memory(compute)}")
