"""The inverter that is solved for: its kernel, its landmarks, and what it gives back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.integrate import dblquad

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.config import parse_config
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.gradients.layout import ParameterLayout
from lti.gradients.store import StoreSettings, write_store
from lti.inverters import INVERTERS, cholesky
from lti.inverters import kernel_fit as kernel_module
from lti.inverters import kernel_network as network_module
from lti.inverters.auxiliary_data import AuxiliaryData
from lti.inverters.cholesky import inverse_diagonal, solve_in_place
from lti.inverters.kernel_network import Landmarks, neural_tangent_kernel
from lti.inverters.refiner import Refiner
from lti.inverters.trained import TrainedInverter
from lti.progress import Progress

CPU = Compute(torch.device("cpu"), torch.float32)
SAMPLES, WIDTH, SHAPE = 90, 37, (3, 2, 2)


# --- the kernel ---


def expected_product(function, cosine: float) -> float:
    """Return the mean of f(u) f(v) of two normal numbers with a correlation, by quadrature."""
    sine = math.sqrt(1 - cosine**2)

    def integrand(angle: float, radius: float) -> float:
        x, y = radius * math.cos(angle), radius * math.sin(angle)
        density = radius * math.exp(-(radius**2) / 2) / (2 * math.pi)
        return function(x) * function(cosine * x + sine * y) * density

    return dblquad(integrand, 0, 9, -math.pi, math.pi, epsabs=1e-4)[0]


@pytest.mark.parametrize("cosine", [-0.7, 0.0, 0.5, 0.9])
def test_the_kernel_is_that_of_the_gradients_of_a_wide_network(cosine):
    """Of f(x) = sum_i a_i relu(w_i x) with unit weights: both layers' gradients."""
    hidden = expected_product(lambda x: max(x, 0), cosine)  # d/da
    gate = expected_product(lambda x: float(x > 0), cosine)  # d/dw, times x y
    got = float(neural_tangent_kernel(torch.tensor([cosine], dtype=torch.float64)))
    assert got == pytest.approx(2 * (hidden + cosine * gate), abs=2e-3)


def test_the_kernel_of_a_vector_with_itself_is_two_and_with_its_opposite_none():
    got = neural_tangent_kernel(torch.tensor([1.0, 1.001, -1.0]))
    torch.testing.assert_close(got, torch.tensor([2.0, 2.0, 0.0]), atol=1e-6, rtol=0)


# --- large systems ---


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), k=st.integers(1, 4), block=st.integers(1, 9), panel=st.integers(1, 15))
def test_a_system_is_solved_whatever_the_blocks(n, k, block, panel):
    generator = torch.Generator().manual_seed(n)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + n * torch.eye(n, dtype=torch.float64)
    rhs = torch.randn(n, k, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, rhs)
    matrix += torch.full_like(matrix, torch.nan).triu(1).nan_to_num(nan=1e9)  # is not read
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cholesky, "BLOCK", block)
        patch.setattr(cholesky, "PANEL", panel)
        got = solve_in_place(matrix, rhs, advance=told.append)
    assert got is rhs and sum(told) == n
    torch.testing.assert_close(got, expected)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 30), block=st.integers(1, 9))
def test_the_inverses_diagonal_comes_from_the_factor(n, block):
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    matrix = root @ root.T + torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.inv(matrix).diagonal()
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cholesky, "BLOCK", block)
        solve_in_place(matrix, torch.ones(n, 1, dtype=torch.float64))
        got = inverse_diagonal(matrix, advance=told.append)
    torch.testing.assert_close(got, expected)
    assert sum(told) == n


def test_a_matrix_that_is_not_positive_definite_is_no_result():
    with pytest.raises(torch.linalg.LinAlgError):
        solve_in_place(-torch.eye(3), torch.ones(3, 1))


# --- landmarks ---


@settings(deadline=None)
@given(
    size=st.integers(1, 40),
    cut=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_signs_come_back_from_two_bits_each(size, cut, seed):
    rows = torch.randint(-1, 2, (5, size), generator=torch.Generator().manual_seed(seed)).float()
    landmarks = Landmarks(5, size, signs=True)
    landmarks.write(0, rows[:cut])
    landmarks.write(cut, rows[cut:])
    assert landmarks.packed.dtype == torch.uint8
    assert landmarks.packed.numel() == 5 * 2 * math.ceil(size / 8)
    got = landmarks.read(0, 5)
    assert torch.equal(got, rows.to(torch.int8))
    assert torch.equal(landmarks.read(1, 3), got[1:3])


def test_other_gradients_come_back_over_their_size():
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 1e-7
    landmarks = Landmarks(4, 9, signs=False)
    landmarks.write(0, rows)
    expected = rows / rows.square().mean(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(landmarks.read(0, 4), expected, rtol=1e-3, atol=1e-3)


# --- what is solved for ---


def auxiliary(folder: Path, name: str = "none", *, views: int = 1, **options) -> AuxiliaryData:
    """Gradients that are smooth functions of random images."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (SAMPLES, *SHAPE), generator=generator, dtype=torch.uint8)
    mixing = torch.randn(12, WIDTH, generator=generator)
    x = image.float() / 255 - 0.5
    stacked = torch.stack([x, x.flip(3)], dim=1)[:, :views].flatten(0, 1)
    rows = torch.tanh(stacked.flatten(1) @ mixing) * 1e-3
    defense = DEFENSES[name](**options)
    store = write_store(
        folder / f"{name}.zarr",
        n_rows=len(rows),
        dim=WIDTH,
        encoding=defense.encoding,
        compress=defense.compress,
        compute=lambda start, stop: defense.deterministic(rows[start:stop]),
        manifest=folder / f"{name}.json",
        settings=StoreSettings(chunk_mib=0.005, shard_mib=0.01),
    )
    return AuxiliaryData(
        store=store,
        value=image,
        label=torch.zeros(SAMPLES, dtype=torch.int64),
        classes=10,
        views=views,
        defense=defense,
        layout=ParameterLayout(("weight",), ((WIDTH,),)),
    )


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks of everything."""
    monkeypatch.setattr(network_module, "BLOCK", 16)
    monkeypatch.setattr(kernel_module, "ROWS", 48)
    monkeypatch.setattr(kernel_module, "READ_ROWS", 14)
    monkeypatch.setattr(cholesky, "BLOCK", 32)


class Killed(Progress):
    """Stops at a step of refining, as a killed run does."""

    def __init__(self, at: int) -> None:
        self.at = at
        super().__init__("test")

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        if self.unit == "images":
            self.at -= 1
            if not self.at:
                raise KeyboardInterrupt


def fit(data: AuxiliaryData, folder: Path, progress: Progress | None = None, **changes):
    preset = INVERTERS["kernel"](**{"holdout": 0.1, "components": 12, **changes})
    checkpoint = Checkpoint(folder / "checkpoint", {}, every_seconds=0)
    return preset.fit(
        data,
        compute=CPU,
        checkpoint=checkpoint,
        progress=progress or Progress("test"),
        memory_mib=64,
    )


def regression(
    rows: np.ndarray,
    image: np.ndarray,
    new: np.ndarray,
    ridge: float,
    centre: np.ndarray | None = None,
) -> np.ndarray:
    """Kernel ridge regression in float64, from its definition."""

    rows, new = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, new))

    def kernel(a, b):
        cosine = np.clip(a @ b.T, -1, 1)
        angle = np.arccos(cosine)
        return (2 * (np.pi - angle) * cosine + np.sin(angle)) / np.pi

    centre = image.mean(axis=0) if centre is None else centre
    gram = kernel(rows, rows)
    gram += ridge * gram.diagonal().mean() * np.eye(len(gram))
    return centre + kernel(new, rows) @ np.linalg.solve(gram, image - centre)


@pytest.mark.parametrize("name", ["none", "sign"])
def test_it_is_kernel_ridge_regression_of_the_images(tmp_path, name):
    data = auxiliary(tmp_path, name)
    trained, history = fit(data, tmp_path, ridge=0.05)
    rows = data.store.rows(0, SAMPLES)
    flat = data.value.double().flatten(1).numpy() / 255
    learned = SAMPLES - 9
    expected = regression(
        rows[:learned].double().numpy(), flat[:learned], rows.double().numpy(), 0.05
    )
    got = trained.invert(rows)
    assert got.shape == (SAMPLES, 1, *SHAPE)
    tolerance = 5e-3 if name == "none" else 1e-4  # float16 of the landmarks
    np.testing.assert_allclose(got.flatten(1), expected.clip(0, 1), atol=tolerance)
    error = ((expected.clip(0, 1) - flat) ** 2)[learned:].mean()
    assert history[0]["held_out_loss"] == pytest.approx(error, rel=0.02)
    assert error < 0.8 * flat.var(axis=0).mean()  # it does learn


def test_it_comes_back_from_its_file(tmp_path):
    data = auxiliary(tmp_path, "sign")
    trained, _ = fit(data, tmp_path)
    trained.save(tmp_path / "kernel.safetensors")
    again = TrainedInverter.load(tmp_path / "kernel.safetensors", compute=CPU)
    rows = data.store.rows(0, 20)
    assert torch.equal(again.invert(rows), trained.invert(rows))
    assert again.settings == trained.settings


def test_mirrored_images_and_fewer_samples_are_learned_from_if_asked(tmp_path):
    data = auxiliary(tmp_path, "none", views=2)
    rows = data.store.rows(0, 2 * SAMPLES)
    flat = (data.value.float() / 255).double()
    both = torch.stack([flat, flat.flip(3)], dim=1).flatten(0, 1).flatten(1).numpy()
    new = rows[160::2].double().numpy()
    for mirrored, places in ((False, np.arange(0, 100, 2)), (True, np.arange(100))):
        trained, _ = fit(data, tmp_path, use_mirrored=mirrored, samples=50)
        assert len(trained.network.decoder.dual) == len(places)
        expected = regression(rows[places].double().numpy(), both[places], new, 0.01)
        got = trained.invert(rows[160::2]).flatten(1)
        np.testing.assert_allclose(got, expected.clip(0, 1), atol=5e-3)


# --- refining ---


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 9, 14), (3, 32, 32)])
def test_the_refining_network_begins_as_the_identity_and_knows_no_left_or_right(shape):
    torch.manual_seed(0)
    refiner = Refiner(shape, channels=8).eval()
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(refiner(image), image)
    torch.nn.init.normal_(refiner.leave.weight)
    got = refiner(image)
    assert got.shape == image.shape and not torch.allclose(got, image)
    torch.testing.assert_close(refiner(image.flip(3)).flip(3), got)


def test_what_is_refined_is_each_sample_as_the_others_give_it(tmp_path, monkeypatch):
    data = auxiliary(tmp_path)
    seen = {}

    def refine(preset, decoder, pairs, *_, **__):
        seen.update(zip(("blurred", "target"), pairs, strict=True))
        return []

    monkeypatch.setattr(kernel_module, "refine", refine)
    fit(data, tmp_path, refine=1, ridge=0.05)
    learned = SAMPLES - 9
    rows = data.store.rows(0, learned).double().numpy()
    flat = data.value[:learned].double().flatten(1).numpy() / 255
    torch.testing.assert_close(seen["target"].flatten(1), torch.from_numpy(flat).float())
    mean = flat.mean(axis=0)
    for left_out in (0, 17, learned - 1):
        others = np.delete(np.arange(learned), left_out)
        # The mean image is of all samples.
        got = regression(rows[others], flat[others], rows[[left_out]], 0.05, centre=mean)
        np.testing.assert_allclose(seen["blurred"][left_out].flatten(), got[0], atol=5e-3)


def test_refining_keeps_the_best_and_resumes_after_the_solution(tmp_path, monkeypatch):
    data = auxiliary(tmp_path, "sign")
    _, (solved,) = fit(data, tmp_path)
    trained, history = fit(data, tmp_path, refine=3, channels=8, learning_rate=1e-2)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert history[0]["held_out_loss"] == pytest.approx(solved["held_out_loss"])
    rows = data.store.rows(SAMPLES - 9, SAMPLES)
    image = data.value[SAMPLES - 9 :].float() / 255
    error = float((trained.invert(rows)[:, 0] - image).square().mean())
    assert error == pytest.approx(min(record["held_out_loss"] for record in history), rel=1e-4)
    trained.save(tmp_path / "refined.safetensors")
    again = TrainedInverter.load(tmp_path / "refined.safetensors", compute=CPU)
    assert torch.equal(again.invert(rows), trained.invert(rows))
    # The checkpoint has what was solved for.
    monkeypatch.setattr(kernel_module, "_kernel_matrix", None)
    resumed, same = fit(data, tmp_path, refine=3, channels=8, learning_rate=1e-2)
    assert torch.equal(resumed.invert(rows), trained.invert(rows))
    losses = [[record["held_out_loss"] for record in part] for part in (history, same)]
    assert losses[0] == losses[1]
    assert (tmp_path / "checkpoint-refining").exists()  # until the result is safe
    with pytest.raises(ValidationError, match="would leave its mirror image in"):
        INVERTERS["kernel"](refine=1, use_mirrored=True)


@pytest.mark.parametrize("at", [3, 9])
def test_refining_resumes_at_the_step(tmp_path, at):
    data = auxiliary(tmp_path, "sign")
    settings = {"refine": 3, "channels": 8, "learning_rate": 1e-2, "batch_size": 16}
    (tmp_path / "whole").mkdir()
    trained, history = fit(data, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path, Killed(at), **settings)
    position = Checkpoint(tmp_path / "checkpoint", {}).beside("refining").load()[1]
    assert position == at - 1 and position % 6  # inside an epoch of 6 steps
    torch.rand(7)
    resumed, again = fit(data, tmp_path, progress := Progress("test"), **settings)
    assert progress._skipped == position * (SAMPLES - 9) // 6
    rows = data.store.rows(SAMPLES - 9, SAMPLES)
    assert torch.equal(resumed.invert(rows), trained.invert(rows))
    for key in ("epoch", "train_loss", "held_out_loss", "learning_rate"):
        assert [r[key] for r in again[1:]] == [r[key] for r in history[1:]]


def test_noise_is_drawn_once_from_the_seed(tmp_path):
    data = auxiliary(tmp_path, "gauss", sigma=1e-4)
    rows = data.store.rows(0, 20)
    first, second = (fit(data, tmp_path)[0].invert(rows) for _ in range(2))
    assert torch.equal(first, second)
    other = fit(data, tmp_path, seed=1)[0].invert(rows)
    assert not torch.equal(first, other)
    quiet = fit(auxiliary(tmp_path, "none"), tmp_path)[0].invert(rows)
    assert float((first - quiet).abs().max()) > 0 and float((first - quiet).abs().mean()) < 0.2


def test_what_it_cannot_do_is_said(tmp_path, monkeypatch):
    data = auxiliary(tmp_path)
    from dataclasses import replace

    with pytest.raises(LTIError, match=r"kernel got client batches of 2 samples; expected 1\. Use"):
        fit(replace(data, batch_size=2), tmp_path)
    empty = torch.empty

    def full(*size, **options):
        if size == ((81, 81),):
            raise RuntimeError("not enough memory")
        return empty(*size, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(LTIError, match=r"no memory for the kernel matrix of 81 gradients, 0.0"):
            fit(data, tmp_path)
    monkeypatch.setattr(kernel_module, "_kernel_matrix", lambda *_: -torch.eye(81))
    with pytest.raises(LTIError, match=r"of 81 gradients with ridge 0.01 is not positive definite"):
        fit(data, tmp_path)


def test_a_configuration_that_uses_it_for_larger_batches_is_refused():
    from workflow_runner import CONFIG

    tiny = {**CONFIG["experiments"]["tiny"], "batch_sizes": [1, 2], "attacks": ["lti"]}
    values = {
        **CONFIG,
        "inverters": {"kernel": {"use": "kernel"}},
        "attacks": {"lti": {"use": "lti", "inverter": "kernel"}},
        "experiments": {"tiny": tiny},
    }
    with pytest.raises(LTIError, match=r"tiny\.attacks: got one with inverters\.kernel where B"):
        parse_config(values)
    tiny["batch_sizes"] = [1]
    parse_config(values)
