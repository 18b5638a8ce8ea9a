"""The documentation's site: whole, linked, and served without asking another server."""

from __future__ import annotations

import importlib.util
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import griffe
import pytest
import yaml
from mkdocstrings import Inventory

from lti.config import SECTIONS, parse_config
from lti.metrics import METRICS
from lti.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def load(name: str) -> Any:
    """Return a module of ``docs/``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def entries(nav: list | dict | str) -> Iterator[str]:
    """Yield the pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for part in nav.values():
            yield from entries(part)
    else:
        for part in nav:
            yield from entries(part)


def test_every_page_is_in_the_navigation() -> None:
    named = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    pages = {page for page in pages if not re.fullmatch(r"results/[^/]+/[^/]+\.md", page)}
    pages |= set(load("site_pages").PAGES.values())
    missing = sorted(pages - set(named))
    assert not missing, f"name under `nav` in mkdocs.yml: {missing}"
    gone = sorted(set(named) - pages)
    assert not gone, f"take out of `nav` in mkdocs.yml: {gone}"
    assert len(named) == len(set(named))


def test_every_result_is_linked() -> None:
    text = (DOCS / "results" / "README.md").read_text()
    folders = {path.parent.name for path in (DOCS / "results").glob("*/summary.md")}
    assert len(folders) > 10
    missing = sorted(name for name in folders if f"]({name}/summary.md)" not in text)
    assert not missing, f"link from docs/results/README.md: {missing}"


def test_every_registered_entry_is_in_the_reference(site: Path) -> None:
    with (site / "objects.inv").open("rb") as file:
        objects = Inventory.parse_sphinx(file)
    for axis, registry in {**SECTIONS, "metrics": METRICS}.items():
        for name in registry:
            entry = registry[name]
            if entry.__module__.split(".")[0] != "lti":
                continue
            path = f"{entry.__module__}.{entry.__qualname__}"
            assert path in objects, f"{axis} {name}: let a page of docs/reference show {path}"
            page = (site / objects[path].uri.partition("#")[0] / "index.html").read_text()
            assert re.search(rf"Registered as <\w[^>]*><code>{name}</code>", page), path
            if axis != "metrics":  # these have no settings
                assert f'href="../../configuration/#{axis}-use-{name}"' in page, path


def test_roles_of_docstrings_become_links(site: Path) -> None:
    reference = [path.read_text() for path in (site / "reference").glob("*/index.html")]
    assert len(reference) > 8
    assert not re.search(r":(attr|class|data|exc|func|meth|mod):|``", "".join(reference))
    page = (site / "reference" / "defenses" / "index.html").read_text()
    link = r'<a [^>]*href="([^"]+)"><code>lti\.attacks\.matching</code></a>'
    assert re.findall(link, page) == ["../attacks/#lti.attacks.matching"]


def documented(docstring: str) -> str:
    """Return what becomes of the docstring of a class ``A`` with a method ``m``."""
    code = f'class A:\n    """{docstring}"""\n\n    def m(self):\n        """Do."""\n'
    extensions = griffe.load_extensions(load("site_docstrings").Docstrings())
    with griffe.temporary_visited_package("pkg", {"a.py": code}, extensions=extensions) as package:
        return package["a.A"].docstring.value


@pytest.mark.parametrize(
    ("role", "target"),
    [(":meth:`m`", "pkg.a.A.m"), (":class:`A`", "pkg.a.A"), (":mod:`pkg.a`", "pkg.a")],
)
def test_a_role_is_looked_up_from_the_inside_out(role: str, target: str) -> None:
    (name,) = re.findall("`(.+)`", role)
    expected = f'See <autoref identifier="{target}" optional><code>{name}</code></autoref>.'
    assert documented(f"See {role}.") == expected


def test_a_role_that_names_nothing_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert documented("See :func:`gone`.") == "See `gone`."
    assert "pkg.a.A: `gone` in its docstring is no object" in caplog.text


class Requests(HTMLParser):
    """What a browser asks for by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in {"canonical", "next", "prev"}:
            return
        for key in {"a": (), "link": ("href",)}.get(tag, ("src", "srcset", "data", "poster")):
            self.addresses.append(given.get(key) or "")


def test_pages_ask_no_other_server(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if "results" not in path.parts]
    assert len(pages) > 20
    asked = Requests()
    for page in pages:
        asked.feed(page.read_text())
    assert any(address.endswith(".css") for address in asked.addresses)
    assert any(address.endswith(".js") for address in asked.addresses)
    elsewhere = {address for address in asked.addresses if re.match(r"([a-z]+:)?//", address)}
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    elsewhere |= set(re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^'\")]+)", styles))
    assert not elsewhere


def test_home_and_changelog_are_the_repository_s(site: Path) -> None:
    links = load("site_pages").site_links
    assert links("[a](docs/a.md#b) [c](CHANGELOG.md) [d](https://x.org/docs/)") == (
        "[a](a.md#b) [c](changelog.md) [d](https://x.org/docs/)"
    )
    for source, page in (("README.md", "index.html"), ("CHANGELOG.md", "changelog/index.html")):
        (title,) = re.findall(r"^# (.+)$", (ROOT / source).read_text(), re.M)
        assert f">{title}<" in (site / page).read_text()
    assert (site / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_tutorial_s_question_can_be_computed() -> None:
    text = (DOCS / "tutorial.md").read_text()
    (added,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    for section, given in yaml.safe_load(added).items():
        values[section] = {**values[section], **given}
    plan = Plan(parse_config(values))
    cells, before = plan.cells("mine"), plan.cells("quickstart_images")
    assert {(cell.defense, cell.attack) for cell in set(cells) - set(before)} == {
        ("gauss-weak", "lti-quick@photos-n8000-s0"),
        ("gauss-weak", "ig-quick"),
    }
    # With the weaker noise the inverter learns from the gradients that are there already.
    assert plan.stored_defense("gauss-weak", 1) == plan.stored_defense("gauss", 1) == "undefended"
