"""LPIPS by its formula, and backbones that are there, missing, damaged or hostile.

The networks have random weights: the published ones need a download.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lti.errors import LTIError
from lti.files import read_json
from lti.metrics import METRICS, backbones
from lti.metrics.backbones import (
    BACKBONES,
    check_available,
    missing_reasons,
    read_backbone,
    read_pickled_tensors,
)
from lti.metrics.measure import measure
from lti.stages.backbone import fetch_backbone

# Output channels and kernel of each convolution, by its place in torchvision's `features`;
# the places of max-pooling; the places whose outputs LPIPS looks at (after ReLU).
_VGG_WIDTH = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
_VGG_PLACE = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
NETS = {
    "vgg16": {
        "convolutions": {
            place: (width, 3, {"padding": 1})
            for place, width in zip(_VGG_PLACE, _VGG_WIDTH, strict=True)
        },
        "pool": {4: (2, 2), 9: (2, 2), 16: (2, 2), 23: (2, 2)},
        "seen": (3, 8, 15, 22, 29),
    },
    "alexnet": {
        "convolutions": {
            0: (64, 11, {"stride": 4, "padding": 2}),
            3: (192, 5, {"padding": 2}),
            6: (384, 3, {"padding": 1}),
            8: (256, 3, {"padding": 1}),
            10: (256, 3, {"padding": 1}),
        },
        "pool": {2: (3, 2), 5: (3, 2)},
        "seen": (1, 4, 7, 9, 11),
    },
}
LINEAR = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.delenv("LTI_DATA_MIRROR", raising=False)
    monkeypatch.setattr(backbones, "HOME", "http://127.0.0.1:9")


def random_state(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, channels = {"classifier.0.weight": torch.zeros(2, 2)}, 3
    for place, (width, kernel, _) in NETS[name]["convolutions"].items():
        shape = (width, channels, kernel, kernel)
        scale = (2 / (channels * kernel**2)) ** 0.5
        state[f"features.{place}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"features.{place}.bias"] = torch.randn(width, generator=generator) * 0.1
        channels = width
    return state


def publish(monkeypatch, folder: Path, name: str, content: bytes) -> Path:
    """Write a file into a mirror's folder as if torchvision had published it."""
    path = folder / "backbones" / BACKBONES[name].file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    monkeypatch.setitem(BACKBONES, name, replace(BACKBONES[name], **facts))
    return path


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    for name in NETS:
        publish(monkeypatch, tmp_path, name, saved(random_state(name)))
    monkeypatch.setenv("LTI_DATA_MIRROR", str(tmp_path))
    return tmp_path


def fetch(folder: Path, name: str, **options) -> tuple[Path, dict]:
    output, card = folder / f"{name}.safetensors", folder / f"{name}.json"
    fetch_backbone(backbone=name, output=output, card=card, **options)
    return output, read_json(card)


def direct(name: str, truth: np.ndarray, found: np.ndarray, *, normalise: bool) -> np.ndarray:
    """Zhang et al. 2018, equation 1, written out: in float64, from the state dict alone."""
    import lpips

    net, state = NETS[name], {k: v.double() for k, v in random_state(name).items()}
    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / LINEAR[name]
    weights = torch.load(linear, map_location="cpu", weights_only=True)

    def features(images: np.ndarray) -> list[torch.Tensor]:
        x = torch.from_numpy(images).double().clamp(0, 1)
        x = 2 * x - 1 if normalise else x
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        seen = []
        for place in range(net["seen"][-1] + 1):
            if place in net["convolutions"]:
                options = net["convolutions"][place][2]
                weight, bias = (state[f"features.{place}.{part}"] for part in ("weight", "bias"))
                x = functional.conv2d(x, weight, bias, **options)
            elif place in net["pool"]:
                x = functional.max_pool2d(x, *net["pool"][place])
            else:
                x = x.relu()
            if place in net["seen"]:
                seen.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return seen

    total = torch.zeros(len(truth), dtype=torch.float64)
    for layer, (a, b) in enumerate(zip(features(truth), features(found), strict=True)):
        w = weights[f"lin{layer}.model.1.weight"].double()  # (1, channels, 1, 1)
        total += ((a - b).square() * w).sum(1).mean((1, 2))
    return total.numpy()


def pairs(n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random((n, 3, 32, 32)).astype(np.float32)
    return truth, (truth + rng.normal(0, 0.3, truth.shape)).astype(np.float32)  # some outside


# --- the values


@pytest.mark.parametrize(
    ("metric", "backbone", "normalise"),
    [
        ("lpips", "vgg16", True),
        ("lpips_paper", "vgg16", False),
        ("lpips_alex", "alexnet", True),
    ],
)
def test_the_value_is_that_of_the_formula(mirror, monkeypatch, metric, backbone, normalise):
    monkeypatch.setattr("lti.metrics.lpips._PAIRS", 2)  # three pairs: a whole block and a rest
    weights, _ = fetch(mirror, backbone)
    truth, found = pairs()
    values = METRICS[metric](weights=weights)(truth, found)
    expected = direct(backbone, truth, found, normalise=normalise)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert (values > 0.01).all()
    assert METRICS[metric](weights=weights)(truth, truth).tolist() == [0, 0, 0]


def test_the_paper_s_variant_differs_by_the_scaling_alone(mirror):
    weights, _ = fetch(mirror, "vgg16")
    truth, found = (images.clip(0, 1) for images in pairs(1))
    paper = METRICS["lpips_paper"](weights=weights)
    right = METRICS["lpips"](weights=weights)
    # Images whose scaled version is what the other is fed: x in [-1, 1] is (x + 1) / 2.
    np.testing.assert_allclose(paper(truth, found), right((truth + 1) / 2, (found + 1) / 2), 1e-4)
    assert abs(paper(truth, found) - right(truth, found)) > 1e-3


def test_the_metric_leaves_the_random_numbers_and_the_package_s_downloads_alone(
    mirror, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    weights, _ = fetch(mirror, "alexnet")
    before = torch.get_rng_state()
    METRICS["lpips_alex"](weights=weights)(*pairs())
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_network_and_no_weights_are_refused(mirror):
    weights, _ = fetch(mirror, "alexnet")
    with pytest.raises(LTIError, match="not the weights of vgg"):
        METRICS["lpips"](weights=weights)(*pairs())
    with pytest.raises(LTIError, match="expected those of vgg16"):
        METRICS["lpips"]()(*pairs())
    with pytest.raises(LTIError, match=r"expected one shape \(n, 3, height, width\)"):
        METRICS["lpips"](weights=weights)(np.zeros((1, 1, 32, 32)), np.zeros((1, 1, 32, 32)))


# --- fetching


def test_published_checksums_are_those_of_the_file_names():
    for backbone in BACKBONES.values():
        assert len(backbone.sha256) == 64
        assert backbone.file.endswith(f"-{backbone.sha256[:8]}.pth")


def test_only_the_convolutions_are_kept(mirror, tmp_path):
    weights, card = fetch(tmp_path / "results", "alexnet")
    state = read_backbone(weights)
    assert set(state) == {k for k in random_state("alexnet") if k.startswith("features.")}
    assert torch.equal(state["features.8.bias"], random_state("alexnet")["features.8.bias"])
    assert (card["available"], card["reason"]) == (True, "")
    assert card["url"].endswith("/alexnet-owt-7be5be79.pth")
    assert card["sha256"] == BACKBONES["alexnet"].sha256
    again, other = fetch(tmp_path / "again", "alexnet")
    assert again.read_bytes() == weights.read_bytes()
    assert other == card


def test_without_a_mirror_the_public_home_is_asked(mirror, monkeypatch, tmp_path):
    monkeypatch.delenv("LTI_DATA_MIRROR")
    monkeypatch.setattr(backbones, "HOME", (mirror / "backbones").as_uri())
    weights, card = fetch(tmp_path / "results", "alexnet")
    assert card["available"]
    assert len(read_backbone(weights)) == 10


def test_weights_that_cannot_be_had_leave_the_columns_empty(tmp_path):
    weights, card = fetch(tmp_path, "vgg16")
    assert not card["available"]
    assert "vgg16-397923af.pth cannot be had (http://127.0.0.1:9/" in card["reason"]
    truth, found = pairs(2)
    victims = {"image": np.rint(truth * 255).astype(np.uint8)}
    victims |= {"label": np.zeros(2, np.int64), "index": np.arange(2)}
    run = {"dataset": "cifar10", "fl_model": "lenet", "batch_size": 1, "defense": "none"}
    run |= {"attack": "lti", "seed": 0}
    made = {"reconstruction": found[:, None]}
    names = ["mse", "lpips", "lpips_paper"]
    frame = measure(victims, made, run, metrics=names, backbones={"vgg16": weights})
    assert frame[["lpips", "lpips_paper"]].isna().all(axis=None)
    assert frame["mse"].notna().all()
    assert missing_reasons(names, [tmp_path / "vgg16.json"]) == {
        "lpips": card["reason"],
        "lpips_paper": card["reason"],
    }
    with pytest.raises(LTIError, match="lpips needs the backbone vgg16; got none"):
        measure(victims, made, run, metrics=["lpips"])
    with pytest.raises(LTIError, match="not the weights of vgg"):
        METRICS["lpips"](weights=weights)(truth, found)


def test_a_stage_that_must_have_the_weights_fails(tmp_path):
    with pytest.raises(LTIError, match=r"vgg16: .* does not answer"):
        fetch(tmp_path, "vgg16", required="alexnet,vgg16")
    assert not (tmp_path / "vgg16.json").exists()
    assert not fetch(tmp_path, "vgg16", required="alexnet")[1]["available"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-100], r"has [\d,]+ bytes; expected [\d,]+"),
        (lambda content: content[:-1] + b"x", r"has SHA-256 \w{64}; expected \w{64}"),
    ],
)
def test_a_damaged_file_is_never_used(mirror, monkeypatch, tmp_path, damage, message):
    path = mirror / "backbones" / BACKBONES["alexnet"].file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LTIError, match=f"{path.name}: {message}"):
        fetch(tmp_path / "results", "alexnet")
    # A damaged download is as good as none: it may be a proxy's page.
    monkeypatch.delenv("LTI_DATA_MIRROR")
    monkeypatch.setattr(backbones, "HOME", (mirror / "backbones").as_uri())
    weights, card = fetch(tmp_path / "results", "alexnet")
    assert not card["available"]
    assert "the download has" in card["reason"]
    assert read_backbone(weights) == {}


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [partial(pickle.dumps, protocol=2), saved])
def test_a_pickle_that_would_run_code_is_refused(monkeypatch, tmp_path, write):
    target = tmp_path / "made by the pickle"
    publish(monkeypatch, tmp_path, "vgg16", write({"features.0.weight": Hostile(target)}))
    monkeypatch.setenv("LTI_DATA_MIRROR", str(tmp_path))
    with pytest.raises(LTIError, match="refused: not a file of tensors alone"):
        fetch(tmp_path / "results", "vgg16")
    assert not target.exists()
    assert not (tmp_path / "results" / "vgg16.json").exists()


def test_a_file_of_something_else_is_refused(monkeypatch, tmp_path):
    (tmp_path / "list.pth").write_bytes(saved([torch.ones(2)]))
    with pytest.raises(LTIError, match="expected named tensors"):
        read_pickled_tensors(tmp_path / "list.pth")
    publish(monkeypatch, tmp_path, "vgg16", saved({"weight": torch.ones(2)}))
    monkeypatch.setenv("LTI_DATA_MIRROR", str(tmp_path))
    with pytest.raises(LTIError, match=r"no entry features\.\*"):
        fetch(tmp_path / "results", "vgg16")
    with pytest.raises(LTIError, match=r"unknown backbone 'vgg'; known: alexnet, vgg16"):
        fetch(tmp_path / "results", "vgg")


# --- before work starts


def test_required_metrics_are_checked_before_work_starts(mirror, monkeypatch, tmp_path):
    results = tmp_path / "results"
    check_available(["mse", "psnr"], results)
    check_available(["mse", "lpips", "lpips_alex"], results)  # the mirror has them
    monkeypatch.delenv("LTI_DATA_MIRROR")
    with pytest.raises(LTIError, match=r"metrics\.require: .*alexnet.*does not answer.*, vgg16"):
        check_available(["lpips", "lpips_alex"], results)
    check_available(["mse"], results)
    monkeypatch.setattr(backbones, "HOME", (mirror / "backbones").as_uri())
    check_available(["lpips"], results)  # the public home has them
    fetch(results, "vgg16")
    monkeypatch.setattr(backbones, "HOME", "http://127.0.0.1:9")
    check_available(["lpips", "lpips_paper"], results)  # fetched
    assert (results / "vgg16.json").exists()


def test_an_outdated_refusal_is_forgotten(mirror, monkeypatch, tmp_path):
    results = tmp_path / "results"
    with monkeypatch.context() as context:
        context.delenv("LTI_DATA_MIRROR")
        fetch(results, "alexnet")
        with pytest.raises(LTIError, match=r"metrics\.require"):
            check_available(["lpips_alex"], results)
        assert (results / "alexnet.json").exists()
    check_available(["lpips_alex"], results)
    assert not (results / "alexnet.json").exists()  # so that its rule runs again
