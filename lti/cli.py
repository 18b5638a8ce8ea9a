"""The command ``lti``: one subcommand a stage of the workflow."""

from __future__ import annotations

import sys

import typer

from lti.auditing.command import audit_app
from lti.errors import LTIError
from lti.interruption import Interrupted, leave_when_asked
from lti.stages.attack import run_attack
from lti.stages.audit import write_audit
from lti.stages.backbone import fetch_backbone
from lti.stages.combine import combine_summaries
from lti.stages.data import prepare_dataset, prepare_tokenizer
from lti.stages.draw import draw_reconstructions
from lti.stages.draw_curves import draw_curves
from lti.stages.draw_texts import draw_texts
from lti.stages.federated import train_federated
from lti.stages.fl_model import draw_fl_model
from lti.stages.generator import train_generator
from lti.stages.gradients import compute_gradients, observe
from lti.stages.measure import measure_attack
from lti.stages.near_copies import find_near_copies
from lti.stages.prior import fit_prior
from lti.stages.projection import fit_projection
from lti.stages.selection import select_auxiliary, select_victims
from lti.stages.summarise import summarise_experiment
from lti.stages.tabulate import tabulate
from lti.stages.train import train_inverter
from lti.stages.utility import draw_utility

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learning To Invert: the stages of the attack chain, as the workflow runs them.",
)
for stage in (
    prepare_tokenizer,
    prepare_dataset,
    select_auxiliary,
    select_victims,
    find_near_copies,
    fetch_backbone,
    draw_fl_model,
    fit_prior,
    fit_projection,
    compute_gradients,
    observe,
    train_inverter,
    train_generator,
    train_federated,
    run_attack,
    measure_attack,
    write_audit,
    summarise_experiment,
    combine_summaries,
    tabulate,
    draw_reconstructions,
    draw_curves,
    draw_texts,
    draw_utility,
):
    app.command()(stage)
app.add_typer(audit_app, name="audit")


def main() -> None:
    """Run the command; print an :class:`lti.errors.LTIError` alone and exit with 2.

    SIGTERM and SIGUSR1 end it early, training and attacks after a save.
    """
    leave_when_asked()
    try:
        app()
    except LTIError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interrupted:
        print(
            f"{interrupted.signal.name}: stopped; the same command goes on from what was saved.",
            file=sys.stderr,
        )
        raise
