"""A user's own FL models, and the selection that suits any network."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import read_tensors, write_tensors
from lti.fl_models import FL_MODELS, FLTask, attacked, load_fl_model, save_fl_model
from lti.fl_models.batch_norm import set_statistics
from lti.fl_models.program import _is_plain
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.projections import PROJECTIONS

IMAGES = FLTask(classes=3)
TEXTS = FLTask(classes=2, vocabulary=50, length=6, padding=0)
SOURCE = """
import torch
from torch import nn

def network(classes=3, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * 15 * 15, classes),
    )

def failing():
    raise RuntimeError("no such thing")

def no_network():
    return 3

def doubled(output, label):
    return 2 * nn.functional.cross_entropy(output, label)

def classifier(layers=1):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification
    config = DistilBertConfig(vocab_size=50, dim=16, n_heads=2, n_layers=layers, hidden_dim=32,
                              num_labels=2, max_position_embeddings=8)
    return DistilBertForSequenceClassification(config)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a user's module that Python finds, another one in every test."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LTI_USER_OBJECTS", f"{name}:network,{name}:doubled")
    return name


def made(mine, **settings):
    return FL_MODELS.parse({"use": "factory", "factory": f"{mine}:network", **settings})


def images(n=4, seed=0):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_a_factory_model_has_the_gradients_of_the_network_behind_its_normalisation(mine):
    model = made(mine, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.5])
    network = model.build(IMAGES)
    x, label = images(), torch.tensor([0, 1, 2, 0])
    rows = per_sample_gradient_function(model, network)(x, label)

    plain = network.network
    normal = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.25, 0.5]
    ).view(3, 1, 1)
    for i in range(4):
        loss = nn.functional.cross_entropy(plain(normal[i : i + 1]), label[i : i + 1])
        expected = torch.autograd.grad(loss, list(plain.parameters()))
        torch.testing.assert_close(rows[i], torch.cat([g.flatten() for g in expected]))


def test_the_seed_says_the_weights_and_moves_no_other_draw(mine):
    first, again, other = (made(mine, seed=seed).build(IMAGES) for seed in (0, 0, 1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made(mine).build(IMAGES)
    assert torch.equal(torch.rand(3), expected)
    weights = [network.network[0].weight for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_loss_of_the_user_is_what_is_differentiated(mine):
    label = torch.tensor([0, 1])
    rows = [
        per_sample_gradient_function(model, model.build(IMAGES))(images(2), label)
        for model in (made(mine), made(mine, loss_function=f"{mine}:doubled"))
    ]
    torch.testing.assert_close(2 * rows[0], rows[1])


def test_images_are_interpolated_to_the_networks_side(mine):
    model = made(mine, side=64, arguments={"width": 2})
    with pytest.raises(RuntimeError):  # its linear layer is for 32 x 32
        model.build(IMAGES)(images())
    network = made(mine, side=32).build(IMAGES)
    torch.testing.assert_close(
        network(torch.full((1, 3, 8, 8), 0.5)), network(torch.full((1, 3, 32, 32), 0.5))
    )


def test_calibration_gives_the_statistics_of_the_samples(mine):
    network = made(mine).build(IMAGES)
    x = images(256)
    seen = network.network[0](x)
    assert set_statistics(network, x) == 1
    norm = network.network[1]
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-2, atol=1e-4)
    assert not any(module.training for module in network.modules())
    assert norm.momentum == 0.1


def test_no_block_of_calibration_has_a_single_sample():
    """A layer that sees one pixel has no variance of one sample."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    assert set_statistics(network, images(257)) == 1
    assert network[1].running_var.isfinite().all()


def test_calibration_without_batchnorm_is_refused(mine, tmp_path):
    model = FL_MODELS.parse({"use": "factory", "factory": f"{__name__}:Hard", "calibrate": 8})
    with pytest.raises(LTIError, match="no BatchNorm layer"):
        save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, IMAGES, x=images(8))


def test_a_model_is_stored_and_read_again_with_its_statistics(mine, tmp_path):
    model, path = made(mine, calibrate=32), tmp_path / "m.safetensors"
    card = save_fl_model(path, tmp_path / "m.json", model, IMAGES, x=images(32))
    assert card["calibrated"] == {"layers": 1, "samples": 32}
    read, network = load_fl_model(path)
    assert read == model
    expected = model.build(IMAGES)
    set_statistics(expected, images(32))
    torch.testing.assert_close(network(images()), expected(images()))
    assert json.loads((tmp_path / "m.json").read_text())["fl_model"]["factory"] == f"{mine}:network"


def test_a_file_runs_no_code_that_the_configuration_does_not_name(mine, tmp_path, monkeypatch):
    """A hostile model's card could name any function of any module, with arguments."""
    path, marker = tmp_path / "m.safetensors", tmp_path / "made"
    save_fl_model(path, tmp_path / "m.json", made(mine), IMAGES)
    tensors, card = read_tensors(path)
    hostile = {"use": "factory", "factory": "os:mkdir", "arguments": {"path": str(marker)}}
    write_tensors(path, tensors, {**card, "fl_model": hostile})
    with pytest.raises(LTIError, match=r"'os:mkdir', which is not run.*LTI_USER_OBJECTS=os:mkdir"):
        load_fl_model(path)
    assert not marker.exists()
    monkeypatch.setenv("LTI_USER_OBJECTS", "os:mkdir")  # a user who says so runs it
    with pytest.raises(LTIError, match="returned NoneType"):
        load_fl_model(path)
    assert marker.exists()


def test_a_file_imports_no_class_that_the_configuration_does_not_name(tmp_path, monkeypatch):
    name, marker = f"evil_{tmp_path.name.replace('-', '_')}", tmp_path / "made"
    (tmp_path / f"{name}.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("LTI_USER_OBJECTS", raising=False)
    lenet = FL_MODELS.parse({"use": "lenet"})
    path = tmp_path / "m.safetensors"
    save_fl_model(path, tmp_path / "m.json", lenet, IMAGES)
    tensors, card = read_tensors(path)
    write_tensors(path, tensors, {**card, "fl_model": {"use": f"{name}:X"}})
    with pytest.raises(LTIError, match="which is not run"):
        load_fl_model(path)
    for registry in (DEFENSES, PROJECTIONS):
        for stored in ({"use": f"{name}:X"}, {"use": "a", "of": [{"use": f"{name}:X"}]}):
            with pytest.raises(LTIError, match="which is not run"):
                registry.parse_stored(stored, where="a file")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"factory": "nowhere_at_all:f"}, "there is no module 'nowhere_at_all'"),
        ({"factory": "MINE:absent"}, "has no 'absent'; it has"),
        ({"factory": "MINE:failing"}, "failed with RuntimeError: no such thing"),
        ({"factory": "MINE:no_network"}, "returned int; expected a torch.nn.Module"),
        ({"factory": "MINE:network", "arguments": {"depth": 1}}, "unexpected keyword argument"),
    ],
)
def test_what_cannot_be_made_is_named(mine, settings, problem):
    settings = {**settings, "factory": settings["factory"].replace("MINE", mine)}
    model = FL_MODELS.parse({"use": "factory", **settings})
    with pytest.raises(LTIError, match=problem):
        model.build(IMAGES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"factory": "os.system('true'):x"},
        {"factory": "no_colon"},
        {"factory": "mine:network", "std": [1, 0, 1]},
        {"factory": "mine:network", "side": 0},
        {"factory": "mine:network", "unknown": 1},
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_imported(wrong):
    with pytest.raises(LTIError, match=r"fl_models"):
        FL_MODELS.parse({"use": "factory", **wrong}, where="fl_models.model")


# Saved programs


def saved(tmp_path, kind):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(900, 3)
    ).eval()
    path = tmp_path / f"{kind}.pt2"
    if kind == "export":
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(network, (images(2),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    else:
        script = (
            torch.jit.script(network) if kind == "script" else torch.jit.trace(network, images(2))
        )
        torch.jit.save(script, path)
    return network, path


@pytest.mark.parametrize("kind", ["export", "script", "trace"])
@pytest.mark.filterwarnings("ignore")
def test_a_saved_program_has_the_gradients_of_the_network(tmp_path, kind):
    network, path = saved(tmp_path, kind)
    model = FL_MODELS.parse({"use": "program", "file": str(path)})
    built = model.build(IMAGES)
    names = [name.removeprefix("network.") for name in attacked(model, built)]
    assert names == [name for name, _ in network.named_parameters()]
    x, label = images(3), torch.tensor([2, 0, 1])
    rows = per_sample_gradient_function(model, built)(x, label)
    loss = nn.functional.cross_entropy(network(x[1:2]), label[1:2])
    expected = torch.autograd.grad(loss, list(network.parameters()))
    torch.testing.assert_close(rows[1], torch.cat([g.flatten() for g in expected]))
    assert model.files()[0] == str(path)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.filterwarnings("ignore")
def test_a_program_with_a_pickle_bomb_is_refused_and_not_run(tmp_path):
    _, path = saved(tmp_path, "export")
    marker, bomb = tmp_path / "run", io.BytesIO()
    torch.save(Bomb(marker), bomb)
    hostile = tmp_path / "hostile.pt2"
    replaced = 0
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".json") and b'"use_pickle": false' in content:
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif "/weights/" in name or "sample_inputs" in name:
                content, replaced = bomb.getvalue(), replaced + 1
            new.writestr(name, content)
    assert replaced
    with pytest.raises(LTIError, match="Save the network anew"):
        FL_MODELS.parse({"use": "program", "file": str(hostile)}).build(IMAGES)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_program_whose_sizes_are_code_is_refused_and_not_run(tmp_path):
    """torch hands the text of sizes to sympy, which evaluates it."""
    _, path = saved(tmp_path, "export")
    marker, hostile = tmp_path / "run", tmp_path / "hostile.pt2"
    code = f"__import__('os').mkdir('{marker}')"
    replaced = 0
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("model.json"):
                program = json.loads(content)
                pending = [program]
                while pending:
                    value = pending.pop()
                    if isinstance(value, dict):
                        if "expr_str" in value:
                            value["expr_str"], replaced = code, replaced + 1
                        pending += value.values()
                    elif isinstance(value, list):
                        pending += value
                content = json.dumps(program).encode()
            new.writestr(name, content)
    assert replaced
    with pytest.raises(LTIError, match="which is not evaluated"):
        FL_MODELS.parse({"use": "program", "file": str(hostile)}).build(IMAGES)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Symbol('s0', positive=True, integer=True)", True),
        ("4*Symbol('s0') + 1", True),
        ("FloorDiv(s0, 2)", True),
        ("Max(1, s0)**2", True),
        ("__import__('os').system('true')", False),
        ("().__class__", False),
        ("Symbol('s0').name", False),
        ("open('x')", False),
        ("[1 for x in y]", False),
        ("lambda: 1", False),
        ("Symbol('os.system(1)')", False),
        ("1 +", False),
    ],
)
def test_sizes_are_symbols_numbers_and_arithmetic(text, plain):
    assert _is_plain(text) is plain


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + 18 * b"\0"])
def test_a_file_that_is_no_program_is_refused(tmp_path, content):
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(LTIError, match=r"model\.pt2.*torch\.export\.save"):
        FL_MODELS.parse({"use": "program", "file": str(path)}).build(IMAGES)


def test_machine_code_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/a.so", b"\x7fELF")
    with pytest.raises(LTIError, match="machine code"):
        FL_MODELS.parse({"use": "program", "file": str(path)}).build(IMAGES)


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(LTIError, match="no such file"):
        FL_MODELS.parse({"use": "program", "file": str(tmp_path / "none.pt2")}).build(IMAGES)


class Hard(nn.Module):
    """Has an operation without a second derivative, as MobileNetV3 does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3072, 3)

    def forward(self, x):
        return nn.functional.hardsigmoid(self.linear(x.flatten(1)))


@pytest.mark.parametrize("kind", ["factory", "export"])
@pytest.mark.filterwarnings("ignore")
def test_gradients_have_derivatives_where_torchs_own_have_none(kind, tmp_path, monkeypatch):
    torch.manual_seed(0)
    plain = Hard().eval()
    if kind == "export":
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(plain, (images(2),), dynamic_shapes=({0: batch},))
        torch.export.save(program, tmp_path / "hard.pt2")
        model = FL_MODELS.parse({"use": "program", "file": str(tmp_path / "hard.pt2")})
    else:
        model = FL_MODELS.parse({"use": "factory", "factory": f"{__name__}:Hard"})
    network = model.build(IMAGES)
    if kind == "factory":
        network.network.load_state_dict(plain.state_dict())
    x, label = images(3).requires_grad_(), torch.tensor([0, 1, 2])
    torch.testing.assert_close(network(x), plain(x))
    per_sample_gradient_function(model, network)(x, label).square().sum().backward()
    moved, found = [], x.grad
    for step in (1e-2, -1e-2):  # against finite differences of what torch itself computes
        shifted = (x.detach() + step * found / found.norm()).requires_grad_(False)
        total = 0.0
        for row, one in zip(shifted, label, strict=True):
            loss = nn.functional.cross_entropy(plain(row[None]), one[None])
            total += sum(g.square().sum() for g in torch.autograd.grad(loss, plain.parameters()))
        moved.append(float(total))
    assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(float(found.norm()), rel=1e-2)


# Text


def test_a_text_classifier_takes_tokens_and_their_embeddings(mine):
    model = FL_MODELS.parse({"use": "text-factory", "factory": f"{mine}:classifier"})
    network = model.build(TEXTS)
    tokens = torch.randint(50, (3, 6), generator=torch.Generator().manual_seed(0))
    table = model.token_embedding(network)
    torch.testing.assert_close(network(tokens), network(table[tokens]))
    expected = network.network(input_ids=tokens).logits
    torch.testing.assert_close(network(tokens), expected)


def test_the_table_of_tokens_is_seen_only_where_it_is_named(mine):
    settings = {"use": "text-factory", "factory": f"{mine}:classifier"}
    name = "network.distilbert.embeddings.word_embeddings.weight"
    for patterns, seen in ((["*"], False), (["*", name], True)):
        model = FL_MODELS.parse({**settings, "attacked_parameters": patterns})
        assert (name in attacked(model, model.build(TEXTS))) is seen


def test_a_text_classifiers_gradient_can_be_matched(mine):
    """Its gradient is differentiable once more, whatever attention the network uses."""
    model = FL_MODELS.parse({"use": "text-factory", "factory": f"{mine}:classifier"})
    network = model.build(TEXTS)
    gradients = per_sample_gradient_function(model, network)
    embedded = torch.randn(2, 6, 16, requires_grad=True)
    gradients(embedded, torch.tensor([0, 1])).square().sum().backward()
    assert embedded.grad is not None and embedded.grad.abs().sum() > 0


def test_a_text_classifier_for_too_few_tokens_is_refused(mine):
    model = FL_MODELS.parse({"use": "text-factory", "factory": f"{mine}:classifier"})
    with pytest.raises(LTIError, match="network for 50 tokens; the data set has 60"):
        model.build(FLTask(classes=2, vocabulary=60, length=6))


def test_a_network_without_that_interface_is_refused(mine):
    model = FL_MODELS.parse({"use": "text-factory", "factory": f"{mine}:network"})
    with pytest.raises(LTIError, match="get_input_embeddings"):
        model.build(TEXTS)


# Projection `leading`

SHAPES = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6
)


@given(SHAPES, st.integers(1, 300), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_leading_keeps_vectors_then_first_layers_and_no_more_than_asked(shapes, coordinates, seed):
    layout = ParameterLayout(tuple(f"p{i}" for i in range(len(shapes))), tuple(shapes))
    projection = PROJECTIONS.parse({"use": "leading", "coordinates": coordinates, "seed": seed})
    kept = projection.layout(layout)
    assert kept.total == min(coordinates, layout.total)
    whole = np.arange(1, layout.total + 1, dtype=np.float32)
    row = projection.project(torch.from_numpy(whole)[None], layout=layout)[0].numpy()
    # Values say where they come from: each is one coordinate, once, in order.
    assert np.isin(row, whole).all() and (np.diff(row) > 0).all()
    order = sorted(range(len(shapes)), key=lambda i: len(shapes[i]) > 1)
    left = coordinates
    for i in order:
        place = layout.slices[f"p{i}"]
        count = int(((row > place.start) & (row <= place.stop)).sum())
        assert count == min(left, place.stop - place.start)
        left -= count


def test_leading_leaves_out_what_is_named():
    layout = ParameterLayout(("table.weight", "a.bias", "a.weight"), ((9, 2), (3,), (3, 4)))
    settings = {"use": "leading", "coordinates": 10, "without": ["table*", "absent*"]}
    kept = PROJECTIONS.parse(settings).layout(layout)
    assert kept.names == ("a.bias", "a.weight") and kept.sizes == (3, 7)


def test_own_files_are_part_of_what_a_model_is(mine, tmp_path):
    model = made(mine, loss_function=f"{mine}:doubled")
    assert [Path(file).name for file in model.files()] == [f"{mine}.py"]
    assert FL_MODELS.parse({"use": "lenet"}).files() == ()
