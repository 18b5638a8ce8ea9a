"""Data of a user's own: exact pixels and tokens, parts that share nothing, files that do harm."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from text_samples import PAD, WORDS, encode, save_tokenizer
from tokenizers import Tokenizer
from workflow_runner import CONFIG, Checkout

from lti.config import parse_config
from lti.data import DATASETS, Samples, hub, read_selection
from lti.data.cifar10 import Cifar10
from lti.data.cola import Cola
from lti.data.division import split
from lti.data.pixels import read_pixels
from lti.data.text import token_stream, windows
from lti.errors import LTIError
from lti.files import canonical_json, read_json
from lti.plan import Plan
from lti.stages.data import prepare_dataset, prepare_tokenizer

MIRROR = Path(os.environ.get("LTI_DATA_MIRROR") or "/nonexistent")
needs_mirror = pytest.mark.skipif(
    not ((MIRROR / "cifar10").is_dir() and (MIRROR / "glue-cola").is_dir()),
    reason="needs CIFAR-10 and CoLA: LTI_DATA_MIRROR is unset or lacks cifar10 or glue-cola",
)
CLASSES = ("ant", "bee", "cat")


def noise(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Return uint8 (height, width, 3)."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(folder: Path, *, each: int = 5, seed: int = 0) -> Path:
    """Write random PNGs, ``each`` of every class."""
    for number, name in enumerate(CLASSES):
        for k in range(each):
            save(folder / name / f"{k:03d}.png", noise(seed + 1000 * number + k))
    return folder


def write_table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def parts(data: Any, *arguments: Any) -> dict[str, Samples]:
    return {part: data.load(part, *arguments) for part in ("auxiliary", "victims")}


def contents(samples: Samples) -> list[bytes]:
    return [value.tobytes() for value in samples.value]


# --- pixels ---


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (61, 40), (40, 61), (20, 9), (33, 200)])
def test_pixels_are_the_antialiased_centre_crop(size):
    pixels = noise(1, *size)
    height, width = size
    side = min(size)
    top, left = (height - side) // 2, (width - side) // 2
    crop = Image.fromarray(pixels[top : top + side, left : left + side])
    expected = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_pixels(png(pixels)), expected.transpose(2, 0, 1))
    if size == (32, 32):
        np.testing.assert_array_equal(expected, pixels)


def test_reducing_averages_what_a_pixel_covers():
    # A filter without antialiasing would see only some of the rows of a checkerboard.
    board = np.indices((320, 320)).sum(axis=0) % 2 * 255
    reduced = read_pixels(png(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)))
    assert np.abs(reduced.astype(int) - 127.5).max() <= 2


def test_images_of_other_modes_become_rgb(tmp_path):
    pixels = noise(2)
    image = Image.fromarray(pixels)
    cmyk = np.asarray(image.convert("CMYK").convert("RGB"))
    grey = np.asarray(image.convert("L"))
    cases = {
        "L": np.repeat(grey[..., None], 3, axis=2),
        "P": np.asarray(image.convert("P").convert("RGB")),
        "1": np.asarray(image.convert("1").convert("RGB")),
        "CMYK": cmyk,
    }
    for mode, expected in cases.items():
        path = tmp_path / f"{mode}.tiff"
        image.convert(mode).save(path)
        np.testing.assert_array_equal(read_pixels(path), expected.transpose(2, 0, 1))
    # Transparency is dropped, not painted over.
    clear = np.dstack([pixels, np.zeros((32, 32), np.uint8)])
    np.testing.assert_array_equal(read_pixels(png(clear)), pixels.transpose(2, 0, 1))


def test_a_photograph_is_turned_as_its_orientation_says(tmp_path):
    pixels = noise(3, 64, 32)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    path = save(tmp_path / "a.png", pixels, exif=orientation)
    expected = read_pixels(png(np.rot90(pixels, -1).copy()))
    np.testing.assert_array_equal(read_pixels(path), expected)
    assert not np.array_equal(read_pixels(path), read_pixels(png(pixels)))


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of few bytes that declares many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32), 300, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


HOSTILE = {
    "text": (b"no image at all", "cannot identify image file"),
    "empty": (b"", "cannot identify image file"),
    "truncated": (jpeg(noise(4, 80, 80))[:-900], "truncated"),
    "damaged": (png(noise(4))[:60] + b"\0" * 40 + png(noise(4))[100:], ""),
    "large": (bomb(9_000, 9_000), "9000 x 9000 pixels, expected at most 80,000,000"),
    "larger": (bomb(60_000, 60_000), "pixels"),
    "deep": (sixteen_bits(), "mode I;16, expected eight bits a channel"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("error")
def test_a_damaged_file_is_named(tmp_path, name):
    content, reason = HOSTILE[name]
    folder = image_folder(tmp_path / "mine")
    (folder / "bee/003.png").write_bytes(content)
    data = DATASETS.parse({"use": "image-folder", "folder": str(folder)})
    with pytest.raises(LTIError, match=r"mine: cannot be used: bee/003\.png \(") as refused:
        parts(data)
    assert reason in str(refused.value) and str(refused.value).endswith("Replace or remove them.")


def test_the_first_ten_damaged_files_are_named(tmp_path):
    folder = image_folder(tmp_path / "mine", each=20)
    for k in range(12):
        (folder / f"ant/{k:03d}.png").write_bytes(b"?")
    data = DATASETS.parse(
        {"use": "image-folder", "folder": str(folder), "victims_folder": str(folder)}
    )
    with pytest.raises(LTIError) as refused:
        data.load("auxiliary")
    named = [k for k in range(12) if f"ant/{k:03d}.png" in str(refused.value)]
    assert named == list(range(10)) and "there may be more" in str(refused.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = image_folder(tmp_path / "mine")
    os.mkfifo(folder / "cat/pipe.png")
    data = DATASETS.parse({"use": "image-folder", "folder": str(folder)})
    with pytest.raises(LTIError, match=r"cat/pipe\.png \(not a file that can be read\)"):
        parts(data)


# --- image-folder ---


def test_an_image_folder_is_read_in_the_order_of_its_paths(tmp_path):
    folder = image_folder(tmp_path / "mine", each=5)
    save(folder / "bee/deep/a.png", noise(77))
    (folder / "bee/.DS_Store").write_text("no image")
    (folder / "README.txt").write_text("no image")
    data = DATASETS.parse({"use": "image-folder", "folder": str(folder), "victims_share": 0.4})
    assert data.read_class_names() == CLASSES
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    loaded = parts(data)
    assert sorted(np.concatenate([part.index for part in loaded.values()])) == list(range(16))
    for samples in loaded.values():
        assert (np.diff(samples.index) > 0).all()
        for value, label, index in zip(samples.value, samples.label, samples.index, strict=True):
            assert files[index].startswith(CLASSES[label])
            pixels = np.asarray(Image.open(folder / files[index]))
            np.testing.assert_array_equal(value, pixels.transpose(2, 0, 1))
    assert np.bincount(loaded["victims"].label).tolist() == [2, 2, 2]


def test_victims_can_have_a_folder_of_their_own(tmp_path):
    mine, others = image_folder(tmp_path / "a"), image_folder(tmp_path / "b", seed=50)
    settings = {"use": "image-folder", "folder": str(mine), "victims_folder": str(others)}
    loaded = parts(DATASETS.parse(settings))
    assert len(loaded["auxiliary"]) == len(loaded["victims"]) == 15
    expected = Image.open(others / "cat/004.png")
    np.testing.assert_array_equal(
        loaded["victims"].value[-1], np.asarray(expected).transpose(2, 0, 1)
    )
    # Fewer classes among the victims are fine, others are not.
    (others / "ant").rename(others / "dog")
    with pytest.raises(LTIError, match=r"b, row 10: label 'dog'; expected one of 3 classes \(ant"):
        DATASETS.parse(settings).load("victims")


def test_an_auxiliary_image_that_is_a_victims_is_dropped(tmp_path):
    mine, others = image_folder(tmp_path / "a"), image_folder(tmp_path / "b", seed=50)
    # The same pixels in another file, under another class.
    save(mine / "cat/copy.bmp", noise(52))
    data = DATASETS.parse(
        {"use": "image-folder", "folder": str(mine), "victims_folder": str(others)}
    )
    loaded = parts(data)
    assert len(loaded["auxiliary"]) == 15 and 15 not in loaded["auxiliary"].index
    assert len(loaded["victims"]) == 15
    for k in range(5):
        save(mine / f"ant/{k:03d}.png", noise(52))
    with pytest.raises(LTIError, match="every auxiliary sample of class ant is also a victim"):
        data.load("auxiliary")


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    def load(folder: Path) -> None:
        DATASETS.parse({"use": "image-folder", "folder": str(folder)}).load("auxiliary")

    with pytest.raises(LTIError, match=r"none: cannot be read .*No such file.* Correct the path"):
        load(tmp_path / "none")
    (tmp_path / "flat").mkdir()
    save(tmp_path / "flat/a.png", noise(0))
    with pytest.raises(LTIError, match="flat: no subfolder; expected one of images for each class"):
        load(tmp_path / "flat")
    folder = image_folder(tmp_path / "mine")
    (folder / "dog").mkdir()
    with pytest.raises(LTIError, match="mine/dog: no image"):
        load(folder)
    save(folder / "dog/a.png", noise(9))
    with pytest.raises(LTIError, match="class dog has one sample; expected two or more"):
        load(folder)


def test_links_to_files_and_classes_are_followed_and_deeper_folders_refused(tmp_path):
    folder = image_folder(tmp_path / "mine")
    plain = DATASETS.parse({"use": "image-folder", "folder": str(folder)}).load("auxiliary")
    (folder / "bee").rename(tmp_path / "elsewhere")
    (folder / "bee").symlink_to(tmp_path / "elsewhere")
    (folder / "ant/000.png").rename(tmp_path / "one.png")
    (folder / "ant/000.png").symlink_to(tmp_path / "one.png")
    data = DATASETS.parse({"use": "image-folder", "folder": str(folder)})
    assert data.load("auxiliary").digest == plain.digest
    (folder / "cat/000.png").unlink()
    (folder / "cat/000.png").symlink_to(tmp_path / "lost.png")
    with pytest.raises(LTIError, match=r"cat/000\.png"):
        parts(data)
    with pytest.raises(LTIError, match=r"cat/000\.png: cannot be read .No such file"):
        data.corpus("auxiliary")
    (folder / "ant/loop").symlink_to(folder)
    with pytest.raises(LTIError, match="ant/loop: a link to a folder"):
        data.load("auxiliary")


def test_the_corpus_changes_with_the_files(tmp_path):
    folder = image_folder(tmp_path / "mine")
    victims = image_folder(tmp_path / "theirs", seed=9)
    settings = {"use": "image-folder", "folder": str(folder), "victims_folder": str(victims)}
    data = DATASETS.parse(settings)
    seen = {data.corpus("auxiliary")}
    assert data.corpus("auxiliary") in seen

    def is_new() -> bool:
        now = data.corpus("auxiliary")
        assert now == DATASETS.parse(settings).corpus("auxiliary") == data.corpus("victims")
        known = now in seen
        seen.add(now)
        return not known

    save(folder / "ant/new.png", noise(5))
    assert is_new()
    (folder / "ant/new.png").rename(folder / "ant/newer.png")
    assert is_new()
    os.utime(folder / "ant/newer.png", ns=(1, 1))
    assert is_new()
    save(victims / "ant/new.png", noise(5))
    assert is_new()
    (folder / "ant/.hidden").write_text("x")
    assert not is_new()


@needs_mirror
def test_images_of_cifar_written_as_files_come_back(tmp_path):
    known = Cifar10(mirror=MIRROR).load("victims").take(range(300))
    for value, label, index in zip(known.value, known.label, known.index, strict=True):
        name = Cifar10.class_names[label]
        save(tmp_path / f"mine/{name}/{index:05d}.png", value.transpose(1, 2, 0).copy())
    data = DATASETS.parse({"use": "image-folder", "folder": str(tmp_path / "mine")})
    assert data.read_class_names() == Cifar10.class_names
    loaded = parts(data)
    order = np.lexsort((known.index, known.label))
    for samples in loaded.values():
        np.testing.assert_array_equal(samples.value, known.value[order[samples.index]])
        np.testing.assert_array_equal(samples.label, known.label[order[samples.index]])
    assert len(loaded["auxiliary"]) + len(loaded["victims"]) == 300
    counts = np.bincount(known.label)
    np.testing.assert_array_equal(
        np.bincount(loaded["victims"].label), np.floor(counts * 0.2 + 0.5)
    )


# --- the split ---


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
    order=st.randoms(use_true_random=False),
)
def test_a_split_is_disjoint_stratified_and_of_its_seed(counts, share, seed, order):
    rows = [number for number, count in enumerate(counts) for _ in range(count)]
    order.shuffle(rows)
    label = np.array(rows)
    names = [f"class {number}" for number in range(len(counts))]
    auxiliary, victims = split(label, names, share=share, seed=seed, where="x")
    np.testing.assert_array_equal(
        np.sort(np.concatenate([auxiliary, victims])), np.arange(len(label))
    )
    for number, count in enumerate(counts):
        mine = int((label[victims] == number).sum())
        assert 1 <= mine <= count - 1
        assert abs(mine - share * count) <= 0.5 or mine in (1, count - 1)
    again = split(label, names, share=share, seed=seed, where="x")
    np.testing.assert_array_equal(again[1], victims)
    # Another class changes nothing in the draw of the first ones.
    more = np.append(label, [len(counts)] * 3)
    further = split(more, [*names, "more"], share=share, seed=seed, where="x")[1]
    np.testing.assert_array_equal(further[further < len(label)], victims)


def test_other_seeds_split_otherwise():
    label = np.repeat([0, 1], 50)
    draws = [split(label, ["a", "b"], share=0.3, seed=seed, where="x")[1] for seed in range(3)]
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[1], draws[2])
    # Classes are drawn independently.
    assert not np.array_equal(draws[0][:15], draws[0][15:] - 50)


# --- image-table ---


def table_settings(folder: Path, **settings: Any) -> Any:
    return DATASETS.parse({"use": "image-table", "folder": str(folder), **settings})


@pytest.mark.parametrize("cell", ["bytes", "struct"])
@pytest.mark.parametrize("kind", ["integers", "texts"])
def test_tables_of_images_in_either_form(tmp_path, cell, kind):
    pixels = [noise(k) for k in range(600)]  # more than one batch of rows
    files = [png(one) for one in pixels]
    image = files if cell == "bytes" else [{"bytes": file, "path": "x"} for file in files]
    number = [(7 * k) % 3 for k in range(600)]
    label = number if kind == "integers" else [CLASSES[k] for k in number]
    write_table(tmp_path / "a-0.parquet", img=image[:350], y=label[:350])
    write_table(tmp_path / "a-1.parquet", img=image[350:], y=label[350:])
    data = table_settings(tmp_path, auxiliary="a-*.parquet", image="img", label="y")
    assert data.read_class_names() == (("0", "1", "2") if kind == "integers" else CLASSES)
    loaded = parts(data)
    assert sorted(np.concatenate([part.index for part in loaded.values()])) == list(range(600))
    for samples in loaded.values():
        expected = np.stack([pixels[k].transpose(2, 0, 1) for k in samples.index])
        np.testing.assert_array_equal(samples.value, expected)
        assert samples.label.tolist() == [number[k] for k in samples.index]


def test_tables_of_the_two_parts(tmp_path):
    write_table(tmp_path / "train.parquet", image=[png(noise(k)) for k in range(4)], label=[0] * 4)
    write_table(tmp_path / "test.parquet", image=[png(noise(2)), png(noise(9))], label=[0, 1])
    data = table_settings(
        tmp_path, auxiliary="train.parquet", victims="test.parquet", classes=["no", "yes"]
    )
    assert data.read_class_names() == ("no", "yes")
    loaded = parts(data)
    assert loaded["auxiliary"].index.tolist() == [0, 1, 3]  # 2 is a victim
    assert loaded["victims"].label.tolist() == [0, 1]
    overlapping = table_settings(tmp_path, victims="test.parquet")
    with pytest.raises(LTIError, match=r"test\.parquet: fits both \*\.parquet and test\.parquet"):
        overlapping.load("victims")
    with pytest.raises(LTIError, match=r"no file none\.parquet here"):
        table_settings(tmp_path, auxiliary="none.parquet").load("victims")


@needs_mirror
def test_a_table_names_the_classes_that_its_metadata_state():
    data = table_settings(MIRROR / "cifar10", auxiliary="test-*.parquet", image="img")
    assert data.read_class_names() == Cifar10.class_names


GOOD = [png(noise(k)) for k in range(4)]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"image": [1, 2], "label": [0, 0]}, {}, r"row 1 \(int, expected the bytes of an image"),
        ({"image": [None] * 2, "label": [0, 0]}, {}, r"row 1 \(NoneType, expected the bytes"),
        ({"image": [{"path": "/etc/passwd"}] * 2, "label": [0, 0]}, {}, r"row 1 \(NoneType, exp"),
        ({"image": ["/etc/passwd"] * 2, "label": [0, 0]}, {}, r"row 1 \(str, expected the bytes"),
        ({"image": GOOD, "label": [0.0, 0.0, 1.0, 1.0]}, {}, r"labels of type float; expected"),
        ({"image": GOOD, "label": [0, None, 0, 1]}, {}, r"labels of type NoneType, int; expected"),
        ({"image": GOOD, "label": [True] * 4}, {}, r"labels of type bool; expected"),
        ({"image": GOOD, "label": [[0]] * 4}, {}, r"labels of type list; expected"),
        ({"image": GOOD, "label": [0, 0, 2, 2]}, {}, r"labels from 0 to 2, but none is 1; expec"),
        ({"image": GOOD, "label": [1, 1, 2, 2]}, {}, r"labels from 1 to 2, but none is 0; expec"),
        ({"image": GOOD, "label": [-1, -1, 0, 0]}, {}, r"labels from -1 to 0, but none is 1"),
        (
            {"image": GOOD, "label": [0, 0, 2, 2]},
            {"classes": ["a", "b"]},
            r"row 2: label 2; expected one of 2 classes \(a, b\)",
        ),
        (
            {"image": GOOD, "label": ["a", "a", "c", "c"]},
            {"classes": ["a", "b"]},
            r"row 2: label 'c'; expected one of 2 classes \(a, b\)",
        ),
        ({"image": GOOD, "y": [0] * 4}, {}, r"no column 'label'; expected one of image, y"),
        ({"img": GOOD, "label": [0] * 4}, {}, r"no column 'image'; expected one of img, label"),
        (
            {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())},
            {},
            "no samples; expected some",
        ),
        ({"image": GOOD, "label": [0, 0, 0, 1]}, {}, "class 1 has one sample; expected two"),
    ],
)
def test_a_table_of_other_types_is_refused(tmp_path, columns, settings, message):
    write_table(tmp_path / "a.parquet", **columns)
    with pytest.raises(LTIError, match=message):
        parts(table_settings(tmp_path, **settings))


def test_a_damaged_table_is_refused(tmp_path):
    path = write_table(tmp_path / "a.parquet", image=GOOD, label=[0] * 4)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LTIError, match=r"a\.parquet: cannot be read .* Expected a file of parquet"):
        table_settings(tmp_path).load("victims")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auxiliary": "../x.parquet"}, r"auxiliary: got .*; expected a pattern of names below"),
        ({"auxiliary": "/etc/x.parquet"}, r"expected a pattern of names below `folder`"),
        (
            {"victims": "*.pkl"},
            r"victims: got '\*\.pkl'; expected a pattern that ends",
        ),
        ({"classes": ["a", "a"]}, r"classes: got .*; expected every name once"),
        ({"victims_share": 1.0}, r"victims_share: got 1\.0"),
        ({"columns": "x"}, "unknown key"),
    ],
)
def test_wrong_settings_of_a_table_are_refused(settings, message):
    with pytest.raises(LTIError, match=message):
        table_settings(Path("nowhere"), **settings)


# --- text-table ---


def text_table(folder: Path, **settings: Any) -> Any:
    if not {"tokenizer", "tokenizer_repository"} & {*settings}:
        settings["tokenizer_file"] = str(folder / "tokenizer.json")
    return DATASETS.parse({"use": "text-table", "folder": str(folder), "length": 8, **settings})


@pytest.fixture
def bert_like(tmp_path: Path) -> Path:
    """A folder with a tokenizer that adds [CLS] and [SEP]."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(save_tokenizer(tmp_path / "tokenizer.json")))
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, special)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def made_sentences(n: int) -> list[str]:
    draw = np.random.default_rng(0)
    return list(dict.fromkeys(" ".join(draw.choice(WORDS[:8], 5)) for _ in range(n)))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tables_of_sentences_are_padded_and_cut(bert_like, kind):
    texts = [*made_sentences(40), "a bee cat dog elk fox gnu hen", "a"]
    label = [k % 2 for k in range(len(texts))]
    table = pa.table({"words": texts, "other": [f'"{k}",\n' for k in label], "y": label})
    if kind == "csv":
        csv.write_csv(table, bert_like / "a.csv")
    else:
        pq.write_table(table, bert_like / "a.parquet")
    data = text_table(bert_like, auxiliary=f"a.{kind}", text="words", label="y")
    assert data.read_class_names() == ("0", "1")
    loaded = parts(data)
    assert sorted(np.concatenate([part.index for part in loaded.values()])) == [*range(len(texts))]
    expected = encode(*(" ".join(text.split()[:6]) for text in texts))
    assert expected[-1].tolist()[3:] == [PAD] * 5
    for samples in loaded.values():
        np.testing.assert_array_equal(samples.value, expected[samples.index])
        assert samples.label.tolist() == [k % 2 for k in samples.index]


def test_labels_of_csv_are_texts_unless_all_are_integers(bert_like):
    rows = [("a bee", "no"), ("bee cat", "1"), ("cat a", "no"), ("dog a", "1")]
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (bert_like / "a.csv").write_text("\n".join(lines) + "\n")
    data = text_table(bert_like, auxiliary="a.csv")
    assert data.read_class_names() == ("1", "no")
    (bert_like / "a.csv").write_text("\n".join(lines).replace("no", "0") + "\n")
    assert data.read_class_names() == ("0", "1")
    (bert_like / "a.csv").write_text("text,label\na,1,2\n")
    with pytest.raises(LTIError, match=r"a\.csv: cannot be read .* comma-separated values"):
        data.load("victims")
    (bert_like / "a.csv").write_text("text,class\na,1\n")
    with pytest.raises(LTIError, match=r"a\.csv: no column 'label'"):
        data.load("victims")


def test_a_sentence_of_both_parts_stays_with_the_victims(bert_like):
    write_table(bert_like / "train.parquet", text=["a bee", "cat dog", "bee a"], label=[0, 1, 1])
    write_table(bert_like / "test.parquet", text=["cat dog", "hen a"], label=[0, 1])
    data = text_table(bert_like, auxiliary="train.parquet", victims="test.parquet")
    loaded = parts(data)
    assert loaded["auxiliary"].index.tolist() == [0, 2]
    np.testing.assert_array_equal(loaded["auxiliary"].value, encode("a bee", "bee a"))
    np.testing.assert_array_equal(loaded["victims"].value, encode("cat dog", "hen a"))


def test_a_tokenizer_without_padding_gives_windows(tmp_path):
    path = save_tokenizer(tmp_path / "tokenizer.json")
    value = json.loads(path.read_text())
    value["added_tokens"] = []
    value["model"]["vocab"] = {
        token.strip("[]") if token == "[PAD]" else token: number
        for token, number in value["model"]["vocab"].items()
    }
    path.write_text(json.dumps(value))
    texts = made_sentences(30)
    write_table(tmp_path / "a.parquet", text=texts, label=[0] * len(texts))
    victims = ["bee bee a a cat", "elk elk elk hen hen"]
    write_table(tmp_path / "b.parquet", text=victims, label=[0, 0])
    data = text_table(tmp_path, auxiliary="a.parquet", victims="b.parquet")
    tokenizer = data.own_tokenizer()
    assert tokenizer.padding is None and tokenizer.truncation is None
    expected = windows(token_stream(tokenizer, texts), length=8, stride=8)
    np.testing.assert_array_equal(data.load("auxiliary").value, expected)
    assert data.load("victims").value.shape == (1, 8)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([1, 2, 3, 4], r"row \d \(\d, expected text\)"),
        (["a", None, "a", None], r"row \d \(None, expected text\)"),
        (["a", " ", "a", "\n"], r"row \d \('.*', expected text\)"),
        ([["a"]] * 4, r"row \d \(\['a'\], expected text\)"),
    ],
)
def test_what_is_no_sentence_is_refused(bert_like, texts, message):
    write_table(bert_like / "a.parquet", text=texts, label=[0, 0, 1, 1])
    with pytest.raises(LTIError, match=message):
        parts(text_table(bert_like))


def test_one_tokenizer_is_asked_for(bert_like):
    for settings in (
        {"use": "text-table", "folder": "x"},
        {"use": "text-table", "folder": "x", "tokenizer": "cola", "tokenizer_file": "y"},
    ):
        with pytest.raises(LTIError, match="expected one of tokenizer, tokenizer_file and token"):
            DATASETS.parse(settings)
    (bert_like / "tokenizer.json").write_text("{}")
    with pytest.raises(LTIError, match=r"tokenizer\.json: no tokenizer can be read from it"):
        text_table(bert_like).own_tokenizer()
    missing = text_table(bert_like, tokenizer_repository="nobody/nothing")
    with pytest.raises(LTIError, match=r"nobody/nothing cannot be loaded .*'tokenizer_file'"):
        missing.own_tokenizer()


def test_the_corpus_of_text_changes_with_the_tokenizer(bert_like):
    write_table(bert_like / "a.parquet", text=["a"] * 2, label=[0] * 2)
    data = text_table(bert_like)
    before = data.corpus("auxiliary")
    os.utime(bert_like / "tokenizer.json", ns=(1, 1))
    assert data.corpus("auxiliary") != before


@needs_mirror
def test_cola_as_a_table_is_cola():
    data = DATASETS.parse(
        {
            "use": "text-table",
            "folder": str(MIRROR / "glue-cola"),
            "auxiliary": "train-*.parquet",
            "victims": "validation-*.parquet",
            "text": "sentence",
            "tokenizer_file": str(MIRROR / "tokenizers/bert-base-uncased/tokenizer.json"),
        }
    )
    assert data.read_class_names() == Cola.class_names
    known = Cola(mirror=MIRROR)
    assert data.own_tokenizer().to_str() == known.own_tokenizer().to_str()
    assert data.load("victims").digest == known.load("victims").digest
    mine, whole = data.load("auxiliary"), known.load("auxiliary")
    victims = set(contents(known.load("victims")))
    kept = [row for row, value in enumerate(contents(whole)) if value not in victims]
    assert mine.index.tolist() == kept and mine.digest == whole.take(kept).digest
    assert 0 < len(whole) - len(mine) < 100


# --- the hub ---


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a cache of its own."""
    import datasets

    monkeypatch.setattr(hub, "_hub_answers", lambda: (False, "; the hub does not answer: Test"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("offline")
def test_a_folder_in_the_layout_of_the_hub(tmp_path):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"img": ImageFeature(), "fine": ClassLabel(names=[*CLASSES])})
    for name, seed, count in (("train", 0, 12), ("test", 100, 6)):
        rows = {
            "img": [{"bytes": png(noise(seed + k)), "path": None} for k in range(count)],
            "fine": [k % 3 for k in range(count)],
        }
        (tmp_path / "own/data").mkdir(parents=True, exist_ok=True)
        path = tmp_path / f"own/data/{name}-00000-of-00001.parquet"
        Dataset.from_dict(rows, features=features).to_parquet(path)
    settings = {"use": "image-hub", "repository": str(tmp_path / "own"), "label": "fine"}
    data = DATASETS.parse({**settings, "image": "img"})
    assert data.read_class_names() == CLASSES
    loaded = parts(data)
    assert (len(loaded["auxiliary"]), len(loaded["victims"])) == (12, 6)
    for seed, samples in ((0, loaded["auxiliary"]), (100, loaded["victims"])):
        expected = np.stack([noise(seed + k).transpose(2, 0, 1) for k in samples.index])
        np.testing.assert_array_equal(samples.value, expected)
        assert samples.label.tolist() == [k % 3 for k in samples.index]
    assert str(tmp_path / "own") in data.corpus("victims")
    with pytest.raises(LTIError, match="no column 'image'; expected one of img, fine"):
        DATASETS.parse(settings).load("victims")
    alone = DATASETS.parse({**settings, "image": "img", "victims": None, "victims_share": 0.25})
    assert np.bincount(alone.load("victims").label).tolist() == [1, 1, 1]
    with pytest.raises(LTIError, match=r"cannot be loaded .*other"):
        DATASETS.parse({**settings, "image": "img", "auxiliary": "other"}).load("auxiliary")


@pytest.mark.usefixtures("offline")
def test_a_folder_of_image_files_in_the_layout_of_the_hub(tmp_path):
    for name, seed in (("train", 0), ("test", 50)):
        image_folder(tmp_path / "own" / name, seed=seed)
    data = DATASETS.parse({"use": "image-hub", "repository": str(tmp_path / "own")})
    files = DATASETS.parse(
        {
            "use": "image-folder",
            "folder": str(tmp_path / "own/train"),
            "victims_folder": str(tmp_path / "own/test"),
        }
    )
    assert data.read_class_names() == CLASSES
    for part, samples in parts(data).items():
        assert samples.digest == files.load(part).digest


@pytest.mark.usefixtures("offline")
def test_text_of_a_folder_in_the_layout_of_the_hub(bert_like):
    texts = made_sentences(20)
    (bert_like / "own").mkdir()
    for name, some in (("train", texts[:12]), ("test", texts[12:])):
        table = pa.table({"text": some, "label": [k % 2 for k in range(len(some))]})
        csv.write_csv(table, bert_like / f"own/{name}.csv")
    data = DATASETS.parse(
        {
            "use": "text-hub",
            "repository": str(bert_like / "own"),
            "tokenizer_file": str(bert_like / "tokenizer.json"),
            "length": 8,
        }
    )
    loaded = parts(data)
    np.testing.assert_array_equal(loaded["auxiliary"].value, encode(*texts[:12]))
    np.testing.assert_array_equal(loaded["victims"].value, encode(*texts[12:]))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("use", ["image-hub", "text-hub"])
def test_what_cannot_be_downloaded_has_ways_out(use):
    settings = {"tokenizer": "cola"} if use == "text-hub" else {}
    data = DATASETS.parse({"use": use, "repository": "nobody/nothing", **settings})
    with pytest.raises(LTIError) as refused:
        data.read_class_names()
    message = str(refused.value)
    assert message.startswith(f"{use}: nobody/nothing cannot be loaded (")
    assert "the hub does not answer: Test" in message and "in the setting 'repository'" in message
    assert f"'{use.replace('hub', 'table')}'" in message
    for wrong in ("parquet", "", "a/", "/"):
        with pytest.raises(LTIError, match="repository"):
            DATASETS.parse({"use": use, "repository": wrong, **settings})


# --- configuration and stages ---


def test_a_configuration_is_planned_without_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        **CONFIG,
        "datasets": {"mine": {"use": "image-folder", "folder": "none"}},
        "experiments": {
            "tiny": {
                **CONFIG["experiments"]["tiny"],
                "dataset": "mine",
                "auxiliary": {"size": 160, "shift": "classes", "beta": 0.5},
            }
        },
        "shifts": {"classes": {"classes": [0, 40], "shifted": [{"classes": [2]}]}},
    }
    assert Plan(parse_config(config)).modality_of("tiny") == "image"
    config["datasets"]["again"] = {**config["datasets"]["mine"], "folder": "x/../none"}
    config["shifts"]["classes"]["shifted"] = [{"dataset": "again"}]
    with pytest.raises(LTIError, match=r"mine and again, which both hold samples of .*/none"):
        parse_config(config)


def test_a_card_states_the_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "mine")
    settings = json.dumps({"use": "image-folder", "folder": "mine"})
    for part, count in (("auxiliary", 12), ("victims", 3)):
        output, card = tmp_path / f"{part}.safetensors", tmp_path / f"{part}.json"
        prepare_dataset(dataset=settings, part=part, output=output, card=card)
        assert read_json(card)["class_names"] == [*CLASSES]
        assert len(read_selection(output).samples) == count


def test_the_card_of_a_text_does_not_depend_on_times(bert_like):
    write_table(bert_like / "a.parquet", text=made_sentences(8), label=[0] * 8)
    settings = text_table(bert_like).canonical()
    tokenizer = bert_like / "own.json"
    prepare_tokenizer(dataset=canonical_json(settings), output=tokenizer)
    cards = []
    for time in (1, 2):
        os.utime(bert_like / "a.parquet", ns=(time, time))
        output, card = bert_like / "part", bert_like / "card.json"
        prepare_dataset(
            dataset=canonical_json(settings),
            part="victims",
            tokenizer=tokenizer,
            output=output,
            card=card,
        )
        cards.append(read_json(card))
    assert cards[0] == cards[1]
    assert cards[0]["class_names"] == ["0"] and cards[0]["text"]["padding"] == PAD
    assert cards[0]["text"]["corpus"] == str(bert_like / "a.parquet")


def test_the_examples_of_the_page_are_configurations():
    page = (Path(__file__).resolve().parents[1] / "docs/your-data.md").read_text()
    examples = [
        yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    ]
    used = set()
    for example in examples:
        config = {**CONFIG, "datasets": {**CONFIG["datasets"], **example["datasets"]}}
        if any(one.get("tokenizer") for one in example["datasets"].values()):
            config["datasets"]["cola"] = {"use": "cola"}
        parsed = parse_config(config)
        used |= {settings["use"] for settings in parsed.datasets.values()}
    assert {"image-folder", "image-table", "text-table", "image-hub", "text-hub"} <= used


def test_the_workflow_runs_on_a_folder_and_notices_a_change(tmp_path):
    checkout = Checkout.fresh(tmp_path / "checkout")
    image_folder(checkout.folder / "mine", each=20)
    checkout.configure(
        {
            "datasets": {"mine": {"use": "image-folder", "folder": "mine"}},
            "experiments": {
                "tiny": {
                    **CONFIG["experiments"]["tiny"],
                    "dataset": "mine",
                    "defenses": ["sign"],
                    "attacks": ["lti"],
                    "auxiliary": {"size": 48},
                }
            },
        }
    )
    checkout.run("tiny")
    assert (checkout.results / "experiments/tiny/summary.md").exists()
    assert read_json(checkout.results / "fl_models/mine/lenet.json")["task"]["classes"] == 3
    (checkout.folder / "mine/ant/020.png").write_text("no image")
    part = "results/data/mine/auxiliary.safetensors"
    output = checkout.run(part, fails=True)
    assert "ant/020.png (cannot identify image file" in output
    (checkout.folder / "mine").rename(checkout.folder / "moved")
    output = checkout.run(part, fails=True)
    assert "mine: cannot be read (No such file or directory; looked for" in output
