"""Lint, format, report, environment and profile of the workflow."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from workflow_runner import REPOSITORY, Checkout, finished_checkout


def test_lint_finds_nothing(tmp_path):
    output = Checkout.fresh(tmp_path / "checkout").run("--lint")
    assert "Congratulations" in output


@pytest.mark.skipif(importlib.util.find_spec("snakefmt") is None, reason="snakefmt is missing")
def test_rule_files_are_formatted():
    command = [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_report_holds_results_and_captions(tmp_path_factory, tmp_path):
    pytest.importorskip("pygments")
    checkout = finished_checkout(tmp_path_factory).copy(tmp_path / "checkout")
    checkout.run("--report", "report.html")
    report = (checkout.folder / "report.html").read_text()
    for name in ("summary.md", "summary.png", "reconstructions.png"):
        assert f"results/experiments/tiny/{name}" in report
    shown = " ".join(report.replace("\\n", " ").split())
    for caption in ("chart", "reconstructions", "table", "workflow"):
        text = (REPOSITORY / f"workflow/report/{caption}.rst").read_text()
        # A run of plain words; the rest may be typeset.
        words = max(re.findall(r"[A-Za-z ]+", " ".join(text.split())), key=len).strip()
        assert len(words) > 25
        assert words in shown, caption


def test_conda_environment_is_what_the_package_requires():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    expected = {re.sub(r"^torch(?=[<>=~!]|$)", "pytorch", item) for item in project["dependencies"]}
    expected.add(f"python{project['requires-python']}")
    environment = yaml.safe_load((REPOSITORY / "envs/lti.yaml").read_text())
    assert sorted(environment["dependencies"]) == sorted(expected)


def test_default_profile_sets_no_resources():
    """They would win over those of the profile of a machine."""
    profile = yaml.safe_load((REPOSITORY / "profiles/default/config.yaml").read_text())
    assert "default-resources" not in profile
    assert not {"cores", "jobs", "executor", "set-resources", "set-threads"} & profile.keys()
