"""The blocks of documents: found, parsed, and run in a folder that is laid out as they say.

A block between lines of ``` is run unless the line before it says why not: `<!-- not run: the network -->`. Blocks that
the README marks for `.ci/run` (`<!-- ci:run -->`) are run there, in a fresh environment.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from pyannote.core import Segment

from knn_cli.core.values import Floats
from knn_cli.formats.rttm import read_rttm, write_rttm
from tests.helpers.command import done

TOP = Path(__file__).resolve().parents[2]
SHELL = ("sh", "console")
KNOWN = {*SHELL, "python", "toml", "text"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run|ci|file|run in the copy)(?:: ?(.+?))? -->\n+$")
RATE = 16000
MEETING_SECONDS = 28.0  # of the example meeting: all four speakers have spoken
DIALECTS = {"1-1": "ines", "2-3": "otto", "3-2": "paul"}  # dialect -> whose voice in the example meeting it has


@dataclass(frozen=True)
class Block:
    """A block of a document.

    Attributes
    ----------
    document : str
        Its path below the checkout.
    line : int
    language : str
    text : str
    unrun : str
        Why it is not run here, "" if it is.
    """

    document: str
    line: int
    language: str
    text: str
    unrun: str

    def commands(self) -> Iterator[str]:
        """Its command lines, without prompts, comments and what they print."""
        lines = self.text.replace("\\\n", " ").splitlines()
        for line in lines:
            if self.language == "console" and not line.startswith("$ "):
                continue
            if words := shlex.split(line.removeprefix("$ "), comments=True):
                yield shlex.join(words) if not set("|&<>") & set(line) else line.removeprefix("$ ").split("   #")[0]


def documents() -> list[str]:
    """The texts of the checkout: those of folders that git does not know are none."""
    found = [path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "models/*/*.md", "tools/**/*.md")
             for path in TOP.glob(pattern)]  # fmt: skip
    return sorted(path.relative_to(TOP).as_posix() for path in found)


def blocks(document: str) -> list[Block]:
    text = (TOP / document).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(document, line, match[1], match[2], (mark[2] or mark[1]) if mark else ""))
    return found


def steps(command: str) -> list[list[str]]:
    """The words of the parts of a command line, between `&&` and `|`, without where their output goes."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in ("&&", "|"):
            found.append([])
        elif word in (">", "<"):
            next(words)
        else:
            found[-1].append(word)
    return found


def knn_arguments(command: str) -> Iterator[list[str]]:
    """What `knn` gets in a command line, also as `python -m knn_cli` and behind `torchrun`."""
    for words in steps(command):
        for start in (["knn"], ["-m", "knn_cli"]):
            for place in range(len(words)):
                if words[place : place + len(start)] == start and (place == 0 or start[0] == "-m"):
                    yield words[place + len(start) :]


def run(block: Block) -> None:
    """Run a block in the current folder; each command must succeed."""
    if block.language == "python":
        exec(compile(block.text, f"{block.document}:{block.line}", "exec"), {})
    for command in block.commands() if block.language in SHELL else ():
        for words in steps(command):
            if words[0] == "knn":
                said = done(*words[1:]).stdout
                if target := re.search(r"(?<!\S)> (\S+)", command):
                    Path(target[1]).write_text(said, encoding="utf-8")
            elif words[0] in ("cp", "mkdir"):
                subprocess.run(words, check=True)
            elif words[0] != "head":
                raise AssertionError(f"{block.document}:{block.line}: say why this is not run: {command}")


def voices(meeting: Path) -> dict[str, Floats]:
    """The sound of each speaker of the example meeting while nobody else speaks."""
    sound, _ = soundfile.read(meeting, dtype="float32")
    truth = read_rttm(meeting.with_suffix(".rttm"))["meeting"]
    overlap = truth.get_overlap()
    found = {}
    for who in truth.labels():
        alone: list[Segment] = list(truth.label_timeline(who).extrude(overlap))
        found[who] = np.concatenate([sound[round(s.start * RATE) : round(s.end * RATE)] for s in alone])
    return found


def clip(sound: Floats, number: int, seconds: float = 4.0) -> Floats:
    """A stretch of a voice, another one for each number, each a little louder."""
    cut = np.roll(sound, -round(1.1 * number * RATE))[: round(seconds * RATE)]
    return np.asarray(cut * (0.5 + 0.05 * number), dtype=np.float32)


def lay(root: Path, meeting: Path) -> None:
    """The recordings that documents speak of, all of them made of the example meeting."""
    spoken = voices(meeting)

    def write(name: str, sound: Floats) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
        soundfile.write(path, sound, RATE, **opus)

    table = ["file,group,subgroup,speaker"]
    for dialect, who in DIALECTS.items():
        for number in range(5):
            suffix = ".mp3" if number == 4 else ".wav"
            name = f"{dialect}/{who}_{number}{suffix}"
            write(f"recordings/{name}", clip(spoken[who], number))
            write(f"by-speaker/{dialect[0]}/{who}-{number // 2}/{number}.wav", clip(spoken[who], number))
            table.append(f"{name},{dialect[0]},{dialect},{who}-{number // 2}")
    (root / "table.csv").write_text("\n".join(table) + "\n")
    (root / "regions.csv").write_text("label,group\n1-1,Bohemian\n2-3,Moravian\n3-2,Moravian\n")
    for name in ("artikulate", "audio-cmn", "festvox", "kerstin", "librispeech", "unknown"):
        write(f"{name}.opus", clip(spoken["ruth"], len(name), 6.0))
    for who, name in (("ines", "anna"), ("otto", "ben"), ("paul", "eva")):
        for number in range(2):
            write(f"speakers/{name}/{number}.wav", clip(spoken[who], 2 * number, 3.5))
    for name in ("talk.mp3", "unknown.mp3"):
        write(name, clip(spoken["otto"], 3, 6.0))
    sound, _ = soundfile.read(meeting, dtype="float32")
    shutil.copytree(TOP / "examples", root / "examples")
    for folder in ("", "examples/"):
        write(f"{folder}meeting.flac", sound[: round(MEETING_SECONDS * RATE)])
    truth = read_rttm(meeting.with_suffix(".rttm"))["meeting"].crop(Segment(0, MEETING_SECONDS))
    for name in ("meeting.rttm", "truth.rttm", "examples/meeting.rttm"):
        with (root / name).open("w", encoding="utf-8") as file:
            write_rttm(truth, file)
    write("interview.mp3", sound[: 12 * RATE])
    write("new.wav", sound[: 12 * RATE])
    for day, start in (("monday", 0), ("tuesday", 20)):
        write(f"tapes/{day}.flac", sound[start * RATE : (start + 12) * RATE])
        write(f"meetings/{day}.flac", sound[start * RATE : (start + 20) * RATE])
        lines = [f"SPEAKER {day} 1 {turn} 4.0 <NA> <NA> {who} <NA> <NA>" for turn, who in ((1.0, "a"), (9.0, "b"))]
        (root / "rttm").mkdir(exist_ok=True)
        (root / "rttm" / f"{day}.rttm").write_text("\n".join(lines) + "\n")
