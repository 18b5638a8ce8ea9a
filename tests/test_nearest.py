"""The nearest neighbour, against a search by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lti.attacks import ATTACKS, Observations
from lti.attacks import nearest as module
from lti.compute import Compute
from lti.data import Samples
from lti.data.selection import write_selection
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import digest_arrays
from lti.fl_models import attacked, network_digest
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import StoreSettings, write_store
from lti.progress import Progress
from lti.projections import PROJECTIONS
from lti.seeding import torch_generator

CPU = Compute(torch.device("cpu"), torch.float32)
ATTACK = ATTACKS["nearest"]()


class Rows(Progress):
    """Counts the rows that were read."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        super().__init__("test", every_seconds=1e9)

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        self.counts.append(count)


def auxiliary(n: int = 40, *, classes: int = 4, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return Samples(image, rng.permutation(np.arange(n) % classes), np.arange(n))


def expand(images: Samples, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float images and labels, in the order of the store's rows."""
    image = torch.from_numpy(images.value).float() / 255
    pair = torch.stack([image, image.flip(3)], dim=1)[:, :views]
    return pair.flatten(0, 1), torch.from_numpy(images.label).repeat_interleave(views)


def store(
    folder,
    lenet,
    images,
    *,
    defense=None,
    projection=None,
    views=1,
    rows=None,
    chunk_rows=3,
    **attributes,
):
    """Write the store and the auxiliary set, and load them as the stage does."""
    defense = defense or DEFENSES["none"]()
    projection = projection or PROJECTIONS["identity"]()
    layout = ParameterLayout.of(attacked(*lenet))
    if rows is None:
        x, label = expand(images, views)
        rows = defense.deterministic(per_sample_gradient_function(*lenet)(x, label))
        rows = projection.project(rows, layout=layout)
    encoding = "sign" if defense.name == "sign" and projection.name == "identity" else None
    chunk = chunk_rows * rows.shape[1] * (1 if encoding else 2) / 2**20
    files = {name: folder / name for name in ("gradients", "manifest", "auxiliary")}
    write_store(
        files["gradients"],
        n_rows=len(rows),
        dim=rows.shape[1],
        encoding=encoding or "scaled-float16",
        compute=lambda start, stop: rows[start:stop],
        manifest=files["manifest"],
        settings=StoreSettings(chunk_mib=chunk, shard_mib=4 * chunk),
        attributes={
            "defense": defense.canonical(),
            "fl_model_digest": network_digest(lenet.network),
            "auxiliary_digest": digest_arrays({"image": images.value, "label": images.label}),
            "projection": projection.canonical(),
            "views": views,
            **attributes,
        },
    )
    metadata = {"dataset": "x", "part": "auxiliary", "seed": 0, "class_names": ["a"] * 4}
    write_selection(files["auxiliary"], images, metadata={**metadata, "size": len(images)})
    return ATTACK.load(files, compute=CPU)


def observed(lenet, gradient, label, *, defense=None, projection=None) -> Observations:
    """What was received, as an attack is given it."""
    return Observations(
        gradient,
        label,
        label.shape[1],
        *lenet,
        defense or DEFENSES["none"](),
        (3, 32, 32),
        projection=projection or PROJECTIONS["identity"](),
    )


def observe(lenet, label, *, defense=None, projection=None, x=None, seed: int = 5) -> Observations:
    """Batches of random victims with labels ``(n, B)``, each sample defended, then averaged."""
    defense = defense or DEFENSES["none"]()
    label = torch.as_tensor(label)
    if x is None:
        x = torch.rand(label.numel(), 3, 32, 32, generator=torch_generator(seed, "victims"))
    gradient = per_sample_gradient_function(*lenet)(x, label.flatten())
    gradient = defense.defend(gradient, generator=torch_generator(seed, "noise"))
    gradient = gradient.view(*label.shape, -1).mean(dim=1)
    if projection:
        gradient = projection.project(gradient, layout=ParameterLayout.of(attacked(*lenet)))
    return observed(lenet, gradient, label, defense=defense, projection=projection)


def run(observations, knowledge, tmp_path, progress=None):
    return ATTACK.reconstruct(
        observations,
        compute=CPU,
        seed=0,
        progress=progress or Rows(),
        checkpoints=tmp_path / "none",
        knowledge=knowledge,
    ).sample


def brute_force(observations, images, *, lenet, views):
    """One observation, one label at a time, in float64 and without a store."""
    layout = ParameterLayout.of(attacked(*lenet))
    x, label = expand(images, views)
    rows = observations.defense.deterministic(per_sample_gradient_function(*lenet)(x, label))
    rows = observations.projection.project(rows, layout=layout).double().numpy()
    result = torch.empty(*observations.label.shape, 3, 32, 32)
    for i, o in enumerate(observations.gradient.double().numpy()):
        cosine = rows @ o / np.linalg.norm(rows, axis=1) / np.linalg.norm(o)
        order = np.argsort(-cosine, kind="stable")
        for value in set(observations.label[i].tolist()):
            used: list[int] = []
            chosen = []
            for row in order:
                if label[row] == value and row // views not in used:
                    used.append(row // views)
                    chosen.append(row)
            places = (observations.label[i] == value).nonzero()[:, 0].tolist()
            for place, row in zip(places, chosen, strict=False):
                result[i, place] = x[row]
    return result


CASES = [
    ("none", {}, "identity", 1),
    ("none", {}, "hash", 2),
    ("sign", {}, "identity", 2),
    ("sign", {}, "hash", 1),
    ("prune", {"rate": 0.9}, "identity", 2),
    ("gauss", {"sigma": 0.05}, "hash", 2),
]


@pytest.mark.parametrize(("defense", "options", "projection", "views"), CASES)
@pytest.mark.parametrize("label", [[[0], [3], [3], [1], [2]], [[0, 3, 3, 3], [2, 1, 2, 0]]])
def test_agrees_with_brute_force(tmp_path, lenet, defense, options, projection, views, label):
    images = auxiliary()
    settings_ = DEFENSES[defense](**options)
    projected = PROJECTIONS[projection](**({"ratio": 0.3} if projection == "hash" else {}))
    # Noise is drawn for the victim alone, and defenses without another part share a store.
    kept = DEFENSES["none"]() if settings_.is_deterministic_identity else settings_
    knowledge = store(tmp_path, lenet, images, defense=kept, projection=projected, views=views)
    observations = observe(lenet, label, defense=settings_, projection=projected)
    expected = brute_force(observations, images, lenet=lenet, views=views)
    assert torch.equal(run(observations, knowledge, tmp_path), expected)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("blocks", [1, 7])
def test_every_row_is_read_once_whatever_the_block(tmp_path, lenet, monkeypatch, views, blocks):
    images = auxiliary()
    knowledge = store(tmp_path, lenet, images, views=views)
    whole = run(observations := observe(lenet, [[1], [2]]), knowledge, tmp_path)
    monkeypatch.setattr(module, "BLOCK_BYTES", blocks * 3 * knowledge.store.dim * 4)
    progress = Rows()
    assert torch.equal(run(observations, knowledge, tmp_path, progress), whole)
    assert sum(progress.counts) == knowledge.store.n_rows == progress.total
    assert len(progress.counts) > 1
    assert all(count % (3 * views) == 0 for count in progress.counts[:-1])  # whole chunks, pairs


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_victim_in_the_auxiliary_set_comes_back_exactly(tmp_path, lenet, mirrored):
    images = auxiliary()
    knowledge = store(tmp_path, lenet, images, views=2)
    x, label = expand(images, 2)
    chosen = torch.arange(int(mirrored), len(x), 2)
    observations = observe(lenet, label[chosen][:, None], x=x[chosen])
    assert torch.equal(run(observations, knowledge, tmp_path)[:, 0], x[chosen])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), views=st.sampled_from([1, 2]))
def test_ties_go_to_the_earliest_sample_and_then_the_image_as_it_is(
    tmp_path_factory, lenet, seed, views
):
    # Rows of a few equal lengths and small whole numbers: every product is exact.
    folder = tmp_path_factory.mktemp("ties")
    rng = np.random.default_rng(seed)
    images = auxiliary(12, classes=2, seed=seed)
    dim = ParameterLayout.of(attacked(*lenet)).total
    rows = torch.zeros(12 * views, dim)
    rows[torch.arange(12 * views), torch.from_numpy(rng.integers(0, 3, 12 * views))] = 1
    knowledge = store(folder, lenet, images, views=views, rows=rows, chunk_rows=1)
    gradient = torch.zeros(1, dim)
    gradient[0, :3] = torch.tensor([2.0, 1.0, 0.0])
    observations = observed(lenet, gradient, torch.tensor([[0, 1, 0, 0]]))
    found = run(observations, knowledge, folder)[0]

    similarity = (rows @ gradient[0]).view(12, views)
    best, view = similarity.max(dim=1)
    x = expand(images, views)[0]
    for value, places in ((0, [0, 2, 3]), (1, [1])):
        own = [i for i in range(12) if images.label[i] == value]
        own.sort(key=lambda i: -best[i])  # stable
        for place, i in zip(places, own, strict=False):
            first = int((similarity[i] == best[i]).nonzero()[0])
            assert int(view[i]) == first
            assert torch.equal(found[place], x[i * views + first])


def test_equal_samples_are_given_one_after_the_other(tmp_path, lenet):
    images = auxiliary()
    image, label = images.value.copy(), images.label.copy()
    image[7], label[7] = image[3], label[3]
    images = Samples(image, label, images.index)
    knowledge = store(tmp_path, lenet, images, views=2)
    x = expand(images, 1)[0][[3, 3]]
    found = run(observe(lenet, [[label[3]] * 2], x=x), knowledge, tmp_path)
    assert torch.equal(found[0], x)  # both copies, rather than one and its mirror image


def test_a_gradient_of_zeros_is_no_nan(tmp_path, lenet):
    images = auxiliary(8, classes=1)
    rows = torch.zeros(8, ParameterLayout.of(attacked(*lenet)).total)
    rows[6, 0] = 1e-3
    knowledge = store(tmp_path, lenet, images, rows=rows)
    gradient = torch.zeros(1, rows.shape[1])
    gradient[0, 0] = 1
    observations = observed(lenet, gradient, torch.tensor([[0]]))
    assert torch.equal(run(observations, knowledge, tmp_path)[0, 0], expand(images, 1)[0][6])


def test_what_does_not_belong_together_is_refused(tmp_path, lenet):
    images = auxiliary()
    knowledge = store(tmp_path, lenet, images)
    sign = observe(lenet, [[0]], defense=DEFENSES["sign"]())
    with pytest.raises(LTIError, match=r"gradients under .*'none'.* the observations .*'sign'"):
        run(sign, knowledge, tmp_path)
    with pytest.raises(LTIError, match="5 victims of label 2 and the auxiliary set 0 samples"):
        few = store(tmp_path, lenet, auxiliary(classes=2))
        run(observe(lenet, [[2] * 5]), few, tmp_path)
    with pytest.raises(LTIError, match="no labels"):
        run(replace(observe(lenet, [[0]]), label=None), knowledge, tmp_path)
    half = PROJECTIONS["hash"]()
    with pytest.raises(
        LTIError, match=r"'identity'.* the observations .*'hash'.*Compute gradients"
    ):
        run(observe(lenet, [[0]], projection=half), knowledge, tmp_path)
    with pytest.raises(LTIError, match=r"'seed': 0.* the observations .*'seed': 1"):
        reseeded = PROJECTIONS["hash"](seed=1)
        hashed = store(tmp_path, lenet, images, projection=half)
        run(observe(lenet, [[0]], projection=reseeded), hashed, tmp_path)
    with pytest.raises(LTIError, match="FL model other"):
        other = store(tmp_path, lenet, images, fl_model_digest="other")
        run(observe(lenet, [[0]]), other, tmp_path)
    with pytest.raises(LTIError, match="of auxiliary set other; got auxiliary set"):
        store(tmp_path, lenet, images, auxiliary_digest="other")


@pytest.mark.parametrize("projection", ["identity", "hash"])
@pytest.mark.parametrize(("name", "options"), [("sign", {}), ("prune", {"rate": 0.9})])
def test_a_defense_of_the_batch_s_mean_is_applied_to_each_stored_gradient(
    tmp_path, lenet, name, options, projection
):
    images, label = auxiliary(), torch.tensor([[0, 3, 3, 1]])
    defense, projected = DEFENSES[name](defense_at="batch", **options), PROJECTIONS[projection]()
    plain = observe(lenet, label)
    gradient = projected.project(defense.deterministic(plain.gradient), layout=plain.layout)
    observations = observed(lenet, gradient, label, defense=defense, projection=projected)
    expected = brute_force(observations, images, lenet=lenet, views=2)
    knowledge = store(tmp_path, lenet, images, views=2)
    assert torch.equal(run(observations, knowledge, tmp_path), expected)
    for settings_ in ({"defense": defense}, {"projection": PROJECTIONS["hash"]()}):
        other = store(tmp_path, lenet, images, **settings_)
        with pytest.raises(LTIError, match="Compute gradients"):
            run(observations, other, tmp_path)


def test_another_strength_of_the_same_defense_is_refused(tmp_path, lenet):
    knowledge = store(tmp_path, lenet, auxiliary(), defense=DEFENSES["prune"](rate=0.9))
    with pytest.raises(LTIError, match="Compute gradients"):
        run(observe(lenet, [[0]], defense=DEFENSES["prune"](rate=0.5)), knowledge, tmp_path)
