"""The documentation says what the code does: examples run, pages do not drift."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import lti
from lti.config import parse_config
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import FL_MODELS
from lti.gradients.per_sample import per_sample_gradient_function
from lti.modules import source_files
from lti.plan import Plan
from lti.seeding import torch_generator

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
    (code,) = blocks(page, "python")
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
    yield module
    sys.modules.pop("my_defenses", None)


def example_config() -> dict:
    (text,) = blocks(ROOT / "docs" / "adding-a-defense.md", "yaml")
    given, values = yaml.safe_load(text), config()
    for section, entries in given.items():
        values[section] = {**values[section], **entries}
    return values


def test_example_defense_is_found_and_configured(example: Path) -> None:
    plan = Plan(parse_config(example_config()))
    defense = plan.defenses["clip-gauss"]
    assert defense.canonical() == {"use": "clip-gauss", "clip": 1.0, "noise": 0.01}
    assert type(defense).source == "Abadi et al. 2016, algorithm 1"
    assert plan.stored_defense("clip-gauss") == "clip-gauss"
    assert {cell.defense for cell in plan.cells("mine")} == {"none", "clip-gauss"}
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
    gradients = per_sample_gradient_function(model, model.build(10))
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
    for section, entries in config().items():
        assert f"`{section}`" in page
        if section in ("results", "experiments", "store"):
            continue
        for settings in entries.values():
            assert f"`{section}`: `use: {settings['use']}`" in page
            for key in settings:
                assert key == "use" or f"| `{key}` |" in page


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


def test_targets_in_the_pages_exist() -> None:
    """Every cell that a page names by its path is one of the configuration's."""
    plan = Plan(parse_config(config()))
    cells = {
        f"results/metrics/{c.victims}/{c.fl_model}/b{c.batch_size}/{c.defense}/{c.attack}.csv"
        for experiment in plan.config.experiments
        for c in plan.cells(experiment)
    }
    named = [
        path
        for page in PAGES
        for block in blocks(page, "bash")
        for path in re.findall(r"results/metrics/\S+\.csv", block)
    ]
    assert len(named) >= 3
    assert set(named) <= cells


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
