"""The configuration and the plan that it expands to."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

import lti
from lti.config import parse_config
from lti.curve_plan import curve_note, curve_of
from lti.errors import LTIError
from lti.files import canonical_json
from lti.plan import Plan

SHIPPED = Path(lti.__file__).parents[1] / "config.yaml"


@pytest.fixture
def values() -> dict:
    """A small configuration, as YAML gives it."""
    return copy.deepcopy(SMALL)


SMALL = {
    "datasets": {"photos": {"use": "photos"}},
    "fl_models": {"lenet": {"use": "lenet", "seed": 0}},
    "projections": {"identity": {"use": "identity"}, "half": {"use": "hash", "ratio": 0.5}},
    "defenses": {
        "none": {"use": "none"},
        "sign": {"use": "sign"},
        "gauss": {"use": "gauss", "sigma": 0.1},
    },
    "inverters": {
        "tuned": {"use": "tuned", "epochs": 2},
        "dropout": {"use": "tuned", "epochs": 2, "dropout": 0.2},
    },
    "generators": {"dcgan": {"use": "dcgan"}},
    "attacks": {
        "lti": {
            "use": "lti",
            "inverter": "tuned",
            "overrides": [
                {"when": {"defense": ["sign"]}, "inverter": "dropout"},
                {"when": {"batch_size": 2}, "projection": "half"},
            ],
        },
        "ig": {"use": "ig", "iterations": 5},
        "gi-gip": {"use": "gi-gip", "generator": "dcgan"},
        "nearest": {"use": "nearest"},
    },
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
        ("result", "x", r"result: unknown key \(value 'x'\); allowed: .*results, shifts, store"),
        (
            "projections/Half",
            {"use": "hash"},
            r"projections\.Half: got identifier 'Half'; expected",
        ),
        ("projections/half/ratio", 2, r"projections\.half\.ratio: got 2; .*equal to 1"),
        ("generators/dcgan/use", "vae", r"unknown name 'vae' in generators; known: dcgan"),
        ("generators/dcgan/epochs", 0, r"generators\.dcgan\.epochs: got 0; .*equal to 1"),
        ("metrics", {"require": ["x"]}, r"^metrics\.require: got 'x'; allowed: .*lpips.*ssim"),
        ("metrics", {"need": []}, r"^metrics\.need: unknown key \(value \[\]\); allowed: require"),
        ("metrics", {"require": "lpips"}, r"^metrics\.require: got 'lpips'; .*list"),
        ("store", {"chunk_mib": 99}, r"store\.chunk_mib: got 99; .*less than or equal to 16"),
        ("datasets/photos", 3, r"datasets\.photos: got 3; .*dict"),
        (
            "datasets/photos",
            {},
            r"datasets\.photos: no key 'use'; .*cifar10, cola, dct-gauss",
        ),
        (
            "fl_models/lenet/use",
            "vgg",
            r"unknown name 'vgg'.*known: bert, factory, lenet",
        ),
        (
            "fl_models/text",
            {"use": "bert", "heads": 5},
            r"fl_models\.text\.heads: got 5; allowed: divisors of the width, 768",
        ),
        (
            "fl_models/lenet",
            {"use": "transformer3"},
            r"small\.fl_models: got 'lenet', which takes samples of modality text, where",
        ),
        (
            "inverters/tuned",
            {"use": "paper-text"},
            r"small\.attacks: got one with inverters\.tuned, which makes samples of modality text",
        ),
        (
            "attacks/ig",
            {"use": "tag"},
            r"small\.attacks: got 'ig', which reconstructs samples of modality text, where data",
        ),
        (
            "attacks/refined",
            {"use": "lti-map", "start": "ig"},
            r"attacks\.refined\.start: got 'ig'; allowed: lti",
        ),
        ("fl_models/lenet/seed", "x", r"fl_models\.lenet\.seed: got 'x'; .*integer"),
        ("defenses/gauss/sigma", 0, r"defenses\.gauss\.sigma: got 0; .*greater than 0"),
        ("defenses/gauss/sgma", 1, r"gauss\.sgma: unknown key \(value 1\); .*: defense_at, sigma"),
        ("defenses/Sign", {"use": "sign"}, r"defenses\.Sign: got identifier 'Sign'; .*lower-case"),
        ("defenses/a..b", {"use": "sign"}, r"identifier 'a\.\.b'; expected"),
        ("attacks/a@b", {"use": "ig"}, r"attacks\.a@b: got identifier 'a@b'; expected"),
        ("attacks/ig/iterations", 0, r"attacks\.ig\.iterations: got 0; .*equal to 2"),
        ("attacks/lti/inverter", "big", r"lti\.inverter: got 'big'; allowed: dropout, tuned"),
        ("attacks/lti/projection", "hash", r"lti\.projection: got 'hash'; allowed: half, identity"),
        ("attacks/nearest/projection", "x", r"nearest\.projection: got 'x'; allowed: half, ident"),
        ("attacks/gi-gip/generator", "x", r"attacks\.gi-gip\.generator: got 'x'; allowed: dcgan"),
        ("attacks/gi-gip", {"use": "gi-gip"}, r"attacks\.gi-gip\.generator: missing; it has no"),
        ("attacks/ig/inverter", "tuned", r"attacks\.ig\.inverter: unknown key \(value 'tuned'\);"),
        ("defenses/sign/defense_at", "x", r"sign\.defense_at: got 'x'; .*'sample' or 'batch'"),
        ("attacks/lti", {"use": "lti"}, r"attacks\.lti\.inverter: missing; it has no default"),
        ("experiments/small/dataset", "b", r"small\.dataset: got 'b'; allowed: photos"),
        ("experiments/small/fl_models", ["b"], r"small\.fl_models: got 'b'; allowed: lenet"),
        ("experiments/small/defenses", ["b"], r"small\.defenses: got 'b'; allowed: gauss, none"),
        ("experiments/small/attacks", ["b"], r"small\.attacks: got 'b'; allowed: gi-gip, ig"),
        ("experiments/small/attacks", [], r"small\.attacks: got \[\]; .*at least 1"),
        ("experiments/small/metrics", ["x"], r"small\.metrics: got 'x'; allowed: .*mse.*ssim"),
        (
            "experiments/small/batch_sizes",
            [1, 0],
            r"small\.batch_sizes: got 0; allowed: 1 to .*, 16",
        ),
        (
            "experiments/small/batch_sizes",
            [17],
            r"small\.batch_sizes: got 17; allowed: 1 to .*, 16",
        ),
        ("experiments/small/batch_sizes", ["x"], r"small\.batch_sizes\[0\]: got 'x'; .*integer"),
        ("experiments/small/batch_sizes", [1, 1], r"small\.batch_sizes: got 1 more than once; al"),
        ("experiments/small/defenses", ["sign", "sign"], r"defenses: got 'sign' more than once"),
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


WHEN = {"defense": "sign"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (3, r": got 3; input should be a valid dictionary"),
        ({"inverter": "tuned"}, r"\.when: missing; expected a map from some of fl_model, batch_si"),
        ({"when": {}, "inverter": "tuned"}, r"\.when: got {}; expected a map from some of"),
        ({"when": "sign"}, r"\.when: got 'sign'; expected a map from some of"),
        (
            {"when": {"defens": "sign"}, "inverter": "x"},
            r"\.when\.defens: unknown key \(value 'sign'\); allowed: fl_model, batch_size, defense",
        ),
        (
            {"when": {"defense": "rot13"}},
            r"\.when\.defense: got 'rot13'; allowed: gauss, none, sig",
        ),
        ({"when": {"defense": ["sign", 3]}}, r"\.when\.defense: got 3; allowed: gauss, none, sign"),
        ({"when": {"fl_model": "vgg"}}, r"\.when\.fl_model: got 'vgg'; allowed: lenet"),
        (
            {"when": {"batch_size": 0}},
            r"\.when\.batch_size: got 0; allowed: integers of at least 1",
        ),
        ({"when": {"batch_size": [1, "2"]}}, r"\.when\.batch_size: got '2'; allowed: integers"),
        (
            {"when": WHEN, "inverterr": "x"},
            r"\.inverterr: unknown key \(value 'x'\); allowed: inverter, projection, victims, when",
        ),
        (
            {"when": WHEN, "use": "ig"},
            r"\.use: unknown key \(value 'ig'\); allowed: inverter, proj",
        ),
        ({"when": WHEN, "overrides": []}, r"\.overrides: unknown key \(value \[\]\); allowed: inv"),
        ({"when": WHEN, "victims": 0}, r"\.victims: got 0; input should be greater than or equal"),
        (
            {"when": WHEN, "inverter": ["a"]},
            r"\.inverter: got \['a'\]; input should be a valid str",
        ),
        ({"when": WHEN, "inverter": "big"}, r"\.inverter: got 'big'; allowed: dropout, tuned"),
        ({"when": WHEN, "projection": "x"}, r"\.projection: got 'x'; allowed: half, identity"),
    ],
)
def test_a_wrong_override_is_told_by_its_place(values, override, message):
    values["attacks"]["lti"]["overrides"].append(override)
    with pytest.raises(LTIError, match=rf"^attacks\.lti\.overrides\[2\]{message}") as caught:
        parse_config(values)
    assert len(str(caught.value).splitlines()) == 1


def test_all_problems_of_overrides_are_listed(values):
    values["attacks"]["lti"]["overrides"] = [
        {"when": {"defens": "sign", "batch_size": 0}, "inverterr": "x", "victims": 0},
        {"inverter": 3},
    ]
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        "attacks.lti.overrides[0].inverterr",
        "attacks.lti.overrides[0].when.defens",
        "attacks.lti.overrides[0].when.batch_size",
        "attacks.lti.overrides[0].victims",
        "attacks.lti.overrides[1].when",
        "attacks.lti.overrides[1].inverter",
    ]


def test_a_setting_of_an_override_is_that_of_its_cells_alone(values):
    plan = Plan(parse_config(values))

    def settings(defense: str, batch_size: int) -> tuple[str, str]:
        attack = plan.attack_on("lti", fl_model="lenet", batch_size=batch_size, defense=defense)
        assert attack.overrides == []
        return attack.inverter, attack.projection

    assert settings("none", 1) == ("tuned", "identity")
    assert settings("sign", 1) == ("dropout", "identity")
    assert settings("gauss", 2) == ("tuned", "half")
    assert settings("sign", 2) == ("dropout", "half")


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
    change(values, "experiments/small/batch_sizes", [99])
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    lines = str(caught.value).splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "experiments.small.dataset: got 'b'",
        "experiments.small.defenses: got 'x'",
        "experiments.small.defenses: got 'y'",
        "experiments.small.batch_sizes: got 99",
    ]


def test_a_reference_that_is_no_name_is_a_problem_like_others(values):
    change(values, "attacks/lti/inverter", ["tuned"])
    with pytest.raises(LTIError, match=r"attacks\.lti\.inverter: got \['tuned'\]"):
        parse_config(values)
    change(values, "attacks/lti/inverter", "tuned")
    change(values, "attacks/lti/overrides", 3)
    with pytest.raises(LTIError, match=r"^attacks\.lti\.overrides: got 3; .*list"):
        parse_config(values)


def test_the_default_of_a_reference_must_be_there(values):
    del values["projections"]["identity"]
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    assert str(caught.value).splitlines() == [
        f"attacks.{name}.projection: got 'identity'; allowed: half" for name in ("lti", "nearest")
    ]


def test_mirrored_images_need_their_gradients(values):
    values["experiments"]["small"]["auxiliary"]["mirrored"] = False
    with pytest.raises(LTIError, match=r"small\.auxiliary\.mirrored: got False.*inverters\.tuned"):
        parse_config(values)
    values["inverters"]["tuned"]["use_mirrored"] = False
    # Of the inverter that only an override names.
    with pytest.raises(LTIError, match=r"^experiments.*got False.*inverters\.dropout") as caught:
        parse_config(values)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["all", "observe", "train_generator", "table1", "figure4"])
def test_an_experiment_cannot_have_the_name_of_a_rule(values, name):
    values["experiments"][name] = values["experiments"]["small"]
    with pytest.raises(LTIError, match=rf"experiments\.{name}: got the name of a rule"):
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
    assert plan.metrics_of(**vars(cells[0])) == ["mse", "psnr", "ssim"]
    with pytest.raises(LTIError, match="unknown experiment 'large'; known: small"):
        list(plan.cells("large"))


def test_attacks_that_need_auxiliary_data_say_which_in_their_path(values):
    experiment = values["experiments"]["small"]
    experiment["attacks"] = ["ig", "lti", "nearest", "gi-gip"]
    experiment["batch_sizes"] = [2, 1]
    cells = list(Plan(parse_config(values)).cells("small"))
    assert [cell.batch_size for cell in cells] == [2] * 12 + [1] * 12
    assert [cell.attack for cell in cells[:4]] == [
        "ig",
        *(f"{name}@photos-n64-s3" for name in ("lti", "nearest", "gi-gip")),
    ]


def test_experiments_measure_the_cells_that_they_share_once_and_for_all_of_them(values):
    values["experiments"]["other"] = {
        **values["experiments"]["small"],
        "defenses": ["sign"],
        "metrics": ["lpips", "psnr"],
    }
    plan = Plan(parse_config(values))
    metrics = {
        (cell.defense, cell.attack.partition("@")[0]): plan.metrics_of(**vars(cell))
        for cell in plan.cells("small")
    }
    plain = ["mse", "psnr", "ssim"]
    for attack in ("lti", "ig"):
        assert metrics["sign", attack] == [*plain, "lpips"]
        assert metrics["none", attack] == metrics["gauss", attack] == plain
    assert plan.backbones([*plain, "lpips", "lpips_alex"]) == ["alexnet", "vgg16"]
    assert plan.backbones(plain) == []


def test_defenses_that_only_add_noise_share_the_undefended_store(values):
    plan = Plan(parse_config(values))
    stores = {name: plan.stored_defense(name, 2) for name in ("none", "gauss", "sign")}
    assert stores == {"none": "undefended", "gauss": "undefended", "sign": "sign"}
    assert json.loads(plan.stored_defense_settings("undefended"))["use"] == "none"
    assert plan.stored_defense_settings("sign") == plan.settings("defenses", "sign")
    assert [plan.stored_defense_names(name) for name in ("undefended", "sign")] == [
        ("none",),
        ("sign",),
    ]


def test_a_defense_of_the_batchs_mean_reads_the_whole_undefended_gradients(values):
    change(values, "defenses/sign/defense_at", "batch")
    plan = Plan(parse_config(values))
    # A batch of one is its own mean.
    assert (plan.stored_defense("sign", 1), plan.stored_defense("sign", 2)) == (
        *("sign", "undefended"),
    )
    assert plan.stored_projection("half", "sign", 1) == "half"
    assert plan.stored_projection("half", "sign", 2) == "identity"
    assert plan.stored_projection("half", "gauss", 2) == "half"


def test_a_defense_of_the_batchs_mean_needs_an_identity_projection(values):
    change(values, "defenses/sign/defense_at", "batch")
    change(values, "projections", {"half": {"use": "hash"}})
    change(values, "attacks/nearest/projection", "half")
    change(values, "attacks/lti/projection", "half")
    change(values, "experiments/small/attacks", ["lti", "nearest"])
    Plan(parse_config(values))
    change(values, "experiments/small/batch_sizes", [1, 2])
    with pytest.raises(
        LTIError, match=r"defenses\.sign: got defense_at 'batch'.*identity.*Add one"
    ):
        Plan(parse_config(values))


def test_an_attack_reads_observations_under_its_projection_and_others_whole_ones(values):
    change(values, "projections", {"half": {"use": "hash"}, "whole": {"use": "identity"}})
    change(values, "attacks/lti/projection", "half")
    change(values, "attacks/lti/overrides", [{"when": WHEN, "projection": "whole"}])
    change(values, "attacks/nearest/projection", "half")
    plan = Plan(parse_config(values))

    def read(attack: str, defense: str = "none") -> str:
        cell = {"fl_model": "lenet", "batch_size": 1, "defense": defense}
        return plan.observed_projection(plan.attack_on(attack, **cell), "aux")

    assert [read(name) for name in ("lti", "nearest", "ig", "gi-gip")] == [
        *("half", "half", "whole", "whole"),
    ]
    assert read("lti", "sign") == "whole"


def shifted(values: dict) -> dict:
    """Add a shift, and a synthetic data set in it."""
    change(values, "datasets/noise", {"use": "dct-gaussian", "of": "photos", "classes": [2]})
    pools = [{"classes": [2, 3]}, {"dataset": "noise"}]
    values["shifts"] = {"classes": {"classes": [0, 1], "shifted": pools}}
    change(values, "experiments/small/auxiliary/shift", "classes")
    change(values, "experiments/small/auxiliary/beta", 0.25)
    return values


def test_a_shift_is_part_of_the_identifiers_and_says_what_is_drawn_from(values):
    plan = Plan(parse_config(shifted(values)))
    (auxiliary,), victims = plan.auxiliary_of("small"), plan.victims_of("small")
    assert auxiliary == "photos-classes-n64-s3-b0.25"
    assert victims == "photos-classes-n16-s1"
    assert plan.pools_of(auxiliary) == [("photos", [0, 1]), ("photos", [2, 3]), ("noise", None)]
    assert plan.classes_of(victims) == [0, 1]
    assert (plan.imitated_by("noise"), plan.imitated_by("photos")) == ("photos", None)


def test_variations_are_every_combination_and_smaller_sets_are_of_the_largest(values):
    both = [{"size": [16, 64], "seed": [3, 4]}, {"size": [32], "seed": [4]}]
    change(values, "experiments/small/variations", both)
    change(values, "experiments/small/attacks", ["lti"])
    plan = Plan(parse_config(values))
    names = [f"photos-n{size}-s{seed}" for size in (16, 64) for seed in (3, 4)]
    assert plan.auxiliary_of("small") == [*names, "photos-n32-s4"]
    for name in plan.auxiliary_of("small"):
        assert plan.stored_auxiliary(name) == f"photos-n64-{name[-2:]}"
        assert plan.auxiliary[name].of == 64
    attacks = [c.attack for c in plan.cells("small") if c.defense == "none"]
    assert attacks == [f"lti@{name}" for name in plan.auxiliary_of("small")]
    assert curve_of(plan, "small") == "aux_size"
    assert curve_note(plan, "small").startswith("Trained for 2 epochs; the epoch best on held-out")
    change(values, "experiments/small/variations", [{"size": [8]}])
    with pytest.raises(LTIError, match=r"variations\[0\]\.size\[0\]: got 8; .*equal to 16"):
        parse_config(values)


@pytest.mark.parametrize(
    ("variations", "attacks", "message"),
    [
        ([{"size": [16, 32], "beta": [0.5, 1]}], ["lti"], r"got several sizes and several betas"),
        ([{"beta": [0.5]}], ["lti"], r"variations: got beta 0\.5 without a shift; allowed: 1"),
        ([{"size": [16]}], ["ig"], r"attacks: got 'ig', which uses no auxiliary set"),
        ([{"beta": [2]}], ["lti"], r"variations\[0\]\.beta\[0\]: got 2; .*less than or equal"),
    ],
)
def test_variations_that_make_no_curve_are_named(values, variations, attacks, message):
    change(values, "experiments/small/variations", variations)
    change(values, "experiments/small/attacks", attacks)
    with pytest.raises(LTIError, match=message):
        parse_config(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("datasets/noise/of", "x", r"datasets\.noise\.of: got 'x'; allowed: photos"),
        ("datasets/noise/of", "noise", r"datasets\.noise\.of: got 'noise'; allowed: photos"),
        ("experiments/small/dataset", "noise", r"got 'noise', which is synthetic; allowed"),
        ("experiments/small/auxiliary/shift", "x", r"auxiliary\.shift: got 'x'; allowed: classes"),
        ("experiments/small/auxiliary/shift", None, r"beta: got 0\.25 without a shift; allowed: 1"),
        ("experiments/small/auxiliary/beta", 1.5, r"auxiliary\.beta: got 1\.5; .*less than or eq"),
        ("shifts/classes/classes", [0, 99], r"'classes' with class 99; allowed: .* 0 to \d+$"),
        ("shifts/classes/classes", [0, 3], r"shifted\[0\]\.classes: got 3, drawn from before it"),
        ("shifts/classes/classes", None, r"shifted\[0\]: got all of a data set that is drawn"),
        ("shifts/classes/shifted", [], r"shifts\.classes\.shifted: got \[\]"),
        ("shifts/classes/shifted", [{"dataset": "x"}], r"shifted\[0\]\.dataset: got 'x'; allowed"),
    ],
)
def test_a_shift_that_cannot_be_is_named(values, path, value, message):
    change(shifted(values), path, value)
    with pytest.raises(LTIError, match=message):
        parse_config(values)


@pytest.mark.parametrize(
    ("name", "experiments", "message"),
    [
        ("both", ["b"], r"reports\.both\.experiments\[0\]: got 'b'; allowed: small"),
        ("both", [], r"reports\.both\.experiments: got \[\]"),
        ("both", ["small", "small"], r"experiments\[1\]: got 'small' again; expected each once"),
        ("small", ["small"], r"reports\.small: got the name of a rule or of an experiment"),
        ("observe", ["small"], r"reports\.observe: got the name of a rule or of an experiment"),
    ],
)
def test_a_report_is_of_experiments_that_are_there(values, name, experiments, message):
    values["reports"] = {"whole": {"title": "Both", "experiments": ["small"]}}
    parse_config(values)
    values["reports"][name] = {"title": "Both", "experiments": experiments}
    with pytest.raises(LTIError, match=message):
        parse_config(values)


def test_a_fitted_projection_belongs_to_an_auxiliary_set_and_to_single_samples(values):
    change(values, "projections/few", {"use": "principal", "components": 4})
    change(values, "attacks/lti/projection", "few")
    change(values, "attacks/nearest/projection", "few")
    change(values, "experiments/small/attacks", ["lti"])
    plan = Plan(parse_config(values))
    assert plan.observed_projection(plan.attacks["lti"], "photos-n16-s0") == "few@photos-n16-s0"
    change(values, "defenses/sign/defense_at", "batch")
    change(values, "experiments/small/batch_sizes", [4])
    message = r"defenses\.sign: got defense_at 'batch' and projection 'few'.*not fitted"
    with pytest.raises(LTIError, match=message):
        Plan(parse_config(values))


@pytest.mark.parametrize("attack", ["ig", "gi-gip"])
def test_an_attack_on_whole_gradients_needs_an_identity_projection(values, attack):
    change(values, "projections", {"half": {"use": "hash"}})
    change(values, "attacks/nearest/projection", "half")
    change(values, "attacks/lti", {"use": "lti", "inverter": "tuned", "projection": "half"})
    change(values, "experiments/small/attacks", ["lti", "nearest"])
    Plan(parse_config(values))
    change(values, "experiments/small/attacks", ["lti", attack])
    with pytest.raises(LTIError, match=f"got '{attack}', which reads whole.*identity. Add one"):
        Plan(parse_config(values))


def test_as_many_batches_are_observed_as_the_attacks_on_them_ask_for(values):
    change(values, "attacks/lti/overrides", [{"when": {"batch_size": 3}, "projection": "half"}])
    change(values, "attacks/ig/victims", 2)
    change(values, "attacks/gi-gip/overrides", [{"when": {"defense": "gauss"}, "victims": 99}])
    change(values, "attacks/gi-gip/victims", 4)
    change(values, "experiments/small/batch_sizes", [1, 3])
    change(values, "experiments/small/defenses", ["sign", "gauss"])
    other = {**values["experiments"]["small"], "attacks": ["gi-gip"], "batch_sizes": [3]}
    change(values, "experiments/other", other)
    plan = Plan(parse_config(values))

    def batches(batch_size: int, projection: str, defense: str = "sign") -> int:
        return plan.observed_batches(
            victims="photos-n16-s1",
            fl_model="lenet",
            batch_size=batch_size,
            projection=projection,
            defense=defense,
        )

    assert batches(1, "identity") == 16  # of lti; two are enough for ig
    assert batches(3, "half") == 5  # lti alone: 16 // 3
    assert batches(3, "identity") == 4  # of another experiment's gi-gip
    assert batches(3, "identity", "gauss") == 5  # no more than there are
    with pytest.raises(LTIError, match=r"no experiment reads the observations .*/1/half/sign; exp"):
        batches(1, "half")


def test_no_defense_may_take_the_name_of_the_undefended_store(values):
    change(values, "defenses/undefended", {"use": "sign"})
    with pytest.raises(LTIError, match="undefended"):
        Plan(parse_config(values))


def everything(plan: Plan) -> dict[str, str]:
    """The settings behind every identifier, as the rules see them."""
    sections = ("datasets", "fl_models", "projections", "defenses", "inverters", "generators")
    found = {
        f"{section}.{name}": plan.settings(section, name)
        for section in sections
        for name in getattr(plan, section)
    }
    for cell in plan.cells("small"):
        name = cell.attack.partition("@")[0]
        attack = plan.attack_on(name, fl_model="lenet", batch_size=1, defense=cell.defense)
        found[f"attacks.{name}.{cell.defense}"] = canonical_json(attack.canonical())
    for defense in plan.defenses:
        stored = plan.stored_defense(defense, 1)
        found[f"store.{stored}"] = plan.stored_defense_settings(stored)
    return found


def test_a_changed_sigma_changes_the_settings_of_gauss_and_nothing_else(values):
    before = everything(Plan(parse_config(values)))
    change(values, "defenses/gauss/sigma", 0.2)
    after = everything(Plan(parse_config(values)))
    assert {key for key in before if before[key] != after[key]} == {"defenses.gauss"}
    assert json.loads(after["defenses.gauss"])["sigma"] == 0.2
    assert before.keys() == after.keys()


def test_a_changed_override_changes_the_settings_of_its_cells_and_nothing_else(values):
    before = everything(Plan(parse_config(values)))
    change(values, "attacks/lti/overrides", [{"when": WHEN, "victims": 3}])
    after = everything(Plan(parse_config(values)))
    assert {key for key in before if before[key] != after[key]} == {"attacks.lti.sign"}


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
    values["inverters"]["dropout"]["use_mirrored"] = False
    values["experiments"]["other"] = other
    with pytest.raises(LTIError, match="photos-n64-s3 is asked for with and without mirrored"):
        Plan(parse_config(values))
    other["auxiliary"]["seed"] = 4
    assert set(Plan(parse_config(values)).auxiliary) == {"photos-n64-s3", "photos-n64-s4"}


def test_included_victims_are_checked_and_are_of_one_kind(values):
    change(values, "experiments/small/victims", {"size": 4, "include": [7, 2]})
    plan = Plan(parse_config(values))
    assert plan.victims["photos-n4-s0"][1].include == [7, 2]
    change(values, "experiments/small/victims/include", [7, 2, 7, -1, "a text"])
    with pytest.raises(LTIError) as error:
        parse_config(values)
    where = "experiments.small.victims.include: got"
    assert str(error.value).splitlines() == [
        f"{where} 5 samples; allowed: up to the number of victims, 4",
        f"{where} 7 more than once; allowed: once",
        f"{where} -1; allowed: positions of 0 or more",
        f"{where} 'a text' of what is no text; allowed: positions",
    ]
    change(values, "experiments/small/victims/include", [7])
    change(values, "experiments/other", copy.deepcopy(values["experiments"]["small"]))
    Plan(parse_config(values))
    change(values, "experiments/other/victims/include", [])
    with pytest.raises(LTIError, match="victims photos-n4-s0 are asked for with and without some"):
        Plan(parse_config(values))
