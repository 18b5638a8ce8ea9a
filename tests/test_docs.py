"""The documentation says what the code does: examples run, pages do not drift."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest
import torch
import yaml

import lti
from lti.attacks import ATTACKS
from lti.attacks.likelihood import likelihood_of
from lti.attacks.lti import LearningToInvert
from lti.config import RULES, SECTIONS, parse_config
from lti.data import Samples
from lti.data.selection import write_selection
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import FL_MODELS, FLTask, save_fl_model
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import GradientStore
from lti.modules import source_files
from lti.plan import Plan
from lti.seeding import numpy_generator, torch_generator
from lti.stages.gradients import observe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "pip install uv && uv run snakemake --cores all quickstart",
    "pip install uv && uv run --extra test pytest",
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def config() -> dict:
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's package, installed as far as Python's import system can tell."""
    page = ROOT / "docs" / "adding-a-defense.md"
    _, code = blocks(page, "python")
    (toml,) = blocks(page, "toml")
    module = tmp_path / "my_defenses.py"
    module.write_text(code)
    points = tomllib.loads(toml)["project"]["entry-points"]
    info = tmp_path / "my_defenses-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-defenses\nVersion: 0.1\n")
    lines = [
        line
        for group, entries in points.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name in DEFENSES:  # a module is imported, and registers, only once
        assert DEFENSES[name]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(DEFENSES, "_points", None)
    monkeypatch.setattr(DEFENSES, "_entries", dict(DEFENSES._entries))
    return module


def example_config() -> dict:
    _, text = blocks(ROOT / "docs" / "adding-a-defense.md", "yaml")
    given, values = yaml.safe_load(text), config()
    for section, entries in given.items():
        values[section] = {**values[section], **entries}
    return values


def test_example_defense_is_found_and_configured(example: Path) -> None:
    plan = Plan(parse_config(example_config()))
    defense = plan.defenses["clip-gauss"]
    assert defense.canonical() == {
        "use": "clip-gauss",
        "clip": 1.0,
        "noise": 0.01,
        "defense_at": "sample",
    }
    assert type(defense).source == "Abadi et al. 2016, algorithm 1"
    assert plan.stored_defense("clip-gauss", 1) == "clip-gauss"
    assert {cell.defense for cell in plan.cells("clipped")} == {"none", "clip-gauss"}
    # Editing the example's module reruns its cells.
    assert str(example) in source_files("gradients", (DEFENSES, "clip-gauss"))
    # A wrong value is refused before anything runs.
    wrong = example_config()
    wrong["defenses"]["clip-gauss"]["clip"] = -1.0
    with pytest.raises(LTIError, match=r"defenses\.clip-gauss\.clip: got -1\.0; .*greater than 0"):
        parse_config(wrong)


def test_example_defense_defends_gradients(example: Path) -> None:
    defense = Plan(parse_config(example_config())).defenses["clip-gauss"]
    model = FL_MODELS.parse({"use": "lenet"})
    gradients = per_sample_gradient_function(model, model.build(FLTask(10)))
    image = torch.rand(3, 3, 32, 32, generator=torch_generator(0, "test"))
    gradient = gradients(image, torch.tensor([1, 2, 3])) * torch.tensor([[1e-3], [1.0], [10.0]])
    clipped = defense.deterministic(gradient)
    norm = gradient.norm(dim=1)
    assert (norm < 1).any() and (norm > 1).any()
    torch.testing.assert_close(clipped.norm(dim=1), norm.clamp_max(1.0))
    torch.testing.assert_close(clipped[norm < 1], gradient[norm < 1])
    sent = defense.defend(gradient, generator=torch_generator(0, "noise"))
    assert sent.dtype == torch.float32 and sent.shape == gradient.shape
    again = defense.defend(gradient, generator=torch_generator(0, "noise"))
    assert torch.equal(sent, again)
    assert float((sent - clipped).std()) == pytest.approx(0.01, rel=0.05)
    # A bin that sums c coordinates gets c times the variance.
    counts = torch.full((gradient.shape[1],), 4)
    summed = defense.randomise(
        clipped.clone(), generator=torch_generator(0, "noise"), counts=counts
    )
    torch.testing.assert_close(summed - clipped, 2 * (sent - clipped), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("at", ["sample", "batch"])
def test_example_defense_acts_on_samples_or_on_the_mean(
    example: Path, tmp_path: Path, at: Literal["sample", "batch"]
) -> None:
    values = example_config()
    values["defenses"]["clip-gauss"] |= {"defense_at": at, "noise": 0.0}
    values["experiments"]["clipped"]["batch_sizes"] = [1, 2]
    plan = Plan(parse_config(values))
    stored = {"sample": "clip-gauss", "batch": "undefended"}[at]
    assert plan.stored_defense("clip-gauss", 1) == "clip-gauss"
    assert plan.stored_defense("clip-gauss", 2) == stored

    victims, fl_model = tmp_path / "victims.safetensors", tmp_path / "lenet.safetensors"
    draw = numpy_generator(0, "test")
    image = draw.integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    label = draw.integers(10, size=4)
    facts = {"dataset": "test", "part": "victims", "seed": 0, "size": 4, "class_names": []}
    write_selection(victims, Samples(image, label, np.arange(4)), metadata=facts)
    model = FL_MODELS.parse({"use": "lenet"})
    save_fl_model(fl_model, tmp_path / "lenet.json", model, FLTask(10))
    output, manifest = tmp_path / "observed.zarr", tmp_path / "observed.manifest.json"
    observe(
        victims=victims,
        fl_model=fl_model,
        defense=plan.settings("defenses", "clip-gauss"),
        batch_size=2,
        output=output,
        manifest=manifest,
    )
    gradients = per_sample_gradient_function(model, model.build(FLTask(10)))
    each = gradients(torch.from_numpy(image) / 255, torch.from_numpy(label))
    each = each.unflatten(0, (2, 2))

    def clip(gradient: torch.Tensor) -> torch.Tensor:
        return gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1.0)

    expected = clip(each).mean(dim=1) if at == "sample" else clip(each.mean(dim=1))
    assert not torch.allclose(clip(each).mean(dim=1), clip(each.mean(dim=1)), atol=1e-4)
    received = GradientStore.open(output, manifest).rows(0, 2)
    torch.testing.assert_close(received, expected, atol=1e-6, rtol=1e-4)


def test_example_class_defends_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page says: a module in the working folder, named in the configuration."""
    page = ROOT / "docs" / "adding-a-defense.md"
    code, text = blocks(page, "python")[0], blocks(page, "yaml")[0]
    assert len([line for line in code.splitlines() if line]) <= 15
    (tmp_path / "my_defense.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(DEFENSES, "_entries", dict(DEFENSES._entries))
    given, values = yaml.safe_load(text), config()
    for section, entries in given.items():
        values[section] = {**values[section], **entries}
    defense = Plan(parse_config(values)).defenses["noisy-subset"]
    gradient = torch.full((1, 40_000), 5.0)
    sent = defense.before_projection(gradient, seeds=[3])
    share = float((sent != 0).float().mean())
    assert share == pytest.approx(0.2, abs=5 * 0.4 / 200)
    assert float(sent[sent != 0].std()) == pytest.approx(0.01, rel=0.05)


def test_defenses_page_has_every_defense() -> None:
    page = (ROOT / "docs" / "defenses.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (\w+) \| [^|]+ \| [^|]+ \|$", page, re.M)
    own = [name for name in DEFENSES if DEFENSES[name].__module__.startswith("lti.")]
    assert sorted(name for name, _ in rows) == sorted(own)
    width = torch.ones(4)
    for name, states in rows:
        if name != "sequence":
            likelihood = likelihood_of(DEFENSES[name](), batch_size=1, width=width)
            assert (likelihood is not None) == (states == "yes"), name


def generator() -> ModuleType:
    path = ROOT / "docs" / "generate_configuration.py"
    spec = importlib.util.spec_from_file_location("generate_configuration", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_page_follows_the_schema() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == generator().render(), "run: python docs/generate_configuration.py"


def test_configuration_page_names_every_key() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    given = config()
    for section in given:
        assert f"| `{section}` |" in page
    for section in SECTIONS:
        for settings in given.get(section, {}).values():
            assert f"`{section}`: `use: {settings['use']}`" in page
            overridden = [key for entry in settings.get("overrides", []) for key in entry]
            for key in {*settings, *overridden} - {"use", "when"}:
                assert f"| `{key}` |" in page


def test_readme_has_the_two_commands_and_the_picture_below_the_first() -> None:
    text = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"```bash\n{command}\n```" in text
    after = text.split(COMMANDS[0])[1].removeprefix("\n```").lstrip()
    assert after.startswith("![") and "(docs/images/quickstart.png)" in after.splitlines()[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: {target}"


def commands() -> list[tuple[str, list[str]]]:
    """Every Snakemake command of the pages, with the options as a shell would split them."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                _, called, options = line.partition("uv run snakemake")
                # A placeholder stands for something of the reader's own.
                options = options.replace("<plugin>", "local").replace("<folder>", "none")
                if called:
                    found.append((f"{page.name}: {line}", shlex.split(options, comments=True)))
    return found


def test_commands_of_the_pages_are_understood() -> None:
    """An option that takes several values must not swallow the target."""
    from snakemake.cli import parse_args

    known = {*RULES, "mine", *example_config()["experiments"]}
    known |= {*config()["experiments"], *config()["reports"]}
    assert len(commands()) > 15
    for where, options in commands():
        targets = parse_args(options)[1].targets
        if "--unlock" not in options:
            assert targets, where
        for target in targets:
            assert target in known or target.startswith("results/"), where


def test_chain_page_has_the_paths_of_the_rules() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    named = re.findall(r"^\| `\w+` \| `([^`]+)` \|", page, re.M)
    code = (ROOT / "workflow" / "rules" / "common.smk").read_text()
    (attacked,) = re.findall(r'^ATTACKED = "(.+)"$', code, re.M)
    patterns = re.findall(r'f"\{RESULTS\}/(.+)"', code.replace("{ATTACKED}", attacked))
    paths = {re.sub(r"\{+(\w+)\}+", r"<\1>", pattern) for pattern in patterns}
    experiments = [path for path in named if path.startswith("experiments/<experiment>/")]
    reports = [path for path in named if path.startswith("reports/<report>/")]
    assert len(experiments) == 5 and len(reports) == 1 and len(named) == 21
    assert set(named) - set(experiments) - set(reports) <= paths


def test_attacks_page_has_the_defaults() -> None:
    page = (ROOT / "docs" / "attacks.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, re.M)
    assert {attack for attack, _, _ in rows} == {"ig", "gi-gip", "tag"}
    for attack, setting, default in rows:
        assert ATTACKS[attack].model_fields[setting].default == float(default), (attack, setting)


def test_targets_in_the_pages_exist() -> None:
    """Every artifact that a page names by its path is one of the configuration's."""
    plan = Plan(parse_config(config()))
    known = set()
    for experiment in plan.config.experiments:
        for c in plan.cells(experiment):
            on = {"fl_model": c.fl_model, "batch_size": c.batch_size, "defense": c.defense}
            batch = f"b{c.batch_size}/{c.defense}"
            cell = f"{c.victims}/{c.fl_model}/{batch}/{c.attack}"
            known.add(f"results/metrics/{cell}.csv")
            known.add(f"results/reconstructions/{cell}.safetensors")
            name, _, auxiliary = c.attack.partition("@")
            attack = plan.attack_on(name, **on)
            if isinstance(attack, LearningToInvert):
                trained = f"{c.fl_model}/{attack.projection}/{batch}/{attack.inverter}"
                known.add(f"results/inverters/{auxiliary}/{trained}.safetensors")
    named = re.findall(
        r"results/(?:metrics|reconstructions|inverters)/\w[^\s\"`]+\.(?:csv|safetensors)",
        "".join(page.read_text() for page in PAGES),
    )
    assert len(named) >= 5
    assert set(named) <= known


def test_citation_and_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] == lti.__version__
    assert citation["license"] == project["license"]
    assert (
        f"## [Unreleased] - {lti.__version__}" in (ROOT / "CHANGELOG.md").read_text()
        or f"## [{lti.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_credited_photographs_exist() -> None:
    from lti.data.photos import PHOTOGRAPHS

    assert {"china", "flower"} <= {photograph.name for photograph in PHOTOGRAPHS}
