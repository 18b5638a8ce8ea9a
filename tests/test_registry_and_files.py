"""Registries, files that appear whole, checkpoints, source files of a stage."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator
from safetensors.numpy import save_file

import lti.registry
from lti import modules
from lti.checkpoint import Checkpoint
from lti.checksums import read_checked, write_checked
from lti.compute import acquire
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import (
    atomic_path,
    canonical_json,
    digest_arrays,
    digest_json,
    read_arrays,
    read_card,
    read_json,
    read_tensors,
    write_arrays,
    write_card,
    write_json,
    write_tensors,
)
from lti.fl_models import FL_MODELS
from lti.modules import source_files
from lti.progress import Progress
from lti.registry import Registry, Settings, described
from lti.seeding import derive_seed, numpy_generator, torch_generator


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# Registries


class Fruit(Settings):
    weight: int = 1


class OtherFruit(Settings):
    pass


def make_registry() -> Registry[Settings]:
    registry: Registry[Settings] = Registry("fruits")
    registry.register("apple", source="a book")(Fruit)
    return registry


def provide(monkeypatch, *points: tuple[str, str]) -> None:
    """Pretend that another package is installed that has these entry points."""

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points if group == "lti.fruits"]

    monkeypatch.setattr(lti.registry, "entry_points", entry_points)


def test_an_entry_is_found_by_its_name():
    registry = make_registry()
    assert registry["apple"] is Fruit and list(registry) == ["apple"] and "apple" in registry
    assert (Fruit.name, Fruit.source) == ("apple", "a book")
    fruit = registry.parse({"use": "apple", "weight": 3})
    assert fruit == Fruit(weight=3)
    assert fruit.canonical() == {"use": "apple", "weight": 3}
    assert registry.parse(fruit.canonical()) == fruit


def test_a_name_is_given_once():
    registry = make_registry()
    registry.register("apple", source="")(Fruit)  # the same class again, as after a re-import
    with pytest.raises(LTIError, match=r"fruits 'apple' is registered twice.*Rename one of them"):
        registry.register("apple", source="")(OtherFruit)
    assert registry["apple"] is Fruit


def test_unknown_names_list_the_known_ones():
    with pytest.raises(LTIError, match=r"unknown name 'pear' in fruits; known: apple\."):
        make_registry()["pear"]
    with pytest.raises(LTIError, match=r"'dropout' in defenses; known: .*gauss, none, .*sign"):
        DEFENSES.parse({"use": "dropout"})
    with pytest.raises(LTIError, match=r"here: no key 'use'; expected one of apple\. Add it"):
        make_registry().parse({"weight": 2}, where="here")


def test_settings_are_frozen_and_checked():
    registry = make_registry()
    with pytest.raises(LTIError, match=r"^a\.b\.wight: unknown key \(value 2\); allowed: weight$"):
        registry.parse({"use": "apple", "wight": 2}, where="a.b")
    with pytest.raises(LTIError, match=r"^a\.b\.weight: got 'heavy'; input should be a valid int"):
        registry.parse({"use": "apple", "weight": "heavy"}, where="a.b")
    with pytest.raises(ValueError, match="frozen"):
        registry.parse({"use": "apple"}).weight = 3


class Basket(Settings):
    fruits: list[Fruit] = Field(default=[])
    count: int = 0

    @model_validator(mode="after")
    def _check(self) -> Basket:
        if self.count != len(self.fruits):
            raise described(["count: is wrong {x}", "fruits[0]: is too"])
        return self


def test_a_message_says_which_item_of_a_list_is_wrong():
    registry: Registry[Settings] = Registry("baskets")
    registry.register("basket", source="a book")(Basket)
    wrong = {"use": "basket", "fruits": [{"weight": 1}, {"wight": 2}]}
    with pytest.raises(LTIError) as caught:
        registry.parse(wrong, where="a")
    assert str(caught.value) == "a.fruits[1].wight: unknown key (value 2); allowed: weight"


def test_a_validator_tells_problems_inside_a_value_itself():
    registry: Registry[Settings] = Registry("baskets")
    registry.register("basket", source="a book")(Basket)
    with pytest.raises(LTIError) as caught:
        registry.parse({"use": "basket", "count": 1}, where="a")
    assert str(caught.value) == "a.count: is wrong {x}\na.fruits[0]: is too"


def test_an_entry_of_another_package_is_found(monkeypatch):
    provide(monkeypatch, ("cherry", f"{__name__}:OtherFruit"))
    registry = make_registry()
    assert list(registry) == ["apple", "cherry"] and "cherry" in registry
    assert registry["cherry"] is OtherFruit
    assert registry.parse({"use": "cherry"}).canonical() == {"use": "cherry"}


def test_an_entry_of_another_package_must_be_settings_and_have_a_name_of_its_own(monkeypatch):
    provide(monkeypatch, ("cherry", "pathlib:Path"))
    with pytest.raises(LTIError, match=r"'pathlib:Path' in group lti\.fruits.*expected a subclass"):
        make_registry()["cherry"]
    provide(monkeypatch, ("gauss", "one:A"))
    with pytest.raises(LTIError, match=r"'gauss' is registered twice.*one:A"):
        list(Registry("fruits", modules={"gauss": "lti.defenses.gauss"}))
    provide(monkeypatch, ("cherry", "one:A"), ("cherry", "two:B"))
    with pytest.raises(LTIError, match=r"'cherry' is registered twice.*two:B"):
        list(make_registry())


# Files


def test_nothing_is_left_of_a_file_whose_writing_failed(tmp_path):
    target = tmp_path / "deep" / "result.txt"
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_text("old")
        assert not target.exists() and temporary.suffix == ".txt"
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "j.json", {})
    assert (tmp_path / "j.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


ARRAYS = {
    "b": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
    "a": np.array([0.5, np.nan, -0.0], dtype=np.float32),
    "flag": np.array([True, False]),
    "nothing": np.zeros((0, 4), dtype=np.uint8),
    "number": np.array(2.5),
}
METADATA = {"size": 3, "names": ["x", "y"], "none": None}


def test_arrays_and_metadata_come_back(tmp_path):
    write_arrays(tmp_path / "a.safetensors", ARRAYS, METADATA)
    arrays, metadata = read_arrays(tmp_path / "a.safetensors")
    assert metadata == METADATA and set(arrays) == set(ARRAYS)
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
        assert (arrays[key].dtype, arrays[key].shape) == (value.dtype, value.shape)
    tensors, _ = read_tensors(tmp_path / "a.safetensors")
    assert tensors["b"].tolist() == [[2, 1, 0], [5, 4, 3]]
    write_tensors(tmp_path / "t.safetensors", {"w": torch.ones(2, 2, requires_grad=True).T})
    assert torch.equal(read_tensors(tmp_path / "t.safetensors")[0]["w"], torch.ones(2, 2))


def test_a_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_arrays(path, ARRAYS, METADATA)
    intact = path.read_bytes()
    for place in (-1, -len(intact) // 8):  # inside an array; lengths and names stay as they are
        damaged = bytearray(intact)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(LTIError, match=r"does not match its digest.*Delete it and run"):
            read_arrays(path)
    path.write_bytes(intact[:-4])
    with pytest.raises(LTIError, match=r"a\.safetensors: cannot be read.*Delete it and run"):
        read_arrays(path)


def every_damage(intact: bytes) -> Iterator[bytes]:
    """Every change of one bit, and every end cut off."""
    for place in range(len(intact)):
        yield intact[:place]
        for bit in range(8):
            damaged = bytearray(intact)
            damaged[place] ^= 1 << bit
            yield bytes(damaged)


def write_small_arrays(path: Path) -> None:
    write_arrays(path, {"a": np.arange(3, dtype=np.int16)}, {"sigma": 0.1, "seed": 7})


def write_small_card(path: Path) -> None:
    write_card(path, {"class_names": ["x", "y"], "vocabulary": 1024})


def write_small_text(path: Path) -> None:
    write_checked(path, "attack,psnr\nig,21.5\n")


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (write_small_arrays, read_arrays),
        (write_small_card, read_card),
        (write_small_text, read_checked),
    ],
    ids=["arrays", "card", "text"],
)
def test_no_damage_of_a_bit_or_of_the_end_gives_other_content(tmp_path, write, read):
    path = tmp_path / "x.safetensors"
    write(path)
    expected, refused = str(read(path)), 0
    for file in (path, *tmp_path.glob("*.sha256")):
        intact = file.read_bytes()
        for damaged in every_damage(intact):
            file.write_bytes(damaged)
            try:
                # JSON has spaces that say nothing, and a checksum's line the name.
                assert str(read(path)) == expected, damaged
            except LTIError as error:
                refused += 1
                assert "x.safetensors" in str(error) and "Delete it and run" in str(error)
        file.write_bytes(intact)
    assert refused > 8 * 20
    assert str(read(path)) == expected


def test_a_checksum_is_one_for_sha256sum(tmp_path):
    write_checked(tmp_path / "a.csv", "a\n1\n")
    check = ["sha256sum", "--check", "--quiet", "a.csv.sha256"]
    assert subprocess.run(check, cwd=tmp_path).returncode == 0
    (tmp_path / "a.csv").write_text("a\n2\n")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1
    (tmp_path / "a.csv.sha256").unlink()
    with pytest.raises(LTIError, match=r"a\.csv: cannot be read with its checksum"):
        read_checked(tmp_path / "a.csv")


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(LTIError, match="cannot be read"):
        read_arrays(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(LTIError, match="cannot be read"):
        read_arrays(path)
    save_file({"a": np.zeros(3)}, path, metadata={"lti": "[]"})
    with pytest.raises(LTIError, match="cannot be read"):
        read_arrays(path)
    path.write_text("no such format")
    with pytest.raises(LTIError, match="cannot be read"):
        read_arrays(path)
    with pytest.raises(LTIError, match="cannot be read as JSON"):
        read_json(path)


def test_equal_content_gives_identical_bytes_in_every_process(tmp_path):
    code = """
        import sys
        import numpy as np
        from lti.files import write_arrays
        keys = set("abcdefgh")  # of an order that depends on the hash seed
        arrays = {key: np.full(3, ord(key), dtype=np.float32) for key in keys}
        write_arrays(sys.stdin.readline().strip(), arrays, {key: ord(key) for key in keys})
    """
    contents = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.safetensors"
        process = python(code, PYTHONHASHSEED=seed)
        process.communicate(f"{path}\n", timeout=60)
        assert process.returncode == 0
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_digests_depend_on_names_types_shapes_and_contents():
    base = {"a": np.zeros((2, 3), np.float32)}
    digest = digest_arrays(base)
    assert len(digest) == 16 and digest == digest_arrays({"a": np.zeros((2, 3), np.float32)})
    for other in (
        {"b": base["a"]},
        {"a": base["a"].astype(np.int32)},
        {"a": base["a"].reshape(3, 2)},
        {"a": base["a"] + 1},
        {**base, "c": np.zeros(0)},
    ):
        assert digest_arrays(other) != digest
    both = {"a": np.arange(3), "b": np.arange(2)}
    assert digest_arrays(dict(reversed(both.items()))) == digest_arrays(both)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), json_values, min_size=2, max_size=4))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert digest_json(turned) == digest_json(value)


# Random streams


def test_streams_are_named():
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", "1")
    seeds = {derive_seed(root, name) for root in range(50) for name in ("a", "b")}
    assert len(seeds) == 100 and all(0 <= seed < 2**63 for seed in seeds)
    # The first 63 bits of what sha256sum says of "7/select/victims".
    assert derive_seed(7, "select", "victims") == 0x413CC09077BC30A
    first = torch.rand(3, generator=torch_generator(1, "x"))
    assert torch.equal(torch.rand(3, generator=torch_generator(1, "x")), first)
    assert not torch.equal(torch.rand(3, generator=torch_generator(1, "y")), first)
    assert numpy_generator(1, "x").random() == numpy_generator(1, "x").random()


# Checkpoints


def test_a_checkpoint_comes_back_and_is_refused_to_other_settings(tmp_path):
    path = tmp_path / "deep" / "c.safetensors"
    checkpoint = Checkpoint(path, {"rate": 0.5, "name": "a"}, every_seconds=0)
    assert checkpoint.load() is None and checkpoint.due()
    checkpoint.save({"x": torch.arange(3.0)}, position=2)
    checkpoint.save({"x": torch.arange(4.0)}, position=3)
    again = Checkpoint(path, {"name": "a", "rate": 0.5}, every_seconds=0)
    tensors, position = again.load()
    assert position == 3 and torch.equal(tensors["x"], torch.arange(4.0))
    other = Checkpoint(path, {"name": "a", "rate": 0.25}, every_seconds=0)
    with pytest.raises(LTIError) as caught:
        other.load()
    message = str(caught.value)
    assert '"rate":0.5' in message and '"rate":0.25' in message and "Delete it" in message
    again.clear()
    again.clear()
    assert again.load() is None
    assert not Checkpoint(path, {}, every_seconds=60).due()


# Source files


def names(*args) -> set[str]:
    return {str(Path(path)).split("lti/", 1)[1] for path in source_files(*args)}


def test_a_stage_depends_on_the_entries_that_it_uses_and_on_no_others():
    files = names("gradients", (DEFENSES, "sign"), (FL_MODELS, "lenet"))
    # Imported inside functions of the stage, of other modules, and by package.
    assert {
        "stages/gradients.py",
        "stages/options.py",
        "defenses/__init__.py",
        "defenses/base.py",
        "defenses/sign.py",
        "fl_models/lenet.py",
        "gradients/per_sample.py",
        "gradients/store.py",
        "gradients/store_reader.py",
        "data/selection.py",
        "compute.py",
        "seeding.py",
        "errors.py",
        "__init__.py",
    } <= files
    assert not {name for name in files if name.startswith(("attacks/", "inverters/", "metrics/"))}
    assert {name for name in files if name.startswith("defenses/")} == {
        "defenses/__init__.py",
        "defenses/base.py",
        "defenses/sign.py",
    }
    assert "defenses/gauss.py" in names("gradients", (DEFENSES, "gauss"))


def test_source_files_are_real_sorted_and_relative_to_the_working_directory(monkeypatch):
    monkeypatch.chdir(modules.ROOT.parent)
    files = source_files("data")
    assert files == sorted(files) and "lti/stages/data.py" in files
    assert all(Path(path).is_file() for path in files)
    monkeypatch.chdir("/")
    assert all(Path(path).is_file() for path in source_files("data"))


def test_lazy_imports_count_and_imports_for_type_checking_do_not(tmp_path, monkeypatch):
    package = tmp_path / "lti"
    for name, text in {
        "__init__.py": "",
        "stages/__init__.py": "",
        "stages/toy.py": """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from lti.typed import T
            def run():
                import lti.lazy.inner
                def deeper():
                    from lti import late
        """,
        "lazy/__init__.py": "",
        "lazy/inner.py": "from lti.chained import value",
        "late.py": "import numpy",
        "chained.py": "value = 1",
        "typed.py": "",
        "unused.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(modules, "ROOT", package)
    modules._path.cache_clear()
    try:
        found = {str(Path(path).relative_to(package)) for path in source_files("toy")}
    finally:
        modules._path.cache_clear()
    assert found - {"stages/__init__.py"} == {
        "__init__.py",
        "stages/toy.py",
        "lazy/__init__.py",
        "lazy/inner.py",
        "late.py",
        "chained.py",
    }


# Devices


def test_without_a_grant_the_processor_computes():
    threads = torch.get_num_threads()
    try:
        got = acquire(threads=2)
        assert got.device.type == "cpu" and torch.get_num_threads() == 2
        assert got.dtype in (torch.bfloat16, torch.float32)
        acquire(threads=None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# Progress


def test_progress_lines_have_rate_time_left_and_values(tmp_path, capsys):
    progress = Progress("work", log=tmp_path / "deep" / "log", every_seconds=0)
    progress.start(total=10, unit="rows")
    progress.skip(2)
    progress.advance(3, loss=torch.tensor([1.0, 2.0]), epoch=4)
    progress.say("done")
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("[work]  50%  ")
    assert "rows/s" in printed[0] and printed[0].endswith("left, loss 1.5, epoch 4")
    assert printed[1] == "[work] done"
    assert (tmp_path / "deep" / "log").read_text().splitlines() == printed


# The command line


def run_cli(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lti", *args], capture_output=True, text=True, timeout=120
    )


def test_wrong_input_is_one_line_and_exit_status_2(tmp_path):
    options = ["--part", "victims", "--output", f"{tmp_path}/o", "--card", f"{tmp_path}/c"]
    bad_json = run_cli("prepare-dataset", "--dataset", "{photos}", *options)
    assert bad_json.returncode == 2 and bad_json.stdout == ""
    assert bad_json.stderr.startswith("error: --dataset: got '{photos}'; expected a JSON object")
    bad_setting = run_cli("prepare-dataset", "--dataset", '{"use": "photos", "side": 64}', *options)
    assert bad_setting.returncode == 2
    assert bad_setting.stderr == (
        "error: datasets.side: unknown key (value 64); allowed: no keys\n"
    )
    for result in (bad_json, bad_setting):
        assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_time_between_checkpoints_is_of_the_machine(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    monkeypatch.delenv("LTI_CHECKPOINT_SECONDS", raising=False)
    assert Checkpoint(path, {}).every_seconds == 60
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "2.5")
    assert Checkpoint(path, {}).every_seconds == 2.5
    for text in ("-1", "soon", "nan"):
        monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", text)
        with pytest.raises(LTIError, match=f"LTI_CHECKPOINT_SECONDS: got '{text}'; expected"):
            Checkpoint(path, {})
