"""Lint, format, report, environment and profile of the workflow."""

from __future__ import annotations

import importlib.util
import re
import shutil
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
    for name in ("summary.md", "summary.png", "reconstructions.lenet.png", "table_psnr.md"):
        assert f"results/experiments/tiny/{name}" in report
    shown = " ".join(report.replace("\\n", " ").split())
    for caption in ("chart", "metric_table", "reconstructions", "table", "workflow"):
        text = (REPOSITORY / f"workflow/report/{caption}.rst").read_text()
        # A run of plain words; the rest may be typeset.
        words = max(re.findall(r"[A-Za-z ]+", " ".join(text.split())), key=len).strip()
        assert len(words) > 25
        assert words in shown, caption


TARGETS = {
    **{
        name: [f"table_{table}.{end}" for end in ("csv", "md", "tex")]
        for name, table in {
            **{"table1": "psnr", "table2": "lpips", "table3": "ssim", "table_mse": "mse"}
        }.items()
    },
    "figure3": ["reconstructions.lenet.png"],
    "figure4": ["reconstructions.resnet20.png"],
}


def test_targets_named_after_the_paper_are_files_of_its_experiment(tmp_path):
    checkout = Checkout.fresh(tmp_path / "checkout")
    shutil.copy2(REPOSITORY / "config.yaml", checkout.folder)
    output = checkout.run("--dry-run", "--quiet", "host", "--", *TARGETS, "vision")
    folder = "results/experiments/vision"
    for name, files in TARGETS.items():
        found = re.search(rf"^rule {name}:\n    input: (.*)$", output, flags=re.MULTILINE)
        assert found is not None, name
        assert sorted(found[1].split(", ")) == [f"{folder}/{file}" for file in files]
    # Two FL models, two batch sizes, four defenses and four attacks.
    counts = dict(re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE))
    assert (counts["run_attack"], counts["measure_attack"]) == ("64", "64")
    assert (counts["train_inverter"], counts["vision"]) == ("16", "1")
    # ResNet20's are read whole, for gradient matching, and projected.
    assert counts["observe"] == "24"


def test_a_picture_needs_the_cells_of_its_fl_model_alone(tmp_path):
    checkout = Checkout.fresh(tmp_path / "checkout")
    shutil.copy2(REPOSITORY / "config.yaml", checkout.folder)
    output = checkout.run("--dry-run", "--quiet", "host", "--", "figure3")
    assert "lenet/b4/sign/gi-gip-full@" in output and "resnet20" not in output


def test_figures_of_sentences_are_those_of_the_experiments_on_their_data_sets(tmp_path):
    checkout = Checkout.fresh(tmp_path / "checkout")
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    window = config["datasets"]["wikitext"]["also"][0]
    for dataset, fl_model, include in (
        ("cola", "bert-small", [1, 15, 13]),
        ("wikitext", "transformer3", [window]),
    ):
        config["experiments"][f"language_{dataset}"] = {
            "title": "Sentences",
            "dataset": dataset,
            "fl_models": [fl_model],
            "defenses": ["none", "sign"],
            "attacks": ["nearest"],
            "auxiliary": {"size": 64},
            "victims": {"size": 16, "include": include},
            "pictured": 3,
        }
    (checkout.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    output = checkout.run(
        *("--dry-run", "--printshellcmds", "--quiet", "host", "--", "figure5", "figure6")
    )
    for name, stem in (
        ("figure5", "results/experiments/language_cola/texts.bert-small"),
        ("figure6", "results/experiments/language_wikitext/texts.transformer3"),
    ):
        found = re.search(rf"^rule {name}:\n    input: (.*)$", output, flags=re.MULTILINE)
        assert found is not None, name
        assert found[1].split(", ") == [f"{stem}.{end}" for end in ("html", "pdf", "png")]
    # A tokenizer finds victims by their text, and is not asked for others.
    commands = re.findall(r"lti select-victims .*$", output, flags=re.MULTILINE)
    assert len(commands) == 2
    (plain,) = (line for line in commands if "--include '[1,15,13]'" in line)
    (by_text,) = (line for line in commands if line is not plain)
    assert "--tokenizer" not in plain and "data/wikitext/tokenizer.json" in by_text
    drawn = re.findall(r"lti draw-texts .*$", output, flags=re.MULTILINE)
    assert len(drawn) == 2 and all(line.count(" --reconstructions ") == 2 for line in drawn)
    # An experiment of text has sentences for its picture, one of images has none.
    images = "quickstart_images"
    output = checkout.run("--dry-run", "--quiet", "host", "--", "language_cola", images)
    for name, ending in (("language_cola", r"texts\.bert-small\.png"), (images, "lenet.png")):
        (inputs,) = re.findall(rf"^rule {name}:\n    input: (.*)$", output, flags=re.MULTILINE)
        assert re.search(ending, inputs)
        assert ("texts." in inputs) == (name == "language_cola")
        assert ("reconstructions." in inputs) == (name == images)


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
