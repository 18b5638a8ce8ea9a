"""Kills, damage and wrong settings: the workflow goes on or says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from workflow_runner import AUXILIARY, CONFIG, VICTIMS, Checkout, finished_checkout

from lti.checkpoint import Checkpoint
from lti.files import read_arrays
from lti.inverters.train import HISTORY

STORE = f"results/gradients/{AUXILIARY}/lenet/identity"
EPOCHS = 80
STEPS = 2  # of an epoch
# Noise is drawn anew every epoch: the harder case for resuming.
LONG = {"inverters.tuned.epochs": EPOCHS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Checkout:
    return finished_checkout(tmp_path_factory)


@pytest.fixture
def checkout(finished, tmp_path) -> Checkout:
    return finished.copy(tmp_path / "checkout")


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> Checkout:
    """A checkout with an inverter against `gauss` that was trained for long, in one go."""
    checkout = finished.copy(tmp_path_factory.mktemp("uninterrupted") / "checkout")
    checkout.configure(LONG)
    checkout.run(str(checkout.inverter("gauss")))
    return checkout


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def job_of(process: subprocess.Popen[str], stage: str) -> psutil.Process | None:
    """The Python process of a stage below Snakemake."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = child.cmdline()
            if command[:3] == [sys.executable, "-m", "lti"] and command[3] == stage:
                return child
    return None


def kill_job(process: subprocess.Popen[str], stage: str) -> str:
    """SIGKILL a stage and return what Snakemake says in the end."""
    job = job_of(process, stage)
    assert job is not None
    job.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    return output


def checkpoints(checkout: Checkout) -> list[Path]:
    return list(checkout.results.glob("checkpoints/inverter-*.safetensors"))


def epochs_saved(checkout: Checkout) -> list[float]:
    return [second for path in checkpoints(checkout) for second in epochs_in(path)]


def epochs_in(checkpoint: Path) -> list[float]:
    """The seconds of every epoch in a checkpoint: no two runs have the same."""
    arrays, _ = read_arrays(checkpoint)
    return arrays["history"].reshape(-1, len(HISTORY))[:, 4].tolist()


def assert_resumed(checkout: Checkout, seconds: list[float], reference: Checkout) -> None:
    """The inverter's first epochs are those of the killed run, its weights as if none were."""
    history = pd.read_csv(checkout.folder / checkout.inverter("gauss", ".history.csv"))
    assert len(history) == EPOCHS
    assert history["seconds"].tolist()[: len(seconds)] == pytest.approx(seconds, rel=1e-12)
    for suffix in (".safetensors", ".json"):
        file = checkout.inverter("gauss", suffix)
        assert (checkout.folder / file).read_bytes() == (reference.folder / file).read_bytes()
    assert checkpoints(checkout) == []


def test_killed_training_goes_on_from_its_checkpoint(checkout, uninterrupted):
    checkout.configure(LONG)
    target = checkout.inverter("gauss")
    with checkout.start(str(target)) as process:
        wait_for(lambda: epochs_saved(checkout), process)
        kill_job(process, "train-inverter")
    assert not (checkout.folder / target).exists()
    (checkpoint,) = checkpoints(checkout)
    seconds = epochs_in(checkpoint)
    assert 0 < len(seconds) < EPOCHS
    checkout.run(str(target))
    assert_resumed(checkout, seconds, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_asked_to_leave_training_saves_first_and_goes_on_at_the_step(
    checkout, uninterrupted, number
):
    checkout.configure(LONG)
    target = checkout.inverter("gauss")
    with checkout.start(str(target), LTI_CHECKPOINT_SECONDS="0.5") as process:
        wait_for(lambda: checkpoints(checkout), process)
        _, earlier = read_arrays(checkpoints(checkout)[0])
        time.sleep(0.2)  # some steps that are not saved yet
        job = job_of(process, "train-inverter")
        assert job is not None
        job.send_signal(number)
        began = time.monotonic()
        psutil.wait_procs([job], timeout=30)
        assert time.monotonic() - began < 10
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"{number.name}: stopped; the same command goes on from what was saved" in output
    assert not (checkout.folder / target).exists()
    (checkpoint,) = checkpoints(checkout)
    _, metadata = read_arrays(checkpoint)
    seconds = epochs_in(checkpoint)
    assert earlier["position"] < metadata["position"] < EPOCHS * STEPS
    checkout.run(str(target))
    assert_resumed(checkout, seconds, uninterrupted)


def test_killed_snakemake_goes_on_once_it_is_unlocked(checkout, uninterrupted):
    checkout.configure(LONG)
    target = checkout.inverter("gauss")
    with checkout.start(str(target)) as process:
        wait_for(lambda: epochs_saved(checkout), process)
        job = job_of(process, "train-inverter")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert job is not None
    psutil.wait_procs([job], timeout=60)
    (checkpoint,) = checkpoints(checkout)
    seconds = epochs_in(checkpoint)
    # Snakemake cannot tell this from a second run that is still alive.
    output = checkout.run(str(target), fails=True)
    assert "--unlock" in output
    checkout.run("--unlock")
    checkout.run(str(target))
    assert_resumed(checkout, seconds, uninterrupted)


def test_killed_gradient_writer_goes_on_at_the_shard(checkout):
    store, partial = (checkout.folder / STORE / n for n in ("sign.zarr", ".sign.zarr.partial"))
    expected = {p.relative_to(store): p.read_bytes() for p in store.glob("rows/c/*/0")}
    assert len(expected) > 3
    shutil.rmtree(store)
    # Slow, so that the kill falls between the first shard and the last.
    slow = checkout.folder / "lti/gradients/store.py"
    text = slow.read_text()
    assert "        work.add(shard," in text
    pause = "        __import__('time').sleep(0.5)\n"
    slow.write_text(text.replace("        work.add(shard,", pause + "        work.add(shard,"))
    with checkout.start(f"{STORE}/sign.manifest.json") as process:
        wait_for(lambda: len(list(partial.glob("journal/*.json"))) >= 2, process)
        kill_job(process, "compute-gradients")
    assert not store.exists()
    slow.write_text(text)
    journal = sorted(path.name for path in partial.glob("journal/*.json"))
    assert 2 <= len(journal) < len(expected)
    kept = partial / "store/rows/c/0/0"
    identity = (kept.stat().st_ino, kept.stat().st_mtime_ns)

    checkout.run(f"{STORE}/sign.manifest.json")
    first = store / "rows/c/0/0"
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == identity
    assert {p.relative_to(store): p.read_bytes() for p in store.glob("rows/c/*/0")} == expected
    assert not partial.exists()


def test_a_store_that_several_jobs_write_has_the_bytes_of_one(checkout):
    folder = checkout.folder / STORE
    before = {p: p.read_bytes() for p in folder.glob("sign*/**/*") if p.is_file()}
    before[folder / "sign.manifest.json"] = (folder / "sign.manifest.json").read_bytes()
    shutil.rmtree(folder / "sign.zarr")
    (folder / "sign.manifest.json").unlink()
    checkout.configure({"store": {**CONFIG["store"], "samples_per_job": 60}})
    target = f"{STORE}/sign.manifest.json"
    planned = checkout.planned(target)
    assert [job.split()[0] for job in planned].count("compute_gradient_shards") == 3  # of 160
    with checkout.start(target) as process:
        journal = folder / ".sign.zarr.partial/journal"
        wait_for(lambda: len(list(journal.glob("*.json"))) >= 1, process)
        os.killpg(process.pid, signal.SIGKILL)  # two of them at work
        process.communicate(timeout=60)
    checkout.run("--unlock")
    checkout.run(target)
    stamp = ".snakemake_timestamp"
    after = {p: p.read_bytes() for p in folder.glob("sign*/**/*") if p.is_file()}
    after[folder / "sign.manifest.json"] = (folder / "sign.manifest.json").read_bytes()
    assert {p for p in after if p.name != stamp} == {p for p in before if p.name != stamp}
    for path, content in before.items():
        assert path.name == stamp or after[path] == content, path
    assert sorted(path.name for path in folder.glob("*sign*")) == [
        "sign.manifest.json",
        "sign.zarr",
    ]


def test_an_attack_that_several_jobs_run_has_the_bytes_of_one(checkout):
    code = checkout.folder / "lti/attacks/optimise.py"
    text = code.read_text()
    assert "MEMORY_MIB = 1024.0" in text
    code.write_text(text.replace("MEMORY_MIB = 1024.0", "MEMORY_MIB = 0.0"))  # four blocks
    folder = checkout.folder / f"results/reconstructions/{VICTIMS}/lenet/b2/sign"
    files = [folder / f"ig{suffix}" for suffix in (".safetensors", ".json")]
    target = str(files[0].relative_to(checkout.folder))
    checkout.run(target)
    expected = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    checkout.configure({"attack_batches_per_job": 3})
    planned = [job.split()[0] for job in checkout.planned(target)]
    assert planned == ["attack_victim_blocks"] * 2 + ["run_attack"]
    checkout.run(target)
    assert [file.read_bytes() for file in files] == expected
    assert sorted(path.name for path in folder.glob("ig*")) == ["ig.json", "ig.safetensors"]
    assert len(list(checkout.folder.glob("logs/run_attack/*.ig.part-*-of-2.log"))) == 2
    # As many victims as a job takes are not divided.
    checkout.configure({"attack_batches_per_job": 4})
    again = checkout.planned(target, options=["--forcerun", "run_attack"])
    assert [job.split()[0] for job in again] == ["run_attack"]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink], ids=["flipped-byte", "lost-shard"])
@pytest.mark.parametrize(
    ("defense", "stored"), [("sign", "sign"), ("gauss", "undefended")], ids=["sign", "gauss"]
)
def test_damaged_store_stops_the_training(checkout, damage, defense, stored):
    target = checkout.inverter(defense)
    (checkout.folder / target).unlink()
    damaged = f"{STORE}/{stored}.zarr/rows/c/1/0"
    damage(checkout.folder / damaged)
    output = checkout.run(str(target), fails=True)
    assert f"error: {damaged}: is " in output
    assert f"Delete the store {STORE}/{stored}.zarr and its manifest" in output
    assert f"{STORE}/{stored}.manifest.json, and run the same command again" in output
    for suffix in (".safetensors", ".json", ".history.csv"):
        assert not (checkout.folder / checkout.inverter(defense, suffix)).exists()


def test_damaged_store_stops_the_nearest_neighbour(checkout):
    target = f"results/reconstructions/{VICTIMS}/lenet/b2/sign/nearest@{AUXILIARY}.safetensors"
    (checkout.folder / target).unlink()
    store = f"results/gradients/{AUXILIARY}/lenet/head/sign.zarr"  # what it reads
    damaged = f"{store}/rows/c/1/0"
    flip_a_byte(checkout.folder / damaged)
    output = checkout.run(target, fails=True)
    assert f"error: {damaged}: is " in output
    assert f"Delete the store {store} and its manifest" in output
    assert not (checkout.folder / target).exists()


def test_remedy_for_a_damaged_store_repairs_it(checkout):
    target = checkout.inverter("sign")
    expected = (checkout.folder / target).read_bytes()
    (checkout.folder / target).unlink()
    shutil.rmtree(checkout.folder / STORE / "sign.zarr")
    (checkout.folder / STORE / "sign.manifest.json").unlink()
    checkout.run(str(target))
    assert (checkout.folder / target).read_bytes() == expected


@pytest.mark.parametrize(
    ("damaged", "text", "target"),
    [
        (f"results/metrics/{VICTIMS}/lenet/b1/sign/ig.csv", "sign", "tiny"),
        ("results/experiments/tiny/summary.csv", "psnr", "tiny"),
        # What the FL model is for is read from it.
        ("results/data/photos/auxiliary.json", "auxiliary", "results/fl_models/photos/lenet.json"),
    ],
    ids=["metric-rows", "summary", "card"],
)
def test_a_changed_character_is_refused_and_the_remedy_repairs_it(checkout, damaged, text, target):
    path = checkout.folder / damaged
    intact = path.read_text()
    summary = (checkout.results / "experiments/tiny/summary.csv").read_bytes()
    path.write_text(intact.replace(text, text.upper(), 1))
    output = checkout.run(target, fails=True)
    assert re.search(
        rf"error: {re.escape(damaged)}: does not match .*: (it|one of them) is", output
    )
    assert "Delete it and run the same command again" in output
    path.unlink()
    checkout.run(target)
    assert path.read_text() == intact
    assert (checkout.results / "experiments/tiny/summary.csv").read_bytes() == summary


def test_checkpoint_of_other_settings_is_refused(checkout, tmp_path):
    checkout.configure(LONG)
    target = checkout.inverter("gauss")
    with checkout.start(str(target)) as process:
        wait_for(lambda: checkpoints(checkout), process)
        kill_job(process, "train-inverter")
    (own,) = checkpoints(checkout)
    arrays, metadata = read_arrays(own)
    settings = metadata["settings"]
    foreign = {**settings, "defense": {"use": "sign"}}
    import torch

    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    Checkpoint(own, foreign, every_seconds=0).save(tensors, position=metadata["position"])
    before = own.read_bytes()
    output = checkout.run(str(target), fails=True)
    assert f"error: results/checkpoints/{own.name}: this checkpoint is of other settings" in output
    assert '"defense":{"use":"sign"}' in output
    assert json.dumps(settings["defense"], separators=(",", ":"), sort_keys=True) in output
    assert "Delete it to begin anew" in output
    assert own.read_bytes() == before
    assert not (checkout.folder / target).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defenses.gauss.sigam": 0.2}, ["defenses.gauss.sigam", "0.2", "sigma"]),
        ({"defenses.gauss.sigma": -1}, ["defenses.gauss.sigma", "-1", "greater than"]),
        ({"defenses.gauss.use": "gaus"}, ["'gaus'", "gauss, none, prune"]),
        ({"attacks.lti.inverter": "other"}, ["attacks.lti.inverter", "'other'", "tuned"]),
        ({"inverters.tuned.epochs": "many"}, ["inverters.tuned.epochs", "'many'", "integer"]),
        (
            {"experiments.tiny.defenses": ["sing"]},
            ["experiments.tiny.defenses", "'sing'", "gauss, sign"],
        ),
        ({"experiments.tiny.batch_sizes": [9]}, ["experiments.tiny.batch_sizes", "9", "1 to", "8"]),
        (
            {"attacks.lti.overrides": [{"when": {"defens": "sign"}, "inverter": "other"}]},
            ["attacks.lti.overrides[0].when.defens", "'sign'", "fl_model, batch_size, defense"],
        ),
        ({"attacks.nearest.projection": "hash"}, ["attacks.nearest.projection", "identity"]),
        ({"attacks.gi-gip.generator": "gan"}, ["attacks.gi-gip.generator", "'gan'", "dcgan"]),
        ({"metrics": {"require": ["lpip"]}}, ["metrics.require", "'lpip'", "lpips_paper"]),
        ({"experiments.tiny.victim": {"size": 8}}, ["experiments.tiny.victim", "victims"]),
        ({"store.shard_mib": 0.1}, ["store", "chunk_mib", "shard_mib 0.1"]),
        ({"seed": 1}, ["seed", "1", "experiments"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_configuration_stops_before_the_first_job(empty, changes, message):
    empty.configure(changes)
    output = empty.run(fails=True)
    assert "The configuration cannot be used" in output
    assert "Traceback" not in output
    for part in message:
        assert part in output.split("The configuration cannot be used")[1], output
    assert not empty.results.exists()
    assert not (empty.folder / "logs").exists()


PERCEPTUAL = {
    "experiments.perceptual": {
        **CONFIG["experiments"]["tiny"],
        "defenses": ["gauss"],
        "attacks": ["ig"],
        "metrics": ["psnr", "lpips"],
    }
}


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
    """Variables of a process that reaches no public home and has no mirror of weights."""
    proxy = "http://127.0.0.1:9"
    return {"https_proxy": proxy, "no_proxy": "", "LTI_DATA_MIRROR": str(tmp_path / "none")}


def test_without_network_a_perceptual_metric_stays_empty_and_says_why(checkout, offline):
    checkout.configure(PERCEPTUAL)
    checkout.run("perceptual", **offline)
    folder = checkout.results / "experiments/perceptual"
    rows = pd.read_csv(folder / "summary.csv").set_index("metric")["mean"]
    assert rows.notna().to_dict() == {"psnr": True, "lpips": False}
    for name in ("summary.md", "table_lpips.md", "table_lpips.tex"):
        text = (folder / name).read_text()
        assert "vgg16-397923af.pth" in text and "cannot be had" in text, name
    assert "cannot be had" not in (folder / "table_psnr.md").read_text()
    # Nothing is asked of the network again.
    assert checkout.planned("perceptual") == []


def test_metric_that_must_not_stay_empty_stops_before_the_first_job(empty, offline):
    empty.configure({**PERCEPTUAL, "metrics": {"require": ["lpips"]}})
    output = empty.run("perceptual", fails=True, **offline)
    assert "Traceback" not in output
    told = output.split("The configuration cannot be used")[1]
    assert "metrics.require: the weights vgg16-397923af.pth" in told and "cannot be had" in told
    assert not empty.results.exists() and not (empty.folder / "logs").exists()


RESIDUAL = {
    "fl_models.resnet20": {"use": "resnet20"},
    "projections.hashed": {"use": "hash", "ratio": 0.002, "keep_head": True},
    "attacks.lti.overrides": [{"when": {"fl_model": "resnet20"}, "projection": "hashed"}],
    "experiments.residual": {
        **CONFIG["experiments"]["tiny"],
        "fl_models": ["resnet20"],
        "batch_sizes": [2],
        "defenses": ["gauss"],
        "attacks": ["lti"],
        "auxiliary": {"size": 24},
        "victims": {"size": 4},
    },
}


def test_hashed_gradients_of_a_residual_network_are_inverted(checkout):
    checkout.configure(RESIDUAL)
    cell = "resnet20/b2/gauss/lti@photos-n24-s0"
    checkout.run(f"results/metrics/photos-n4-s0/{cell}.csv")
    gradients = checkout.results / "gradients/photos-n24-s0/resnet20/hashed"
    manifest = json.loads((gradients / "undefended.manifest.json").read_text())
    assert manifest["attributes"]["projection"]["keep_head"] is True
    # 538 bins of the 269,072 parameters before the head, and the head's 650.
    assert manifest["geometry"]["dim"] == 538 + 650
    arrays, metadata = read_arrays(
        checkout.results / f"reconstructions/photos-n4-s0/{cell}.safetensors"
    )
    assert arrays["reconstruction"].shape == (2, 2, 3, 32, 32)
    assert metadata["attack_settings"]["projection"] == "hashed"
    # LeNet's cells have nothing to do with the override.
    assert checkout.planned("tiny", "pairs") == []


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Iterator[Checkout]:
    """A checkout in which nothing is computed."""
    yield Checkout.fresh(tmp_path_factory.mktemp("empty") / "checkout")
