"""Lists of speech: every format says the same, and only what they name is used, in `convert`, `embed` and `train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knn_cli.audio import reading_notes
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Segment
from knn_cli.formats.speech_lists import read_speech, restricted
from knn_cli.networks.conversion import convert
from knn_cli.store.corpora.registry import read_corpus
from knn_cli.store.hdf5 import Store
from knn_cli.training.dataset import open_corpus
from tests.helpers.corpora import PIECES, RATE, folder, kaldi_segments, sound

LISTS = {
    "vad": "a 0.5 1.0\nb 0 2\na 1.0 1.5\n",
    "segments": "a-1 a 0.5 1.0\nb-1 b 0 2\na-2 a 1.0 1.5\n",
    "x.rttm": "SPEAKER a 1 0.5 1.0 <NA> <NA> x <NA> <NA>\nSPEAKER b 1 0 2 <NA> <NA> x <NA> <NA>\n",
    "x.uem": "a 1 0.5 1.5\nb 1 0 2\n",
    "x.csv": "File,Start,End\na,0.5,1.5\nb,0,2\n",
    "x.tsv": "recording\tspeaker\tstart\tend\na\tx\t0.5\t1.5\nb\tx\t0\t2\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_every_format_says_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LISTS[name])
    assert read_speech(tmp_path / name) == {"a": [Segment(0.5, 1.5)], "b": [Segment(0.0, 2.0)]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vad", "a 1 2\na 2\n", "Line 2 .* has 2 words"),
        ("vad", "a 2 1\n", "from 2 to 1 s is no segment"),
        ("vad", "a x 1\n", "Line 1 .* has no times"),
        ("vad", "\n", "names no recordings"),
        ("x.csv", "start,end\n0,1\n", "has the columns start, end"),
        ("x.csv", "file,start,end\n,0,1\n", "Line 2 .* has no file"),
    ],
)
def test_what_is_no_list_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(KnnError, match=message):
        read_speech(tmp_path / name)


def test_only_what_is_named_is_used(tmp_path: Path) -> None:
    keys = list(PIECES)
    path = folder(tmp_path)
    (tmp_path / "vad").write_text(f"{keys[0]} 0.5 1.0\n{keys[0]} 2.0 2.75\n{Path(keys[4]).stem} 1 2\nnobody 0 1\n")
    notes: list[str] = []
    with reading_notes.listening(lambda _, clause, __: notes.append(clause)):
        kept = restricted(read_corpus(path), tmp_path / "vad")
    assert len(kept) == 1 and "does not name 5 of 6" in notes[0]  # the keys of a folder begin in it: 1-1/10_A...
    (tmp_path / "vad").write_text(f"{keys[0].removeprefix('NAKI/')} 0.5 1.0\n{Path(keys[0]).stem} 2.0 2.75\n")
    with reading_notes.listening(lambda _, clause, __: notes.append(clause)):
        kept = restricted(read_corpus(path), tmp_path / "vad")
    assert "names 1 recordings that are not there" in notes[-1] and len(kept) == 1
    (tmp_path / "vad").write_text(f"{Path(keys[0]).stem} 0.5 1.0\n{Path(keys[0]).stem} 2.0 2.75\n")
    convert(path, tmp_path / "out.h5", speech=tmp_path / "vad", min_segment=0.1)
    with Store(tmp_path / "out.h5") as store:
        rows = list(store.segments())
    assert [(row.name, row.start, row.end) for row in rows] == [("10_A", 0.5, 1.0), ("10_A", 2.0, 2.75)]
    np.testing.assert_allclose(rows[1].waveform.samples, sound(keys[0])[2 * RATE : 2 * RATE + 12000], atol=1e-4)
    corpus = open_corpus(path, speech=tmp_path / "vad")
    assert corpus.columns.seconds.tolist() == [1.25]
    both = np.concatenate([sound(keys[0])[8000:16000], sound(keys[0])[32000:44000]])
    np.testing.assert_allclose(corpus.samples(0, 0.25, 0.5), both[4000:12000], atol=1e-4)
    with pytest.raises(KnnError, match=r"names none of the 6 recordings, such as 1-1/.*it names x"):
        (tmp_path / "none").write_text("x 0 1\n")
        restricted(read_corpus(path), tmp_path / "none")


def test_segments_take_the_speech_of_their_recordings(tmp_path: Path) -> None:
    (tmp_path / "vad.rttm").write_text("SPEAKER 10_A 1 2.5 1.0 <NA> <NA> x <NA> <NA>\n")
    kept = restricted(read_corpus(kaldi_segments(tmp_path)), tmp_path / "vad.rttm")
    assert [part.used(6.0) for part in kept[0].parts] == [[Segment(2.5, 3.0)], [Segment(3.0, 3.5)]]
