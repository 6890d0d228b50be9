"""The manual as a site: every text is a page, every option in the reference, and it loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import knn_cli
from knn_cli.cli.app import COMMANDS, load
from tests.helpers.documents import TOP, documents
from tools.manual import hooks

GENERATED = {hooks.COMMANDS_PAGE, hooks.PYTHON_PAGE}
# Texts that are no pages: what is said of the example there is in the tutorial, and cards that are templates.
NO_PAGES = {
    "examples/README.md",
    *(f"tools/shipped_models/card-{name}.md" for name in ("language", "segmentation", "voice")),
}


def listed(nav: Any) -> Iterator[str]:
    """The pages of a list of mkdocs."""
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else [nav]:
        yield from listed(entry) if isinstance(entry, (dict, list)) else [entry]


def test_every_text_is_a_page_in_the_list() -> None:
    pages = [*listed(yaml.safe_load((TOP / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])]
    assert len(pages) == len(set(pages)) and set(pages) >= GENERATED
    sources = {hooks.source_of(page) for page in set(pages) - GENERATED}
    assert sources == set(documents()) - NO_PAGES
    assert all(hooks.page_of(hooks.source_of(page)) == page for page in set(pages) - GENERATED)


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](docs/tuning.md)", "[a](tuning.md)"),
        ("index.md", "![a](docs/images/player.png)", "![a](images/player.png)"),
        ("examples/dialects.md", "[a](../docs/tuning.md#what)", "[a](../tuning.md#what)"),
        ("models.md", "[a](../models/voice/README.md)", "[a](models/voice.md)"),
        ("models/voice.md", "[a](../../README.md)", "[a](../index.md)"),
        ("index.md", "[a file](LICENSE)", "a file"),
        ("index.md", "[a](https://example.org/x.md) [b](#there)", "[a](https://example.org/x.md) [b](#there)"),
    ],
)
def test_links_lead_within_the_site(page: str, text: str, expected: str) -> None:
    assert hooks.links(text, page) == expected


def test_the_reference_has_every_option() -> None:
    text = hooks.commands_page()
    sections = re.split(r"^## knn ", text, flags=re.MULTILINE)[1:]
    assert [section.split()[0] for section in sections] == [*COMMANDS]
    for name, section in zip(COMMANDS, sections, strict=True):
        shown = [param for param in load(name).params if param.param_type_name == "option" and not param.hidden]
        flags = {flag for param in shown for flag in param.opts}
        assert flags <= set(re.findall(r"`(--?[\w-]+)`", section)), name
        assert "[/" not in section  # no markup of rich


def test_the_reference_has_every_public_name() -> None:
    text = hooks.python_page()
    assert text.count("\n::: knn_cli.") == len(set(knn_cli.__all__) - {"__version__"})


class Loaded(HTMLParser):
    """Addresses that a page loads by itself: scripts, styles, pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        rel = known.get("rel") or ""
        if tag in ("script", "img", "iframe", "source", "audio", "video") and known.get("src"):
            self.found.append(str(known["src"]))
        if tag == "link" and re.search("stylesheet|icon|preload|preconnect|prefetch", rel):
            self.found.append(str(known["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("material") is None or find_spec("mkdocstrings") is None:
        pytest.skip("needs mkdocs-material (pip install '.[docs]')")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 25
    for page in pages:
        parser = Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        for address in parser.found:
            assert not re.match(r"([a-z]+:)?//", address), f"{page.name}: {address}"
            assert page.name == "404.html" or (page.parent / address.partition("?")[0]).exists(), (
                f"{page.name}: {address}"
            )
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_the_site_shows_signatures_and_docstrings(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "num_speakers" in text and "diarize" in text and "ScoreTable" in text
