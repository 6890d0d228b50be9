"""The contract of all commands: one flag, one meaning, one help text; help that fits a screen; checks of options."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import pytest

from knn_cli.cli import app, diarization_options, timeline
from knn_cli.cli.app import load
from knn_cli.cli.settings import read_settings, setting
from knn_cli.cli.tunable_settings import TunableSettings
from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.diarization.presets import PRESETS
from knn_cli.formats.span_formats import TIMELINE_FORMATS, TURN_FORMATS
from knn_cli.networks import bundle
from tests.helpers.command import done, knn

ORDER = [
    "convert",
    "embed",
    "models",
    "info",
    "split",
    "train",
    "evaluate",
    "classify",
    "timeline",
    "fuse",
    "verify",
    "diarize",
    "tune",
]
COMMANDS = {name: load(name) for name in ORDER}
CALLBACKS = {name: getattr(import_module(f"knn_cli.cli.{name}"), name) for name in ORDER}
MAX_HELP_LINES = {"diarize": 84}  # of the others 72

# Flags that differ from command to command, and in what: each command writes its own kind of output, `timeline` and
# `diarize` know different formats (which stand below the options), `--split` divides recordings where models are
# trained and a speaker in `diarize`, `split --folds` draws folds into a file and `fuse --folds` measures on such,
# `fuse --keys` also of trials, `verify --speakers` takes stores only, and the switches of `knn` are listed once.
DIFFERENT: dict[str, set[str]] = {
    "--out": {"metavar", "help"},
    "--format": {"type"},
    "--split": {"metavar", "help", "type", "multiple"},
    "--folds": {"help"},
    "--keys": {"help"},
    "--speakers": {"metavar", "help"},
}


def options(command: Any) -> dict[str, Any]:
    """Flag -> option of a command."""
    return {flag: param for param in command.params if param.param_type_name == "option" for flag in param.opts}


def contract(command: str, option: Any) -> dict[str, Any]:
    """What must be the same wherever a flag appears; whether it may be left out does not count as its type."""
    kind = get_type_hints(CALLBACKS[command])[option.name]
    return {
        "metavar": option.metavar,
        "help": option.help,
        "type": {one for one in get_args(kind) or (kind,) if one is not NoneType},
        "flags": tuple(option.opts + option.secondary_opts),
        "switch": option.is_flag,
        "multiple": option.multiple,
    }


def test_commands_are_sorted_by_workflow() -> None:
    assert list(app.COMMANDS) == ORDER


@pytest.mark.parametrize("name", ORDER)
def test_the_list_of_commands_has_the_first_sentences_of_their_help(name: str) -> None:
    assert COMMANDS[name].help.split("\n\n")[0] == app.COMMANDS[name][1]


def test_a_flag_means_the_same_everywhere() -> None:
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, command in COMMANDS.items():
        for flag, option in options(command).items():
            other, wanted = first.setdefault(flag, (name, contract(name, option)))
            found = contract(name, option)
            ignored = DIFFERENT.get(max(option.opts, key=len), set())
            differences = {key for key in wanted if wanted[key] != found[key]} - ignored
            assert not differences, f"{flag} of {other} and {name}: {differences}"
    assert set(DIFFERENT) <= set(first)


@pytest.mark.parametrize("name", ORDER)
def test_every_option_is_described_with_its_unit(name: str) -> None:
    for flag, option in options(COMMANDS[name]).items():
        if "--help" in option.opts:
            continue
        assert option.help and option.help[0].isupper() and option.help.endswith("."), flag
        assert option.metavar == "" if option.is_flag else re.fullmatch(r"[A-Z=]+", option.metavar), flag
        assert option.hidden or option.rich_help_panel, flag
    assert not {"--vad", "--rttm"} & set(options(COMMANDS[name])) or name == "diarize"


@pytest.mark.parametrize("name", [*ORDER, ""])
def test_help_fits_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = done(*([name] if name else []), "--help").stdout
    lines = text.splitlines()
    assert len(lines) <= MAX_HELP_LINES.get(name, 72), len(lines)
    assert max(map(len, lines)) <= 80 and "…" not in text
    if name:
        examples = re.findall(rf"^ +(knn {name}\b.*)$", text, flags=re.MULTILINE)
        assert "Examples:" in text and 2 <= len(examples) <= 3


@pytest.mark.parametrize("name", ORDER)
def test_examples_have_only_options_that_there_are(name: str) -> None:
    for words in re.findall(r"^knn (.*)$", COMMANDS[name].epilog, flags=re.MULTILINE):
        command, *rest = words.split()
        assert command == name
        assert {word for word in rest if re.match(r"--?[a-z]", word)} <= set(options(COMMANDS[name])), words


def test_choices_are_those_of_the_registries() -> None:
    assert {method.value for method in diarization_options.ClusteringMethod} == set(CLUSTERERS.names())
    tunable = {name: set(get_args(get_args(kind)[0])) for name, kind in get_type_hints(TunableSettings).items()}
    assert tunable["preset"] == set(PRESETS) and tunable["clusterer"] == set(CLUSTERERS.names())
    assert {format.value for format in diarization_options.TurnFormat} == set(TURN_FORMATS)
    assert {format.value for format in timeline.TimelineFormat} == set(TIMELINE_FORMATS)


def test_near_names_are_suggested() -> None:
    assert "Did you mean 'diarize'?" in " ".join(knn("diarise").output.split())
    assert "--num-speakers" in knn("diarize", "a.wav", "--num-speaker", "2").output


def complete(words: str) -> list[str]:
    """What bash is offered for the last word of a command line."""
    environment = {"_KNN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    script = "from knn_cli.cli.app import app; app(prog_name='knn')"
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return ran.stdout.split()


def test_the_shell_completes() -> None:
    assert complete("knn ti") == ["timeline"]
    assert set(complete("knn classify --model ")) == set(bundle.available())
    assert complete("knn diarize --segmentation si") == ["silero"]
    assert complete("knn diarize --clusterer s") == ["spectral"]
    assert complete("knn diarize --preset p") == ["pyannote-3.1", "pyannote-community-1"]
    assert "--num-speakers" in complete("knn diarize --num")


@dataclass(frozen=True)
class _Settings:
    kind: Literal["soft", "hard"] | None = setting(None, "soft or hard")
    share: float = setting(0.5, "a share")
    count: int | None = setting(None, "a number")
    fast: bool = setting(False, "whether")
    name: str = setting("", "a name")


def test_settings_by_hand() -> None:
    assert read_settings(_Settings, None) == _Settings()
    found = read_settings(_Settings, ["kind=hard", "share = 0.25", "count=3", "fast=yes", "name=a=b"])
    assert found == _Settings("hard", 0.25, 3, True, "a=b")


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["shar=1"], "There is no setting 'shar'. Did you mean share?"),
        (["other=1"], "There are kind, share, count, fast, name."),
        (["share"], "--set share has no value."),
        (["share=much"], "share cannot be 'much'. It is a number."),
        (["count=1.5"], "It is a whole number."),
        (["kind=medium"], "It is one of soft, hard."),
        (["fast=maybe"], "It is true or false."),
        (["count=1", "count=2"], "given twice"),
    ],
)
def test_settings_that_cannot_be(pairs: list[str], sentence: str) -> None:
    with pytest.raises(KnnError) as error:
        read_settings(_Settings, pairs)
    assert sentence in str(error.value)


def test_log_file_keeps_what_stderr_says(tmp_path: Path) -> None:
    log = tmp_path / "knn.log"
    log.write_text("earlier\n")
    (tmp_path / "bad.wav").write_text("no sound")
    result = knn("-q", "--log-file", log, "classify", tmp_path / "bad.wav")
    assert result.exit_code == 1 and "is not audio" in result.stderr and "Model " not in result.stderr
    first, *lines = log.read_text().splitlines()
    assert first == "earlier" and all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert lines[0].split()[2] == "knn" and "Model language@" in lines[1] and "is not audio" in lines[2]
    nowhere = knn("--log-file", tmp_path / "none" / "knn.log", "info")
    assert nowhere.exit_code == 1 and "No such file" in nowhere.stderr


TOP = Path(__file__).resolve().parents[2]
TEXTS = sorted(
    path
    for pattern in ("README.md", "docs/*.md", "examples/**/*.*", "models/*/*.md", "tools/**/*.*", "knn_cli/**/*.py")
    for path in TOP.glob(pattern)
    if path.suffix in {".md", ".py", ".toml", ".sh", ".sbatch"} and "__pycache__" not in path.parts
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(TOP)))
def test_command_lines_in_texts_are_true(path: Path) -> None:
    """Every `knn COMMAND ...` in documents, examples and messages names a command, and options that it has."""
    for line in path.read_text(encoding="utf-8").splitlines():
        for command, rest in re.findall(r"(?:^\s*(?:\$ )?|`|&& |-m )knn(?:_cli)? ([a-z]+)\b([^`|;#&]*)", line):
            assert command in COMMANDS, line
            flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", rest))
            assert flags <= set(options(COMMANDS[command])) | {"--help", "-h"}, line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["diarize", "x.wav", "--clusterer", "vbxx"],
            "none of ahc, spectral, vbx, hdbscan. Did you mean vbx?",
        ),
        (["classify", "x.wav", "--device", "gpu"], "'gpu' is none of auto, cpu, cuda, mps."),
        (["classify", "x.wav", "--top", "many"], "--top"),
        (["classify", "x.wav", "--model", "langauge"], "x.wav does not exist."),
        (["embed", "x.wav", "y.wav"], "x.wav does not exist."),
        (["timeline", "x.wav"], "x.wav does not exist."),
        (["diarize", "x.wav"], "x.wav does not exist."),
        (["info", "langauge"], "langauge"),
    ],
)
def test_what_was_meant_and_what_is_missing(arguments: list[str], said: str) -> None:
    """In the program's words, and inputs before models."""
    shown = knn(*arguments).stderr
    flat = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    assert said in flat and "Value error" not in flat and "Model " not in flat


def test_a_model_that_is_nearly_named(tmp_path: Path) -> None:
    (tmp_path / "x.wav").touch()
    shutil.copytree(bundle.find("tiny-test").folder, tmp_path / "my-dialects")
    beside = knn("classify", tmp_path / "x.wav", "--model", tmp_path / "my-dialect").stderr
    assert f"Did you mean {tmp_path / 'my-dialects'}? Models here:" in beside
    assert "Did you mean language? Models here:" in knn("classify", tmp_path / "x.wav", "--model", "langauge").stderr
