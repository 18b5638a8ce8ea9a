"""The chain with a projection that is fitted to the auxiliary set, and reports of experiments."""

from __future__ import annotations

import pandas as pd
import pytest
from workflow_runner import AUXILIARY, CONFIG, VICTIMS, Checkout

FEW = {"use": "principal", "components": 8, "samples": 40}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    checkout = Checkout.fresh(tmp_path_factory.mktemp("fitted") / "checkout")
    tiny = CONFIG["experiments"]["tiny"]
    checkout.configure(
        {
            "projections": {"few": FEW},
            "attacks": {
                "lti": {**CONFIG["attacks"]["lti"], "projection": "few"},
                "nearest": {"use": "nearest", "projection": "few"},
            },
            "experiments": {
                "tiny": {**tiny, "attacks": ["lti", "nearest"]},
                "pairs": {**tiny, "attacks": ["lti"], "batch_sizes": [2], "defenses": ["sign"]},
            },
            "reports": {"both": {"title": "Both", "experiments": ["tiny", "pairs"]}},
        }
    )
    checkout.run("both")
    return checkout


def test_every_stage_uses_what_was_fitted(checkout):
    fitted = checkout.results / f"projections/{AUXILIARY}/lenet/few"
    assert sorted(path.name for path in fitted.iterdir()) == [
        *("sign.json", "sign.safetensors", "undefended.json", "undefended.safetensors")
    ]
    for batch_size, defenses in ((1, {"sign", "gauss"}), (2, {"sign"})):
        observed = checkout.results / f"observations/{VICTIMS}/lenet/b{batch_size}"
        assert [path.name for path in observed.iterdir()] == [f"few@{AUXILIARY}"]
        stores = (observed / f"few@{AUXILIARY}").glob("*.zarr")
        assert {store.stem for store in stores} == defenses
    assert checkout.planned("both") == []


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
