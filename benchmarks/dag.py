"""How long Snakemake takes to plan a grid of many jobs: ``python benchmarks/dag.py --jobs 10000``.

A grid of one experiment whose defenses are as many widths of noise as it takes, planned with
``snakemake -n`` in a process of its own. Nothing is computed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZES = (1, 2, 4, 8)
ATTACKS = ("lti", "ig", "nearest")
JOBS_PER_CELL = 2 + 2 * len(ATTACKS)  # observations and inverter; attacks and metrics


def grid(jobs: int) -> dict[str, Any]:
    """Return a configuration of about so many jobs."""
    defenses = {
        f"gauss-{number}": {"use": "gauss", "sigma": 0.001 * (number + 1)}
        for number in range(max(1, jobs // (JOBS_PER_CELL * len(BATCH_SIZES))))
    }
    return {
        "datasets": {"photos": {"use": "photos"}},
        "fl_models": {"lenet": {"use": "lenet", "seed": 0}},
        "projections": {"identity": {"use": "identity"}},
        "defenses": defenses,
        "inverters": {"tuned": {"use": "tuned"}},
        "attacks": {
            "lti": {"use": "lti", "inverter": "tuned"},
            "ig": {"use": "ig"},
            "nearest": {"use": "nearest"},
        },
        "experiments": {
            "grid": {
                "title": "Grid",
                "dataset": "photos",
                "fl_models": ["lenet"],
                "batch_sizes": list(BATCH_SIZES),
                "defenses": list(defenses),
                "attacks": list(ATTACKS),
                "auxiliary": {"size": 8000},
                "victims": {"size": 64},
            }
        },
    }


def planned(jobs: int) -> tuple[int, float]:
    """Return how many jobs a grid has, and the seconds until they were listed."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(grid(jobs)))
        began = time.perf_counter()
        output = subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
                *("--directory", folder, "--configfile", str(config), "--workflow-profile", "none"),
                *("--cores", "2", "--dry-run", "--quiet", "rules", "--", "grid"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
    found = re.search(r"^total\s+(\d+)", output.stdout + output.stderr, re.MULTILINE)
    assert found is not None, output
    return int(found[1]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 10_000])
    for jobs in parser.parse_args().jobs:
        count, seconds = planned(jobs)
        print(f"{count:,} jobs planned in {seconds:.1f} s")


if __name__ == "__main__":
    main()
