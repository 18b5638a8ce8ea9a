"""Sparsification, quantisation and sequences, whose draws are frozen in the gradient store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lti.data import Samples, write_selection
from lti.data.selection import read_selection
from lti.defenses import DEFENSES, Defense
from lti.errors import LTIError
from lti.files import canonical_json
from lti.fl_models import FLTask, attacked, save_fl_model
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import GradientStore, StoreSettings
from lti.inverters.auxiliary_data import AuxiliaryData
from lti.modules import source_files
from lti.seeding import derive_seed, torch_generator
from lti.stages.gradients import compute_gradients, observe

gradients = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1.0, -1.0]),
).map(torch.from_numpy)


def numbered(rows: torch.Tensor, first: int = 0) -> range:
    return range(first, first + len(rows))


def stream(name: str = "noise") -> torch.Generator:
    return torch_generator(0, name)


def parse(*members: dict) -> Defense:
    return DEFENSES.parse({"use": "sequence", "of": list(members)})


@settings(deadline=None, max_examples=60)
@given(gradients, st.floats(0.05, 0.95))
def test_random_k_keeps_the_rounded_share_as_it_is(rows, rate):
    defense, count = DEFENSES["random-k"](rate=rate), rows.shape[1]
    rows = rows + 2e3  # no zeros
    sent = defense.before_projection(rows, seeds=numbered(rows))
    kept = max(1, round(count * (1 - rate)))
    assert (sent != 0).sum(dim=1).tolist() == [kept] * len(rows)
    assert bool(((sent == 0) | (sent == rows)).all())


def test_random_k_keeps_every_coordinate_as_often():
    rows = torch.ones(20_000, 10)
    sent = DEFENSES["random-k"](rate=0.7).before_projection(rows, seeds=numbered(rows))
    share = sent.mean(dim=0)
    assert float((share - 0.3).abs().max()) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    # Three of ten without replacement: any two together with 3/10 x 2/9.
    both = (sent[:, 0] * sent[:, 9]).mean()
    assert float(both) == pytest.approx(1 / 15, abs=5 * (1 / 15 / 20_000) ** 0.5)


@settings(deadline=None, max_examples=60)
@given(gradients, st.integers(2, 8))
def test_uniform_quantisation_rounds_to_the_nearest_level(rows, bits):
    sent = DEFENSES["uniform"](bits=bits).deterministic(rows).numpy()
    for row, got in zip(rows.double().numpy(), sent, strict=True):
        levels = np.linspace(-1, 1, 2**bits - 1) * np.abs(row).max()
        nearest = np.abs(row[:, None] - levels).min(axis=1)
        off = np.abs(got[:, None] - levels).min(axis=1)
        assert off.max() <= 1e-6 * max(levels.max(), 1e-30)
        np.testing.assert_allclose(np.abs(got - row), nearest, atol=2e-6 * levels.max() + 1e-30)
    assert (sent[rows.numpy() == 0] == 0).all()


@settings(deadline=None, max_examples=60)
@given(gradients, st.integers(1, 6), st.none() | st.integers(1, 50))
def test_qsgd_sends_one_of_two_levels_by_the_probability_that_has_no_bias(rows, levels, bucket):
    defense = DEFENSES["qsgd"](levels=levels, bucket=bucket)
    seeds = [7 * number for number in numbered(rows)]
    sent = defense.before_projection(rows, seeds=seeds).double().numpy()
    for row, got, seed in zip(rows.double().numpy(), sent, seeds, strict=True):
        drawn = torch.rand(len(row), generator=torch.Generator().manual_seed(seed)).numpy()
        size = bucket or len(row)
        for start in range(0, len(row), size):
            part = slice(start, start + size)
            v, u = row[part], drawn[part]
            length = np.sqrt((v**2).sum())
            if length == 0:
                assert (got[part] == 0).all()
                continue
            ratio = np.abs(v) / length * levels
            low = np.floor(ratio)
            chance = ratio - low
            # What is sent with this probability has the expectation v.
            lower, upper = (length * np.sign(v) * (low + k) / levels for k in (0, 1))
            np.testing.assert_allclose((1 - chance) * lower + chance * upper, v, atol=1e-9 * length)
            expected = np.where(u < chance, upper, lower)
            near = np.abs(u - chance) > 1e-4  # else float32 may fall on the other side
            near &= (chance > 1e-4) & (chance < 1 - 1e-4)
            np.testing.assert_allclose(got[part][near], expected[near], rtol=1e-4)


def test_qsgd_has_no_bias():
    row = torch.tensor([[0.3, -0.5, 0.0, 1.2, -0.05]])
    rows = row.expand(40_000, 5)
    sent = DEFENSES["qsgd"](levels=2).before_projection(rows, seeds=numbered(rows)).double()
    spread = sent.std(dim=0)
    assert bool(((sent.mean(dim=0) - row[0]).abs() <= 5 * spread / 200 + 1e-6).all())
    assert len(sent[:, 0].unique()) == 2


@pytest.mark.parametrize(
    "settings_",
    [
        {"use": "random-k", "rate": 0.5},
        {"use": "qsgd", "levels": 3},
        {"use": "sequence", "of": [{"use": "gauss"}, {"use": "qsgd"}, {"use": "sign"}]},
    ],
)
def test_a_seed_decides_its_row_whatever_the_other_rows_are(settings_):
    defense = DEFENSES.parse(settings_)
    assert defense.is_stochastic and not defense.is_random
    assert not defense.is_deterministic_identity
    rows = torch.randn(1, 50, generator=stream()).expand(4, 50)
    seeds = [3, 9, 3, 4]
    sent = defense.before_projection(rows, seeds=seeds)
    assert torch.equal(sent[0], sent[2]) and not torch.equal(sent[0], sent[1])
    alone = [defense.before_projection(rows[:1], seeds=[seed]) for seed in seeds]
    assert torch.equal(torch.cat(alone), sent)
    # From a generator, seeds are drawn.
    again = [defense.defend(rows, generator=stream("a")) for _ in range(2)]
    assert torch.equal(*again) and not torch.equal(again[0][0], again[0][1])


@settings(deadline=None, max_examples=60)
@given(gradients, st.permutations(["clip", "sign", "prune", "uniform"]))
def test_a_sequence_is_the_composition(rows, order):
    options = {"clip": {"norm": 0.5}, "prune": {"rate": 0.5}, "uniform": {"bits": 3}}
    members = [{"use": name, **options.get(name, {})} for name in order]
    expected = rows
    for member in members:
        expected = DEFENSES.parse(member).deterministic(expected)
    defense = parse(*members)
    assert torch.equal(defense.deterministic(rows), expected)
    assert torch.equal(defense.defend(rows, generator=stream()), expected)
    assert not defense.is_stochastic and not defense.is_random
    assert (defense.encoding == "sign") == (order[-1] == "sign")
    assert defense.waits_for_mean(2) is False
    parsed = DEFENSES.parse(defense.canonical())
    assert parsed == defense and canonical_json(parsed.canonical()) == canonical_json(
        defense.canonical()
    )


def test_noise_at_the_end_of_a_sequence_is_drawn_afresh():
    defense = parse({"use": "clip", "norm": 0.5}, {"use": "gauss", "sigma": 0.1})
    gauss = DEFENSES["gauss"](sigma=0.1)
    rows = torch.randn(3, 40, generator=stream("rows"))
    assert not defense.is_stochastic and defense.is_random and defense.matching == "cosine"
    stored = defense.before_projection(rows, seeds=numbered(rows))
    assert torch.equal(stored, DEFENSES["clip"](norm=0.5).deterministic(rows))
    expected = gauss.randomise(stored.clone(), generator=stream())
    assert torch.equal(defense.defend(rows, generator=stream()), expected)
    counts = torch.full((40,), 4.0)
    expected = gauss.randomise(stored.clone(), generator=stream(), counts=counts)
    found = defense.randomise(stored.clone(), generator=stream(), counts=counts)
    assert torch.equal(found, expected)
    # Noise alone needs no store of its own.
    noise = parse({"use": "gauss"}, {"use": "gauss"})
    assert noise.is_deterministic_identity and noise.is_random and not noise.is_stochastic
    sent = noise.defend(torch.zeros(1, 40_000), generator=stream())
    assert float(sent.std()) == pytest.approx(0.1 * 2**0.5, rel=5 / 80_000**0.5)


def test_noise_of_a_mean_is_kept_at_the_end_of_a_sequence_alone():
    dp = {"use": "dp-sgd", "norm": 1.0, "noise_multiplier": 2.0}
    last, first = parse({"use": "prune"}, dp), parse(dp, {"use": "sign"})
    assert last.is_random and not last.is_stochastic
    mean = last.randomise_mean(torch.zeros(1, 40_000), generator=stream(), averaged=4)
    assert float(mean.std()) == pytest.approx(0.5, rel=5 / 80_000**0.5)
    assert first.is_stochastic and not first.is_random and first.encoding == "sign"
    zeros = torch.zeros(2, 4_000)
    signs = first.before_projection(zeros, seeds=[1, 2])
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and not torch.equal(signs[0], signs[1])


def test_noise_before_signs_is_drawn_before_them():
    """Flipped with the probability that Gaussian noise of twice the entry has."""
    defense = parse({"use": "gauss", "sigma": 2.0}, {"use": "sign"})
    rows = torch.ones(4, 10_000)
    signs = defense.before_projection(rows, seeds=numbered(rows))
    share = float((signs < 0).float().mean())
    assert share == pytest.approx(0.30854, abs=5 * 0.4619 / 200)  # Phi(-1/2)


def test_a_sequence_matches_as_its_last_compression_does():
    sign, prune, gauss = {"use": "sign"}, {"use": "prune"}, {"use": "gauss"}
    clip = {"use": "clip"}
    for members, expected in (
        ((clip, sign), "sign"),
        ((prune, clip), "nonzero-cosine"),
        ((sign, prune), "nonzero-cosine"),
        ((sign, gauss), "cosine"),
        ((gauss, sign), "sign"),
    ):
        assert parse(*members).matching == expected, members


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ([], r"defenses\.of: got \[\]; .*at least 1 item"),
        (
            [{"use": "clip", "nrm": 1}],
            r"^defenses\.of\[0\]\.nrm: unknown key \(value 1\); allowed: d.*, norm$",
        ),
        ([{"use": "sign"}, {"use": "none-such"}], r"^defenses\.of\[1\]\.use: unknown name"),
        ([{"use": "sign", "defense_at": "batch"}], r"^defenses\.of\[0\]\.defense_at: unknown key"),
        ("sign", r"defenses\.of: got 'sign'; .*valid list"),
    ],
)
def test_wrong_sequences_are_refused(of, message):
    with pytest.raises(LTIError, match=message):
        DEFENSES.parse({"use": "sequence", "of": of})


def test_a_sequence_runs_the_code_of_its_members():
    defense = parse({"use": "clip"}, {"use": "sequence", "of": [{"use": "sign"}]})
    assert defense.registered_names() == ("sequence", "clip", "sequence", "sign")
    files = source_files("train", (DEFENSES, defense.registered_names()))
    names = {Path(file).name for file in files if "defenses" in file}
    assert {"sequence.py", "clip.py", "sign.py"} <= names and "prune.py" not in names


COUNT = 10


@pytest.fixture
def folder(lenet, tmp_path) -> Path:
    """An auxiliary set, which is also the victims, and a LeNet."""
    random = np.random.default_rng(0)
    samples = Samples(
        random.integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8),
        random.integers(0, 10, COUNT),
        np.arange(COUNT),
    )
    facts = {"dataset": "x", "part": "auxiliary", "seed": 5, "class_names": ["a"], "size": COUNT}
    write_selection(tmp_path / "v", samples, metadata=facts)
    save_fl_model(tmp_path / "m", tmp_path / "m.json", lenet.model, FLTask(10))
    return tmp_path


def stored(folder: Path, name: str, defense: dict, **options) -> GradientStore:
    compute_gradients(
        auxiliary=folder / "v",
        fl_model=folder / "m",
        defense=canonical_json(defense),
        output=folder / name,
        manifest=folder / f"{name}.json",
        threads=1,
        **options,
    )
    return GradientStore.open(folder / name, folder / f"{name}.json")


def differing(rows: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the share of entries that are on another level; the last bits may put some there."""
    largest = expected.abs().amax(dim=1, keepdim=True)
    return float(((rows - expected).abs() > 2e-3 * largest).float().mean())


def test_draws_are_frozen_in_the_store_and_others_than_the_victims(folder, lenet, monkeypatch):
    settings_ = {"use": "qsgd", "levels": 8}
    store = stored(folder, "g", settings_, mirrored=True)
    assert store.encoding == "scaled-float16"
    rows = store.rows(0, 2 * COUNT)
    # Not by how many are computed at once, nor by how many are in a chunk.
    monkeypatch.setattr("lti.gradients.per_sample.BLOCK_BYTES", 3 * 4 * 15_826)
    monkeypatch.setattr("lti.gradients.per_sample.FEW", 1)
    small = StoreSettings(chunk_mib=0.15, shard_mib=0.3)
    again = stored(folder, "h", settings_, mirrored=True, store=canonical_json(small.model_dump()))
    assert differing(again.rows(0, 2 * COUNT), rows) < 1e-4

    samples = read_selection(folder / "v").samples
    x = torch.from_numpy(samples.value).float() / 255
    x = torch.stack([x, x.flip(3)], dim=1).flatten(0, 1)
    label = torch.from_numpy(samples.label).repeat_interleave(2)
    gradient = per_sample_gradient_function(*lenet)(x, label)
    defense = DEFENSES.parse(settings_)
    seeds = [derive_seed(5, "auxiliary", "qsgd", row) for row in range(2 * COUNT)]
    expected = defense.before_projection(gradient, seeds=seeds)
    assert differing(rows, expected) < 1e-4
    # The same samples as victims: the same gradients, other draws.
    observe(
        victims=folder / "v",
        fl_model=folder / "m",
        defense=canonical_json(settings_),
        seed=5,
        output=folder / "o",
        manifest=folder / "o.json",
        threads=1,
    )
    observed = GradientStore.open(folder / "o", folder / "o.json").rows(0, COUNT)
    assert differing(observed, rows[::2]) > 1e-2
    apart = (observed - gradient[::2]).norm() / gradient[::2].norm()
    assert 0.1 < float(apart) < 100


def test_where_the_mean_is_defended_draws_are_made_for_every_training_batch(folder, lenet):
    defense = DEFENSES.parse({"use": "random-k", "rate": 0.9, "defense_at": "batch"})
    store = stored(folder, "g", {"use": "none"})
    data = AuxiliaryData(
        store=store,
        value=torch.zeros(COUNT, 3, 32, 32, dtype=torch.uint8),
        label=torch.zeros(COUNT, dtype=torch.int64),
        classes=10,
        views=1,
        defense=defense,
        layout=ParameterLayout.of(attacked(*lenet)),
        batch_size=2,
    )
    generator = stream()
    first, second = (data.observe(store.rows(0, 4), generator) for _ in range(2))
    mean = store.rows(0, 4).unflatten(0, (2, 2)).mean(dim=1)
    for sent in (first, second):
        assert (sent != 0).sum(dim=1).tolist() == [1583, 1583]
        assert torch.equal(sent[sent != 0], mean[sent != 0])
    assert not torch.equal(first, second)
