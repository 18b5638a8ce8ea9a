"""The command ``lti audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lti.errors import LTIError

__all__ = ["audit_app"]

RUN = "run"
File = Annotated[Path, typer.Argument(help="The audit's file.")]


class _RunsByDefault(TyperGroup):
    """`lti audit audit.yaml` is `lti audit run audit.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


audit_app = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    help="Audit your own model, data and defenses: `lti audit init`, `check`, then `lti audit "
    "audit.yaml`.",
)


@audit_app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("audit.yaml"),
) -> None:
    """Write a commented file to begin with."""
    from lti.files import atomic_path

    if path.exists():
        raise LTIError(f"{path}: is there already; expected a new file. Name another one.")
    template = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")
    with atomic_path(path) as temporary:
        temporary.write_text(template, encoding="utf-8")
    typer.echo(f"{path}: written. Edit it, then: lti audit check {path}")


@audit_app.command()
def check(path: File) -> None:
    """Look at all that an audit needs on one batch, in seconds, before hours are spent."""
    from lti.auditing.check import check_audit
    from lti.auditing.workflow import read_audit

    failed = 0
    for line in check_audit(read_audit(path), folder=path.resolve().parent):
        typer.echo(f"{line.mark:<8}{line.what}: {line.text}")
        failed += line.mark == "ERROR"
    if failed:
        raise LTIError(f"{path}: {failed} of the checks failed; see above.")
    typer.echo(f"{path}: ready. Run it: lti audit {path}")


@audit_app.command(name=RUN)
def run(
    path: File,
    cores: Annotated[str, typer.Option(help="Processor cores, or `all`.")] = "all",
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs that may be used; all that there are.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="A Snakemake profile, for a cluster (docs/cluster.md).")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    unlock: Annotated[
        bool, typer.Option("--unlock", help="After a crash: take the folder's lock away first.")
    ] = False,
) -> None:
    """Run an audit, or go on with it, and say where the report is."""
    from lti.auditing.result_json import read_result
    from lti.auditing.workflow import read_audit, results_folder, run_workflow

    values = read_audit(path)
    options = [
        *(["--dry-run"] if dry else []),
        *(["--resources", f"gpu={gpus}"] if gpus is not None else []),
        *(["--profile", profile] if profile else []),
    ]
    if unlock:
        run_workflow(path, cores=cores, options=["--unlock"])
    run_workflow(path, cores=cores, options=options)
    if dry:
        return
    where = results_folder(values)
    for finding in read_result(where / "audit.json").defenses:
        typer.echo(f"{finding.defense}: {finding.level}. {finding.verdict}")
    typer.echo(f"{where / 'audit.html'}")
