"""Running an audit's workflow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lti
from lti.auditing.expand import EXPERIMENT
from lti.errors import LTIError

__all__ = ["find_workflow", "read_audit", "results_folder", "run_workflow"]


def find_workflow() -> Path:
    """Return the Snakefile that came with this package.

    Raises:
        LTIError: there is none.
    """
    package = Path(lti.__file__).resolve().parent
    for folder in (package, package.parent):
        if (path := folder / "workflow" / "Snakefile").is_file():
            return path
    raise LTIError(
        f"the workflow was not found beside {package}; expected workflow/Snakefile. Install this "
        f"package again, or run from a checkout."
    )


def read_audit(path: Path) -> dict[str, Any]:
    """Return the content of an audit's file.

    Raises:
        LTIError: it is missing, no YAML, has a key twice, or has no key ``audit``.
    """
    from lti.yaml_file import read_yaml

    try:
        values = read_yaml(path)
    except LTIError as error:
        raise LTIError(f"{error} `lti audit init` writes a file to begin with.") from None
    if not isinstance(values, dict) or "audit" not in values:
        keys = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise LTIError(
            f"{path}: got {keys or 'nothing'}; expected the key `audit`. `lti audit init` writes a "
            f"file to begin with."
        )
    return values


def results_folder(values: dict[str, Any]) -> Path:
    """Return where an audit's results go, from the working folder."""
    return Path(str(values.get("results", "results"))) / "experiments" / EXPERIMENT


def run_workflow(
    path: Path, *, folder: Path | None = None, cores: str = "all", options: Sequence[str] = ()
) -> None:
    """Run an audit's workflow, with its progress on the terminal.

    Args:
        path: the audit's file.
        folder: where its results go; None: here.
        cores: as ``snakemake --cores`` takes it.
        options: further options of ``snakemake``.

    Raises:
        LTIError: it failed; what failed stands above.
    """
    modules = str(path.resolve().parent)
    searched = [modules, str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(find_workflow())),
        *("--configfile", str(path.resolve()), "--cores", cores, "--rerun-incomplete"),
        *("--show-failed-logs", "--quiet", "host", "rules"),
        *(("--directory", str(folder.resolve())) if folder is not None else ()),
        *options,
        *("--", EXPERIMENT),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(searched)})
    if done.returncode:
        raise LTIError(
            f"{path}: the audit stopped (exit status {done.returncode}); what failed stands above. "
            f"The same command goes on from there, with --unlock where a process that was "
            f"killed still locks the folder. `lti audit check {path}` looks at the file."
        )
