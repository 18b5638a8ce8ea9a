"""A checkout with a small quickstart for ``faults.py``: run it, stop it, compare what it made."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lti.errors import LTIError
from lti.files import digest_arrays, read_arrays
from lti.gradients.store import GradientStore

__all__ = ["TARGET", "Checkout", "contents", "differences", "small_quickstart"]

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("lti", "workflow", "profiles", "envs", "Snakefile")
TARGET = "quickstart"
# Compared byte by byte; arrays and stores by their content. Not the history of a training,
# which says how long it took, nor PDF, which says when it was made.
TEXTS = (".csv", ".md", ".tex", ".png", ".html")


def small_quickstart() -> dict[str, Any]:
    """Return the configuration of a quickstart of both kinds of data and of stores.

    Gauss: noise is drawn in every epoch. Signs: compressed rows. All of the quickstart's attacks.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    images, text = (config["experiments"][f"quickstart_{name}"] for name in ("images", "text"))
    images |= {"defenses": ["gauss"], "auxiliary": {"size": 600}, "victims": {"size": 16}}
    images |= {"pictured": 4, "metrics": ["psnr"]}
    text |= {"defenses": ["sign"], "auxiliary": {"size": 60}, "victims": {"size": 10}}
    config["experiments"] = {"quickstart_images": images, "quickstart_text": text}
    config["reports"] = {TARGET: config["reports"][TARGET]}
    config["shifts"] = {}
    config["store"] = {"chunk_mib": 0.25, "shard_mib": 2, "memory_mib": 256}
    config["inverters"]["quick"] |= {
        **{"epochs": 6, "hidden": 16, "components": 16},
        "whitening": 0,  # its eigenvectors would take most of the time
    }
    config["attacks"]["lti-map-quick"] |= {"victims": 8, "tuning": 4, "iterations": 2}
    config["attacks"]["ig-quick"] |= {"iterations": 30, "victims": 4}
    return config


class Checkout:
    """A copy of the workflow with that configuration.

    Args:
        folder: where it is or will be; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        if folder.exists():
            return
        folder.mkdir(parents=True)
        for name in PARTS:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, folder / name)
        (folder / "config.yaml").write_text(yaml.safe_dump(small_quickstart(), sort_keys=False))

    def copy(self, folder: Path) -> Checkout:
        """Put a copy there, in place of what is there, with all that Snakemake knows."""
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(self.folder, folder, symlinks=True)
        return Checkout(folder)

    def clear(self) -> None:
        """Remove all that was computed."""
        for name in ("results", "logs", ".snakemake"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def start(
        self, *arguments: str, before: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Start Snakemake on one core, in a process group of its own; its output goes to a file."""
        command = [*before, sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SNAKEMAKE")}
        machine = {"PYTHONPATH": str(self.folder), "LTI_CHECKPOINT_SECONDS": "0"}
        with (self.folder.parent / f"{self.folder.name}.output").open("w") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={**clean, **machine, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def said(self) -> str:
        """Return the last command's output."""
        return (self.folder.parent / f"{self.folder.name}.output").read_text(errors="replace")

    def run(self, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> bool:
        """Run Snakemake to its end and return whether it succeeded."""
        process = self.start(*arguments, before=before, **environment)
        try:
            return process.wait(timeout=3600) == 0
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise

    def records(self) -> list[dict[str, Any]]:
        """Return what Snakemake noted of every output: ``output``, ``rule``, ``input``."""
        folder = self.folder / ".snakemake/metadata"
        records = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = base64.b64decode("".join(path.relative_to(folder).parts).replace("@", ""))
            value = json.loads(path.read_text())
            records.append({**value, "output": name.decode()})
        return records


def contents(results: Path) -> dict[str, str]:
    """Return a digest of the content of every result, by its path.

    A file that its reader refuses has the refusal in its place.
    """
    found = {}
    for path in sorted(p for p in results.rglob("*") if not p.name.startswith(".")):
        name = str(path.relative_to(results))
        if ".zarr/" in name or name.split("/")[0] == "checkpoints":
            continue
        try:
            if path.suffix == ".safetensors":
                found[name] = digest_arrays(read_arrays(path)[0])
            elif path.suffix == ".zarr":
                store = GradientStore.open(path, path.with_suffix(".manifest.json"))
                store.verify()
                found[name] = store.digest
            elif path.suffix in TEXTS and not name.endswith(".history.csv"):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except LTIError as error:
            found[name] = f"refused: {error}"
    return found


def differences(results: Path, expected: dict[str, str]) -> list[str]:
    """Return the results that are of another content or refused, new, or missing at the end.

    Snakemake does not make again what nothing needs any more: of what has gone, only tables and
    figures count.
    """
    found = contents(results)
    ends = {name for name in expected if name.split("/")[0] in ("experiments", "reports")}
    return sorted(name for name in {*found, *ends} if found.get(name) != expected.get(name))
