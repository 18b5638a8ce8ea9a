"""The stage that fits a projection to the auxiliary set's gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Gpus, Log, Output, Threads, parse_json

__all__ = ["fit_projection"]


def fit_projection(
    *,
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    fl_model: Annotated[Path, typer.Option(help="The FL model.")],
    defense: Annotated[str, typer.Option(help="JSON settings of the defense.")],
    projection: Annotated[str, typer.Option(help="JSON settings of the projection.")],
    output: Output,
    card: Output,
    threads: Threads = None,
    gpus: Gpus = 0,
    log: Log = None,
) -> None:
    """Make a projection from the auxiliary set's first samples.

    Their gradients go through all of the defense but noise.
    """
    import torch

    from lti.compute import acquire, peak_memory
    from lti.data.samples import as_input
    from lti.data.selection import read_selection
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.files import write_card, write_tensors
    from lti.fl_models import attacked, load_fl_model, network_digest
    from lti.gradients.layout import ParameterLayout
    from lti.gradients.per_sample import block_rows, even_blocks
    from lti.gradients.updates import sample_update_function
    from lti.progress import Progress
    from lti.projections import PROJECTIONS, FitSample, FittedProjection
    from lti.seeding import derive_seed

    defended = DEFENSES.parse(parse_json(defense, option="defense"))
    settings = PROJECTIONS.parse(parse_json(projection, option="projection"))
    if not isinstance(settings, FittedProjection):
        raise LTIError(
            f"--projection: got {settings.name}, which is not fitted to gradients. Leave this "
            f"step out."
        )
    compute = acquire(threads=threads, gpus=gpus)
    selection = read_selection(auxiliary)
    samples = selection.samples
    model, network = load_fl_model(fl_model, device=compute.device)
    layout = ParameterLayout.of(attacked(model, network))
    count = min(settings.samples, len(samples))
    value = as_input(torch.from_numpy(samples.value[:count]))
    label = torch.from_numpy(model.labels(samples)[:count])
    gradients = sample_update_function(defended, model, network)
    progress = Progress(f"projection {model.name} {defended.name} {settings.name}", log=log)

    def all_gradients() -> torch.Tensor:
        progress.start(total=count, unit="gradients")
        result = torch.empty(count, layout.total)
        for start, stop in even_blocks(0, count, block_rows(layout.total)):
            part = gradients(
                value[start:stop].to(compute.device), label[start:stop].to(compute.device)
            )
            seeds = [
                derive_seed(selection.metadata["seed"], "projection", defended.name, row)
                for row in range(start, stop)
            ]
            result[start:stop] = defended.before_projection(part, seeds=seeds)
            progress.advance(stop - start)
        return result

    fitted = settings.fitted(settings.fit(FitSample(value, network, layout, all_gradients)))
    facts = {
        "projection": settings.canonical(),
        "defense": defended.canonical(),
        "auxiliary_digest": samples.digest,
        "fl_model_digest": network_digest(network),
    }
    write_tensors(output, fitted.tensors(), facts)
    write_card(card, {**facts, "digest": fitted.digest})
    progress.say(
        f"fitted to {count:,} samples, {layout.total:,} coordinates, {peak_memory(compute)}"
    )
