"""Stages that compute gradients: the auxiliary set's, and what the server observes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Fitted, Gpus, Log, Output, Threads, parse_json

__all__ = ["compute_gradients", "observe"]

ModelFile = Annotated[Path, typer.Option(help="The FL model.")]
DefenseJson = Annotated[str, typer.Option(help="JSON settings of the defense.")]
ProjectionJson = Annotated[str, typer.Option(help="JSON settings of the projection.")]
StoreJson = Annotated[str, typer.Option(help="JSON settings of the gradient store.")]


def compute_gradients(
    *,
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    fl_model: ModelFile,
    defense: DefenseJson,
    projection: ProjectionJson = '{"use": "identity"}',
    fitted: Fitted = None,
    mirrored: Annotated[bool, typer.Option(help="Also store the mirrored images' rows.")] = False,
    store: StoreJson = "{}",
    output: Output,
    manifest: Output,
    part: Annotated[int | None, typer.Option(help="Write only this part of the shards.")] = None,
    parts: Annotated[int, typer.Option(min=1, help="How many parts there are.")] = 1,
    done: Annotated[Path | None, typer.Option(help="File to write after a part.")] = None,
    threads: Threads = None,
    gpus: Gpus = 0,
    log: Log = None,
) -> None:
    """Store the auxiliary set's gradients, defended (all but noise) and projected.

    Sample i has rows ``views * i`` (as it is) and, where ``mirrored``, ``2 * i + 1``. Text has
    no mirror image. With ``part``, only some shards are written, beside other processes; the
    command without it then checks them all and finishes the store.
    """
    import numpy as np
    import torch
    from pydantic import ValidationError

    from lti.compute import acquire, peak_memory
    from lti.data.samples import as_input
    from lti.data.selection import read_selection
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.files import write_json
    from lti.fl_models import attacked, load_fl_model, network_digest
    from lti.gradients.layout import ParameterLayout
    from lti.gradients.per_sample import block_rows, even_blocks
    from lti.gradients.store import StoreContent, StoreSettings, write_shards, write_store
    from lti.gradients.updates import sample_parts_function
    from lti.progress import Progress
    from lti.projections import load_projection
    from lti.registry import describe_validation_error
    from lti.seeding import derive_seed

    settings = DEFENSES.parse(parse_json(defense, option="defense"))
    try:
        store_settings = StoreSettings(**parse_json(store, option="store"))
    except ValidationError as error:
        message = describe_validation_error(error, where="store", model=StoreSettings)
        raise LTIError(message) from None
    compute = acquire(threads=threads, gpus=gpus)
    selection = read_selection(auxiliary)
    samples = selection.samples
    if mirrored and samples.modality == "text":
        raise LTIError(
            f"--mirrored: got {auxiliary}, which is text; expected images. Leave it out."
        )
    model, network = load_fl_model(fl_model, device=compute.device)
    projected = load_projection(
        parse_json(projection, option="projection"),
        fitted,
        where="--projection",
        facts={"defense": settings.canonical(), "fl_model_digest": network_digest(network)},
        device=compute.device,
    )
    layout = ParameterLayout.of(attacked(model, network))
    labels = model.labels(samples)
    # Sums of signs are no signs, and sums of pruned entries are seldom zero.
    whole = projected.counts(layout) is None
    gradients = sample_parts_function(settings, model, network)
    root = selection.metadata["seed"]
    limit = block_rows(layout.total)
    views = 2 if mirrored else 1
    progress = Progress(f"gradients {model.name} {settings.name}", log=log)
    progress.start(total=views * len(samples) // (1 if part is None else parts), unit="rows")

    def block(start: int, stop: int) -> torch.Tensor:
        # Not a torch index: numpy takes one of a single element for a plain number.
        sample, view = np.divmod(np.arange(start, stop), views)
        x = as_input(torch.from_numpy(samples.value[sample]))
        if mirrored:
            x = torch.where(torch.from_numpy(view == 1)[:, None, None, None], x.flip(3), x)
        label = torch.from_numpy(labels[sample])
        parts = gradients(x.to(compute.device), label.to(compute.device))
        if settings.is_stochastic:
            seeds = [
                derive_seed(root, "auxiliary", settings.name, row) for row in range(start, stop)
            ]
            rows = settings.before_projection(layout.join(parts), seeds=seeds)
            return projected.project(rows, layout=layout)
        defended = settings.deterministic_parts(parts, layout=layout)
        return projected.project_parts(defended, layout=layout)

    def rows(start: int, stop: int) -> torch.Tensor:
        # The gradients behind a chunk of hashed rows are many times its size.
        return torch.cat([block(*part) for part in even_blocks(start, stop, limit)])

    content: StoreContent = {
        "n_rows": views * len(samples),
        "dim": projected.layout(layout).total,
        "encoding": settings.encoding if whole else "scaled-float16",
        "compress": settings.compress and whole,
        "compute": rows,
        "manifest": manifest,
        "attributes": {
            "defense": settings.canonical(),
            "fl_model": model.canonical(),
            "fl_model_digest": network_digest(network),
            "auxiliary_digest": samples.digest,
            "layout": layout.to_json(),
            "projection": projected.canonical(),
            "projection_digest": projected.digest,
            "views": views,
        },
        "settings": store_settings,
        "on_rows": progress.advance,
    }
    if part is not None:
        shards = write_shards(output, part=part, parts=parts, **content)
        if done is not None:
            write_json(done, {"shards": [*shards]})
        progress.say(f"{len(shards):,} shards of part {part} of {parts}, {peak_memory(compute)}")
        return
    written = write_store(output, **content)
    progress.say(
        f"{written.n_rows:,} rows of {written.dim:,} entries, {written.encoding}, "
        f"{peak_memory(compute)}"
    )


def observe(
    *,
    victims: Annotated[Path, typer.Option(help="The victims.")],
    fl_model: ModelFile,
    defense: DefenseJson,
    projection: ProjectionJson = '{"use": "identity"}',
    fitted: Fitted = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per client batch.")] = 1,
    batches: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many client batches.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Root seed of the defense's draws.")] = 0,
    output: Output,
    manifest: Output,
    threads: Threads = None,
    log: Log = None,
) -> None:
    """Write what the server receives: one defended gradient a victim batch, drawn once.

    Batch k holds victims ``[k B, (k + 1) B)``. Each sample's gradient is defended, then the
    batch is averaged (Wu et al. 2023, supplement A); with ``defense_at: batch`` the mean
    gradient is defended. Only then is it projected: every projection shows the same
    observation. Draws are named after the defense and the batch: other FL models and batch
    sizes get the same ones, as common random numbers.
    """
    from functools import lru_cache

    import torch

    from lti.compute import acquire
    from lti.data.samples import as_input
    from lti.data.selection import read_selection
    from lti.defenses import DEFENSES
    from lti.errors import LTIError
    from lti.fl_models import attacked, load_fl_model, network_digest
    from lti.gradients.layout import ParameterLayout
    from lti.gradients.per_sample import even_blocks
    from lti.gradients.sent import clients_at_once, sent_function
    from lti.gradients.store import write_store
    from lti.progress import Progress
    from lti.projections import load_projection
    from lti.seeding import torch_generator

    settings = DEFENSES.parse(parse_json(defense, option="defense"))
    acquire(threads=threads)
    samples = read_selection(victims).samples
    there = len(samples) // batch_size
    wanted = there if batches is None else batches
    if not 1 <= wanted <= there:
        raise LTIError(
            f"{victims}: got {len(samples)} victims for {max(1, wanted)} batches of {batch_size}; "
            f"expected {max(1, wanted) * batch_size} or more. Raise the number of victims or lower "
            f"that of batches."
        )
    model, network = load_fl_model(fl_model)
    stored = DEFENSES["none"]() if settings.is_deterministic_identity else settings
    projected = load_projection(
        parse_json(projection, option="projection"),
        fitted,
        where="--projection",
        facts={"defense": stored.canonical(), "fl_model_digest": network_digest(network)},
    )
    layout = ParameterLayout.of(attacked(model, network))
    labels = model.labels(samples)
    sent = sent_function(settings, model, network)

    def received(start: int, stop: int) -> torch.Tensor:
        part = slice(start * batch_size, stop * batch_size)
        grouped, names = (stop - start, batch_size), ("observe", settings.name)
        return sent(
            as_input(torch.from_numpy(samples.value[part])).unflatten(0, grouped),
            torch.from_numpy(labels[part]).unflatten(0, grouped),
            [torch_generator(seed, *names, batch) for batch in range(start, stop)],
        )

    # The same for every projection and number of batches: a gradient that is computed beside
    # others, or beside fewer, may differ in its last bits.
    blocks = list(even_blocks(0, there, clients_at_once(layout.total, batch_size)))

    @lru_cache(maxsize=1)  # of a block that goes on in the next chunk of rows
    def block(first: int, last: int) -> torch.Tensor:
        return projected.project(received(first, last), layout=layout)

    def rows(start: int, stop: int) -> torch.Tensor:
        return torch.cat(
            [
                block(first, last)[max(0, start - first) : stop - first]
                for first, last in blocks
                if first < stop and start < last
            ]
        )

    shape = (wanted, batch_size)
    label = samples.label[: wanted * batch_size].reshape(shape)
    tokens = None
    if model.label_is_sample:
        tokens = labels[: wanted * batch_size].reshape(*shape, -1).tolist()
    write_store(
        output,
        n_rows=wanted,
        dim=projected.layout(layout).total,
        encoding="float32",
        compute=rows,
        manifest=manifest,
        attributes={
            "batch_size": batch_size,
            "batches": there,
            "defense": settings.canonical(),
            "fl_model": model.canonical(),
            "fl_model_digest": network_digest(network),
            "label": label.tolist(),
            "tokens": tokens,
            "layout": layout.to_json(),
            "projection": projected.canonical(),
            "projection_digest": projected.digest,
            "sample_shape": list(samples.value.shape[1:]),
            "seed": seed,
        },
    )
    progress = Progress(f"observe {model.name} {settings.name} {projected.name}", log=log)
    progress.say(f"{wanted:,} defended gradients of {batch_size} samples")
