"""The chain with a fitted projection, reports of experiments, and a shift of distribution."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from workflow_runner import AUXILIARY, CONFIG, VICTIMS, Checkout

from lti.data import read_selection
from lti.files import read_json, read_tensors

FEW = {"use": "principal", "components": 8, "samples": 40}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    checkout = Checkout.fresh(tmp_path_factory.mktemp("fitted") / "checkout")
    tiny = CONFIG["experiments"]["tiny"]
    checkout.configure(
        {
            "projections": {"few": FEW, "whole": {"use": "identity"}},
            "attacks": {
                "lti": {**CONFIG["attacks"]["lti"], "projection": "few"},
                "nearest": {"use": "nearest", "projection": "few"},
                "lti-map": {
                    "use": "lti-map",
                    "start": "lti",
                    "tuning": 2,
                    "iterations": 2,
                    "inner": 3,
                    "overrides": [{"when": {"batch_size": 1}, "victims": 5}],
                },
                "lti-kernel": {"use": "lti", "inverter": "kernel", "projection": "whole"},
            },
            "inverters": {
                "tuned": {**CONFIG["inverters"]["tuned"], "holdout": 0.1},
                "kernel": {"use": "kernel"},
            },
            "experiments": {
                "tiny": {**tiny, "attacks": ["lti", "lti-map", "nearest"]},
                "shifted": {
                    **tiny,
                    "defenses": ["gauss"],
                    "attacks": ["lti"],
                    "auxiliary": {"size": 60, "shift": "classes", "beta": 0.5},
                },
                "sizes": {
                    **tiny,
                    "defenses": ["gauss"],
                    "attacks": ["lti"],
                    "variations": [{"size": [48, 160]}],
                },
                "solved": {**tiny, "defenses": ["sign", "gauss"], "attacks": ["lti-kernel"]},
                "pairs": {**tiny, "attacks": ["lti-map"], "batch_sizes": [2], "defenses": ["sign"]},
            },
            "datasets": {
                **CONFIG["datasets"],
                "noise": {"use": "dct-gaussian", "of": "photos", "classes": [2]},
            },
            "shifts": {
                "classes": {
                    "classes": [0, 1],
                    "shifted": [{"classes": [2]}, {"dataset": "noise"}],
                }
            },
            "reports": {"both": {"title": "Both", "experiments": ["tiny", "pairs"]}},
        }
    )
    checkout.run("both", "shifted", "sizes", "solved")
    return checkout


def test_every_stage_uses_what_was_fitted(checkout):
    fitted = checkout.results / f"projections/{AUXILIARY}/lenet/few"
    assert sorted(path.name for path in fitted.iterdir()) == [
        *("sign.json", "sign.safetensors", "undefended.json", "undefended.safetensors")
    ]
    for batch_size, defenses in ((1, {"sign", "gauss"}), (2, {"sign"})):
        observed = checkout.results / f"observations/{VICTIMS}/lenet/b{batch_size}"
        names = sorted(path.name for path in observed.iterdir())
        assert names == [f"few@{AUXILIARY}", "whole"]
        stores = (observed / f"few@{AUXILIARY}").glob("*.zarr")
        assert {store.stem for store in stores} == defenses
    assert checkout.planned("both") == []


def test_a_refinement_begins_at_what_it_refines(checkout):
    """Also where the first reconstructions are in no experiment themselves."""
    for batch_size, defense, victims in ((1, "sign", 5), (1, "gauss", 5), (2, "sign", 4)):
        cell = f"{VICTIMS}/lenet/b{batch_size}/{defense}"
        folder = checkout.results / "reconstructions" / cell
        first = read_tensors(folder / f"lti@{AUXILIARY}.safetensors")[0]["reconstruction"]
        refined = read_tensors(folder / f"lti-map@{AUXILIARY}.safetensors")[0]
        prior = checkout.results / f"priors/{AUXILIARY}/lenet/b{batch_size}/{defense}"
        card = read_json(prior / "lti-map.json")
        tried = pd.read_csv(prior / "lti-map.tried.csv")
        assert {"errors", "images"} == set(tried["prior"])
        confirmed = tried.iloc[-1]
        chosen = ["prior", "width", "weight"]
        assert confirmed[chosen].to_list() == [card[key] for key in chosen]
        assert refined["reconstruction"].shape == (victims, *first.shape[1:])
        same = refined["reconstruction"] == first[:victims]
        assert torch.equal(same.flatten(1).all(dim=1), ~refined["refined"])
        assert card["helps"] or not refined["refined"].any()
        rows = pd.read_csv(checkout.results / f"metrics/{cell}/lti-map@{AUXILIARY}.csv")
        assert len(rows) == victims * batch_size


def test_an_auxiliary_set_with_a_shift_is_of_three_sources(checkout):
    chosen = read_selection(
        checkout.results / "data/auxiliary/photos-classes-n60-s0-b0.5.safetensors"
    )
    label = chosen.samples.label
    assert chosen.in_distribution.sum() == 30
    assert set(label[chosen.in_distribution]) == {0, 1} and set(label[~chosen.in_distribution]) == {
        2
    }
    noise = read_selection(checkout.results / "data/noise/auxiliary.safetensors").samples.value
    drawn = {image.tobytes() for image in noise}
    from_noise = [image.tobytes() in drawn for image in chosen.samples.value]
    assert sum(from_noise) == 15 and not any(np.array(from_noise) & chosen.in_distribution)
    victims = checkout.results / "data/victims/photos-classes-n8-s0.safetensors"
    assert set(read_selection(victims).samples.label) <= {0, 1}
    summary = pd.read_csv(checkout.results / "experiments/shifted/summary.csv")
    assert summary["n"].unique().tolist() == [8]


def test_sets_of_several_sizes_begin_alike_and_share_a_store(checkout):
    sets = [
        read_selection(checkout.results / f"data/auxiliary/photos-n{size}-s0.safetensors")
        for size in (48, 160)
    ]
    few, many = (chosen.samples for chosen in sets)
    assert few.digest == many.take(range(48)).digest
    assert sets[0].stored == sets[1].stored == (many.digest, 160)
    stores = {path.name for path in (checkout.results / "gradients").iterdir()}
    assert stores == {AUXILIARY, "photos-classes-n60-s0-b0.5"}
    inverters = {path.name for path in (checkout.results / "inverters").iterdir()}
    assert inverters == {"photos-n48-s0", *stores}
    summary = pd.read_csv(checkout.results / "experiments/sizes/summary.csv")
    assert summary["aux_size"].unique().tolist() == [48, 160]
    assert set(summary["beta"]) == {1} and set(summary["seed"]) == {0}
    assert "auxiliary" not in summary
    curve = pd.read_csv(checkout.results / "experiments/sizes/curves.csv")
    assert curve.query("metric == 'psnr'")["x"].tolist() == [48, 160]
    np.testing.assert_allclose(
        curve.query("metric == 'psnr'")["mean"],
        summary.query("metric == 'psnr'")["mean"],
        rtol=1e-5,
    )
    whole = pd.read_csv(checkout.results / "experiments/tiny/summary.csv")
    whole = whole.query("defense == 'gauss' and attack == 'lti'")["mean"].tolist()
    assert summary.query("aux_size == 160")["mean"].tolist() == whole


def test_an_inverter_that_is_solved_for_reconstructs_more_than_the_mean_image(checkout):
    summary = pd.read_csv(checkout.results / "experiments/solved/summary.csv")
    found = summary.query("metric == 'mse'").set_index("defense")["mean"]
    victims = read_selection(checkout.results / f"data/victims/{VICTIMS}.safetensors").samples
    auxiliary = read_selection(checkout.results / f"data/auxiliary/{AUXILIARY}.safetensors").samples
    mean = auxiliary.value.mean(axis=0) / 255
    floor = ((victims.value / 255 - mean) ** 2).mean()
    assert found["sign"] < 0.9 * floor and found["gauss"] < 0.97 * floor  # of 160 photographs
    assert checkout.planned("solved") == []


def test_a_report_has_the_rows_of_its_experiments(checkout):
    both = pd.read_csv(checkout.results / "reports/both/summary.csv")
    parts = [
        pd.read_csv(checkout.results / f"experiments/{name}/summary.csv")
        for name in ("tiny", "pairs")
    ]
    pd.testing.assert_frame_equal(both, pd.concat(parts, ignore_index=True))
    assert (checkout.results / "reports/both/summary.png").stat().st_size > 10_000


def test_another_number_of_components_computes_again_what_uses_them(checkout):
    (checkout.folder / "config.yaml").write_text(
        (checkout.folder / "config.yaml").read_text().replace("components: 8", "components: 9")
    )
    jobs = checkout.planned("pairs")
    for job in (
        "fit_projection few sign",
        "compute_gradients few sign",
        "train_inverter few sign B=2",
    ):
        assert job in jobs
    assert "observe few sign B=2" in jobs
    assert not [job for job in jobs if job.startswith(("select_", "draw_fl_model"))]
