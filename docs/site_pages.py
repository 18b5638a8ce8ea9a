"""Add to the site what lies outside of ``docs/``: the README as its home, the changelog, a licence.

Each has one source. Its links, relative to the repository's root, become the site's.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

__all__ = ["on_files", "site_links"]

PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
OTHERS = ("CITATION.cff", "LICENSE")


def site_links(text: str) -> str:
    """Return a page of the repository's root with the links that it has on the site."""

    def link(match: re.Match[str]) -> str:
        name, _, anchor = match[1].partition("#")
        name = PAGES.get(name, name.removeprefix("docs/"))
        return f"]({name}#{anchor})" if anchor else f"]({name})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and files; called by MkDocs."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = site_links((root / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    for source in OTHERS:
        files.append(File.generated(config, source, abs_src_path=str(root / source)))
    return files
