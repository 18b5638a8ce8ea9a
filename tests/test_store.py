"""The gradient store: exactness, sizes, resuming, damage, memory and batches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from lti.errors import LTIError
from lti.gradients.batches import TrainingRows
from lti.gradients.encoding import decode_rows, encode_rows
from lti.gradients.store import GradientStore, StoreSettings, write_shards, write_store

# Chunks of 3 to 6 rows and shards of several chunks for rows of 50 entries.
SMALL = StoreSettings(chunk_mib=400 / 2**20, shard_mib=1300 / 2**20, memory_mib=1)
N, DIM = 47, 50


ROWS = torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))


def make_rows(start: int, stop: int) -> torch.Tensor:
    return ROWS[start:stop].clone()


def make_signs(start: int, stop: int) -> torch.Tensor:
    return torch.sign(make_rows(start, stop)).masked_fill_(make_rows(start, stop).abs() < 0.3, 0)


def write(folder: Path, encoding="scaled-float16", compute=make_rows, **options) -> GradientStore:
    options = {"n_rows": N, "dim": DIM, "settings": SMALL, **options}
    return write_store(
        folder / "g", manifest=folder / "g.json", encoding=encoding, compute=compute, **options
    )


wide = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 30)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.floats(-1, 1, width=32)
    | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.2e-38, 65504, 65535.9, -3.4e38]),
)


@settings(deadline=None, max_examples=150)
@given(wide)
def test_scaled_float16_keeps_every_sign_and_each_row_within_a_thousandth(values):
    decoded = decode_rows(encode_rows(torch.from_numpy(values), "scaled-float16")).numpy()
    assert np.isfinite(decoded).all()
    np.testing.assert_array_equal(np.sign(decoded), np.sign(values))
    exact = values.astype(np.float64)
    error = np.linalg.norm(decoded.astype(np.float64) - exact, axis=1)
    assert (error <= 1e-3 * np.linalg.norm(exact, axis=1)).all()


def test_scaled_float16_uses_the_top_of_the_range_and_is_stable():
    rows = make_rows(0, N) * 1e-9
    encoded = encode_rows(rows, "scaled-float16")
    peaks = encoded.values.float().abs().amax(dim=1)
    assert ((peaks >= 2**15) & (peaks <= 65504)).all()
    decoded = decode_rows(encoded)
    assert torch.equal(decode_rows(encode_rows(decoded, "scaled-float16")), decoded)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("encoding", ["scaled-float16", "float32"])
def test_non_finite_rows_are_named(bad, encoding):
    rows = make_rows(0, 5)
    rows[3, 7] = bad
    with pytest.raises(LTIError, match="row 13 has a NaN or an infinite entry"):
        encode_rows(rows, encoding, first_row=10)


@pytest.mark.parametrize("bad", [0.5, 2.0, -2.0, 256.0, float("nan")])
def test_signs_refuse_other_numbers(bad):
    rows = make_signs(0, 4)
    rows[2, 9] = bad
    with pytest.raises(LTIError, match="row 2, entry 9 is"):
        encode_rows(rows, "sign")


def test_rows_come_back(tmp_path):
    seen = []
    store = write(tmp_path / "a", on_rows=seen.append, attributes={"model": "lenet"})
    assert sum(seen) == N and store.geometry.n_shards > 3
    assert (store.n_rows, store.dim, store.encoding) == (N, DIM, "scaled-float16")
    assert store.attributes == {"model": "lenet"}
    torch.testing.assert_close(store.rows(0, N), make_rows(0, N), rtol=1e-3, atol=1e-4)
    assert torch.equal(store.rows(5, 31), store.rows(0, N)[5:31])
    assert store.rows(4, 4).shape == (0, DIM)
    store.verify()
    for encoding, compute, compress in (
        ("sign", make_signs, True),
        ("sign", make_signs, False),
        ("float32", make_rows, False),
        ("float32", lambda a, b: make_rows(a, b).numpy(), True),
    ):
        exact = write(tmp_path / "b", encoding=encoding, compute=compute, compress=compress)
        assert torch.equal(exact.rows(0, N), torch.as_tensor(compute(0, N)))
        exact.verify()


def test_the_digest_is_that_of_the_content(tmp_path):
    first = write(tmp_path / "a").digest
    assert write(tmp_path / "b", compress=True, settings=StoreSettings()).digest == first
    assert write(tmp_path / "c", n_rows=N - 1).digest != first
    assert write(tmp_path / "d", encoding="float32").digest != first

    def swapped(start: int, stop: int) -> torch.Tensor:
        order = torch.arange(N)
        order[[3, 40]] = order[[40, 3]]
        return make_rows(0, N)[order][start:stop]

    assert write(tmp_path / "e", compute=swapped).digest != first


def lenet_like_gradients(n: int) -> torch.Tensor:
    """Per-sample gradients of the paper's LeNet on random smooth images: (n, 15826)."""
    nn = torch.nn
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 2), (12, 2), (12, 1)]
    layers: list[nn.Module] = []
    for channels, stride in sizes:
        layers += [nn.Conv2d(channels, 12, 5, stride, 2), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    images = nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    labels = torch.randint(10, (n,), generator=generator)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, image, label):
        output = torch.func.functional_call(model, parameters, (image[None],))
        return nn.functional.cross_entropy(output, label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, images, labels)
    return torch.cat([part.flatten(1) for part in gradients.values()], 1).detach()


def test_compressed_sizes(tmp_path):
    rows = lenet_like_gradients(128)
    threshold = rows.abs().topk(159, dim=1).values[:, -1:]
    pruned = torch.where(rows.abs() >= threshold, rows, 0.0)
    for encoding, values in (("sign", rows.sign()), ("scaled-float16", pruned)):
        write(
            tmp_path,
            encoding=encoding,
            compute=lambda a, b, values=values: values[a:b],
            n_rows=len(rows),
            dim=rows.shape[1],
            compress=True,
            settings=StoreSettings(),
        )
        files = [file for file in (tmp_path / "g").rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= 0.06 * rows.numel()


KILLED = """
import os, resource, signal, sys
from pathlib import Path
import torch, zarr
import lti.gradients.unfinished as module
import tests.test_store as t
from lti.gradients.batches import TrainingRows

folder = Path(sys.argv[1])
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def in_shard(start, stop):
    if start >= 30: kill()
    return t.make_rows(start, stop)
def durably(kind):
    real, count = module.write_durably, [0]
    def write(path, text):
        count[0] += path.parent.name == kind
        if path.parent.name == kind and (count[0] == 3 or kind == "manifest"): kill()
        real(path, text)
    module.write_durably = write
def memory():
    # 64 MiB of rows, through pieces of 1 MiB.
    settings = t.StoreSettings(chunk_mib=0.25, shard_mib=1, memory_mib=4)
    row = torch.arange(16384.0)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peaks = []
    for n in (64, 2048):
        store = t.write(folder / "memory", n_rows=n, dim=16384, settings=settings,
                        compute=lambda a, b: row.repeat(b - a, 1))
        rows = TrainingRows(store, memory_mib=4, resident=False)
        assert sum(len(i) for i, _ in rows.epoch(16, seed=0)) == n
        peaks.append(peak())
    (folder / "memory.txt").write_text(str(peaks[1] - peaks[0]))
cases = {
    "shard": lambda: t.write(folder / "shard", compute=in_shard),
    "journal": lambda: (durably("journal"), t.write(folder / "journal")),
    "manifest": lambda: (durably("manifest"), t.write(folder / "manifest")),
    "memory": memory,
}
for name, run in cases.items():
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        run()
        os._exit(0)
    print(name, os.waitpid(child, 0)[1])
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Stores whose writers were killed, each in a process of its own."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    status = dict(line.split() for line in done.stdout.splitlines())
    killed = str(int(signal.SIGKILL))
    assert status == {"shard": killed, "journal": killed, "manifest": killed, "memory": "0"}, (
        done.stderr
    )
    return folder


@pytest.mark.parametrize(("case", "kept"), [("shard", 2), ("journal", 2), ("manifest", 4)])
def test_a_killed_writer_goes_on(killed, tmp_path, case, kept):
    folder = tmp_path / case
    shutil.copytree(killed / case, folder)
    assert not (folder / "g.json").exists()
    asked: list[int] = []

    def compute(start: int, stop: int) -> torch.Tensor:
        asked.extend(range(start, stop))
        return make_rows(start, stop)

    whole = write(tmp_path / "whole")
    store = write(folder, compute=compute)
    assert asked == list(range(kept * store.geometry.shard_rows, N))
    assert store.digest == whole.digest
    assert (folder / "g.json").read_bytes() == (tmp_path / "whole" / "g.json").read_bytes()
    assert sorted(os.listdir(folder)) == ["g", "g.json"]


PART = """
import sys
import numpy as np
from lti.gradients.store import StoreSettings, write_shards
part, folder = int(sys.argv[1]), sys.argv[2]
rows = np.load(folder + "/rows.npy")
sys.stdin.readline()  # all begin at once
write_shards(
    folder + "/g", part=part, parts=4, n_rows=len(rows), dim=rows.shape[1],
    encoding="scaled-float16", compute=lambda start, stop: rows[start:stop],
    manifest=folder + "/g.json",
    settings=StoreSettings(chunk_mib=400 / 2**20, shard_mib=1300 / 2**20, memory_mib=1),
)
"""


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [folder / "g.json", *(p for p in (folder / "g").rglob("*") if p.is_file())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_parts_of_several_processes_make_the_bytes_of_one_writer(tmp_path):
    (tmp_path / "alone").mkdir()
    write(tmp_path / "alone")
    folder = tmp_path / "together"
    folder.mkdir()
    np.save(folder / "rows.npy", ROWS.numpy())
    writers = [
        subprocess.Popen([sys.executable, "-c", PART, str(part), str(folder)], stdin=-1, text=True)
        for part in (0, 1, 3)  # one is missing
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.close()
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert not (folder / "g").exists() and not (folder / "g.json").exists()
    there = len(list(folder.glob(".g.partial/journal/*.json")))
    asked: list[int] = []

    def compute(start: int, stop: int) -> torch.Tensor:
        asked.extend(range(start, stop))
        return make_rows(start, stop)

    store = write(folder, compute=compute)
    shards = store.geometry.n_shards
    assert 0 < there < shards
    missing = range(2 * shards // 4, 3 * shards // 4)  # part 2
    assert asked == [row for s in missing for row in range(*store.geometry.shard_range(s))]
    (folder / "rows.npy").unlink()
    assert files_of(folder) == files_of(tmp_path / "alone")
    assert sorted(path.name for path in folder.iterdir()) == ["g", "g.json"]


def test_a_part_is_resumed_and_one_of_another_store_begins_anew(tmp_path):
    options = {"n_rows": N, "dim": DIM, "settings": SMALL, "encoding": "scaled-float16"}
    where = {"path": tmp_path / "g", "manifest": tmp_path / "g.json"}
    own = write_shards(**where, part=1, parts=2, compute=make_rows, **options)
    assert len(own) >= 2

    def never(start: int, stop: int) -> torch.Tensor:
        raise AssertionError("computed again")

    assert write_shards(**where, part=1, parts=2, compute=never, **options) == own
    flip(tmp_path / f".g.partial/store/rows/c/{own[-1]}/0", 5)
    asked: list[int] = []

    def compute(start: int, stop: int) -> torch.Tensor:
        asked.append(start)
        return make_rows(start, stop)

    write_shards(**where, part=1, parts=2, compute=compute, **options)
    assert len(asked) and min(asked) >= 1  # the damaged shard alone
    write_shards(**where, part=0, parts=2, compute=make_rows, attributes={"a": 1}, **options)
    kept = {path.name for path in tmp_path.glob(".g.partial/journal/*.json")}
    assert f"{own[-1]:06d}.json" not in kept
    with pytest.raises(LTIError, match="got part 2 of 2; expected one from 0 to 1"):
        write_shards(**where, part=2, parts=2, compute=make_rows, **options)


def test_leftovers_of_another_store_or_damaged_ones_are_not_used(killed, tmp_path):
    asked: list[int] = []

    def compute(start: int, stop: int) -> torch.Tensor:
        asked.extend(range(start, stop))
        return make_rows(start, stop)

    shutil.copytree(killed / "shard", tmp_path / "other")
    write(tmp_path / "other", compute=compute, attributes={"seed": 1})
    assert asked == list(range(N))
    shutil.copytree(killed / "shard", tmp_path / "damaged")
    flip(tmp_path / "damaged" / ".g.partial" / "store" / "rows" / "c" / "0" / "0", 17)
    asked.clear()
    store = write(tmp_path / "damaged", compute=compute)
    shard = store.geometry.shard_rows
    assert asked == [*range(shard), *range(2 * shard, N)]
    store.verify()


def test_memory_does_not_grow_with_the_rows(killed):
    # Sixteen times the allowance in rows; half of that would be a copy of the store.
    assert float((killed / "memory.txt").read_text()) < 24


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("compress", [False, True])
def test_a_flipped_byte_anywhere_is_an_error_that_names_the_file(tmp_path, compress):
    write(tmp_path, compress=compress)
    files = [file for file in (tmp_path / "g").rglob("*") if file.is_file()]
    assert len(files) == 3 + 2 * 4
    for file in files:
        intact = file.read_bytes()
        for position in {0, len(intact) // 3, len(intact) // 2, len(intact) - 3}:
            flip(file, position)
            with pytest.raises(LTIError, match=r"Delete the store .*run the same") as caught:
                GradientStore.open(tmp_path / "g", tmp_path / "g.json").rows(0, N)
            assert str(caught.value).startswith(str(file))
            with pytest.raises(LTIError):
                TrainingRows(GradientStore.open(tmp_path / "g", tmp_path / "g.json"))
            file.write_bytes(intact)
    GradientStore.open(tmp_path / "g", tmp_path / "g.json").verify()


def test_missing_and_short_files_are_errors(tmp_path):
    store = write(tmp_path)
    for name in ("rows/c/2/0", "scale/c/1", "rows/zarr.json"):
        file = tmp_path / "g" / name
        intact = file.read_bytes()
        for damage in (file.unlink, lambda: file.write_bytes(intact[:-1])):  # noqa: B023
            damage()
            with pytest.raises(LTIError) as caught:
                GradientStore.open(tmp_path / "g", tmp_path / "g.json")
            assert str(caught.value).startswith(str(file))
            if "c" in file.parts[-3:]:  # also when it is lost after opening
                with pytest.raises(LTIError, match=r"rows/c/2/0|scale/c/1"):
                    store.rows(0, N)
            file.write_bytes(intact)
    store.rows(0, N)


def test_a_damaged_or_foreign_manifest_is_an_error(tmp_path):
    write(tmp_path)
    manifest = tmp_path / "g.json"
    content = json.loads(manifest.read_text())
    for changed in (
        {**content, "digest": "0" * 64},
        {**content, "format": 99},
        {**content, "attributes": {"seed": 3}},
        {"format": 1},
        [],
    ):
        manifest.write_text(json.dumps(changed))
        with pytest.raises(LTIError, match=r"g\.json: .*Delete it and the store beside it"):
            GradientStore.open(tmp_path / "g", manifest)
    # Alone it would leave a store that nothing vouches for, and that Snakemake does not miss.
    manifest.write_bytes(b"\xff" + manifest.read_bytes())
    with pytest.raises(LTIError, match=r"g\.json: cannot be read .*and the store beside it"):
        GradientStore.open(tmp_path / "g", manifest)
    manifest.unlink()
    with pytest.raises(LTIError, match=r"g\.json: cannot be read"):
        GradientStore.open(tmp_path / "g", manifest)


def test_swapped_shards_are_found_by_verify(tmp_path):
    store = write(tmp_path)
    one, two = (tmp_path / "g" / f"rows/c/{shard}/0" for shard in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(LTIError, match="rows/c/0/0: does not hold the rows it should"):
        store.verify()


def test_writing_refuses_what_it_cannot_store(tmp_path):
    with pytest.raises(LTIError, match=r"came as shape \(3, 50\); expected \(4, 50\)"):
        write(tmp_path, compute=lambda a, b: make_rows(0, 3))
    with pytest.raises(LTIError, match="unknown encoding 'float64'; known: float32, scaled"):
        write(tmp_path, encoding="float64")
    with pytest.raises(LTIError, match=r"takes \(n, dim\) of torch\.float32"):
        write(tmp_path, compute=lambda a, b: make_rows(a, b).double())
    with pytest.raises(LTIError, match="does not fit memory_mib=1"):
        write(tmp_path, dim=10**6)
    with pytest.raises(LTIError, match="not JSON"):
        write(tmp_path, attributes={"x": object()})
    (tmp_path / "home" / "g").mkdir(parents=True)
    (tmp_path / "home" / "g" / "thesis.tex").touch()
    with pytest.raises(LTIError, match="not a gradient store; it is left alone"):
        write(tmp_path / "home")
    assert (tmp_path / "home" / "g" / "thesis.tex").exists()


@pytest.mark.parametrize(
    "bad", [{"chunk_mib": 17}, {"shard_mib": 2000}, {"memory_mib": 512}, {"shard_mib": 4}, {"x": 1}]
)
def test_settings_are_checked(bad):
    with pytest.raises(ValidationError):
        StoreSettings(**bad)
    assert all(field.description for field in StoreSettings.model_fields.values())


@pytest.mark.parametrize("encoding", ["scaled-float16", "sign", "float32"])
@pytest.mark.parametrize("memory", [2500 / 2**20, 1.0])
def test_epochs(tmp_path, encoding, memory):
    store = write(tmp_path, encoding=encoding, compute=make_signs, compress=encoding == "sign")
    expected = store.rows(0, N)
    for span in (range(N), range(0, 31), range(31, N)):
        held = TrainingRows(store, rows=span)
        streamed = TrainingRows(store, rows=span, memory_mib=memory, resident=False)
        assert held.resident and held.placement == "cpu" and streamed.placement == "streamed"
        for rows in (held, streamed):
            assert len(rows) == len(span)
            batches = list(rows.epoch(8, seed=3))
            assert {len(i) for i, _ in batches[:-1]} == {8} and len(batches) == -(-len(span) // 8)
            order = torch.cat([indices for indices, _ in batches])
            assert sorted(order.tolist()) == list(span) != order.tolist()
            for indices, values in batches:
                assert values.dtype == torch.float32
                assert torch.equal(values, expected[indices])
            again = torch.cat([indices for indices, _ in rows.epoch(8, seed=3)])
            other = torch.cat([indices for indices, _ in rows.epoch(8, seed=4)])
            assert torch.equal(order, again) and not torch.equal(order, other)
    assert torch.equal(held.take(torch.tensor([46, 31, 40])), expected[[46, 31, 40]])


def test_rows_are_streamed_when_they_do_not_fit(tmp_path):
    store = write(tmp_path)
    assert not TrainingRows(store, memory_mib=0.002).resident
    few = TrainingRows(store, memory_mib=0.002, limit=5)
    assert few.resident and few.rows == range(5)
    with pytest.raises(LTIError, match="expected rows inside range"):
        few.take(torch.tensor([5]))
    with pytest.raises(LTIError, match="Raise memory_mib"):
        TrainingRows(store, memory_mib=0.002).take(torch.tensor([0]))
    with pytest.raises(LTIError, match="less than two chunks"):
        TrainingRows(store, memory_mib=0.0005)
    for rows in (range(0), range(0, N, 2), range(40, 50)):
        with pytest.raises(LTIError, match="consecutive ones inside it"):
            TrainingRows(store, rows=rows)


def test_an_epoch_may_be_left_early_and_damage_reaches_the_caller(tmp_path):
    store = write(tmp_path)
    rows = TrainingRows(store, memory_mib=0.002)
    for _ in rows.epoch(4, seed=0):
        break
    assert sum(len(indices) for indices, _ in rows.epoch(4, seed=0)) == N
    flip(tmp_path / "g" / "rows" / "c" / "3" / "0", 5)
    with pytest.raises(LTIError, match="rows/c/3/0: is damaged"):
        list(rows.epoch(4, seed=0))


def test_a_store_of_zeros_alone_is_whole(tmp_path):
    """Zarr leaves out chunks of zeros by default; here a missing file means damage."""
    store = write_store(
        tmp_path / "zeros.zarr",
        n_rows=6,
        dim=5,
        encoding="sign",
        compute=lambda start, stop: torch.zeros(stop - start, 5),
        manifest=tmp_path / "zeros.json",
    )
    assert store.rows(0, 6).eq(0).all()
