"""The configuration and the plan that it expands to."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

import lti
from lti.config import parse_config
from lti.errors import LTIError
from lti.plan import Plan

SHIPPED = Path(lti.__file__).parents[1] / "config.yaml"


@pytest.fixture
def values() -> dict:
    """A small configuration, as YAML gives it."""
    return copy.deepcopy(SMALL)


SMALL = {
    "datasets": {"photos": {"use": "photos"}},
    "fl_models": {"lenet": {"use": "lenet", "seed": 0}},
    "defenses": {
        "none": {"use": "none"},
        "sign": {"use": "sign"},
        "gauss": {"use": "gauss", "sigma": 0.1},
    },
    "inverters": {"tuned": {"use": "tuned", "epochs": 2}},
    "attacks": {"lti": {"use": "lti", "inverter": "tuned"}, "ig": {"use": "ig", "iterations": 5}},
    "experiments": {
        "small": {
            "title": "Small",
            "dataset": "photos",
            "fl_models": ["lenet"],
            "defenses": ["none", "sign", "gauss"],
            "attacks": ["lti", "ig"],
            "auxiliary": {"size": 64, "seed": 3},
            "victims": {"size": 16, "seed": 1},
            "pictured": 4,
        }
    },
}


def change(values: dict, path: str, value: object) -> dict:
    *parents, last = path.split("/")
    for key in parents:
        values = values[key]
    values[last] = value


@pytest.mark.skipif(not SHIPPED.is_file(), reason="only in a checkout: the wheel has no config")
def test_the_shipped_configuration_is_valid():
    plan = Plan(parse_config(yaml.safe_load(SHIPPED.read_text())))
    for name in plan.config.experiments:
        assert list(plan.cells(name))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("result", "x", r"result: unknown key \(value 'x'\); allowed: .*results, store"),
        ("store", {"chunk_mib": 99}, r"store\.chunk_mib: got 99; .*less than or equal to 16"),
        ("datasets/photos", 3, r"datasets\.photos: got 3; .*dict"),
        ("datasets/photos", {}, r"datasets\.photos: no key 'use'; .*cifar10, photos"),
        ("fl_models/lenet/use", "vgg", r"unknown name 'vgg' in fl_models; known: lenet"),
        ("fl_models/lenet/seed", "x", r"fl_models\.lenet\.seed: got 'x'; .*integer"),
        ("defenses/gauss/sigma", 0, r"defenses\.gauss\.sigma: got 0; .*greater than 0"),
        ("defenses/gauss/sgma", 1, r"defenses\.gauss\.sgma: unknown key \(value 1\); .*: sigma"),
        ("defenses/Sign", {"use": "sign"}, r"defenses\.Sign: got identifier 'Sign'; .*lower-case"),
        ("defenses/a..b", {"use": "sign"}, r"identifier 'a\.\.b'; expected"),
        ("attacks/a@b", {"use": "ig"}, r"attacks\.a@b: got identifier 'a@b'; expected"),
        ("attacks/ig/iterations", 0, r"attacks\.ig\.iterations: got 0; .*equal to 2"),
        ("attacks/lti/inverter", "big", r"attacks\.lti\.inverter: got 'big'; allowed: tuned"),
        ("attacks/lti", {"use": "lti"}, r"attacks\.lti\.inverter: missing; it has no default"),
        ("experiments/small/dataset", "b", r"small\.dataset: got 'b'; allowed: photos"),
        ("experiments/small/fl_models", ["b"], r"small\.fl_models: got 'b'; allowed: lenet"),
        ("experiments/small/defenses", ["b"], r"small\.defenses: got 'b'; allowed: gauss, none"),
        ("experiments/small/attacks", ["b"], r"small\.attacks: got 'b'; allowed: ig, lti"),
        ("experiments/small/attacks", [], r"small\.attacks: got \[\]; .*at least 1"),
        ("experiments/small/metrics", ["x"], r"small\.metrics: got 'x'; allowed: .*mse.*ssim"),
        ("experiments/small/batch_sizes", [1, 4], r"batch_sizes: got 4; allowed: 1\. Larger bat"),
        ("experiments/small/pictured", 17, r"pictured: got 17; allowed: 1 to .*victims, 16"),
        ("experiments/small/victims/size", 0, r"small\.victims\.size: got 0; .*equal to 1"),
        ("experiments/small/victims/n", 1, r"small\.victims\.n: unknown key \(value 1\); allowed:"),
        ("experiments/small/colour", 1, r"small\.colour: unknown key \(value 1\); allowed:"),
        ("experiments/A b", SMALL["experiments"]["small"], r"got identifier 'A b'; expected"),
    ],
)
def test_a_message_has_the_key_the_value_and_what_is_allowed(values, path, value, message):
    change(values, path, value)
    with pytest.raises(LTIError, match=message) as caught:
        parse_config(values)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_key_is_named(values):
    del values["experiments"]["small"]["title"]
    with pytest.raises(LTIError, match=r"^experiments\.small\.title: missing; it has no default$"):
        parse_config(values)


def test_all_problems_are_listed_at_once(values):
    change(values, "defenses/gauss/sigma", -1)
    change(values, "inverters/tuned/epoch", 3)
    change(values, "attacks/lti/inverter", "big")
    change(values, "experiments/small/dataset", "b")
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "defenses.gauss.sigma",
        "inverters.tuned.epoch",
        "experiments.small.dataset",
        "attacks.lti.inverter",
    ]
    change(values, "experiments/small/victims/size", 0)
    change(values, "results", 3)
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    assert len(str(caught.value).splitlines()) == 2


def test_all_problems_of_one_experiment_are_listed(values):
    change(values, "experiments/small/dataset", "b")
    change(values, "experiments/small/defenses", ["x", "sign", "y"])
    change(values, "experiments/small/batch_sizes", [4])
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    lines = str(caught.value).splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "experiments.small.dataset: got 'b'",
        "experiments.small.defenses: got 'x'",
        "experiments.small.defenses: got 'y'",
        "experiments.small.batch_sizes: got 4",
    ]


def test_a_reference_that_is_no_name_is_a_problem_like_others(values):
    change(values, "attacks/lti/inverter", ["tuned"])
    with pytest.raises(LTIError, match=r"attacks\.lti\.inverter: got \['tuned'\]"):
        parse_config(values)
    change(values, "attacks/lti/inverter", "tuned")
    change(values, "attacks/lti/inverter_for", 3)
    with pytest.raises(LTIError, match=r"^attacks\.lti\.inverter_for: got 3; .*dict"):
        parse_config(values)
    change(values, "attacks/lti/inverter_for", {"sign": "big", "rot13": "tuned"})
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    assert str(caught.value).splitlines() == [
        "attacks.lti.inverter_for.sign: got 'big'; allowed: tuned",
        "attacks.lti.inverter_for: got 'rot13'; allowed: gauss, none, sign",
    ]


def test_mirrored_images_need_their_gradients(values):
    values["experiments"]["small"]["auxiliary"]["mirrored"] = False
    with pytest.raises(LTIError, match=r"small\.auxiliary\.mirrored: got False.*inverters\.tuned"):
        parse_config(values)


@pytest.mark.parametrize("name", ["all", "observe"])
def test_an_experiment_cannot_have_the_name_of_a_rule(values, name):
    values["experiments"][name] = values["experiments"]["small"]
    with pytest.raises(LTIError, match=rf"experiments\.{name}: got the name of a rule"):
        parse_config(values)


def test_a_projection_belongs_to_an_fl_model(values):
    values["projections"] = {"lenet": {"use": "hash", "ratio": 0.25}}
    assert Plan(parse_config(values)).projection("lenet").ratio == 0.25
    values["projections"] = {"resnet": {"use": "hash"}}
    with pytest.raises(LTIError, match=r"projections: got 'resnet'; allowed: lenet"):
        parse_config(values)


def test_an_experiments_cells_are_the_product_of_its_lists(values):
    plan = Plan(parse_config(values))
    cells = list(plan.cells("small"))
    assert len(cells) == 6
    assert [(cell.defense, cell.attack) for cell in cells[:3]] == [
        ("none", "lti@photos-n64-s3"),
        ("none", "ig"),
        ("sign", "lti@photos-n64-s3"),
    ]
    assert {(c.dataset, c.victims, c.fl_model, c.batch_size) for c in cells} == {
        ("photos", "photos-n16-s1", "lenet", 1)
    }
    assert plan.victims_of("small") == "photos-n16-s1"
    assert plan.metrics == ["mse", "psnr", "ssim"]
    with pytest.raises(LTIError, match="unknown experiment 'large'; known: small"):
        list(plan.cells("large"))


def test_defenses_that_only_add_noise_share_the_undefended_store(values):
    plan = Plan(parse_config(values))
    stores = {name: plan.stored_defense(name) for name in ("none", "gauss", "sign")}
    assert stores == {"none": "undefended", "gauss": "undefended", "sign": "sign"}
    assert json.loads(plan.stored_defense_settings("undefended")) == {"use": "none"}
    assert json.loads(plan.stored_defense_settings("sign")) == {"use": "sign"}
    assert [plan.stored_defense_name(name) for name in ("undefended", "sign")] == ["none", "sign"]


def test_no_defense_may_take_the_name_of_the_undefended_store(values):
    change(values, "defenses/undefended", {"use": "sign"})
    with pytest.raises(LTIError, match="undefended"):
        Plan(parse_config(values))


def everything(plan: Plan) -> dict[str, str]:
    """The settings behind every identifier, as the rules see them."""
    sections = ("datasets", "fl_models", "defenses", "inverters", "attacks")
    found = {
        f"{section}.{name}": plan.settings(section, name)
        for section in sections
        for name in getattr(plan, section)
    }
    for defense in plan.defenses:
        stored = plan.stored_defense(defense)
        found[f"store.{stored}"] = plan.stored_defense_settings(stored)
    return found


def test_a_changed_sigma_changes_the_settings_of_gauss_and_nothing_else(values):
    before = everything(Plan(parse_config(values)))
    change(values, "defenses/gauss/sigma", 0.2)
    after = everything(Plan(parse_config(values)))
    assert {key for key in before if before[key] != after[key]} == {"defenses.gauss"}
    assert json.loads(after["defenses.gauss"]) == {"use": "gauss", "sigma": 0.2}
    assert before.keys() == after.keys()


def test_settings_are_canonical(values):
    plan = Plan(parse_config(values))
    values["attacks"]["ig"] = {"iterations": 5, "use": "ig", "learning_rate": 0.1}
    again = Plan(parse_config(values))
    assert plan.settings("attacks", "ig") == again.settings("attacks", "ig")
    assert json.loads(plan.settings("attacks", "ig"))["iterations"] == 5


def test_one_auxiliary_set_cannot_be_both_with_and_without_mirrored_images(values):
    other = copy.deepcopy(values["experiments"]["small"])
    other["auxiliary"]["mirrored"] = False
    values["inverters"]["tuned"]["use_mirrored"] = False
    values["experiments"]["other"] = other
    with pytest.raises(LTIError, match="photos-n64-s3 is asked for with and without mirrored"):
        Plan(parse_config(values))
    other["auxiliary"]["seed"] = 4
    assert set(Plan(parse_config(values)).auxiliary) == {"photos-n64-s3", "photos-n64-s4"}
