"""Several processes that train one inverter together: real ones, on the processor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lti.data.samples import Samples
from lti.data.selection import write_selection
from lti.files import read_tensors
from lti.fl_models import FLTask, save_fl_model
from lti.gradients.batches import TrainingRows
from lti.gradients.store import GradientStore
from lti.interruption import GRACE_SECONDS
from lti.process_group import ALONE, ProcessGroup
from lti.stages.gradients import compute_gradients
from lti.stages.train import train_inverter

SAMPLES, HELD, BATCH = 120, 8, 16
SMALL = {"batch_size": BATCH, "hidden": 16, "epochs": 3}
TUNED = {"use": "tuned", "components": 16, "whitening": 0, **SMALL}
PAPER = {"use": "paper", **SMALL}  # in float32
STORE = json.dumps({"chunk_mib": 0.25, "shard_mib": 1, "memory_mib": 64})


@pytest.fixture(scope="module")
def files(lenet, tmp_path_factory) -> Path:
    """An auxiliary set, a LeNet and their gradients, undefended."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (SAMPLES, 3, 4, 4), dtype=np.uint8)
    image = coarse.repeat(8, axis=2).repeat(8, axis=3)
    samples = Samples(image, np.arange(SAMPLES) % 10, np.arange(SAMPLES))
    names = [f"class {label}" for label in range(10)]
    facts = {"dataset": "x", "part": "auxiliary", "seed": 0, "class_names": names}
    write_selection(folder / "a.safetensors", samples, metadata={**facts, "size": SAMPLES})
    save_fl_model(folder / "m.safetensors", folder / "m.json", lenet.model, FLTask(10))
    compute_gradients(
        auxiliary=folder / "a.safetensors",
        fl_model=folder / "m.safetensors",
        defense='{"use": "none"}',
        mirrored=True,
        store=STORE,
        output=folder / "g.zarr",
        manifest=folder / "g.json",
        threads=1,
    )
    return folder


def options_of(files: Path, output: Path, inverter: dict, **options) -> dict:
    return {
        "auxiliary": files / "a.safetensors",
        "gradients": files / "g.zarr",
        "manifest": files / "g.json",
        "fl_model": files / "m.safetensors",
        "defense": '{"use": "none"}',
        "inverter": json.dumps(inverter),
        "checkpoints": output.parent / "checkpoints",
        "output": output,
        "card": output.with_suffix(".json"),
        "history": output.with_suffix(".csv"),
        "threads": 2,
        **options,
    }


def start(files: Path, output: Path, inverter: dict, processes: int, **options):
    """Begin a training as the workflow does, with as many processes."""
    environment = {**os.environ, **options.pop("environment", {})}
    command = [sys.executable, "-m", "lti", "train-inverter", "--processes", str(processes)]
    for key, value in options_of(files, output, inverter, **options).items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def train(files: Path, output: Path, inverter: dict, processes: int, **options) -> pd.DataFrame:
    """Train, alone in this process, and return the history."""
    if processes == 1:
        train_inverter(**options_of(files, output, inverter, **options))
    else:
        with start(files, output, inverter, processes, **options) as process:
            _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "error" not in errors
    assert sorted(path.suffix for path in output.parent.glob(f"{output.stem}.*")) == [
        ".csv",
        ".json",
        ".safetensors",
    ]
    assert list((output.parent / "checkpoints").glob("*")) == []
    return pd.read_csv(output.with_suffix(".csv"))


def difference(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """The greatest relative difference of two loss curves."""
    columns = ["epoch", "learning_rate", "train_loss", "held_out_loss"]
    assert len(one) == len(other)
    return float((one[columns] / other[columns] - 1).abs().to_numpy().max())


GAUSS = {"defense": '{"use": "gauss", "sigma": 0.01}'}


@pytest.mark.parametrize(
    ("inverter", "options", "tolerance"),
    [
        (PAPER, {**GAUSS, "batch_size": 3}, 1e-5),  # 37 client batches: shares of 3 and 2 at last
        (TUNED, {}, 5e-3),  # in bfloat16 where the processor has it
    ],
    ids=["paper-gauss-b3", "tuned"],
)
def test_two_processes_have_the_loss_curve_of_one(files, tmp_path, inverter, options, tolerance):
    one, two = (
        train(files, tmp_path / f"{count}.safetensors", inverter, count, **options)
        for count in (1, 2)
    )
    assert difference(two, one) < tolerance
    assert one["train_loss"].iloc[-1] < one["train_loss"].iloc[0]
    first, second = (read_tensors(tmp_path / f"{count}.safetensors")[0] for count in (1, 2))
    for key, value in first.items():
        if key == "decoder.components":
            # Which of the two directions a component has depends on the number of threads.
            second[key] *= (second[key] * value).sum(dim=1, keepdim=True).sign()
        torch.testing.assert_close(second[key], value, rtol=0, atol=20 * tolerance, msg=key)


def test_processes_stream_rows_of_their_own_and_train_as_well(files, tmp_path):
    # Too little for the rows, and for three times two chunks of 0.24 MiB enough.
    one, three = (
        train(files, tmp_path / f"{count}.safetensors", PAPER, count, memory_mib=1.5)
        for count in (1, 3)
    )
    assert difference(three, one) < 0.1  # other batches
    assert difference(three, one) > 1e-4


@pytest.mark.parametrize("size", [2, 3, 5])
def test_streamed_rows_come_to_one_process_each_and_change_hands(files, size):
    store = GradientStore.open(files / "g.zarr", files / "g.json")
    rows = range(3, store.n_rows - 5)
    members = [
        TrainingRows(store, rows=rows, memory_mib=0.6, group=ProcessGroup(rank, size))
        for rank in range(size)
    ]
    assert {member.placement for member in members} == {"streamed"}
    held = []
    for seed in (0, 1):
        drawn = [[i for i, _ in member.epoch(4, seed=seed)] for member in members]
        indices = [torch.cat(part).tolist() for part in drawn]
        assert sorted(index for part in indices for index in part) == list(rows)
        held.append([set(part) for part in indices])
    assert held[0] != held[1]


@given(total=st.integers(0, 300), size=st.integers(1, 9))
def test_shares_are_whole_even_and_in_order(total, size):
    shares = [ProcessGroup(rank, size).share(total) for rank in range(size)]
    assert [thing for share in shares for thing in share] == list(range(total))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)
    assert ALONE.share(total) == range(total)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = {**PAPER, "epochs": 100}
OFTEN = {"environment": {"LTI_CHECKPOINT_SECONDS": "0.3"}}


def started(files: Path, output: Path, **options):
    """A training of two processes that has saved an epoch or more, and its processes."""

    def epochs_saved() -> int:
        paths = (output.parent / "checkpoints").glob("inverter-*")
        return max((len(read_tensors(path)[0]["history"]) for path in paths), default=0)

    process = start(files, output, LONG, 2, **OFTEN, **options)
    wait_for(epochs_saved, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    return process, workers


def test_asked_to_leave_all_save_once_and_leave_and_any_number_goes_on(files, tmp_path):
    whole = train(files, tmp_path / "whole/i.safetensors", LONG, 2)
    output = tmp_path / "cut/i.safetensors"
    process, workers = started(files, output)
    began = time.time()
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1
    assert errors.count("goes on from what was saved") == 2  # the first's and the parent's
    assert "Traceback" not in errors and "error:" not in errors
    assert not any(worker.is_running() for worker in workers)
    (saved,) = (tmp_path / "cut/checkpoints").iterdir()
    assert saved.stat().st_mtime - began < GRACE_SECONDS
    content = saved.read_bytes()
    resumed = train(files, output, LONG, 2)
    assert difference(resumed, whole) == 0
    assert output.read_bytes() == (tmp_path / "whole/i.safetensors").read_bytes()
    saved.write_bytes(content)
    alone = train(files, output, LONG, 1)
    assert difference(alone, whole) < 1e-4
    assert alone["seconds"].iloc[0] == resumed["seconds"].iloc[0]  # it went on


def test_a_killed_process_ends_all_with_one_error(files, tmp_path):
    process, workers = started(files, tmp_path / "i.safetensors")
    by_rank = {json.loads(worker.environ()["LTI_PROCESS"])["rank"]: worker for worker in workers}
    by_rank[1].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    said = [line for line in errors.splitlines() if not line.startswith("[train")]
    assert said == [
        "error: process 2 of 2 of this training was killed by SIGKILL; the others were "
        "ended. Run the same command again; it goes on from what was saved."
    ]
    assert not any(worker.is_running() for worker in workers)
    assert not (tmp_path / "i.safetensors").exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_processes_end_with_the_one_that_started_them(files, tmp_path):
    process, workers = started(files, tmp_path / "i.safetensors")
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        with contextlib.suppress(psutil.Error):
            worker.kill()
    assert alive == []


def test_what_all_of_them_find_wrong_is_said_once(files, tmp_path):
    with start(files, tmp_path / "i.safetensors", {**PAPER, "learning_rate": 1e30}, 2) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.count("error:") == 1 and "Lower the learning rate (1e+30)" in errors


def test_an_inverter_that_one_process_fits_is_fitted_by_one(files, tmp_path, capsys):
    kernel = {"use": "kernel", "samples": 32, "refine": 0, "components": 8}
    train_inverter(**options_of(files, tmp_path / "i.safetensors", kernel, processes=2))
    assert capsys.readouterr().err.startswith("inverter kernel is fitted by one process")
    assert (tmp_path / "i.safetensors").exists()
