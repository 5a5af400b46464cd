"""The documentation site: links and anchors lead somewhere, every page is in the navigation, nothing comes from the
network.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from tests.support.processes import ROOT

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "link": "href",
}  # what a browser fetches by itself


class Resources(HTMLParser):
    """Collects the addresses that a browser loads for a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(values.get(LOADED[tag]) or "")


def build_site(docs: Path, site: Path) -> None:
    """`mkdocs build --strict` with the project's settings."""
    with (ROOT / "mkdocs.yml").open("rb") as file:
        build(load_config(file, docs_dir=str(docs), site_dir=str(site), strict=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build_site(ROOT / "docs", folder)
    return folder


def test_the_site_builds_strictly_and_loads_nothing_from_the_network(site: Path) -> None:
    pages = list(site.glob("**/*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("**/*.md")))
    for page in pages:
        addresses = Resources(page.read_text(encoding="utf-8")).addresses
        assert addresses
        assert [address for address in addresses if urlsplit(address).netloc] == [], page
    for style in site.glob("**/*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == [], style


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.md", "# Home\n\n[nowhere](nowhere.md)\n"),
        ("index.md", "# Home\n\n[nowhere](recipe.md#nowhere)\n"),
        ("new-page.md", "# A page that is not in the navigation\n"),
    ],
)
def test_a_link_that_leads_nowhere_and_a_page_without_a_place_are_found(name: str, text: str, tmp_path: Path) -> None:
    with (ROOT / "mkdocs.yml").open("rb") as file:
        nav = ["index.md", "recipe.md"]
        docs = tmp_path / "docs"
        docs.mkdir()
        for page in nav:
            (docs / page).write_text("# Page\n", encoding="utf-8")
        (docs / name).write_text(text, encoding="utf-8")
        config = load_config(file, docs_dir=str(docs), site_dir=str(tmp_path / "site"), strict=True, nav=nav)
    with pytest.raises(Abort, match="1 warning"):
        build(config)


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not urlsplit(target).netloc]
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        headings = (
            re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
        )
        assert anchor in ["", *(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)], (
            target
        )
