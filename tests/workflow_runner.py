"""Running the real workflow in a folder of its own, on a configuration that takes a minute."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = ["AUXILIARY", "CONFIG", "VICTIMS", "Checkout", "finished_checkout"]

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = ("lti", "workflow", "profiles", "envs", "Snakefile")
AUXILIARY, VICTIMS = "photos-n160-s0", "photos-n8-s0"
CONFIG: dict[str, Any] = {
    "results": "results",
    # Several shards a store: 11 and 6.
    "store": {"chunk_mib": 0.25, "shard_mib": 1, "memory_mib": 64},
    "datasets": {"photos": {"use": "photos"}},
    "fl_models": {"lenet": {"use": "lenet", "seed": 0}},
    "projections": {
        "identity": {"use": "identity"},
        "head": {"use": "select", "parameters": ["linear.*"]},
    },
    "defenses": {"sign": {"use": "sign"}, "gauss": {"use": "gauss", "sigma": 0.1}},
    "inverters": {
        "tuned": {
            "use": "tuned",
            "epochs": 2,
            "hidden": 16,
            "components": 16,
            "whitening": 0,  # its eigenvectors would take most of the time
        }
    },
    "generators": {
        "dcgan": {"use": "dcgan", "epochs": 1, "batch_size": 32, "width": 4, "latent": 8}
    },
    "attacks": {
        "lti": {"use": "lti", "inverter": "tuned"},
        "ig": {"use": "ig", "iterations": 3},
        "gi-gip": {
            "use": "gi-gip",
            "generator": "dcgan",
            "restarts": 2,
            "iterations_latent": 3,
            "iterations_weights": 2,
            "overrides": [{"when": {"batch_size": 2}, "victims": 2}],
        },
        "nearest": {"use": "nearest", "projection": "head"},
    },
    "experiments": {
        "tiny": {
            "title": "Tiny",
            "dataset": "photos",
            "fl_models": ["lenet"],
            "defenses": ["sign", "gauss"],
            "attacks": ["lti", "ig"],
            "auxiliary": {"size": 160},
            "victims": {"size": 8},
            "pictured": 4,
        },
        # What needs batches, a generator or the gradients themselves.
        "pairs": {
            "title": "Pairs",
            "dataset": "photos",
            "fl_models": ["lenet"],
            "batch_sizes": [2],
            "defenses": ["sign"],
            "attacks": ["lti", "gi-gip", "nearest"],
            "auxiliary": {"size": 160},
            "victims": {"size": 8},
            "metrics": ["psnr"],
            "pictured": 4,
        },
    },
}
SHOWN_WILDCARDS = (
    *(
        "projection",
        "projected",
        "part",
        "stored",
        "generator",
        "backbone",
        "defense",
        "attack",
        "experiment",
        "report",
        "table",
    ),
    "batch_size",
)


class Checkout:
    """A copy of the workflow.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"

    @classmethod
    def fresh(cls, folder: Path) -> Checkout:
        """Copy the repository's workflow, nothing computed, with the small configuration."""
        folder.mkdir(parents=True)
        ignore = shutil.ignore_patterns("__pycache__")
        for name in PARTS:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignore)
            else:
                shutil.copy2(source, folder / name)
        checkout = cls(folder)
        checkout.configure({})
        return checkout

    def copy(self, folder: Path) -> Checkout:
        """Copy with all that was computed and what Snakemake knows of it."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Checkout(folder)

    def blank(self, folder: Path) -> Checkout:
        """Copy without anything that was computed."""
        ignore = shutil.ignore_patterns("__pycache__", ".snakemake", "results", "logs")
        shutil.copytree(self.folder, folder, ignore=ignore)
        return Checkout(folder)

    def configure(self, changes: dict[str, Any]) -> None:
        """Write the small configuration with changes, keys dotted as in ``defenses.gauss``."""
        config = deepcopy(CONFIG)
        for path, value in changes.items():
            *sections, key = path.split(".")
            place = config
            for section in sections:
                place = place[section]
            place[key] = value
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start Snakemake, in a process group of its own."""
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SNAKEMAKE", "PYTEST", "COV_"))
        }
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            env={
                **clean,
                "PYTHONPATH": str(self.folder),
                "LTI_CHECKPOINT_SECONDS": "0",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, fails: bool = False, **environment: str) -> str:
        """Run Snakemake to its end and return its output.

        Args:
            arguments: of the command.
            fails: whether it must fail rather than succeed.
            environment: further variables.
        """
        with self.start(*arguments, **environment) as process:
            output, _ = process.communicate(timeout=600)
        assert (process.returncode != 0) == fails, output
        return output

    def planned(self, *targets: str, options: Sequence[str] = ()) -> list[str]:
        """Return what a run would do, sorted: rules with the wildcards that tell jobs apart.

        Batches of one and whole gradients are not mentioned, and collection targets are left
        out.
        """
        output = self.run("--dry-run", "--quiet", "host", *options, "--", *targets)
        jobs = []
        for block in re.split(r"^\[[A-Z][a-z]{2} .*\]\n", output, flags=re.MULTILINE)[1:]:
            rule = re.match(r"(?:local)?rule (\w+):", block)
            assert rule is not None, block
            found = re.search(r"^    wildcards: (.*)$", block, flags=re.MULTILINE)
            pairs = dict(pair.split("=") for pair in found[1].split(", ")) if found else {}
            pairs = {key: value.split("@")[0] for key, value in pairs.items()}
            if pairs.get("batch_size", "1") != "1":
                pairs["batch_size"] = f"B={pairs['batch_size']}"
            else:
                pairs.pop("batch_size", None)
            pairs = {
                key: value
                for key, value in pairs.items()
                if (key, value) not in (("projection", "identity"), ("projected", "identity"))
            }
            shown = [pairs[key] for key in SHOWN_WILDCARDS if key in pairs]
            if "output:" in block:
                jobs.append(" ".join([rule[1], *shown]))
        assert jobs or "Nothing to be done" in output, output
        return sorted(jobs)

    def inverter(self, defense: str, suffix: str = ".safetensors") -> Path:
        """Return a file of a trained inverter, relative to the folder."""
        return Path(f"results/inverters/{AUXILIARY}/lenet/identity/b1/{defense}/tuned{suffix}")


def finished_checkout(factory: pytest.TempPathFactory) -> Checkout:
    """Return a checkout in which everything is computed; made once a session, not to be changed."""
    checkout = Checkout(factory.getbasetemp() / "finished")
    if not checkout.folder.exists():
        Checkout.fresh(checkout.folder).run()
    return checkout
