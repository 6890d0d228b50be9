"""Every block of every document runs, or says why not; all are parsed, and links lead somewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest

from knn_cli.cli.app import COMMANDS, load
from knn_cli.cli.console import console
from knn_cli.core.toml_files import tomllib
from tests.helpers.command import done
from tests.helpers.documents import KNOWN, SHELL, TOP, Block, blocks, documents, knn_arguments, lay, run

DOCUMENTS = documents()
# Run by a test of their own, which compares numbers as well.
ELSEWHERE = {"docs/from-knn-proj.md": "tests/test_from_knn_proj.py"}
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def name_of(block: Block) -> str:
    return f"{block.document}:{block.line}"


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_blocks_are_parsed(block: Block) -> None:
    """The program itself parses each of its command lines, those that are not run too."""
    assert block.language in KNOWN
    if block.unrun == "run in the copy":
        return  # by tests/test_contributing.py, with commands of its own
    if block.language == "python" and ", after: " not in block.unrun:  # a line of a file is no program
        compile(block.text, name_of(block), "exec")
    if block.language == "toml":
        tomllib.loads(block.text)
    for command in block.commands() if block.language in SHELL else ():
        for arguments in knn_arguments(command):
            assert arguments[0] in COMMANDS, command
            try:
                load(arguments[0]).make_context(arguments[0], arguments[1:])
            except click.ClickException as error:
                pytest.fail(f"{command}: {error.format_message()}")
            finally:
                console.reset()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_stand_in_blocks(document: str) -> None:
    """Indented command lines would be neither parsed nor run."""
    text = re.sub(r"^```.*?^```", "", (TOP / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^ {4,}(?:\$ )?(?:knn|pip|python|torchrun|docker) .*", text, flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in addresses."""
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", (TOP / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (TOP / document).parent / path if path else TOP / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_short(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", (TOP / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    ", "[", "!["))]
    assert not [line for line in lines if len(line) > 120 and "](http" not in line and "<http" not in line]


# What a page continues with: files that commands of other pages make.
MADE = ("corpus.h5", "emb.h5", "split.tsv", "my-dialects")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, example: Path) -> Path:
    """The recordings, and in `made` what the first steps of examples/dialects.md make of them."""
    root = tmp_path_factory.mktemp("recordings")
    lay(root, example)
    made = root / "made"
    made.mkdir()
    done("convert", root / "recordings", made / "corpus.h5")
    done("embed", made / "corpus.h5", "-o", made / "emb.h5", "--model", "language")
    done("split", made / "emb.h5", "-o", made / "split.tsv")
    done("train", made / "emb.h5", "-o", made / "my-dialects", "--split", made / "split.tsv")
    return root


def nothing(root: Path) -> None:
    pass


def with_dialects(root: Path) -> None:
    for name in MADE:
        (root / "made" / name).rename(root / name)


def with_corrections(root: Path) -> None:
    (root / "meeting.rttm").unlink()  # the page writes its own
    (root / "meeting.corrections.json").write_text(
        '{"knn": "corrections", "version": 1, "recording": "meeting", "edits": '
        '[{"edit": "rename", "speaker": "SPEAKER_02", "to": "Eva"}]}'
    )


def with_elan(root: Path) -> None:
    done("diarize", "tapes/monday.flac", "--num-speakers", "2", "-o", "monday.eaf")


def with_scores(root: Path) -> None:
    with_dialects(root)
    rng = np.random.default_rng(0)
    for name in ("dev_a", "dev_b", "test_a", "test_b"):
        lines = ["name\ttruth\tcs\tsk\tpl"]
        for row in range(60):
            label = ("cs", "sk", "pl")[row % 3]
            scores = rng.standard_normal(3) + 1.5 * (np.asarray(["cs", "sk", "pl"]) == label)
            lines.append("\t".join([f"r{row}", label, *(f"{score:.3f}" for score in scores)]))
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    shutil.copytree(root / "tapes", root / "talks")
    done("convert", "by-speaker", "voices-sound.h5", "--labels", "group/speaker/file")
    done("embed", "voices-sound.h5", "-o", "voices.h5")
    shutil.copy("voices.h5", "mine.h5")
    shutil.copy("voices.h5", "others.h5")
    (root / "trials.txt").write_text("1/ines-0/0 1/ines-0/1 target\n1/ines-0/0 2/otto-0/0 nontarget\n")


def with_corpus(root: Path) -> None:
    with_dialects(root)
    (root / "recipe.toml").write_text(
        '[encoder]\nname = "fbank-tdnn"\nchannels = 16\nhidden = 16\n\n[pooling]\nname = "mhfa"\nheads = 2\n'
        'compression = 8\ndimension = 8\n\n[head]\nname = "softmax"\n\n[data]\nlabel = "group"\nseconds = 1.0\n'
        'held_out = 0.2\n\n[optimizer]\nname = "adamw"\nrate = 1e-3\n\n[schedule]\nepochs = 1\n\n[loop]\nbatch = 8\n'
    )


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "README.md": nothing,
    "docs/archives.md": with_elan,
    "docs/diarization.md": with_corrections,
    "docs/evaluation.md": with_scores,
    "docs/formats.md": with_dialects,
    "docs/languages.md": with_dialects,
    "docs/training.md": with_corpus,
}
RUN = sorted(
    {block.document for block in BLOCKS if not block.unrun and block.language in (*SHELL, "python")} - {*ELSEWHERE}
)


@pytest.fixture
def folder(tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(recordings, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", RUN)
def test_a_document_runs_as_it_stands(document: str, folder: Path) -> None:
    LAYOUTS.get(document, nothing)(folder)
    for block in blocks(document):
        if not block.unrun:
            run(block)
