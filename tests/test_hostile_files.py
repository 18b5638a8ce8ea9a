"""Files made to do harm: nothing runs from data, nothing leaves its folder, the error is clear."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from lti.attacks.refinement import Refinement
from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.config import parse_config
from lti.data import cola
from lti.data.cifar10 import Cifar10
from lti.data.hub import read_mirror
from lti.data.selection import read_selection
from lti.data.tokenizer import read_tokenizer
from lti.errors import LTIError
from lti.files import read_json, read_tensors
from lti.fl_models import load_fl_model
from lti.generators.trained import TrainedGenerator
from lti.gradients.store import GradientStore, StoreSettings, write_store
from lti.inverters.trained import TrainedInverter
from lti.metrics.backbones import read_pickled_tensors
from lti.plan import Plan

CPU = Compute(torch.device("cpu"), torch.float32)
CONFIG = yaml.safe_load((Path(__file__).resolve().parents[1] / "config.yaml").read_text())
READERS = {
    "tensors": read_tensors,
    "JSON": read_json,
    "auxiliary set": read_selection,
    "tokenizer": read_tokenizer,
    "FL model": load_fl_model,
    "inverter": lambda path: TrainedInverter.load(path, compute=CPU),
    "generator": lambda path: TrainedGenerator.load(path, compute=CPU),
    "prior": Refinement.load,
    "checkpoint": lambda path: Checkpoint(path, {}).load(),
    "backbone": read_pickled_tensors,
    "manifest": lambda path: GradientStore.open(path.parent, path),
}


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_is_never_run(tmp_path, reader, form):
    marker, path = tmp_path / "it-ran", tmp_path / "x.safetensors"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save({"weights": Bomb(marker)}, path)
    checksum = path.with_name("x.safetensors.sha256")  # a tokenizer's, not the reason to refuse it
    checksum.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    with pytest.raises(LTIError, match=r"x\.safetensors"):
        READERS[reader](path)
    assert not marker.exists()
    if form == "pickle":  # the bomb is one
        pickle.loads(path.read_bytes())
        assert marker.exists()


def safetensors(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},  # no digest
    ],
)
def test_a_declared_shape_is_not_believed(tmp_path, header):
    path = safetensors(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(LTIError, match=r"x\.safetensors"):
        read_tensors(path)
    (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(LTIError, match=r"y\.safetensors"):
        read_tensors(tmp_path / "y.safetensors")


@pytest.fixture
def store(tmp_path) -> tuple[Path, Path]:
    rows = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    path, manifest = tmp_path / "g.zarr", tmp_path / "g.json"
    write_store(
        path,
        n_rows=40,
        dim=32,
        encoding="scaled-float16",
        compute=lambda start, stop: rows[start:stop],
        manifest=manifest,
        settings=StoreSettings(chunk_mib=0.001, shard_mib=0.002, memory_mib=8),
    )
    return path, manifest


def resealed(manifest: Path, change: Any) -> None:
    """Change a manifest as one who knows how its digest is made."""
    from lti.gradients.store_format import Manifest

    value = json.loads(manifest.read_text())
    change(value)
    sealed = Manifest.model_validate(value).sealed()
    manifest.write_text(json.dumps(sealed.model_dump(mode="json")))


def test_a_manifest_cannot_lead_out_of_its_store(store, tmp_path):
    path, manifest = store
    secret = tmp_path / "secret"
    secret.write_bytes((path / "rows/c/0/0").read_bytes())

    def change(value: dict[str, Any]) -> None:
        files = value["shards"][0]["files"]
        files["../secret"] = files.pop("rows/c/0/0")

    resealed(manifest, change)
    with pytest.raises(LTIError, match=r"g\.(zarr|json)"):
        GradientStore.open(path, manifest)


@pytest.mark.parametrize("rows", [41, 2**40, 2**62])
def test_a_manifest_cannot_declare_rows_that_are_not_there(store, rows):
    path, manifest = store
    with pytest.raises(LTIError, match=r"g\.(zarr|json)"):
        resealed(manifest, lambda value: value["geometry"].update(n_rows=rows))
        GradientStore.open(path, manifest)


@pytest.mark.parametrize("shape", [[2**50, 32], [40, 2**50], [-1, 32], "40"])
def test_metadata_of_zarr_cannot_declare_another_shape(store, shape):
    path, manifest = store
    metadata = path / "rows/zarr.json"
    value = json.loads(metadata.read_text())
    value["shape"] = shape
    metadata.write_text(json.dumps(value))
    with pytest.raises(LTIError, match=r"rows/zarr\.json: does not match the manifest"):
        GradientStore.open(path, manifest)


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    "columns",
    [
        {"img": [1, 2], "label": [0, 1]},
        {"img": [{"bytes": b"no image"}] * 2, "label": [0, 1]},
        {"img": [{"bytes": pickle.dumps([1])}] * 2, "label": ["a", "b"]},
        {"img": [None, None], "label": [0, 1]},
        {"image": ["a", "b"], "label": [0, 1]},
    ],
)
def test_parquet_of_other_types_is_refused_as_images(tmp_path, columns):
    write_parquet(tmp_path / "cifar10/test-00000-of-00001.parquet", columns)
    with pytest.raises(LTIError, match=r"test-00000-of-00001\.parquet: cannot be read"):
        Cifar10(mirror=tmp_path).load("victims")


@pytest.mark.parametrize(
    "columns",
    [
        {"sentence": [1, 2], "label": [0, 1]},
        {"sentence": ["a", None], "label": [0, 1]},
        {"sentence": ["a", "b"], "label": ["x", "y"]},
        {"sentence": [["a"], ["b"]], "label": [0, 1]},
        {"words": ["a", "b"], "label": [0, 1]},
    ],
)
def test_parquet_of_other_types_is_refused_as_sentences(tmp_path, columns):
    write_parquet(tmp_path / "glue-cola/validation-00000-of-00001.parquet", columns)
    with pytest.raises(LTIError, match=r"validation-00000-of-00001\.parquet: cannot be read"):
        read_mirror(tmp_path, cola.HOME, "validation", cola._decode)


WRONG = [
    *(None, True, -1, 0, 2**70, 1e400, float("nan"), "", " ", "a/b", "../../etc/passwd", "/etc"),
    *("__import__('os').system('touch it-ran')", "{config}", "$(touch it-ran)", "!!python/name:os"),
    *(
        "\0",
        "é" * 3000,
        [],
        {},
        [[]],
        {"use": "none"},
        {"": {}},
        ["none", "none"],
        {"a": [1, None]},
    ),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested mappings and lists."""
    if isinstance(value, dict):
        inner = [place for key, one in value.items() for place in places(one, (*path, key))]
    elif isinstance(value, list):
        inner = [place for i, one in enumerate(value) for place in places(one, (*path, i))]
    else:
        inner = []
    return ([path] if path else []) + inner


def mutated(draw: random.Random) -> dict[str, Any]:
    """The configuration with one to three places put wrong."""
    config = copy.deepcopy(CONFIG)
    for _ in range(draw.randint(1, 3)):
        *above, last = draw.choice(places(config))
        parent = config
        for key in above:
            parent = parent[key]
        kind = draw.choice(["value", "value", "value", "remove", "key"])
        if kind == "remove":
            del parent[last]
        elif kind == "key" and isinstance(parent, dict):
            parent[draw.choice(["other", "../up", "a b", "", "Use", "x" * 500])] = parent.pop(last)
        else:
            parent[last] = copy.deepcopy(draw.choice(WRONG))
    return config


@pytest.mark.parametrize("part", range(8))
def test_a_mutated_configuration_is_planned_or_refused_with_its_key(tmp_path, monkeypatch, part):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTI_ALLOWED_FOLDERS", raising=False)
    draw = random.Random(part)
    refused = 0
    for _ in range(25):
        config = mutated(draw)
        try:
            plan = Plan(parse_config(config))
        except LTIError as error:
            refused += 1
            assert str(error).strip() and "Traceback" not in str(error)
            continue
        assert not Path(plan.config.results).is_absolute()
        assert ".." not in Path(plan.config.results).parts
        for section in ("experiments", "datasets", "fl_models", "defenses", "attacks"):
            for key in getattr(plan.config, section):
                assert "/" not in key and ".." not in key
    assert refused >= 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("../results", "leads out of the working folder"),
        ("results/../../x", "leads out of the working folder"),
        ("/scratch/me", r"is absolute; expected .*LTI_ALLOWED_FOLDERS allows \(it is ''\)"),
        ("a b", "expected names of folders"),
        ("$(touch x)", "expected names of folders"),
        ("{wildcard}", "expected names of folders"),
        ("", "expected names of folders"),
    ],
)
def test_results_stay_in_the_working_folder(monkeypatch, results, message):
    monkeypatch.delenv("LTI_ALLOWED_FOLDERS", raising=False)
    with pytest.raises(LTIError, match=message):
        parse_config({**CONFIG, "results": results})


def test_an_allowed_folder_takes_results(monkeypatch):
    monkeypatch.setenv("LTI_ALLOWED_FOLDERS", "/data:/scratch/me")
    for results in ("/scratch/me/results", "/scratch/me", "/data/x"):
        assert parse_config({**CONFIG, "results": results}).results == results
    with pytest.raises(LTIError, match="is absolute"):
        parse_config({**CONFIG, "results": "/scratch/meta"})
    with pytest.raises(LTIError, match="leads out"):
        parse_config({**CONFIG, "results": "/scratch/me/../x"})
