"""What the workflow computes again, and what it leaves alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from workflow_runner import AUXILIARY, VICTIMS, Checkout, finished_checkout

TABLES = {"tiny": ("mse", "psnr", "ssim"), "pairs": ("psnr",)}
ENDS = (".safetensors", ".json")
TIMING = ["seconds", "samples_per_second", "peak_memory_mib"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Checkout:
    return finished_checkout(tmp_path_factory)


@pytest.fixture(scope="module")
def edited(finished, tmp_path_factory) -> Checkout:
    """A copy for edits that are taken back."""
    return finished.copy(tmp_path_factory.mktemp("edited") / "checkout")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def again(finished, cache, tmp_path_factory) -> tuple[Checkout, str]:
    """The same command from the beginning in another folder, filling a cache on the way."""
    checkout = finished.blank(tmp_path_factory.mktemp("again") / "checkout")
    return checkout, checkout.run("--cache", SNAKEMAKE_OUTPUT_CACHE=str(cache))


@contextlib.contextmanager
def appended(file: Path, text: str) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(before + text.encode())
    try:
        yield
    finally:
        file.write_bytes(before)


def attacked(defense: str, *attacks: str, of: str = "") -> list[str]:
    """Jobs of attacks on batches of one, or `of` others."""
    rules = ("run_attack", "measure_attack")
    return [f"{rule} {defense} {attack}{of}" for rule in rules for attack in attacks]


def tables(*experiments: str) -> list[str]:
    return [f"tabulate_metric {name} {table}" for name in experiments for table in TABLES[name]]


def summary(*experiments: str) -> list[str]:
    """Jobs that follow from new values."""
    return [*(f"summarise_experiment {name}" for name in experiments), *tables(*experiments)]


def reported(*experiments: str) -> list[str]:
    """Jobs that follow from new reconstructions."""
    return [*summary(*experiments), *(f"draw_reconstructions {name}" for name in experiments)]


def files_of(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".snakemake_timestamp"
    }


def test_code_of_the_checkout_is_run(edited):
    """The other tests mean nothing if jobs run another installation of `lti`."""
    environment = {**os.environ, "PYTHONPATH": str(edited.folder)}
    command = [sys.executable, "-c", "import lti; print(lti.__file__)"]
    found = subprocess.check_output(command, env=environment, cwd=edited.folder, text=True)
    assert Path(found.strip()) == edited.folder / "lti" / "__init__.py"
    with appended(edited.folder / "lti/cli.py", "\nraise SystemExit('this is the copy')\n"):
        target = "results/experiments/tiny/reconstructions.lenet.png"
        output = edited.run("--force", target, fails=True)
    assert "this is the copy" in output
    edited.run(target)  # the failed job took its output with it


def test_second_run_does_nothing(finished):
    assert finished.planned() == []
    assert finished.planned("tiny") == []
    assert "Nothing to be done" in finished.run()


def touch_newest_first(files: list[Path]) -> None:
    """Give files new times such that every input is newer than what was made from it."""
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    newest = files[0].stat().st_mtime
    for place, path in enumerate(files):
        os.utime(path, (newest + place / 1000,) * 2)


def test_touching_files_does_nothing(finished, tmp_path):
    checkout = finished.copy(tmp_path / "touched")
    files = [
        path
        for path in checkout.folder.rglob("*")
        if ".snakemake" not in path.parts and "__pycache__" not in path.parts
    ]
    kinds = {path.suffix for path in files}
    assert {".py", ".yaml", ".safetensors", ".json", ".zarr", ".csv", ".smk"} <= kinds
    touch_newest_first(files)
    assert checkout.planned() == []


def test_touched_data_are_not_even_read(finished, tmp_path):
    """Snakemake reads small files to see whether a new time means new content; here none."""
    checkout = finished.copy(tmp_path / "touched")
    data = [*checkout.results.rglob("*.safetensors"), *checkout.results.rglob("*.zarr")]
    data += [path for store in checkout.results.rglob("*.zarr") for path in store.rglob("*")]
    touch_newest_first(data)
    assert checkout.planned(options=["--max-checksum-file-size", "0"]) == []


PAIR = " B=2"
PAIRS = [f"{job} sign{PAIR}" for job in ("observe", "train_inverter")]
PAIRS += attacked("sign", "lti", "gi-gip", "nearest", of=PAIR)
HEAD = [f"observe head sign{PAIR}", "compute_gradients head sign"]  # for the nearest neighbour
GAUSS = ["observe gauss", "train_inverter gauss", *attacked("gauss", "lti", "ig")]
LTI = [
    job
    for defense, of in (("sign", ""), ("gauss", ""), ("sign", PAIR))
    for job in (f"train_inverter {defense}{of}", *attacked(defense, "lti", of=of))
]
IG = [*attacked("sign", "ig"), *attacked("gauss", "ig")]
GI_GIP = attacked("sign", "gi-gip", of=PAIR)
NEAREST = attacked("sign", "nearest", of=PAIR)
MEASURE = [job for job in LTI + IG + GI_GIP + NEAREST if job.startswith("measure")]
BOTH = ("tiny", "pairs")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        # The store of undefended gradients stays.
        ("defenses/gauss.py", [*GAUSS, *reported("tiny")]),
        (
            "defenses/sign.py",
            [
                "compute_gradients sign",
                "observe sign",
                "train_inverter sign",
                *attacked("sign", "lti", "ig"),
                *PAIRS,
                *HEAD,
                *reported(*BOTH),
            ],
        ),
        ("defenses/prune.py", []),
        (
            "projections/identity.py",
            [
                "compute_gradients sign",
                "compute_gradients undefended",
                *(f"observe {of}" for of in ("sign", "gauss", f"sign{PAIR}")),
                *LTI,
                *IG,
                *GI_GIP,
                *reported(*BOTH),
            ],
        ),
        ("projections/select.py", [*HEAD, *NEAREST, *reported("pairs")]),
        ("projections/hash.py", []),
        ("attacks/ig.py", [*IG, *reported("tiny")]),
        ("attacks/gi_gip.py", [*GI_GIP, *reported("pairs")]),
        ("attacks/optimise.py", [*IG, *GI_GIP, *reported(*BOTH)]),
        ("attacks/nearest.py", [*NEAREST, *reported("pairs")]),
        ("attacks/lti.py", [*(job for job in LTI if "train" not in job), *reported(*BOTH)]),
        ("generators/dcgan.py", ["train_generator dcgan", *GI_GIP, *reported("pairs")]),
        ("generators/train.py", ["train_generator dcgan", *GI_GIP, *reported("pairs")]),
        ("stages/generator.py", ["train_generator dcgan", *GI_GIP, *reported("pairs")]),
        ("inverters/tuned.py", [*LTI, *reported(*BOTH)]),
        ("inverters/encoder.py", [*LTI, *reported(*BOTH)]),
        ("inverters/trained.py", [*LTI, *reported(*BOTH)]),
        ("inverters/head.py", [*LTI, *reported(*BOTH)]),
        ("inverters/batch_encoder.py", [*LTI, *reported(*BOTH)]),
        ("inverters/paper.py", []),
        # The picture shows the mean PSNR.
        ("metrics/image.py", [*MEASURE, *reported(*BOTH)]),
        ("metrics/lpips.py", []),
        ("stages/backbone.py", []),
        ("report/chart.py", [*summary(*BOTH)]),
        ("report/grid_latex.py", tables(*BOTH)),
        ("report/table.py", [*summary(*BOTH)]),
        ("report/picture.py", [f"draw_reconstructions {name}" for name in BOTH]),
        ("report/paper_values.csv", [*MEASURE, *summary(*BOTH)]),
    ],
)
def test_edited_module_reruns_what_depends_on_it(edited, module, expected):
    comment = "\n# edited\n" if module.endswith(".py") else "\n"
    with appended(edited.folder / "lti" / module, comment):
        assert edited.planned() == sorted(expected)


@pytest.mark.parametrize(
    "module", ["data/photos.py", "fl_models/lenet.py", "stages/train.py", "checkpoint.py"]
)
def test_edited_module_of_an_early_stage_reruns_all_that_follows(edited, module):
    with appended(edited.folder / "lti" / module, "\n# edited\n"):
        planned = edited.planned()
    rules = {job.split()[0] for job in planned}
    attacks = {"run_attack", "measure_attack", *(job.split()[0] for job in reported(*BOTH))}
    fl_model = {"draw_fl_model", "compute_gradients", "observe", "train_inverter", *attacks}
    data = {"prepare_dataset", "select_auxiliary", "select_victims", "train_generator", *fl_model}
    assert (
        rules
        == {
            "data/photos.py": data,
            "fl_models/lenet.py": fl_model,
            "stages/train.py": {"train_inverter", *attacks},
            "checkpoint.py": {"train_generator", "train_inverter", *attacks},
        }[module]
    )
    assert ("run_attack sign ig" in planned) == (module != "stages/train.py")
    # Gradients are neither of an inverter nor of its checkpoints.
    assert ("run_attack sign nearest B=2" in planned) == (
        module in ("data/photos.py", "fl_models/lenet.py")
    )


def test_finished_edit_is_done_once_and_changes_nothing_else(finished, tmp_path):
    checkout = finished.copy(tmp_path / "checkout")
    before = {name: path.stat().st_mtime_ns for name, path in files_of(checkout.results).items()}
    chart = checkout.folder / "lti/report/chart.py"
    chart.write_text(chart.read_text() + "\n# edited\n")
    checkout.run()
    after = {name: path.stat().st_mtime_ns for name, path in files_of(checkout.results).items()}
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        f"experiments/{experiment}/{name}"
        for experiment in BOTH
        for name in (
            *("summary.csv", "summary.md", "summary.png"),
            *("summary.csv.sha256", "summary.md.sha256"),
            *(f"table_{t}.{end}" for t in TABLES[experiment] for end in ("csv", "md", "tex")),
        )
    }
    assert checkout.planned() == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("defenses.gauss.sigma", 0.2, [*GAUSS, *reported("tiny")]),
        ("attacks.ig.iterations", 4, [*IG, *reported("tiny")]),
        ("attacks.gi-gip.iterations_latent", 4, [*GI_GIP, *reported("pairs")]),
        (
            "attacks.lti.overrides",
            [{"when": {"batch_size": 2}, "victims": 3}],
            # Three victims are then all that is read: gi-gip takes two, and shares them.
            [
                f"observe sign{PAIR}",
                *attacked("sign", "lti", of=PAIR),
                *GI_GIP,
                *reported("pairs"),
            ],
        ),
        # More than before, yet no more than the inverter takes.
        ("attacks.gi-gip.overrides", [], [*GI_GIP, *reported("pairs")]),
        ("attacks.ig.victims", 3, [*IG, *reported("tiny")]),
        # It alone reads these.
        ("attacks.nearest.victims", 3, [HEAD[0], *NEAREST, *reported("pairs")]),
        ("attacks.nearest.victims", 4, [*NEAREST, *reported("pairs")]),
        ("projections.head.parameters", ["conv1.*"], [*HEAD, *NEAREST, *reported("pairs")]),
        # Of other cells.
        ("attacks.lti.overrides", [{"when": {"batch_size": 4}, "victims": 3}], []),
        ("generators.dcgan.width", 5, ["train_generator dcgan", *GI_GIP, *reported("pairs")]),
        ("inverters.tuned.epochs", 3, [*LTI, *reported(*BOTH)]),
        ("projections.other", {"use": "hash"}, []),
        ("experiments.tiny.pictured", 3, ["draw_reconstructions tiny"]),
        ("experiments.tiny.title", "Other", summary("tiny")),
        # How, not what, is computed.
        ("store.memory_mib", 128, []),
        ("store.shard_mib", 2, []),
    ],
)
def test_changed_setting_reruns_what_uses_it(edited, key, value, expected):
    edited.configure({key: value})
    try:
        assert edited.planned() == sorted(expected)
    finally:
        edited.configure({})


def test_setting_given_on_the_command_line_reruns_what_uses_it(edited):
    option = "defenses={gauss: {use: gauss, sigma: 0.2}}"
    assert edited.planned("tiny", options=["--config", option]) == sorted(
        [*GAUSS, *reported("tiny")]
    )


def test_single_cell_needs_only_its_own_chain(finished, tmp_path):
    checkout = finished.blank(tmp_path / "checkout")
    first = ["draw_fl_model", "select_victims"]
    first += ["prepare_dataset auxiliary", "prepare_dataset victims"]
    cell = f"results/metrics/{VICTIMS}/lenet/b1/sign"
    assert checkout.planned(f"{cell}/ig.csv") == sorted(
        [*first, "observe sign", *attacked("sign", "ig")]
    )
    training = ["select_auxiliary", "compute_gradients sign", "train_inverter sign"]
    assert checkout.planned(f"{cell}/lti@{AUXILIARY}.csv") == sorted(
        [*first, "observe sign", *training, *attacked("sign", "lti")]
    )
    cell = f"results/metrics/{VICTIMS}/lenet/b2/sign"
    assert checkout.planned(f"{cell}/nearest@{AUXILIARY}.csv") == sorted(
        [*first, training[0], *HEAD, *NEAREST]
    )
    assert checkout.planned(f"{cell}/gi-gip@{AUXILIARY}.csv") == sorted(
        [*first, f"observe sign{PAIR}", training[0], "train_generator dcgan", *GI_GIP]
    )
    assert not checkout.results.exists()


def test_same_command_gives_the_same_bytes(finished, again):
    checkout, _ = again
    one, other = files_of(finished.results), files_of(checkout.results)
    assert one.keys() == other.keys()
    assert any(name.endswith("summary.csv") for name in one)
    different = [
        name
        for name in one
        if not name.endswith(".history.csv") and one[name].read_bytes() != other[name].read_bytes()
    ]
    assert different == []
    for name in one:
        if name.endswith(".history.csv"):
            left, right = (
                pd.read_csv(files[name]).drop(columns=TIMING, errors="ignore")
                for files in (one, other)
            )
            pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_data_and_fl_model_are_shared_between_workflows(finished, again, cache, tmp_path):
    _, output = again
    shared = [
        *(f"data/photos/{part}{end}" for part in ("auxiliary", "victims") for end in ENDS),
        *(f"fl_models/photos/lenet{end}" for end in ENDS),
    ]
    assert output.count("Moving output file") == len(shared)
    # Every one is an entry of its own: no part of the data stands in for the other.
    assert len(list(cache.iterdir())) == len(shared)

    checkout = finished.blank(tmp_path / "checkout")
    output = checkout.run(
        "--cache",
        "--",
        f"results/data/victims/{VICTIMS}.json",
        "results/fl_models/photos/lenet.json",
        SNAKEMAKE_OUTPUT_CACHE=str(cache),
    )
    # Made elsewhere: no job of these rules has written into its log here.
    logs = [path for path in checkout.folder.glob("logs/*/*.log") if path.stat().st_size]
    assert [path.parent.name for path in logs] == ["select_victims"]
    for name in shared:
        file = checkout.results / name
        assert file.is_symlink() and file.resolve().parent == cache.resolve(), output
        assert file.read_bytes() == (finished.results / name).read_bytes()
