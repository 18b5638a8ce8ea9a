"""An attack in several jobs: stages on files, and the bytes of one job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lti.attacks.parts import Part, block_bytes
from lti.data.samples import Samples
from lti.data.selection import write_selection
from lti.errors import LTIError
from lti.fl_models import FLTask, save_fl_model
from lti.stages.attack import run_attack
from lti.stages.gradients import observe

VICTIMS = 5
ATTACK = {"use": "ig", "iterations": 3}


@pytest.fixture(scope="module")
def files(lenet, tmp_path_factory) -> Path:
    """What a server received of five victims, and the FL model."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (VICTIMS, 3, 32, 32), dtype=np.uint8)
    victims = Samples(image, random.integers(0, 10, VICTIMS), np.arange(VICTIMS))
    facts = {"dataset": "x", "part": "victims", "seed": 0, "class_names": ["a"]}
    write_selection(folder / "v", victims, metadata={**facts, "size": VICTIMS})
    save_fl_model(folder / "m", folder / "m.json", lenet.model, FLTask(10))
    observe(
        victims=folder / "v",
        fl_model=folder / "m",
        defense='{"use": "none"}',
        output=folder / "o.zarr",
        manifest=folder / "o.json",
        threads=1,
    )
    return folder


@pytest.fixture(autouse=True)
def pairs(monkeypatch) -> None:
    """Blocks of two victim batches: three blocks."""
    per_batch = 4 * 24 * 15_826
    monkeypatch.setattr("lti.attacks.optimise.MEMORY_MIB", 2.5 * per_batch / 2**20)


def attack(files: Path, output: Path, method: dict = ATTACK, **options) -> bytes:
    names = {key: "x" for key in ("dataset", "fl_model", "defense", "variant", "auxiliary")}
    run_attack(
        observations=files / "o.zarr",
        manifest=files / "o.json",
        fl_model=files / "m",
        attack=json.dumps(method),
        names=json.dumps(names),
        checkpoints=output.parent / "checkpoints",
        output=output,
        card=output.with_name(f"{output.name}.card"),
        threads=1,
        **options,
    )
    return output.read_bytes()


def attacked_in_parts(files: Path, folder: Path, count: int, method: dict = ATTACK) -> list[Path]:
    parts = [folder / f"part-{number}" for number in range(count)]
    for number, path in enumerate(parts):
        attack(files, path, method, part=number, parts=count)
    return parts


def join(files: Path, output: Path, parts: list[Path]) -> bytes:
    return attack(files, output, join=json.dumps([str(path) for path in parts]))


@pytest.mark.parametrize("count", [2, 5], ids=["two-parts", "more-than-blocks"])
def test_parts_put_together_have_the_bytes_of_one_job(files, tmp_path, count):
    whole = attack(files, tmp_path / "whole")
    parts = attacked_in_parts(files, tmp_path, count)
    assert join(files, tmp_path / "joined", parts) == whole
    cards = [tmp_path / f"{name}.card" for name in ("whole", "joined")]
    assert cards[0].read_bytes() == cards[1].read_bytes()
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_part_that_stopped_goes_on_and_leaves_the_others_checkpoints(
    files, tmp_path, monkeypatch
):
    whole = attack(files, tmp_path / "whole")
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    steps = 0

    def stop(self, count, **values):
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr("lti.progress.Progress.advance", stop)
        attack(files, tmp_path / "part-1", part=1, parts=2)
    attack(files, tmp_path / "part-0", part=0, parts=2)
    assert len(list((tmp_path / "checkpoints").glob("*/*"))) == 1
    attack(files, tmp_path / "part-1", part=1, parts=2)
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert join(files, tmp_path / "joined", [tmp_path / "part-0", tmp_path / "part-1"]) == whole


def test_parts_that_are_not_all_there_or_not_these_are_refused(files, tmp_path):
    first, second = attacked_in_parts(files, tmp_path, 2)
    other = tmp_path / "other"
    attack(files, other, {**ATTACK, "tv": 0.5}, part=1, parts=2)
    output = tmp_path / "joined"
    with pytest.raises(LTIError, match=r'part-0: got a part of .*"of":2.*expected .*"of":1'):
        join(files, output, [first])
    with pytest.raises(LTIError, match=r'part-1: got a part of .*"number":1.*"number":0'):
        join(files, output, [second, first])
    with pytest.raises(LTIError, match=r'other: got a part of .*"tv":0\.5'):
        join(files, output, [first, other])
    with pytest.raises(LTIError, match=r"nowhere: cannot be read"):
        join(files, output, [first, tmp_path / "nowhere"])
    content = bytearray(second.read_bytes())
    content[-5] ^= 1
    second.write_bytes(content)
    with pytest.raises(LTIError, match=r"part-1: its content does not match its digest"):
        join(files, output, [first, second])
    assert not output.exists()


def test_what_is_not_divided_says_so(files, tmp_path):
    with pytest.raises(LTIError, match=r"got part 2 of 2; expected 0 to 1"):
        attack(files, tmp_path / "r", part=2, parts=2)
    nearest = {"use": "nearest", "projection": "identity"}
    knowledge = json.dumps({key: "x" for key in ("gradients", "manifest", "auxiliary")})
    with pytest.raises(LTIError, match=r"--parts: got 2; expected 1: attack nearest"):
        attack(files, tmp_path / "r", nearest, part=0, parts=2, knowledge=knowledge)


@given(count=st.integers(1, 200), at_once=st.integers(1, 50), of=st.integers(1, 12))
def test_parts_take_the_blocks_of_one_job_in_order(count, at_once, of):
    whole = Part().blocks(count, at_once)
    assert [index for rows in whole for index in range(count)[rows]] == list(range(count))
    assert {rows.stop - rows.start for rows in whole[:-1]} <= {at_once}
    parts = [Part(number, of).blocks(count, at_once) for number in range(of)]
    assert [rows for part in parts for rows in part] == whole
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_blocks_do_not_depend_on_free_memory(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda *_: 1 / 0)
    assert block_bytes(torch.device("cpu"), 3) == 3 * 2**20
    assert block_bytes(torch.device("cuda", 0), 3) == 4096 * 2**20
