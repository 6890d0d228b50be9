"""Real recordings, where ../shared is there: the chain of the README, and meetings."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.evaluation.diarization_error import diarization_error
from knn_cli.formats.rttm import read_rttm
from knn_cli.store import hdf5


def done(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_czech_from_folder_to_labels(shared: Path, tmp_path: Path) -> None:
    """convert, embed, train and classify on the Czech recordings: which actor, and which recording, is it?"""
    everything, folder = shared / "data" / "speech" / "cs", tmp_path / "cs"
    for path in sorted(everything.rglob("*.opus"))[::4]:
        copy = folder / path.relative_to(everything)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)
    corpus, rows = tmp_path / "corpus.h5", tmp_path / "emb.h5"
    rule = r"(?P<group>\w+)/.*?(?P<speaker>big_fish|small_fish|other|Eva)"
    done("convert", folder, corpus, "--labels", rule, "--segment", "4", "--min-segment", "2")
    done("embed", corpus, "-o", rows)
    assert set(hdf5.read(rows).speaker.tolist()) == {"big_fish", "small_fish", "other", "Eva"}
    actors = done("train", rows, "--level", "speaker", "--ignore", "Eva,other", "-o", tmp_path / "actors").stdout
    assert float(actors.split("accuracy")[1].split("%")[0]) > 90
    some = min((folder / "fillets").glob("*small_fish*.opus"))
    line = done("classify", some, "--model", tmp_path / "actors").stdout.splitlines()[1].split("\t")
    assert line[0] == str(some) and line[3] == "small_fish"
    short = tmp_path / "short.h5"  # each recording a class: every one of them needs segments on both sides
    done("convert", everything / "klettres", short, "--segment", "2", "--min-segment", "2")
    names = done("train", short, "--level", "name", "-o", tmp_path / "names", "--held-out", "0.4")
    assert "segments disjoint" in names.stdout
    assert done("classify", some, "--model", tmp_path / "names", "--top", "1").stdout.startswith("file\tstart")


@pytest.mark.parametrize("name", ["dev00", "dev01", "trn00", "trn01", "trn03", "trn04"])
def test_meetings(shared: Path, tmp_path: Path, name: str) -> None:
    """Turns of real meetings are better than calling all speech one speaker's."""
    from pyannote.core import Annotation, Segment, Timeline

    meeting = shared / "data" / "diar" / "ami" / f"{name}.flac"
    done("diarize", meeting, "--rttm", tmp_path / "out.rttm")
    reference = next(iter(read_rttm(meeting.with_suffix(".rttm")).values()))
    found = read_rttm(tmp_path / "out.rttm").get(name, Annotation(uri=name))  # of trn01 nothing is found
    uem = Timeline([Segment(0, 30)])
    one = Annotation(uri=name)
    for number, segment in enumerate(found.get_timeline().support()):
        one[segment, number] = "all"
    ours = diarization_error(reference, found, uem=uem).rate
    assert ours <= diarization_error(reference, one, uem=uem).rate + 0.05
