"""The stage that trains a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Gpus, Log, Output, Threads, parse_json

__all__ = ["train_generator"]


def train_generator(
    *,
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    generator: Annotated[str, typer.Option(help="JSON settings of the generator.")],
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints, for resuming.")],
    output: Output,
    card: Output,
    history: Output,
    threads: Threads = None,
    gpus: Gpus = 0,
    log: Log = None,
) -> None:
    """Train a network that makes images like the auxiliary ones, as a prior for attacks."""
    import pandas as pd
    import torch

    from lti.checkpoint import Checkpoint
    from lti.compute import acquire, hardware, peak_memory
    from lti.data.selection import read_selection
    from lti.files import atomic_path, digest_json, write_card
    from lti.generators import GENERATORS
    from lti.generators.train import train_generator as train
    from lti.modules import source_digest
    from lti.progress import Progress

    method = GENERATORS.parse(parse_json(generator, option="generator"))
    compute = acquire(threads=threads, gpus=gpus)
    selection = read_selection(auxiliary)
    settings = {
        "generator": method.canonical(),
        "auxiliary": selection.samples.digest,
        "code": source_digest("generator", (GENERATORS, method.name)),
        "device": hardware(compute),
        "threads": torch.get_num_threads(),
    }
    checkpoint = Checkpoint(
        checkpoints / f"generator-{digest_json(settings)}.safetensors",
        settings,
    )
    progress = Progress(f"generator {selection.metadata['dataset']} {method.name}", log=log)
    trained, epochs = train(
        method,
        torch.from_numpy(selection.samples.value),
        compute=compute,
        checkpoint=checkpoint,
        progress=progress,
    )
    trained.save(output)
    with atomic_path(history) as temporary:
        pd.DataFrame(epochs).to_csv(temporary, index=False, lineterminator="\n")
    write_card(
        card,
        {
            "generator": method.canonical(),
            "auxiliary": settings["auxiliary"],
            "parameters": sum(p.numel() for p in trained.network.parameters()),
            "digest": trained.digest,
        },
    )
    checkpoint.clear()
    last = epochs[-1]
    progress.say(
        f"losses {last['generator_loss']:.3f} (generator) and "
        f"{last['discriminator_loss']:.3f} (discriminator) in epoch {last['epoch']}, "
        f"{peak_memory(compute)}"
    )
