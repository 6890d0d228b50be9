"""Hooks of mkdocs: texts outside docs/ become pages, the reference is generated, and links lead within the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
# Page of the site -> text of the repository outside docs/.
TEXTS = {
    "index.md": "README.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples/dialects.md": "examples/dialects.md",
    "models/voice.md": "models/voice/README.md",
    "models/segmentation.md": "models/segmentation/README.md",
    "models/language.md": "models/language/README.md",
    "tools/shipped_models.md": "tools/shipped_models/README.md",
}
COMMANDS_PAGE, PYTHON_PAGE = "reference/commands.md", "reference/python.md"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def commands_page() -> str:
    """The reference of all commands: usage, what it does, its options by panel, examples."""
    from knn_cli.cli.app import COMMANDS, load

    lines = ["# Commands", "", "What `knn COMMAND --help` says, of all commands.", ""]
    for name, (_, summary) in COMMANDS.items():
        command = load(name)
        lines += [f"## knn {name}", "", summary, ""]
        lines += [paragraph + "\n" for paragraph in (command.help or "").split("\n\n")[1:]]
        panels: dict[str, list[Any]] = {}
        for param in command.params:
            if not getattr(param, "hidden", False):
                panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(param)
        for panel, params in panels.items():
            lines += [f"**{panel}**", "", "| | |", "|---|---|", *map(_row, params), ""]
        if command.epilog:
            text = re.sub(r"\[/?[a-z ]+\]", "", command.epilog).replace("\n\n", "\n")
            lines += ["```text", *(line.strip() for line in text.splitlines() if line.strip()), "```", ""]
    return "\n".join(lines)


def _row(param: Any) -> str:
    """A row of a table of options: flags and what they take, and the help."""
    flags = ", ".join(f"`{flag}`" for flag in param.opts) if param.param_type_name == "option" else ""
    taken = param.metavar or ("" if getattr(param, "is_flag", False) else param.human_readable_name)
    name = " ".join(part for part in (flags, f"*{taken}*" if taken else "") if part)
    help = re.sub(r"\[/?[a-z ]+\]", "", getattr(param, "help", None) or "").replace("|", r"\|")
    return f"| {name.replace('|', chr(92) + '|')} | {help} |"


def python_page() -> str:
    """The reference of the public names of `knn_cli`, of their docstrings."""
    import knn_cli

    lines = ["# Python API", "", "Public names of `knn_cli`; everything else may change without notice.", ""]
    for name in sorted(set(knn_cli.__all__) - {"__version__"}):
        public = getattr(knn_cli, name)
        lines += [f"::: {public.__module__}.{public.__qualname__}", ""]
    return "\n".join(lines)


def source_of(page: str) -> str:
    """The text of the repository that a page of the site is."""
    return TEXTS.get(page, f"docs/{page}")


def page_of(text: str) -> str | None:
    """The page of the site that a file of the repository is, None for files that are no part of it."""
    known = {source: page for page, source in TEXTS.items()}
    if text in known:
        return known[text]
    return text.removeprefix("docs/") if text.startswith("docs/") else None


def links(markdown: str, page: str) -> str:
    """Turn links between files of the repository into links within the site; others become their text."""
    home = posixpath.dirname(source_of(page))

    def turned(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        if re.match(r"[a-z]+:|#", link):
            return match[0]
        path, hash, anchor = link.partition("#")
        target = page_of(posixpath.normpath(posixpath.join(home, path)))
        if target is None:
            return text
        return f"{mark}[{text}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{hash}{anchor})"

    return _LINK.sub(turned, markdown)


def pages() -> Iterator[tuple[str, str]]:
    """(page, Markdown) of what docs/ does not hold."""
    for page, text in TEXTS.items():
        yield page, (TOP / text).read_text(encoding="utf-8")
    yield COMMANDS_PAGE, commands_page()
    yield PYTHON_PAGE, python_page()


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that docs/ does not hold: mkdocs asks for the files of the site."""
    from mkdocs.structure.files import File

    for page, text in pages():
        files.append(File.generated(config, page, content=text))
    return files


def on_post_page(output: str, **_: Any) -> str:
    """Leave out the script that the theme would load from elsewhere, for a search without a server."""
    return re.sub(r'<script src="?https://[^" >]*iframe-worker[^" >]*"?></script>', "", output)


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages that belong to no text, such as the one for addresses that lead nowhere."""
    return on_post_page(output_content)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page, as mkdocs asks for its text."""
    return links(markdown, page.file.src_uri)
