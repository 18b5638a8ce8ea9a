"""The stage that trains an FL model under a defense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Gpus, Log, Output, Threads, parse_json

__all__ = ["train_federated"]


def train_federated(
    *,
    fl_model: Annotated[Path, typer.Option(help="The FL model, with its initial weights.")],
    samples: Annotated[Path, typer.Option(help="Training samples, which clients share.")],
    test: Annotated[Path, typer.Option(help="Samples that the accuracy is measured on.")],
    apart_from: Annotated[
        Path | None, typer.Option(help="Samples to leave out of the test, such as the victims.")
    ] = None,
    defense: Annotated[str, typer.Option(help="JSON settings of the defense.")],
    training: Annotated[str, typer.Option(help="JSON settings of the training.")] = "{}",
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints, for resuming.")],
    output: Output,
    card: Output,
    threads: Threads = None,
    gpus: Gpus = 0,
    log: Log = None,
) -> None:
    """Train an FL model by clients that defend their gradients, and measure its accuracy."""
    import numpy as np
    import pandas as pd
    import torch
    from pydantic import ValidationError

    from lti.checkpoint import Checkpoint
    from lti.compute import acquire, hardware, peak_memory
    from lti.data.mixture import refuse_victims
    from lti.data.selection import read_selection
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.federated import FederatedTraining
    from lti.federated.split import most_participations
    from lti.federated.train import train_federated as train
    from lti.files import atomic_path, digest_json, write_card
    from lti.fl_models import FL_MODELS, attacked, load_fl_model, network_digest
    from lti.fl_models.batch_norm import batch_norms
    from lti.modules import source_digest
    from lti.progress import Progress
    from lti.registry import describe_validation_error

    defended = DEFENSES.parse(parse_json(defense, option="defense"))
    try:
        settings = FederatedTraining(**parse_json(training, option="training"))
    except ValidationError as error:
        message = describe_validation_error(error, where="training", model=FederatedTraining)
        raise LTIError(message) from None
    compute = acquire(threads=threads, gpus=gpus)
    model, network = load_fl_model(fl_model, device=compute.device)
    selection = read_selection(samples)
    tested = read_selection(test).samples
    if apart_from is not None:
        left_out = read_selection(apart_from).samples.index
        tested = tested.take(np.flatnonzero(~np.isin(tested.index, left_out)))
    if not len(tested):
        raise LTIError(
            f"{test}: no sample is left beside those of {apart_from}; expected some to test on. "
            f"Choose fewer victims."
        )
    refuse_victims(selection.samples, tested, what=str(test))
    facts = {
        "training": settings.model_dump(mode="json"),
        "defense": defended.canonical(),
        "fl_model": model.canonical(),
        "fl_model_digest": network_digest(network),
        "training_digest": selection.samples.digest,
        "test_digest": tested.digest,
    }
    state = {
        **facts,
        "code": source_digest("federated", (DEFENSES, defended.name), (FL_MODELS, model.name)),
        "device": hardware(compute),
        "threads": torch.get_num_threads(),
    }
    checkpoint = Checkpoint(checkpoints / f"federated-{digest_json(state)}.safetensors", state)
    progress = Progress(f"federated {model.name} {defended.name}", log=log)
    trained = train(
        settings,
        model,
        network,
        selection.samples,
        tested,
        defense=defended,
        special=selection.metadata.get("text", {}).get("special", []),
        compute=compute,
        checkpoint=checkpoint,
        progress=progress,
    )
    with atomic_path(output) as temporary:
        pd.DataFrame(trained.history).to_csv(temporary, index=False, lineterminator="\n")
    tried = settings.learning_rates
    write_card(
        card,
        {
            **facts,
            "evaluation": trained.history[-1],
            "answers": "next tokens" if model.label_is_sample else "classes",
            "interval": "bootstrap over texts" if model.label_is_sample else "Wilson",
            "learning_rate": trained.learning_rate,
            # Then a better one may lie outside.
            "learning_rate_at_edge": len(tried) > 1
            and trained.learning_rate in (min(tried), max(tried)),
            "pilots": trained.pilots,
            "samples_of_clients": trained.clients,
            "participations": most_participations(len(trained.clients), settings),
            "batch_norm": bool(batch_norms(network)),
            "test_samples": len(tested),
            "trained_parameters": sum(p.numel() for p in attacked(model, network).values()),
            "digest": network_digest(network),
        },
    )
    checkpoint.clear()
    last = trained.history[-1]
    progress.say(
        f"accuracy {last['accuracy']:.4f} [{last['low']:.4f}, {last['high']:.4f}] on "
        f"{last['n']:,} test samples after {last['round']:,} rounds at learning rate "
        f"{trained.learning_rate:g}, {peak_memory(compute)}"
    )
