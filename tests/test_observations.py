"""What the server receives, under each projection, and the first so many batches of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lti.data import Samples, write_selection
from lti.errors import LTIError
from lti.files import canonical_json, read_arrays
from lti.fl_models import FLTask, attacked, save_fl_model
from lti.gradients import per_sample
from lti.gradients.layout import ParameterLayout
from lti.gradients.rows import StoredRows
from lti.gradients.store import GradientStore, StoreSettings, write_store
from lti.projections import PROJECTIONS
from lti.stages.attack import run_attack
from lti.stages.gradients import observe

VICTIMS = 13
HASH = {"use": "hash", "ratio": 0.1, "keep_head": True}
SELECT = {"use": "select", "parameters": ["conv1.*", "linear.bias"]}


@pytest.fixture(scope="module")
def folder(lenet, tmp_path_factory) -> Path:
    """Thirteen victims and a LeNet, as files for the stages."""
    folder = tmp_path_factory.mktemp("victims")
    random = np.random.default_rng(0)
    victims = Samples(
        random.integers(0, 256, (VICTIMS, 3, 32, 32), dtype=np.uint8),
        random.integers(0, 10, VICTIMS),
        np.arange(VICTIMS),
    )
    metadata = {"dataset": "x", "part": "victims", "seed": 0, "class_names": ["a"]}
    write_selection(folder / "v", victims, metadata={**metadata, "size": VICTIMS})
    save_fl_model(folder / "m", folder / "m.json", lenet.model, FLTask(10))
    return folder


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Blocks of four LeNet gradients, chunks of three; how many were computed at once."""
    sizes: list[int] = []
    original = per_sample.per_sample_gradient_function

    def spied(model, network):
        gradients = original(model, network)

        def spy(x, label):
            sizes.append(len(x))
            return gradients(x, label)

        return spy

    row = 4 * 15_826
    monkeypatch.setattr(per_sample, "per_sample_gradient_function", spied)
    monkeypatch.setattr(per_sample, "BLOCK_BYTES", 4 * row)
    monkeypatch.setattr(per_sample, "FEW", 1)
    small = StoreSettings(chunk_mib=3 * row / 2**20, shard_mib=6 * row / 2**20)
    monkeypatch.setattr("lti.gradients.store.StoreSettings", lambda: small)
    return sizes


def received(
    folder: Path, tmp_path: Path, defense: dict, projection: dict | None = None, **options
) -> GradientStore:
    """Run the stage; ``options`` are its own."""
    if projection is not None:
        options["projection"] = canonical_json(projection)
    output, manifest = tmp_path / "o.zarr", tmp_path / "o.json"
    observe(
        victims=folder / "v",
        fl_model=folder / "m",
        defense=canonical_json(defense),
        seed=7,
        output=output,
        manifest=manifest,
        threads=1,
        **options,
    )
    return GradientStore.open(output, manifest)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("defense_at", ["sample", "batch"])
@pytest.mark.parametrize("use", ["none", "sign", "prune", "gauss"])
def test_every_projection_shows_the_same_observation(
    folder, lenet, tmp_path, computed, use, defense_at, batch_size
):
    defense = {"use": use, "defense_at": defense_at}
    count = VICTIMS // batch_size
    store = received(folder, tmp_path, defense, batch_size=batch_size)
    assert store.attributes["projection"] == {"use": "identity"}
    assert sum(computed) == count * batch_size and max(computed) == 4
    whole, layout = store.rows(0, count), ParameterLayout.of(attacked(*lenet))
    for projection in (HASH, SELECT):
        computed.clear()
        store = received(folder, tmp_path, defense, projection, batch_size=batch_size)
        projected = PROJECTIONS.parse(projection)
        expected = projected.project(whole, layout=layout)
        # Projected before it is defended, it would be something else.
        assert torch.equal(store.rows(0, count), expected)
        assert store.dim == projected.layout(layout).total < 15_826
        assert sum(computed) == count * batch_size and max(computed) == 4
        assert store.attributes["projection"] == projected.canonical()
        assert ParameterLayout.from_json(store.attributes["layout"]) == layout


@pytest.mark.parametrize("projection", [{"use": "identity"}, HASH])
@pytest.mark.parametrize("defense", [{"use": "gauss"}, {"use": "prune", "defense_at": "batch"}])
def test_fewer_batches_are_the_first_of_all(folder, tmp_path, computed, defense, projection):
    whole = received(folder, tmp_path, defense, projection, batch_size=2)
    labels, rows = whole.attributes["label"], whole.rows(0, 6)
    assert whole.n_rows == len(labels) == whole.attributes["batches"] == 6
    for count in range(1, 7):
        computed.clear()
        store = received(folder, tmp_path, defense, projection, batch_size=2, batches=count)
        assert torch.equal(store.rows(0, store.n_rows), rows[:count])
        assert store.attributes["label"] == labels[:count]
        assert store.attributes["batches"] == 6
        # Two batches at a time; those that nothing was asked of are left out.
        assert computed == [4] * -(-count // 2)


def test_a_number_of_batches_that_victims_do_not_fill_is_refused(folder, tmp_path):
    with pytest.raises(LTIError, match="got 13 victims for 4 batches of 4; expected 16 or more"):
        received(folder, tmp_path, {"use": "none"}, batch_size=4, batches=4)
    with pytest.raises(LTIError, match="got 13 victims for 1 batches of 14; expected 14 or more"):
        received(folder, tmp_path, {"use": "none"}, batch_size=14)


def attack(folder: Path, tmp_path: Path, method: dict) -> dict[str, np.ndarray]:
    """Run the stage of attacks on what `received` wrote."""
    names = {key: "x" for key in ("dataset", "fl_model", "defense", "variant", "auxiliary")}
    run_attack(
        observations=tmp_path / "o.zarr",
        manifest=tmp_path / "o.json",
        fl_model=folder / "m",
        attack=canonical_json(method),
        names=json.dumps(names),
        checkpoints=tmp_path / "checkpoints",
        output=tmp_path / "r",
        card=tmp_path / "r.json",
        threads=1,
    )
    return read_arrays(tmp_path / "r")[0]


def test_an_attack_on_the_first_victims_sees_the_same_whatever_else_was_observed(folder, tmp_path):
    ig = {"use": "ig", "iterations": 2, "victims": 3}
    received(folder, tmp_path, {"use": "gauss"})
    expected = attack(folder, tmp_path, ig)["reconstruction"]
    assert expected.shape == (3, 1, 3, 32, 32)
    received(folder, tmp_path, {"use": "gauss"}, batches=5)
    assert np.array_equal(attack(folder, tmp_path, ig)["reconstruction"], expected)
    # No attack takes fewer victims than its settings say.
    for victims, taken in ((6, 6), (99, VICTIMS), (None, VICTIMS)):
        with pytest.raises(
            LTIError, match=f"holds 5 of 13 victim batches; attack ig takes {taken}"
        ):
            attack(folder, tmp_path, {**ig, "victims": victims})


def test_gradient_matching_on_projected_observations_is_refused(folder, tmp_path):
    received(folder, tmp_path, {"use": "none"}, SELECT, batches=1)
    with pytest.raises(LTIError, match=r"ig got observations under {.*'select'}; expected whole"):
        attack(folder, tmp_path, {"use": "ig", "iterations": 2, "victims": 1})


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[GradientStore, torch.Tensor]:
    """A store of nine rows in chunks of two, and its rows."""
    folder = tmp_path_factory.mktemp("rows")
    rows = torch.arange(9 * 5.0).view(9, 5)
    chunk = 2 * 5 * 4 / 2**20
    store = write_store(
        folder / "s",
        n_rows=9,
        dim=5,
        encoding="float32",
        compute=lambda start, stop: rows[start:stop],
        manifest=folder / "s.json",
        settings=StoreSettings(chunk_mib=chunk, shard_mib=2 * chunk),
    )
    return store, rows


@settings(deadline=None)
@given(
    count=st.integers(1, 9),
    start=st.none() | st.integers(-10, 12),
    stop=st.none() | st.integers(-10, 12),
)
def test_rows_that_are_read_on_demand_are_a_tensors(stored, count, start, stop):
    store, rows = stored
    view = StoredRows(store, count)
    assert view.shape == (count, 5) and len(view) == count
    assert torch.equal(view[start:stop], rows[:count][start:stop])


def test_only_the_rows_that_are_asked_for_are_read(stored, monkeypatch):
    store, _ = stored
    read: list[tuple[int, int]] = []
    original = store.rows
    monkeypatch.setattr(
        store, "rows", lambda start, stop: read.append((start, stop)) or original(start, stop)
    )
    view = StoredRows(store, 7)
    assert read == []
    assert len(view[2:4]) == 2 and len(view[6:99]) == 1
    assert read == [(2, 4), (6, 7)]
