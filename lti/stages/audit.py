"""The stage that writes an audit's page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lti.stages.options import Log, parse_json, parse_json_list

__all__ = ["write_audit"]


def write_audit(
    *,
    title: Annotated[str, typer.Option(help="Heading of the page.")],
    victims: Annotated[Path, typer.Option(help="The victims.")],
    auxiliary: Annotated[Path, typer.Option(help="The auxiliary set.")],
    fl_model_card: Annotated[Path, typer.Option(help="The FL model's card.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="The data set's tokenizer; for text alone.")
    ] = None,
    runs: Annotated[
        str,
        typer.Option(help="JSON list of attacks: objects with `metrics` and `reconstructions`."),
    ],
    trainings: Annotated[
        str,
        typer.Option(help="JSON list of trainings: objects with `defense` and `card`."),
    ] = "[]",
    page: Annotated[str, typer.Option(help="JSON: `examples`, `shown` and `seed`.")] = "{}",
    settings: Annotated[str, typer.Option(help="JSON: every setting of the experiment.")] = "{}",
    cards: Annotated[
        list[Path] | None, typer.Option(help="Card of an artifact, for its digest; repeated.")
    ] = None,
    html: Annotated[Path, typer.Option(help="Page to write.")],
    data: Annotated[Path, typer.Option(help="The same as JSON.")],
    table: Annotated[Path, typer.Option(help="The same as a table, CSV.")],
    log: Log = None,
) -> None:
    """Say what an experiment's attacks recover under each defense, with examples."""
    from lti.auditing.assemble import Page, assemble
    from lti.auditing.facts import facts_of
    from lti.auditing.measured import Run
    from lti.auditing.result_json import without_examples, write_result
    from lti.auditing.utility import utility_of
    from lti.data.selection import read_selection
    from lti.data.tokenizer import read_tokenizer
    from lti.files import atomic_path, read_arrays, read_card
    from lti.metrics.tokens import read_text
    from lti.progress import Progress
    from lti.report.audit_page import write_audit_page

    truth, read = read_arrays(victims)
    selection = read_selection(auxiliary)
    shown = parse_json(page, option="page")
    listed: list[dict[str, Any]] = parse_json_list(runs, option="runs")
    reconstructed = read_arrays(listed[0]["reconstructions"])[1] if listed else {}
    result = assemble(
        [Run(Path(run["metrics"]), Path(run["reconstructions"])) for run in listed],
        victims=truth,
        auxiliary=selection.samples,
        page=Page(
            title=title,
            shown=int(shown.get("shown", 8)),
            seed=int(shown.get("seed", 0)),
            settings=parse_json(settings, option="settings"),
        ),
        facts=facts_of(
            fl_model=read_card(fl_model_card),
            victims=read,
            auxiliary=selection.metadata,
            run=reconstructed,
        ),
        digests={str(path): str(read_card(path).get("digest", "")) for path in cards or ()},
        text=None if tokenizer is None else read_text(tokenizer, read["text"]),
        tokenizer=None if tokenizer is None else read_tokenizer(tokenizer, read["text"]),
        utility=utility_of(parse_json_list(trainings, option="trainings")),
    )
    examples = shown.get("examples", "show")
    write_result(data, result if examples == "show" else without_examples(result))
    with atomic_path(table) as temporary:
        result.frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    write_audit_page(html, result, examples=examples)
    progress = Progress("audit", log=log)
    for finding in result.defenses:
        progress.say(f"{finding.defense}: {finding.level}. {finding.verdict}")
    progress.say(str(html))
