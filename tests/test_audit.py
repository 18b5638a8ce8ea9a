"""Audits: the scale and its verdicts, the file, the checks, and one real run."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import WORDS, save_tokenizer
from typer.testing import CliRunner

import lti
from lti.auditing.assemble import Page as Shown
from lti.auditing.assemble import assemble
from lti.auditing.check import check_audit
from lti.auditing.expand import expand_audit
from lti.auditing.measured import Run
from lti.auditing.recovery import constant_guess, exchanged, recovered, recovered_each, worst
from lti.auditing.result import AttackFinding, AuditResult, DefenseFinding, Estimate, Example
from lti.auditing.result_json import read_result, write_result
from lti.auditing.verdict import best_attack, level_of, sentence
from lti.auditing.workflow import read_audit
from lti.cli import app
from lti.config import parse_config
from lti.data.dataset import DATASETS
from lti.data.samples import Samples
from lti.errors import LTIError
from lti.files import write_arrays
from lti.metrics.measure import measure, write_metrics
from lti.plan import Plan

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
ERRORS = st.lists(st.floats(0.001, 1), min_size=4, max_size=40).filter(lambda v: len(v) % 2 == 0)


def generator():
    return np.random.default_rng(0)


# The scale


def test_the_constant_guess_of_images_is_their_mean():
    value = np.random.default_rng(0).integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    zeros = np.zeros(50, dtype=np.int64)
    guess = constant_guess(Samples(value, zeros, zeros))
    np.testing.assert_allclose(guess, value.astype(np.float64).mean(axis=0) / 255, atol=1e-6)


def test_the_constant_guess_of_text_is_the_most_frequent_token_of_each_position():
    value = np.array([[1, 2, 0], [1, 3, 0], [4, 3, 0]], dtype=np.int32)
    zeros = np.zeros(3, dtype=np.int64)
    samples = Samples(value, zeros, zeros)
    assert constant_guess(samples).tolist() == [1, 3, 0]
    assert constant_guess(samples, special={1}).tolist() == [4, 3, 0]
    assert constant_guess(samples, special={0}).tolist() == [1, 3, 0]  # all that there is


@given(ERRORS, st.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_recovered_is_one_for_the_victims_and_zero_for_the_guess(floor, batch_size):
    floor = np.array(floor)
    options = {"batch_size": batch_size, "generator": generator()}
    assert recovered(np.zeros_like(floor), floor, **options) == Estimate(1, 1, 1, len(floor))
    same = recovered(floor, floor, **options)
    assert same.mean == pytest.approx(0, abs=1e-12) and same.low == pytest.approx(0, abs=1e-12)
    half = recovered(floor / 4, floor, **options)
    assert [half.mean, half.low, half.high] == pytest.approx([0.75] * 3)


@given(ERRORS, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_recovered_is_the_ratio_of_sums_with_an_interval_around_it(floor, seed):
    floor = np.array(floor)
    error = floor * np.random.default_rng(seed).uniform(0, 1.5, len(floor))
    found = recovered(error, floor, batch_size=1, generator=generator())
    assert found.mean == pytest.approx(1 - sum(error) / sum(floor))
    assert found.low <= found.mean <= found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Against the truth of a known distribution, in 200 draws of 60 victims."""
    hits, truth = 0, 0.5
    for seed in range(200):
        rng = np.random.default_rng(seed)
        floor = rng.uniform(0.5, 1.5, 60)
        error = floor * 0.5 + rng.normal(0, 0.1, 60)
        found = recovered(error, floor, batch_size=1, generator=rng)
        hits += found.low <= truth <= found.high
    assert 180 <= hits <= 199


def test_batches_are_what_is_drawn_again():
    """Victims of one batch say the same: the interval is that of half as many, and wider."""
    rng = np.random.default_rng(0)
    pairs = rng.uniform(0, 1, 40).repeat(2)
    floor = np.ones(80)
    apart = recovered(pairs, floor, batch_size=1, generator=generator())
    together = recovered(pairs, floor, batch_size=2, generator=generator())
    assert together.mean == pytest.approx(apart.mean)
    assert together.high - together.low > 1.2 * (apart.high - apart.low)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_reconstructions_are_exchanged_within_their_label(label, seed):
    label = np.array(label)
    order = exchanged(label, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(label)))
    assert (label[order] == label).all()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_guesses_without_a_gradient_expose_nobody(tmp_path, batch_size):
    """Random images and class means: the best of many, or of a batch's orders, is near."""
    photos = DATASETS.parse({"use": "photos"})
    auxiliary, pool = photos.load("auxiliary"), photos.load("victims")
    rng = np.random.default_rng(0)
    chosen = pool.take(rng.permutation(len(pool))[:200])
    victims = {"image": chosen.value, "label": chosen.label, "index": chosen.index}
    levels = []
    for number in range(4):
        if number == 0:
            means = [auxiliary.value[auxiliary.label == k].mean(axis=0) for k in range(10)]
            made = np.stack([means[k] for k in chosen.label]) / 255
        else:
            made = auxiliary.value[rng.integers(len(auxiliary), size=200)] / 255
        made = made.astype(np.float32).reshape(-1, batch_size, 3, 32, 32)
        facts = {
            **{"dataset": "photos", "fl_model": "m", "batch_size": batch_size, "seed": 0},
            **{"defense": "d", "attack": "guess", "variant": "guess"},
            "defense_settings": {"use": "none"},
        }
        write_arrays(tmp_path / "r.safetensors", {"reconstruction": made}, facts)
        frame = measure(victims, {"reconstruction": made}, facts)
        write_metrics(tmp_path / "m.csv", frame)
        result = assemble(
            [Run(tmp_path / "m.csv", tmp_path / "r.safetensors")],
            victims=victims,
            auxiliary=auxiliary,
            page=Shown("t", 2, 0, {}),
            facts={},
            digests={},
        )
        levels.append(result.defenses[0].level)
    assert levels == ["not recovered"] * 4


def test_victims_that_equal_the_guess_have_no_share():
    error, floor = np.array([0.0, 0.5, 0.2]), np.array([0.0, 1.0, 0.1])
    np.testing.assert_allclose(recovered_each(error, floor), [0.0, 0.5, -1.0])
    with pytest.raises(LTIError, match="equals every victim"):
        recovered(np.zeros(2), np.zeros(2), batch_size=1, generator=generator())


@given(st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_the_worst_are_one_in_a_hundred_and_at_least_one(n):
    share = np.random.default_rng(n).permutation(np.arange(n)) / n
    found = worst(share, generator=generator())
    count = max(1, round(n / 100))
    assert found.n == count
    assert found.mean == pytest.approx(np.sort(share)[-count:].mean())
    assert found.low <= found.mean + 1e-12


# Verdicts


def attack(mean, *, low=None, high=None, worst=0.0, name="LTI", n=100, chance=-0.5, of_worst=0.05):
    share = Estimate(mean, mean if low is None else low, mean if high is None else high, n)
    return AttackFinding(
        attack=name,
        metrics={"psnr": Estimate(20.123, 19.5, 20.75, 100)},
        recovered=share,
        worst=Estimate(worst, worst, worst, 1),
        chance=chance,
        chance_worst=of_worst,
    )


@pytest.mark.parametrize(
    ("attacks", "level"),
    [
        ([attack(0.8)], "exposed"),
        ([attack(0.6, low=0.45)], "partly exposed"),  # not for sure
        ([attack(0.2, worst=0.95)], "exposed"),  # an average hides them
        ([attack(0.0), attack(0.3)], "partly exposed"),
        ([attack(0.05, worst=0.6)], "partly exposed"),
        ([attack(0.15, low=0.05)], "not recovered"),
        ([attack(-0.4, worst=0.1)], "not recovered"),
        ([attack(0.9, low=math.nan, high=math.nan)], "exposed"),
        ([attack(0.6, chance=0.6)], "not recovered"),  # the look of a class
        ([attack(0.0, worst=0.95, of_worst=0.96)], "not recovered"),  # the best of many guesses
        ([attack(0.9, n=4), attack(0.0)], "not recovered"),  # four victims say little
        ([attack(0.9, n=4)], "exposed"),  # unless there are no others
    ],
)
def test_levels(attacks, level):
    assert level_of(attacks) == level


def test_more_recovered_is_never_a_milder_level():
    order = ["not recovered", "partly exposed", "exposed"]
    levels = [order.index(level_of([attack(m / 20, worst=m / 20)])) for m in range(21)]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == 2


def test_the_sentence_has_the_numbers_behind_the_level():
    attacks = [attack(0.1, name="IG", worst=0.99), attack(0.62, low=0.6, high=0.64, worst=0.9)]
    assert best_attack(attacks).attack == "LTI"
    text = sentence(attacks, modality="image", metric="psnr")
    assert "LTI recovers 62 % [60, 64]" in text
    assert "of 100 images" in text and "PSNR 20.12 [19.50, 20.75] dB" in text
    assert "of the worst 1 %, 99 %, by IG" in text


# The file


FILE = {
    "title": "Mine",
    "model": {"use": "lenet"},
    "data": {"use": "photos"},
    "defenses": {"sign": {"use": "sign"}},
    "auxiliary": {"size": 160},
    "victims": {"size": 8},
    "effort": "quick",
}


def changed(**keys):
    return {"audit": {**FILE, **keys}}


def test_an_audit_is_an_experiment_of_its_defenses_and_none_at_all():
    config = parse_config(expand_audit(changed()))
    experiment = config.experiments["audit"]
    assert experiment.defenses == ["none", "sign"]
    assert experiment.attacks == ["lti", "lti-map", "ig", "nearest"]
    assert experiment.page is not None and experiment.auxiliary.size == 160
    named = {"other": {"use": "none"}, "sign": {"use": "sign"}}
    config = parse_config(expand_audit(changed(defenses=named)))
    assert config.experiments["audit"].defenses == ["other", "sign"]


def test_other_sections_do_not_reach_into_an_audit():
    values = {**changed(), "results": "elsewhere", "defenses": {"sign": {"use": "nonsense"}}}
    expanded = expand_audit(values)
    assert expanded["results"] == "elsewhere"
    assert expanded["defenses"] == {"none": {"use": "none"}, "sign": {"use": "sign"}}


def test_settings_of_an_attack_replace_those_of_the_effort():
    attacks = {"lti": {}, "ig": {"iterations": 7}}
    config = parse_config(expand_audit(changed(attacks=attacks)))
    assert config.experiments["audit"].attacks == ["lti", "ig"]
    assert config.attacks["ig"] == {"use": "ig", "victims": 4, "iterations": 7}
    with pytest.raises(LTIError, match=r"attacks\.ig\.iterations"):
        parse_config(expand_audit(changed(attacks={"ig": {"iterations": 0}})))


def test_a_separate_auxiliary_set_is_all_that_the_attacker_has():
    data = {"use": "photos"}
    config = expand_audit(changed(data={"use": "cifar10"}, auxiliary={"size": 160, "data": data}))
    plan = Plan(parse_config(config))
    (auxiliary,) = plan.auxiliary_of("audit")
    assert plan.auxiliary[auxiliary].beta == 0
    assert plan.pools_of(auxiliary)[1][0] == "auxiliary-data"


@pytest.mark.parametrize("effort", ["quick", "standard", "thorough"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_effort_is_a_sound_configuration(effort, text, batch_size):
    own = {"model": {"use": "transformer3"}, "data": {"use": "python-docs"}} if text else {}
    Plan(parse_config(expand_audit(changed(effort=effort, batch_size=batch_size, **own))))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"model": {"use": "resnet"}}, "unknown name 'resnet' in fl_models"),
        ({"attacks": ["lti", "magic"]}, "audit.attacks: got 'magic'"),
        ({"attacks": ["lti-map"]}, "without 'lti'"),
        ({"defenses": {"none": {"use": "sign"}}}, "audit.defenses.none"),
        ({"defenses": {}}, "audit.defenses"),
        ({"defenses": {"a b": {"use": "sign"}}}, "got identifier 'a b'"),
        ({"defenses": {"p": {"use": "prune", "rate": 2}}}, "defenses.p.rate"),
        ({"auxiliary": {"size": 3}}, "audit.auxiliary.size"),
        ({"efort": "quick"}, "audit.efort: unknown key"),
        ({"effort": "huge"}, "audit.effort"),
        ({"page": {"examples": "all"}}, "audit.page.examples"),
        ({"utility": {"rounds": 0}}, "audit.utility.rounds"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(keys, problem):
    with pytest.raises(LTIError) as caught:
        parse_config(expand_audit(changed(**keys)))
    assert problem in str(caught.value)


# The checks before


def lines(values, folder):
    return {(line.what, line.mark): line.text for line in check_audit(values, folder=folder)}


def test_a_sound_audit_has_no_error(tmp_path):
    found = lines(changed(), tmp_path)
    assert not [what for what, mark in found if mark != "ok"]
    assert "7,690" in found["gradient", "ok"] or "coordinates" in found["gradient", "ok"]
    assert "cosine with the gradient 1.000" in found["defense none", "ok"]


def test_a_defense_without_a_likelihood_is_named(tmp_path):
    (tmp_path / "own_halved.py").write_text(HALVED)
    defenses = {
        "silent": {"use": "own_halved:Silent"},
        "stating": {"use": "own_halved:Stating"},
        "sign": {"use": "sign"},
    }
    found = lines(changed(defenses=defenses), tmp_path)
    told = {what: "states no likelihood" in text for (what, _), text in found.items()}
    assert told["defense silent"]
    assert not any(told[f"defense {name}"] for name in ("none", "sign", "stating"))


HALVED = """
class Silent:
    def defend(self, gradient):
        return gradient / 2

class Stating(Silent):
    def log_likelihood(self, observation, gradient):
        return -(observation - gradient / 2).square().sum()
"""


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [
        ("audit: {}\nresults: a\naudit: {}\n", 3, 1),
        ("audit:\n  defenses:\n    a: {use: sign}\n    a: {use: none}\n", 4, 3),
        ("audit:\n  attacks: [{lti: 1, lti: 2}]\n", 2, 2),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, line, first):
    path = tmp_path / "audit.yaml"
    path.write_text(text)
    with pytest.raises(LTIError, match=rf"audit\.yaml, line {line}: .*line {first} has already"):
        read_audit(path)


def test_keys_may_be_merged_and_replaced(tmp_path):
    path = tmp_path / "audit.yaml"
    path.write_text("a: &a {one: 1, two: 2}\nb: &b {<<: *a, two: 3}\naudit: {<<: *b, one: 4}\n")
    assert read_audit(path)["audit"] == {"one": 4, "two": 3}
    assert read_audit(path) == yaml.safe_load(path.read_text())


def test_what_attacks_see_of_text_is_counted(tmp_path):
    values = changed(model={"use": "transformer3"}, data={"use": "python-docs"})
    found = lines(values, tmp_path)
    assert not [what for what, mark in found if mark == "ERROR"], found
    seen, _, total = found["seen", "ok"].removesuffix(" coordinates").partition(" of ")
    # The first layer's three maps of tokens, 96 x 96 each, whole, and 24 directions of the others.
    assert 3 * 96 * 96 < int(seen.replace(",", "")) < int(total.replace(",", "")) / 3


def test_a_text_model_without_layers_on_sequences_is_refused(tmp_path):
    (tmp_path / "own_bag.py").write_text(BAG)
    save_tokenizer(tmp_path / "tokenizer.json")
    draw = generator()
    texts = [" ".join(draw.choice(WORDS, 6)) for _ in range(400)]
    table = pa.table({"text": texts, "label": draw.integers(0, 2, len(texts))})
    pq.write_table(table, tmp_path / "texts.parquet")
    values = changed(
        model={"use": "text-factory", "factory": "own_bag:classifier"},
        data={
            "use": "text-table",
            "folder": str(tmp_path),
            "tokenizer_file": str(tmp_path / "tokenizer.json"),
        },
    )
    found = lines(values, tmp_path)
    assert "found no linear layer that sees sequences" in found["seen", "ERROR"]


BAG = """
from types import SimpleNamespace
from torch import nn

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(100, 8), nn.Linear(8, 2)
    def get_input_embeddings(self):
        return self.table
    def forward(self, input_ids=None, inputs_embeds=None):
        x = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        return SimpleNamespace(logits=self.last(x.mean(dim=1)))

def classifier():
    return Bag()
"""


OWN = """
import torch
from torch import nn

def network(classes=10, scale=1.0):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))
    net[1].weight.data *= scale
    return net

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3072, 10)
    def forward(self, x):
        y = self.linear(x.flatten(1))
        return y if y.sum().item() > 0 else -y

def infinite(output, label):
    return output.sum() / 0

class Half:
    def defend(self, gradient):
        return gradient[: len(gradient) // 2]

class Nothing:
    def defend(self, gradient):
        return 0 * gradient
"""


@pytest.mark.parametrize(
    ("keys", "what", "problem"),
    [
        ({"model": {"factory": "MINE:network", "arguments": {"classes": 3}}}, "model", "(8, 3)"),
        ({"model": {"factory": "MINE:network", "side": 64}}, "model", "failed on (8, 3, 32, 32)"),
        ({"model": {"factory": "MINE:Branching"}}, "model", "torch.func can map"),
        (
            {"model": {"factory": "MINE:network", "loss_function": "MINE:infinite"}},
            "model",
            "one finite number",
        ),
        (
            {"model": {"factory": "MINE:network", "arguments": {"scale": 1e38}}},
            "model",
            "finite",
        ),
        ({"defenses": {"half": {"use": "MINE:Half"}}}, "defense half", "returned a tensor"),
        ({"victims": {"size": 10**6}}, "victims", "got 1,000,000 asked for"),
        ({"auxiliary": {"size": 10**6}}, "auxiliary", "got 1,000,000 asked for"),
    ],
)
def test_what_would_fail_later_fails_the_check(tmp_path, monkeypatch, keys, what, problem):
    name = f"checked_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    text = json.dumps(keys).replace("MINE", name)
    keys = json.loads(text)
    if "model" in keys:
        keys["model"] = {"use": "factory", **keys["model"]}
    found = lines(changed(**keys), tmp_path)
    errors = {key: text for (key, mark), text in found.items() if mark == "ERROR"}
    assert any(key.startswith(what) and problem in text for key, text in errors.items()), found


def test_an_untrained_network_without_calibration_is_warned_of(tmp_path):
    model = {
        "use": "factory",
        "factory": "torchvision.models:mobilenet_v3_small",
        "arguments": {"num_classes": 10},
    }
    assert "calibrate" in lines(changed(model=model), tmp_path)["gradient", "WARNING"]
    calibrated = lines(changed(model={**model, "calibrate": 64}), tmp_path)
    assert ("gradient", "WARNING") not in calibrated


# The result as a file


def some_result():
    examples = (Example(3, b"\x89PNG", b"\x89PNG2", 0.5), Example(4, ("a", " b"), ("a", " c"), 0.1))
    found = DefenseFinding(
        defense="sign",
        settings={"use": "sign"},
        source="somewhere",
        level="exposed",
        verdict="All.",
        best="LTI",
        attacks=(attack(0.5, low=math.nan, high=math.nan),),
        examples=examples,
        worst=examples[:1],
    )
    frame = pd.DataFrame(
        {"defense": ["sign"], "attack": ["LTI"], "metric": ["psnr"], "mean": [20.5]}
    )
    return AuditResult(
        title="T",
        modality="image",
        metric="psnr",
        floor={"psnr": 10.0},
        ceiling={"psnr": math.inf},
        defenses=(found,),
        facts={"Model": "m"},
        settings={"a": 1},
        digests={},
        versions={},
        frame=frame,
    )


def test_a_result_survives_its_file(tmp_path):
    result = some_result()
    write_result(tmp_path / "audit.json", result)
    read = read_result(tmp_path / "audit.json")
    assert read.ceiling["psnr"] == math.inf
    (before,), (after,) = result.defenses, read.defenses
    assert math.isnan(after.attacks[0].recovered.low)
    assert after.examples == before.examples
    assert dataclasses.replace(after, attacks=()) == dataclasses.replace(before, attacks=())
    pd.testing.assert_frame_equal(read.frame, result.frame)


@pytest.mark.parametrize("content", ["[]", "{}", '{"defenses": 3, "frame": ""}'])
def test_another_file_is_no_result(tmp_path, content):
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(LTIError, match=r"audit\.json"):
        read_result(tmp_path / "audit.json")


# The command


def test_the_template_is_complete_but_for_the_users_own_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["audit", "init"])
    assert done.exit_code == 0, done.output
    values = yaml.safe_load((tmp_path / "audit.yaml").read_text())
    experiment = parse_config(expand_audit(values)).experiments["audit"]
    assert experiment.defenses == ["none", "gauss", "sign", "prune"]
    again = CliRunner().invoke(app, ["audit", "init"])
    assert isinstance(again.exception, LTIError) and "there already" in str(again.exception)


@pytest.mark.parametrize("content", ["defenses: {}", "- a", "a: [", ""])
def test_a_file_without_an_audit_is_refused(tmp_path, content):
    path = tmp_path / "audit.yaml"
    path.write_text(content)
    done = CliRunner().invoke(app, ["audit", "check", str(path)])
    assert isinstance(done.exception, LTIError) and "lti audit init" in str(done.exception)


def test_check_exits_with_two_and_names_the_file(tmp_path):
    path = tmp_path / "audit.yaml"
    path.write_text(yaml.safe_dump(changed(victims={"size": 10**6})))
    done = subprocess.run(
        [sys.executable, "-m", "lti", "audit", "check", str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 2
    assert "ERROR   victims" in done.stdout and "audit.yaml: 1 of the checks failed" in done.stderr


DEFENSE = """
class Shrink:
    def __init__(self, factor=0.5):
        self.factor = factor

    def defend(self, gradient):
        return self.factor * gradient
"""


@pytest.mark.timeout(600)
def test_a_real_audit_of_ones_own_model_and_defense(tmp_path):
    """From the file to the page, and nothing to do when it is asked for again."""
    (tmp_path / "own_parts.py").write_text(OWN + DEFENSE)
    values = changed(
        model={"use": "factory", "factory": "own_parts:network"},
        defenses={"shrink": {"use": "own_parts:Shrink", "factor": 0.25}},
        attacks=["lti", "ig", "nearest"],
        inverter={"use": "tuned", "steps": 10, "hidden": 16, "components": 16, "whitening": 0},
        projection={"use": "leading", "coordinates": 512},
        utility={"rounds": 2, "clients": 4, "clients_per_round": 2, "evaluations": 1,
                 "learning_rates": [0.001]},
        page={"examples": "omit"},
    )  # fmt: skip
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(values))
    run = [sys.executable, "-m", "lti", "audit", "audit.yaml", "--cores", "2"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "results/experiments/audit"
    result = read_result(folder / "audit.json")
    assert [finding.defense for finding in result.defenses] == ["none", "shrink"]
    assert {attack.attack for attack in result.defenses[1].attacks} == {"LTI", "IG", "nearest"}
    # A gradient that is shrunk says as much: both see the same, up to the draws of training.
    nearest = [
        attack.recovered
        for finding in result.defenses
        for attack in finding.attacks
        if attack.attack == "nearest"
    ]
    assert nearest[0] == nearest[1]
    assert all(finding.utility is not None for finding in result.defenses)
    assert f"shrink: {result.defenses[1].level}." in done.stdout
    assert "</html>" in (folder / "audit.html").read_text()
    table = pd.read_csv(folder / "audit.csv", keep_default_na=False)
    assert set(table["defense"]) == {"none", "shrink"} and "recovered_worst" in set(table["metric"])

    again = subprocess.run(
        [*run, "--dry-run"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "Nothing to be done" in again.stdout + again.stderr

    # Another defense under the same name is computed again, and nothing of the first.
    (tmp_path / "own_parts.py").write_text(OWN + DEFENSE.replace("0.5", "0.75"))
    again = subprocess.run(
        [*run, "--dry-run"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "compute_gradients" in again.stdout + again.stderr


# The examples and their page


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in EXAMPLES.glob("*/audit.yaml")))
def test_examples_are_sound_audits(folder, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / folder)
    values = yaml.safe_load((EXAMPLES / folder / "audit.yaml").read_text())
    plan = Plan(parse_config(expand_audit(values)))
    assert len(list(plan.cells("audit"))) >= 6


def test_the_tutorial_shows_the_files_of_its_examples():
    page = (REPOSITORY / "docs/audit-tutorial.md").read_text()
    for name in (
        *("own_defense/my_defense.py", "own_defense/audit.yaml"),
        *("image_folder/clients.py", "text_classifier_cola/clients.py"),
    ):
        assert (EXAMPLES / name).read_text().strip() in page
    # Of the others' files, a part.
    for name in ("image_folder", "text_classifier_cola"):
        part = (EXAMPLES / name / "audit.yaml").read_text().partition("  model:\n")[2]
        assert "  model:\n" + part.partition("  defenses:\n")[0] in page


# From Python


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3072, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Halved:
    def defend(self, gradient):
        return gradient / 2


@pytest.mark.filterwarnings("ignore")
def test_objects_become_files_of_the_same_workflow(tmp_path, monkeypatch):
    """What runs is what the file says: the network as a program, the class by its name."""
    network, folder = Plain(), tmp_path / "mine"
    asked = {}

    def run(path, *, folder, cores):
        asked.update(path=path, folder=folder, cores=cores)
        found = {line.what: line for line in check_audit(read_audit(path), folder=path.parent)}
        assert not [line for line in found.values() if line.mark == "ERROR"], found
        assert "30,730 coordinates" in found["gradient"].text
        assert "cosine with the gradient 1.000" in found["defense mine"].text
        write_result(folder / "results/experiments/audit/audit.json", some_result())

    monkeypatch.setattr("lti.auditing.workflow.run_workflow", run)
    result = lti.audit(
        model=network,
        data={"use": "photos"},
        defense={"signs": "sign", "mine": Halved},
        folder=folder,
        cores=1,
        auxiliary={"size": 160},
        victims={"size": 8},
    )
    assert result.title == "T" and asked["cores"] == "1" and asked["folder"] == folder
    assert network.training
    written = yaml.safe_load((folder / "audit.yaml").read_text())["audit"]
    assert written["defenses"] == {
        "signs": {"use": "sign"},
        "mine": {"use": f"{__name__}:Halved"},
    }


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"model": lambda: None}, "function or class at the top of a module"),
        ({"defense": {"d": type("D", (), {"__module__": "__main__"})}}, "of module __main__"),
        ({"victims": {"size": 0}}, r"audit\.victims\.size"),
        ({"efort": "quick"}, r"audit\.efort: unknown key"),
    ],
)
def test_what_other_processes_cannot_have_is_refused_before_anything_is_written(
    tmp_path, keys, problem
):
    values = {"model": "lenet", "data": {"use": "photos"}, "defense": "sign", **keys}
    with pytest.raises(LTIError, match=problem):
        lti.audit(folder=tmp_path / "mine", **values)
    assert not (tmp_path / "mine" / "audit.yaml").exists()
