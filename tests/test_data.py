"""The data stage: patches that share nothing, sources of CIFAR-10, reproducible selections."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lti.data import (
    DATASETS,
    Samples,
    Selection,
    as_input,
    cifar10,
    cifar10_batches,
    mix,
    photos,
    read_selection,
    select,
    to_float,
    write_selection,
)
from lti.data.photos import PHOTOGRAPHS, Photos, patch_rectangles
from lti.errors import LTIError
from lti.files import read_json, write_arrays
from lti.stages.selection import select_auxiliary, select_victims

MIRROR = Path(os.environ.get("LTI_DATA_MIRROR") or "/nonexistent")
needs_mirror = pytest.mark.skipif(
    not (MIRROR / "cifar10").is_dir(),
    reason="needs CIFAR-10: LTI_DATA_MIRROR is unset or has no folder cifar10",
)


def numbered(n: int, *, classes: int = 5, start: int = 0) -> Samples:
    """Images that carry their own index in their first two pixels."""
    index = np.arange(start, start + n)
    image = np.zeros((n, 3, 32, 32), dtype=np.uint8)
    image[:, 0, 0, 0], image[:, 0, 0, 1] = index // 256, index % 256
    return Samples(image, index % classes, index)


def assert_same(a: Samples, b: Samples) -> None:
    np.testing.assert_array_equal(a.index, b.index)
    np.testing.assert_array_equal(a.label, b.label)
    np.testing.assert_array_equal(a.value, b.value)


# --- Samples ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": np.zeros((4, 32, 32, 3), np.uint8)}, r"value is uint8 \(4, 32, 32, 3\)"),
        ({"value": np.zeros((4, 3, 32, 32), np.float32)}, r"expected images, uint8 \(4, 3, 32"),
        ({"value": np.zeros((4, 16), np.int64)}, r"or tokens, int32 \(n, length\)"),
        ({"value": np.zeros((4, 0), np.int32)}, r"value is int32 \(4, 0\)"),
        ({"value": np.full((4, 16), -3, np.int32)}, r"value has the value -3"),
        ({"label": np.zeros(3, np.int64)}, r"label is int64 \(3,\); expected int64 \(4,\)"),
        ({"label": np.zeros(4, np.int32)}, r"label is int32"),
        ({"index": np.zeros((4, 1), np.int64)}, r"index is int64 \(4, 1\)"),
        ({"index": np.array([0, 1, -2, 3])}, r"index has the value -2"),
        ({"label": [0, 1, 2, 3]}, r"label is a list"),
    ],
)
def test_samples_say_what_is_wrong(change, message):
    good = {
        "value": np.zeros((4, 3, 32, 32), np.uint8),
        "label": np.zeros(4, np.int64),
        "index": np.zeros(4, np.int64),
    }
    assert len(Samples(**good)) == 4
    with pytest.raises(LTIError, match=message):
        Samples(**{**good, **change})


def test_images_and_tokens_are_told_apart_and_come_back_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "image": rng.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8),
        "token": rng.integers(0, 50_000, (5, 16), dtype=np.int32),
    }
    for key, value in values.items():
        samples = Samples(value, np.arange(5) % 2, np.arange(5))
        assert (samples.key, samples.modality) == (key, "text" if key == "token" else "image")
        write_selection(tmp_path / key, samples, metadata={**METADATA, "size": 5})
        assert_same(read_selection(tmp_path / key).samples, samples)
        changed = value.copy()
        changed[3, 2] += 1
        assert Samples(changed, samples.label, samples.index).digest != samples.digest
        assert Samples(value, 1 - samples.label, samples.index).digest != samples.digest


def test_inputs_are_what_models_take():
    import torch

    tokens = as_input(torch.tensor([[3, 70_000]], dtype=torch.int32))
    assert tokens.dtype == torch.int64 and tokens.tolist() == [[3, 70_000]]
    assert as_input(torch.tensor([51], dtype=torch.uint8)).tolist() == [pytest.approx(0.2)]


# --- photos ---


@pytest.fixture(scope="module")
def photo_parts() -> dict[str, Samples]:
    return {part: Photos().load(part) for part in ("auxiliary", "victims")}


def overlapping_pairs(a: np.ndarray, b: np.ndarray) -> int:
    """Count pairs of rectangles (photo, top, left, height, width) that share a pixel."""
    count = 0
    for photo in np.unique(a[:, 0]):
        p, q = a[a[:, 0] == photo][:, None], b[b[:, 0] == photo][None]
        rows = (p[..., 1] < q[..., 1] + q[..., 3]) & (q[..., 1] < p[..., 1] + p[..., 3])
        columns = (p[..., 2] < q[..., 2] + q[..., 4]) & (q[..., 2] < p[..., 2] + p[..., 4])
        count += int((rows & columns).sum())
    return count


def test_no_auxiliary_patch_shares_a_pixel_with_a_victim():
    auxiliary, victims = patch_rectangles("auxiliary"), patch_rectangles("victims")
    assert overlapping_pairs(auxiliary, victims) == 0
    # The count does see an overlap of one pixel.
    photo, top, left, height, width = victims[0]
    corner = np.array([[photo, top + height - 1, left + width - 1, 32, 32]])
    assert overlapping_pairs(corner, victims[:1]) == 1
    assert overlapping_pairs(corner + np.array([0, 1, 0, 0, 0]), victims[:1]) == 0


def test_rectangles_lie_inside_their_photographs():
    sizes = np.array([photo.size for photo in PHOTOGRAPHS])
    for part in ("auxiliary", "victims"):
        rows = patch_rectangles(part)
        assert rows.dtype == np.int64
        assert (rows[:, 1:3] >= 0).all()
        assert (rows[:, 1:3] + rows[:, 3:5] <= sizes[rows[:, 0]]).all()
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_auxiliary_patches_do_not_depend_on_the_victims_pixels(monkeypatch, photo_parts):
    read = photos._read

    def spoilt(photo):
        pixels = read(photo).copy()
        for top, left, height, width in photo.victims:
            pixels[top : top + height, left : left + width] ^= 255
        return pixels

    monkeypatch.setattr(photos, "_read", spoilt)
    assert_same(Photos().load("auxiliary"), photo_parts["auxiliary"])
    changed = Photos().load("victims")
    assert not np.array_equal(changed.value[:100], photo_parts["victims"].value[:100])


def test_a_patch_is_the_block_mean_of_its_rectangle(photo_parts):
    pixels = [photos._read(photo) for photo in PHOTOGRAPHS]
    for part, images in photo_parts.items():
        rectangles = patch_rectangles(part)
        for k in range(0, len(images), 97):
            photo, top, left, height, width = rectangles[images.index[k]]
            assert images.label[k] == photo
            crop = pixels[photo][top : top + height, left : left + width].astype(np.float64)
            f = height // 32
            mean = crop.reshape(32, f, 32, f, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
            assert np.abs(mean - images.value[k]).max() <= 0.5


def test_photos_have_enough_of_every_photograph_and_scale(photo_parts):
    auxiliary, victims = photo_parts["auxiliary"], photo_parts["victims"]
    data = DATASETS.parse({"use": "photos"})
    assert len(data.read_class_names()) == len(PHOTOGRAPHS) == 10
    assert 10_000 <= len(auxiliary) <= 20_000
    assert len(victims) >= 400
    assert np.bincount(auxiliary.label, minlength=10).min() >= 300
    assert np.bincount(victims.label, minlength=10).min() >= 30
    units = np.array([photo.unit for photo in PHOTOGRAPHS])
    scale = patch_rectangles("victims")[victims.index, 3] // 32 // units[victims.label]
    assert len(np.unique(scale)) >= 4
    contrast = victims.value.mean(axis=1).reshape(len(victims), -1).std(axis=1)
    assert contrast.min() >= photos.CONTRAST["victims"]
    assert len({image.tobytes() for image in victims.value}) == len(victims)


def test_photos_load_the_same_twice_and_quickly(photo_parts):
    start = time.process_time()
    assert_same(Photos().load("victims"), photo_parts["victims"])
    assert time.process_time() - start < 10  # about 0.5 s; the slack is for busy machines


def test_a_missing_or_resized_photograph_is_named(monkeypatch):
    photo = PHOTOGRAPHS[0]
    gone = photos.Photograph("x", "skimage", "data/gone.png", (1, 1), 1, ())
    absent = photos.Photograph("x", "no_such_package", "a.png", (1, 1), 1, ())
    other = photos.Photograph("x", photo.package, photo.file, (511, 512), 1, ())
    with pytest.raises(LTIError, match=r"gone\.png.*Reinstall skimage"):
        photos._read(gone)
    with pytest.raises(LTIError, match="Reinstall no_such_package"):
        photos._read(absent)
    with pytest.raises(LTIError, match=r"got \(512, 512\) pixels, expected \(511, 512\)"):
        photos._read(other)


@pytest.mark.parametrize("name", ["photos", "cifar10"])
def test_an_unknown_part_is_refused(name):
    with pytest.raises(LTIError, match="part 'test' is unknown"):
        DATASETS[name]().load("test")


# --- selections ---


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 2**40), data=st.data())
def test_a_smaller_selection_is_a_prefix_of_a_larger_one(n, seed, data):
    images = numbered(n)
    large = data.draw(st.integers(1, n))
    small = data.draw(st.integers(1, large))
    more = select(images, size=large, seed=seed, what="victims")
    assert_same(select(images, size=small, seed=seed, what="victims"), more.take(range(small)))
    assert len(np.unique(more.index)) == large
    assert_same(images.take(more.index), more)


def test_selections_depend_on_seed_and_stream_and_respect_classes():
    images = numbered(200)
    base = select(images, size=50, seed=1, what="victims")
    assert_same(base, select(images, size=50, seed=1, what="victims"))
    for other in ({"seed": 2, "what": "victims"}, {"seed": 1, "what": "auxiliary"}):
        assert not np.array_equal(base.index, select(images, size=50, **other).index)
    some = select(images, size=80, seed=1, what="victims", classes=(0, 3))
    assert sorted(some.index) == [i for i in range(200) if i % 5 in (0, 3)]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), data=st.data())
def test_included_samples_come_first_and_move_no_other(n, seed, data):
    images = numbered(n, start=100)  # the index of a sample is not its position
    include = data.draw(st.lists(st.integers(100, 99 + n), unique=True))
    size = data.draw(st.integers(max(1, len(include)), n))
    found = select(images, size=size, seed=seed, include=include, what="victims").index.tolist()
    order = select(images, size=n, seed=seed, what="victims").index.tolist()
    rest = [index for index in order if index not in include]
    assert found == [*include, *rest][:size]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "victims: size 0; expected 1 or more"),
        ({"size": 11}, "size 11, but there are 10 eligible samples"),
        ({"size": 3, "classes": [1]}, "size 3, but there are 2 eligible"),
        ({"classes": [1, 7]}, "class 7 has no sample here; the labels are 0, 1, 2, 3, 4"),
        ({"include": [3, 10], "size": 4}, "index 10, which is to be included; .* 10 .* 0 to 9"),
        ({"include": [3], "classes": [1], "size": 1}, "no eligible sample has the index 3"),
        ({"include": [3, 5, 3], "size": 4}, "index 3 is to be included more than once"),
        ({"include": [3, 5]}, "2 samples to include in a selection of 1"),
    ],
)
def test_select_names_the_value_that_cannot_be(change, message):
    with pytest.raises(LTIError, match=message):
        select(numbered(10), **{"size": 1, "seed": 0, "what": "victims", **change})


BETAS = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    beta=BETAS,
    seed=st.integers(0, 2**40),
    parts=st.integers(1, 3),
)
def test_mix_has_exact_sizes_and_parts_in_their_own_order(size, beta, seed, parts):
    inside = numbered(40)
    outside = [numbered(40, start=1000 * (1 + part)) for part in range(parts)]
    images, flag = mix(inside, outside, size=size, beta=beta, seed=seed)
    assert len(images) == len(flag) == size
    assert abs(Fraction(int(flag.sum())) - Fraction(beta) * size) <= Fraction(1, 2) + Fraction(
        1, 10**9
    )
    assert flag.dtype == np.bool_
    origin = images.index // 1000
    np.testing.assert_array_equal(origin == 0, flag)
    shares = np.bincount(origin, minlength=parts + 1)[1:]
    assert shares.max() - shares.min() <= 1
    assert len(np.unique(images.index)) == size
    assert_same(images.take(np.flatnonzero(flag)), inside.take(images.index[flag]))
    full, _ = mix(inside, outside, size=40, beta=beta, seed=seed)
    for number in range(parts + 1):
        few = images.index[origin == number]
        np.testing.assert_array_equal(few, full.index[full.index // 1000 == number][: len(few)])


@settings(max_examples=60, deadline=None)
@given(beta=BETAS, seed=st.integers(0, 2**40), data=st.data())
def test_a_smaller_mixture_is_a_prefix_of_a_larger_one(beta, seed, data):
    large = data.draw(st.integers(1, 40))
    small = data.draw(st.integers(1, large))
    parts = (numbered(40), [numbered(40, start=1000), numbered(40, start=2000)])
    more, flag = mix(*parts, size=large, beta=beta, seed=seed)
    images, few = mix(*parts, size=small, beta=beta, seed=seed)
    assert_same(images, more.take(range(small)))
    np.testing.assert_array_equal(few, flag[:small])


def test_mix_is_seeded_and_even():
    inside, outside = numbered(400), [numbered(400, start=1000)]
    images, flag = mix(inside, outside, size=400, beta=0.5, seed=3)
    again, _ = mix(inside, outside, size=400, beta=0.5, seed=3)
    other, _ = mix(inside, outside, size=400, beta=0.5, seed=4)
    assert_same(images, again)
    assert not np.array_equal(images.index, other.index)
    assert flag[:200].sum() == flag[:100].sum() * 2 == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 1.5}, "beta 1.5: expected a share from 0 to 1"),
        ({"beta": float("nan")}, "beta nan"),
        ({"size": 0}, "size 0"),
        ({"size": 30, "beta": 0.5}, "needs 15 in-distribution samples, but there are 10"),
        ({"size": 30, "beta": 0.1}, "needs 27 shifted samples, but there are 10"),
        ({"shifted": []}, "shifted: got no samples"),
        (
            {"shifted": [Samples(np.zeros((9, 16), np.int32), *[np.zeros(9, np.int64)] * 2)]},
            r"shapes \(3, 32, 32\), \(16,\); expected one",
        ),
    ],
)
def test_mix_names_the_value_that_cannot_be(change, message):
    values = {"shifted": [numbered(10, start=100)], "size": 5, "beta": 0.5, "seed": 0, **change}
    with pytest.raises(LTIError, match=message):
        mix(numbered(10), **values)


# --- synthetic data, and auxiliary sets with a distribution shift ---


def smooth_images(n: int, seed: int = 0) -> Samples:
    """Images of few frequencies, of two classes that differ in brightness."""
    generator = np.random.default_rng(seed)
    label = generator.integers(2, size=n)
    x = np.linspace(0, np.pi, 32)
    waves = np.stack([np.cos(k * x) for k in range(3)])
    weights = generator.normal(size=(n, 3, 3, 3)) * 12
    image = (
        np.einsum("nckl,kh,lw->nchw", weights, waves, waves) + 90 + 60 * label[:, None, None, None]
    )
    return Samples(np.rint(image.clip(0, 255)).astype(np.uint8), label, np.arange(n))


def test_gaussian_images_have_the_frequencies_of_what_they_imitate():
    real = smooth_images(600)
    settings = DATASETS["dct-gaussian"](of="x", classes=[0], samples=500, seed=1)
    drawn = settings.imitate(real)
    assert len(drawn) == 500 and set(drawn.label) == {0}
    assert_same(drawn, settings.imitate(real))
    imitated = real.value[real.label == 0] / 255
    values = drawn.value / 255
    np.testing.assert_allclose(values.mean(axis=0), imitated.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(values.std(axis=0), imitated.std(axis=0), atol=0.03)
    # Frequencies are independent: the coefficients of neighbours correlate as smoothness says.
    for shift in (1, 8):
        pairs = [
            np.corrcoef(image[..., shift:].ravel(), image[..., :-shift].ravel())[0, 1]
            for image in (imitated - imitated.mean(axis=0), values - values.mean(axis=0))
        ]
        assert abs(pairs[0] - pairs[1]) < 0.03


def test_words_are_drawn_as_often_as_they_occur_and_special_tokens_stay():
    generator = np.random.default_rng(0)
    length = generator.integers(2, 9, size=400)
    token = generator.choice([5, 6, 7, 8], p=[0.5, 0.3, 0.15, 0.05], size=(400, 10)).astype(
        np.int32
    )
    token[:, 0] = 1
    token[np.arange(10) >= length[:, None]] = 0
    real = Samples(token, np.arange(400) % 2, np.arange(400))
    settings = DATASETS["word-histogram"](of="x", samples=2000)
    drawn = settings.imitate(real, {"special": [0, 1]})
    assert (drawn.value[:, 0] == 1).all() and set(np.unique(drawn.value)) == {0, 1, 5, 6, 7, 8}
    shares = [np.bincount(t[t > 1], minlength=9) / (t > 1).sum() for t in (token, drawn.value)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)
    lengths = [
        np.bincount((t > 0).sum(axis=1), minlength=11) / len(t) for t in (token, drawn.value)
    ]
    np.testing.assert_allclose(lengths[0], lengths[1], atol=0.05)
    pairs = np.histogram2d(drawn.value[:, 1], drawn.value[:, 2], bins=[4.5, 5.5, 6.5, 7.5, 8.5])[0]
    expected = np.outer(pairs.sum(axis=1), pairs.sum(axis=0)) / pairs.sum()
    assert np.abs(pairs - expected).max() < 0.1 * pairs.sum()
    with pytest.raises(LTIError, match="modality text to imitate; expected image"):
        DATASETS["dct-gaussian"](of="x").imitate(real)
    with pytest.raises(LTIError, match="class 4 has no sample"):
        DATASETS["word-histogram"](of="x", classes=[4]).imitate(real)


def prepared(path: Path, samples: Samples, classes: int = 5, **facts: object) -> Path:
    names = [f"class {label}" for label in range(classes)]
    metadata = {"dataset": path.stem, "part": "auxiliary", "seed": None, "size": len(samples)}
    write_selection(path, samples, metadata={**metadata, "class_names": names, **facts})
    return path


def auxiliary(tmp_path: Path, **options: object) -> Selection:
    output = tmp_path / "chosen.safetensors"
    values = {"size": 40, "seed": 3, "output": output, "card": tmp_path / "chosen.json", **options}
    select_auxiliary(**values)
    return read_selection(output)


def test_an_auxiliary_set_is_mixed_from_classes_and_other_data_sets(tmp_path):
    first = prepared(tmp_path / "first.safetensors", numbered(200))
    second = prepared(tmp_path / "second.safetensors", numbered(60, start=500))
    found = auxiliary(
        tmp_path,
        source=first,
        classes="[0, 1]",
        shifted=json.dumps(
            [{"source": str(first), "classes": [3]}, {"source": str(second), "classes": None}]
        ),
        beta=0.25,
    )
    assert found.in_distribution.sum() == 10
    label, index = found.samples.label, found.samples.index
    assert set(label[found.in_distribution]) == {0, 1}
    rest = index[~found.in_distribution]
    assert (rest >= 500).sum() == 15 and set(label[~found.in_distribution][rest < 500]) == {3}
    assert found.metadata["beta"] == 0.25
    assert found.metadata["in_distribution"] == {"dataset": "first", "classes": [0, 1]}
    assert found.metadata["shifted"][1] == {"dataset": "second", "classes": None}


def test_a_mixture_that_cannot_be_is_named(tmp_path):
    first = prepared(tmp_path / "first.safetensors", numbered(200))
    other = prepared(tmp_path / "other.safetensors", numbered(60), classes=9)
    few = prepared(tmp_path / "few.safetensors", numbered(60).take(range(0, 60, 5)), classes=1)

    def shifted(path: Path, classes: object) -> str:
        return json.dumps([{"source": str(path), "classes": classes}])

    for options, message in (
        ({"beta": 0.5}, "--beta: got 0.5 and nothing shifted"),
        ({"beta": 0.5, "shifted": shifted(first, [1, 2])}, "40 samples of .*first at index 1"),
        ({"beta": 2.0, "shifted": shifted(first, [3])}, "beta 2.0: expected a share"),
        ({"beta": 0.5, "shifted": shifted(first, [3]), "size": 99}, "needs 49 shifted samples"),
        ({"beta": 0.5, "classes": '["a"]', "shifted": shifted(first, [3])}, "got 'a'; expected"),
    ):
        with pytest.raises(LTIError, match=message):
            auxiliary(tmp_path, **{"source": first, "classes": "[0, 1]", **options})
    with pytest.raises(LTIError, match=r"has a label 4, and .* 1 classes"):
        auxiliary(tmp_path, source=few, classes="[0]", shifted=shifted(other, None), beta=0.5)
    assert not (tmp_path / "chosen.safetensors").exists()


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_victim_in_the_auxiliary_set_is_named(tmp_path, beta):
    first = prepared(tmp_path / "first.safetensors", numbered(200))
    shifted = json.dumps([{"source": str(first), "classes": [3, 4]}]) if beta < 1 else "[]"
    options = {"source": first, "classes": "[0, 1, 2]", "shifted": shifted, "beta": beta}
    apart = prepared(tmp_path / "apart.safetensors", numbered(300, start=200))
    drawn = auxiliary(tmp_path, **options, victims=apart).samples
    # The last of the auxiliary set is the second of the victims, under another index.
    value = numbered(3, start=700).value
    value[1] = drawn.value[-1]
    copied = Samples(value, np.zeros(3, dtype=np.int64), np.arange(3) + 40)
    other = prepared(tmp_path / "other.safetensors", copied)
    (tmp_path / "chosen.safetensors").unlink()
    with pytest.raises(LTIError, match=rf"of index {drawn.index[-1]} is the victim of index 41 "):
        auxiliary(tmp_path, **options, victims=other)
    assert not (tmp_path / "chosen.safetensors").exists()


METADATA = {"dataset": "photos", "part": "auxiliary", "seed": 1, "size": 6, "class_names": ["a"]}


def test_a_selection_survives_the_disk(tmp_path):
    images = numbered(6)
    flag = np.array([True, False, True, True, False, False])
    path = tmp_path / "auxiliary.safetensors"
    write_selection(path, images, in_distribution=flag, metadata=METADATA)
    first = path.read_bytes()
    write_selection(path, images, in_distribution=flag, metadata=METADATA)
    assert path.read_bytes() == first
    selection = read_selection(path)
    assert_same(selection.samples, images)
    np.testing.assert_array_equal(selection.in_distribution, flag)
    assert selection.in_distribution.dtype == np.bool_
    assert selection.metadata == METADATA
    write_selection(path, images, metadata=METADATA)
    assert read_selection(path).in_distribution is None


def test_stage_includes_samples_and_says_so(tmp_path):
    source, output, card = (tmp_path / name for name in ("part", "victims", "card.json"))
    write_selection(source, numbered(20), metadata={**METADATA, "size": 20})
    options = {"source": source, "size": 5, "seed": 2, "output": output, "card": card}
    select_victims(**options, include="[17, 4]")
    expected = select(numbered(20), size=5, seed=2, include=[17, 4], what="victims")
    assert_same(read_selection(output).samples, expected)
    assert expected.index[:2].tolist() == [17, 4]
    assert read_json(card)["include"] == [17, 4]
    select_victims(**options)
    assert_same(
        read_selection(output).samples, select(numbered(20), size=5, seed=2, what="victims")
    )
    assert "include" not in read_json(card)


def test_a_wrong_selection_is_refused(tmp_path):
    path, images = tmp_path / "x.safetensors", numbered(6)
    with pytest.raises(LTIError, match="metadata without part, seed"):
        write_selection(path, images, metadata={"dataset": 1, "class_names": 1, "size": 6})
    with pytest.raises(LTIError, match="says size 7, but there are 6"):
        write_selection(path, images, metadata={**METADATA, "size": 7})
    with pytest.raises(LTIError, match=r"in_distribution is int64 \(6,\); expected bool \(6,\)"):
        write_selection(path, images, in_distribution=np.arange(6), metadata=METADATA)
    assert not path.exists()
    write_arrays(path, {"image": images.value}, METADATA)
    with pytest.raises(LTIError, match="not a selection of samples: no index, label"):
        read_selection(path)


def test_to_float_keeps_the_kind_of_array_and_the_exact_values():
    import torch

    image = np.arange(256, dtype=np.uint8)
    expected = np.array([np.float32(k / 255) for k in range(256)])
    for result in (to_float(image), to_float(torch.from_numpy(image)).numpy()):
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)
    with pytest.raises(LTIError, match="float32; expected uint8"):
        to_float(torch.zeros(3))


# --- CIFAR-10: without any source ---


def test_offline_without_a_source_fails_fast_and_names_three_ways(tmp_path):
    """An address nobody listens at stands for a machine without a network."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LTI_", "HF_")) and not key.lower().endswith("_proxy")
    }
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    code = (
        "from lti.data import DATASETS\nfrom lti.errors import LTIError\n"
        "try: DATASETS.parse({'use': 'cifar10'}).load('victims')\n"
        "except LTIError as error: print(error)\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - start < 30  # the client's own retries alone take 24 s
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    for way in ("HF_HOME", "LTI_DATA_MIRROR", "LTI_TORCHVISION_ROOT", "does not answer"):
        assert way in done.stdout
    assert "Retry" not in done.stderr


def test_import_is_light():
    code = (
        "import sys, lti.data\n"
        "heavy = {'torch', 'datasets', 'skimage', 'sklearn', 'PIL', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- CIFAR-10: a mirror ---


def write_shard(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    cells = []
    for one in image:
        buffer = io.BytesIO()
        Image.fromarray(one.transpose(1, 2, 0)).save(buffer, format="PNG")
        cells.append({"bytes": buffer.getvalue(), "path": "x.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(cells, kind), "label": pa.array(label, pa.int64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture
def small_mirror(tmp_path, monkeypatch):
    """A mirror whose test split is two shards of 5 random images."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    label = rng.integers(0, 10, 10)
    folder = tmp_path / "mirror" / "cifar10"
    write_shard(folder / "test-00000-of-00002.parquet", image[:5], label[:5])
    write_shard(folder / "test-00001-of-00002.parquet", image[5:], label[5:])
    monkeypatch.setitem(cifar10.COUNTS, "test", 10)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return folder, image, label


def load(folder: Path) -> Samples:
    return DATASETS.parse({"use": "cifar10", "mirror": str(folder.parent)}).load("victims")


def test_a_mirror_is_read_exactly_without_a_write_or_a_network(small_mirror, monkeypatch, tmp_path):
    folder, image, label = small_mirror
    before = sorted(tmp_path.rglob("*"))
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [])
    loaded = load(folder)
    assert asked == []
    assert sorted(loaded.index) == list(range(10))
    np.testing.assert_array_equal(loaded.value, image[loaded.index])
    np.testing.assert_array_equal(loaded.label, label[loaded.index])
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setenv("LTI_DATA_MIRROR", str(folder.parent))
    assert_same(DATASETS.parse({"use": "cifar10"}).load("victims"), loaded)


def test_the_order_depends_on_the_content_alone(small_mirror):
    folder, image, label = small_mirror
    loaded = load(folder)
    write_shard(folder / "test-00000-of-00002.parquet", image[:4:-1], label[:4:-1])
    write_shard(folder / "test-00001-of-00002.parquet", image[4::-1], label[4::-1])
    reversed_ = load(folder)
    np.testing.assert_array_equal(reversed_.value, loaded.value)
    np.testing.assert_array_equal(reversed_.index, 9 - loaded.index)


def test_a_damaged_mirror_is_named_with_a_remedy(small_mirror):
    folder, image, label = small_mirror
    second = folder / "test-00001-of-00002.parquet"
    remedy = "Copy the parquet files of uoft-cs/cifar10 there again"
    with pytest.raises(LTIError, match=rf"no file train-\*\.parquet.*{remedy}"):
        DATASETS.parse({"use": "cifar10", "mirror": str(folder.parent)}).load("auxiliary")

    content = second.read_bytes()
    second.write_bytes(content[:-20])
    with pytest.raises(LTIError, match=rf"test-00001-of-00002\.parquet: cannot be read.*{remedy}"):
        load(folder)
    # Damage inside a picture: the parquet file is whole, the PNG is not.
    spot = content.index(b"IDAT") + 10
    second.write_bytes(content[:spot] + bytes(40) + content[spot + 40 :])
    with pytest.raises(LTIError, match=r"test-00001-of-00002\.parquet: cannot be read"):
        load(folder)

    write_shard(second, image[5:9], label[5:9])
    with pytest.raises(LTIError, match=r"9 rows .*00001-of-00002\.parquet 4\), expected 10"):
        load(folder)
    write_shard(second, image[5:], label[5:] + 10)
    with pytest.raises(LTIError, match=r"test-00001-of-00002\.parquet.*with label 1\d"):
        load(folder)
    second.unlink()
    with pytest.raises(LTIError, match=rf"00001-of-00002\.parquet: this shard .*missing.*{remedy}"):
        load(folder)


@needs_mirror
def test_the_real_mirror_equals_an_independent_decoding():
    import pyarrow.parquet as pq
    from PIL import Image

    loaded = DATASETS.parse({"use": "cifar10", "mirror": str(MIRROR)}).load("victims")
    assert np.bincount(loaded.label).tolist() == [1000] * 10
    assert sorted(loaded.index) == list(range(10_000))
    files = sorted((MIRROR / "cifar10").glob("test-*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    for k in range(0, 10_000, 53):
        row = rows[loaded.index[k]]
        pixels = np.array(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
        np.testing.assert_array_equal(loaded.value[k], pixels.transpose(2, 0, 1))
        assert loaded.label[k] == row["label"]


# --- CIFAR-10: torchvision's folder ---


def python2_batch(image: np.ndarray, label: np.ndarray) -> bytes:
    """The bytes that Python 2 wrote for a batch (protocol 2), opcode by opcode."""

    def text(value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    labels = b"](" + b"".join(b"K" + bytes([int(k)]) for k in label) + b"e"
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    data += b"\x87R(K\x01M" + struct.pack("<H", len(label)) + b"M\x00\x0c\x86" + kind + b"\x89"
    data += text(image.tobytes()) + b"tb"
    items = text(b"batch_label") + text(b"testing batch 1 of 1") + text(b"labels") + labels
    return b"\x80\x02}(" + items + text(b"data") + data + b"u."


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 7)


def torchvision_folder(tmp_path: Path, content: bytes, monkeypatch) -> Path:
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    monkeypatch.setitem(cifar10_batches.MD5, "test_batch", hashlib.md5(content).hexdigest())
    return tmp_path


def test_the_python_batches_are_read_without_numpy_unpickling(tmp_path, monkeypatch, batch):
    image, label = batch
    content = python2_batch(image, label)
    # What was written by hand is what torchvision's own way of reading takes.
    usual = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(usual["data"].reshape(-1, 3, 32, 32), image)
    root = torchvision_folder(tmp_path, content, monkeypatch)
    for settings_ in ({"torchvision_root": str(root)}, {}):
        monkeypatch.setenv("LTI_TORCHVISION_ROOT", str(root))
        monkeypatch.delenv("LTI_DATA_MIRROR", raising=False)
        loaded = DATASETS.parse({"use": "cifar10", **settings_}).load("victims")
        np.testing.assert_array_equal(loaded.value, image[loaded.index])
        np.testing.assert_array_equal(loaded.label, label[loaded.index])


class Malicious:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", ["os.mkdir", "builtins.exec", "numpy.load"])
def test_a_malicious_batch_does_nothing(tmp_path, monkeypatch, protocol, call):
    target = tmp_path / "pwned"
    evil = {
        "os.mkdir": Malicious(os.mkdir, str(target)),
        "builtins.exec": Malicious(exec, f"import os; os.mkdir({str(target)!r})"),
        "numpy.load": Malicious(np.load, str(target)),
    }[call]
    content = pickle.dumps({"data": evil, "labels": [0]}, protocol=protocol)
    root = torchvision_folder(tmp_path, content, monkeypatch)
    with pytest.raises(LTIError, match=r"test_batch: not a CIFAR-10 batch \(it names "):
        cifar10_batches.read_batches(root, "test")
    assert not target.exists()


def test_a_batch_with_another_md5_is_not_even_opened(tmp_path, monkeypatch, batch):
    root = torchvision_folder(tmp_path, python2_batch(*batch), monkeypatch)
    with (root / "cifar-10-batches-py" / "test_batch").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(cifar10_batches, "_InertReader", None)
    with pytest.raises(LTIError, match=r"test_batch: MD5 [0-9a-f]{32}, expected [0-9a-f]{32}"):
        cifar10_batches.read_batches(root, "test")


def test_the_md5_are_torchvisions():
    # Its source is searched, not imported, which takes seconds.
    folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    source = (Path(folder) / "datasets" / "cifar.py").read_text()
    assert len(cifar10_batches.MD5) == 6
    for name, md5 in cifar10_batches.MD5.items():
        assert f'["{name}", "{md5}"]' in source


def test_the_binary_batches_come_first(tmp_path, monkeypatch, batch):
    image, label = batch
    monkeypatch.setattr(cifar10_batches, "PER_BATCH", 7)
    torchvision_folder(tmp_path, b"not read", monkeypatch)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.parent.mkdir()
    rows = b"".join(bytes([int(k)]) + one.tobytes() for one, k in zip(image, label, strict=True))
    path.write_bytes(rows)
    read_image, read_label = cifar10_batches.read_batches(tmp_path, "test")
    np.testing.assert_array_equal(read_image, image)
    np.testing.assert_array_equal(read_label, label)
    with pytest.raises(LTIError, match=r"data_batch_1\.bin: cannot be read"):
        cifar10_batches.read_batches(tmp_path, "train")
    path.write_bytes(rows[:-1])
    with pytest.raises(LTIError, match=r"test_batch\.bin: 21510 bytes, expected 21511"):
        cifar10_batches.read_batches(tmp_path, "test")
    path.write_bytes(b"\x0b" + rows[1:])
    with pytest.raises(LTIError, match="a label 11, expected 0 to 9"):
        cifar10_batches.read_batches(tmp_path, "test")


def test_an_empty_torchvision_folder_is_named(tmp_path):
    with pytest.raises(LTIError, match=r"holds neither .*LTI_TORCHVISION_ROOT"):
        DATASETS.parse({"use": "cifar10", "torchvision_root": str(tmp_path)}).load("victims")
