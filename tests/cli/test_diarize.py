"""`knn diarize`: what every option asks of the pipeline, what is written where, and what is refused before work begins.

But for two tests the turns are made up, so that what becomes of them can be worked out by hand.
"""

from __future__ import annotations

import csv
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pyannote.core import Annotation, Segment

from knn_cli.cli import diarization_options
from knn_cli.cli import diarize as cli_diarize
from knn_cli.cli.diarization_settings import DiarizationSettings, choose_options
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.output_paths import check_outputs
from knn_cli.core.registry import CLUSTERERS, SEGMENTERS
from knn_cli.core.values import Diarization, EmbeddingSet, Turn
from knn_cli.diarization import channels, identification, linking, pipeline, recordings
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.presets import PRESETS
from knn_cli.formats.rttm import read_rttm, write_rttm
from knn_cli.formats.span_formats import TURN_FORMATS
from knn_cli.networks import bundle, conversion
from knn_cli.recognition.speaker_decision import UNCALIBRATED
from knn_cli.store import hdf5
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn, outputs_in

CPU = ["--device", "cpu", "--segmentation", "silero"]  # so that no network is loaded besides the tiny one
TINY = ["--model", "tiny-test", *CPU]
RATE = 16000
DIMENSION = 24  # of tiny-test's embeddings
# start, end, speaker; of "one" and "two" the first speaker of either is the second of the other.
TURNS = {
    "one": [(0.0, 4.0, 0), (4.0, 6.0, 1), (5.0, 5.5, 2), (6.0, 9.0, 0)],
    "two": [(1.0, 5.0, 0), (5.0, 8.0, 1)],
    "alone": [(1.0, 5.0, 0)],
    "silent": [],
}
VOICES = {"one": [0, 1, 2], "two": [1, 0], "alone": [0], "silent": []}


def _set(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def made_up(path: Path | str, **settings: Any) -> Diarization:
    """Twelve seconds; voices are unit vectors, and every turn is 0.9 sure."""
    name = Path(path).stem
    if name not in TURNS:
        raise AudioError(f"{path} is not audio that can be read here.")
    if settings.get("channel") == "2":
        name = "alone"
    turns = [Turn(start, end, f"SPEAKER_{who:02d}", 0.9) for start, end, who in TURNS[name]]
    rows = np.eye(DIMENSION, dtype=np.float32)[VOICES[name]]
    voices = {f"SPEAKER_{who:02d}": row for who, row in enumerate(rows)}
    return Diarization(tuple(turns), Path(path).stem, voices, dict.fromkeys(voices, 3.0), 12.0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings of twelve seconds, loud in their first nine; `stereo` has another one.wav."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "stereo").mkdir()
    samples = np.random.default_rng(0).normal(size=12 * RATE) * 0.1
    samples[9 * RATE :] = 0
    for name in TURNS:
        soundfile.write(folder / f"{name}.wav", samples, RATE)
    soundfile.write(folder / "stereo" / "one.wav", np.stack([samples, samples[::-1]], axis=1), RATE)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Diarization by `made_up`; what it is asked, call by call."""
    calls: list[dict[str, Any]] = []

    def diarize(path: Path | str, **settings: Any) -> Diarization:
        calls.append(settings | vars(settings["options"]))
        return made_up(path, **settings)

    monkeypatch.setattr(pipeline, "diarize", diarize)
    monkeypatch.setattr("knn_cli.cli.analysis_files.AnalysisFiles.__bool__", lambda self: bool(self._keep))
    return calls


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A store with the voices of anna, one's first speaker, and of zoe, whom nobody hears."""
    rows = np.eye(DIMENSION)[[0, 0, 9]]
    maker = bundle.find("tiny-test").fingerprint
    write_store(
        tmp_path / "known.h5",
        EmbeddingSet.from_columns(rows, ["a", "b", "z"], speaker=["anna", "anna", "zoe"], embedder=maker),
    )
    return tmp_path / "known.h5"


def speakers(path: Path) -> list[str]:
    (turns,) = read_rttm(path).values()
    return [str(label) for _, _, label in turns.itertracks(yield_label=True)]


def test_defaults_are_those_of_the_pipeline() -> None:
    told = {name: one.default for name, one in inspect.signature(pipeline.diarize).parameters.items()}
    told |= vars(DiarizationOptions())
    ours = {name: one.default for name, one in inspect.signature(cli_diarize.diarize).parameters.items()}
    for name in ("clusterer", "num_speakers", "channel"):
        assert getattr(ours[name], "value", ours[name]) == told[name], name
    assert choose_options(None, None, DiarizationSettings(), {"margin": None}) == DiarizationOptions()
    assert {one.value for one in diarization_options.ClusteringMethod} == set(CLUSTERERS.names())
    assert set(diarization_options._complete_presets("")) == set(PRESETS)
    assert {one.value for one in diarization_options.TurnFormat} == set(TURN_FORMATS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"clusterer": None, "clusterer_settings": {}, "channel": "mix", "num_speakers": None}),
        (["--num-speakers", "3"], {"num_speakers": 3}),
        (["--min-speakers", "2", "--max-speakers", "4"], {"min_speakers": 2, "max_speakers": 4}),
        (["--min-turn", "0.8", "--max-gap", "0.2", "--margin", "0"], {"min_turn": 0.8, "max_gap": 0.2, "margin": 0.0}),
        (["--segmentation", "silero", "--channel", "left"], {"vad": "silero", "segmentation": None, "channel": "left"}),
        (["--clusterer", "spectral"], {"clusterer": "spectral", "clusterer_settings": {}}),
        (
            [
                "--clusterer",
                "ahc",
                "--set",
                "linkage=ward",
                "--set",
                "distance_threshold=0.1",
                "--set",
                "min_cluster_size=2",
            ],
            {"clusterer": "ahc", "clusterer_settings": {"linkage": "ward", "threshold": 0.1, "minimum_size": 2}},
        ),
        (["--clusterer", "hdbscan", "--set", "min_cluster_size=3"], {"clusterer_settings": {"minimum_size": 3}}),
        (
            ["--preset", "pyannote-3.1"],
            {"clusterer": "ahc", "step": 1.0, "short_windows": False, "margin": 0.0},
        ),
        (["--preset", "pyannote-3.1", "--margin", "0.1"], {"step": 1.0, "short_windows": False, "margin": 0.1}),
    ],
)
def test_options_reach_the_pipeline(
    options: list[str], expected: dict[str, Any], sound: Path, asked: list[dict[str, Any]]
) -> None:
    if "hdbscan" in options:
        pytest.importorskip("sklearn")
    done("diarize", sound / "one.wav", *options, *TINY)
    assert {name: asked[0][name] for name in expected} == expected


def test_vbx_takes_a_threshold(sound: Path, asked: list[dict[str, Any]]) -> None:
    done("diarize", sound / "one.wav", "--clusterer", "vbx", "--set", "distance_threshold=0.5", *CPU)
    assert (asked[0]["clusterer"], asked[0]["clusterer_settings"]) == ("vbx", {"threshold": 0.5, "starts": 0})
    result = knn("diarize", sound / "one.wav", "--clusterer", "vbx", *TINY)
    assert result.exit_code == 1 and "has no PLDA" in result.stderr and len(asked) == 1


def test_a_segmentation_network_is_loaded_once_and_said(
    sound: Path, asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"filters": 8, "stride": 20, "widths": [5], "hidden": 4, "depth": 1, "linear": [6]}
    config = {"name": "who", "kind": "segmenter", "audio": {"rate": RATE, "scale": 1.0}}
    network = SEGMENTERS.build("pyannet", **args)
    torch.manual_seed(0)
    who = bundle.write(
        tmp_path / "who", {**config, "segmenter": {"name": "pyannet", "args": args}}, state=network.state_dict()
    )
    both = [sound / "one.wav", sound / "two.wav"]
    plain = ["--model", "tiny-test", "--device", "cpu"]
    result = done("diarize", *both, "--segmentation", who.folder, "-v", *plain)
    assert f"speech by {who.fingerprint}" in result.stderr and [one["vad"] for one in asked] == ["ours", "ours"]
    assert asked[0]["segmentation"] is asked[1]["segmentation"]
    assert "silero" in done("diarize", *both, "--segmentation", "silero", "-v", *plain).stderr
    for wrong, message in (("tiny-test", "is no segmentation network"), ("nosuch", "no model 'nosuch'")):
        refused = knn("diarize", *both, "--segmentation", wrong, *plain)
        assert refused.exit_code == 1 and message in refused.stderr
    with pytest.raises(KnnError, match="silero"):
        DiarizationOptions(vad="silero", segmentation=who.folder)
    made = conversion.Conversion(who.folder, "bundle", rows=1234)
    monkeypatch.setattr(conversion, "convert", lambda *_, **__: made)
    assert "name it with --segmentation." in done("convert", "x.bin", who.folder).stderr


REFUSED = [
    (["-o", "{tmp}/x.json", "--out-dir", "{tmp}/o"], "--out and --out-dir cannot be combined"),
    (["-o", "{tmp}/x.json", "--rttm", "{tmp}/x.rttm"], "--out and --rttm|--rttm and --out"),
    (["--rttm", "{tmp}/x.rttm", "--json"], "--rttm and --json cannot be combined"),
    (["--json", "--format", "srt"], "--json and --format cannot be combined"),
    (["-o", "{tmp}/x.srt", "--json"], "is that of srt, not of json"),
    (["-o", "{tmp}/x.doc"], "names no format of turns"),
    (["-o", "{tmp}/none/x.srt"], "there is no folder"),
    (["-o", "{tmp}/x.wav"], "names no format"),
    (["--format", "html"], "is not for stdout"),
    (["--preset", "pyannote-3.1", "--set", "distance_threshold=0.3"], "--preset and the setting distance_threshold"),
    (["--preset", "pyannote-3.1", "--clusterer", "vbx"], "--preset and --clusterer"),
    (["--set", "linkage=ward"], "linkage is not a setting of vbx"),
    (["--clusterer", "ahc", "--set", "distance_threshold=3"], "3 is not from 0 to 2"),
    (["--clusterer", "vbx", "--set", "distance_threshold=nan"], "nan is no number"),
    (["--clusterer", "vbx", "--set", "linkage=ward"], "Use it with --clusterer ahc"),
    (["--clusterer", "spectral", "--set", "min_cluster_size=3"], "--clusterer ahc or --clusterer hdbscan"),
    (["--clusterer", "ahc", "--set", "min_cluster_size=0"], "0 is not from 1"),
    (["--channel", "middle"], "no channel 'middle'"),
    (["--per-channel", "--channel", "left"], "--per-channel and --channel"),
    (["--set", "identification_threshold=0.5"], "identification_threshold requires --speakers"),
    (["--speakers", "{tmp}/none"], "does not exist"),
    (["--link-speakers", "--set", "linking_threshold=2"], "linking_threshold cannot be 2"),
    (["--set", "linking_threshold=0.5"], "requires --link-speakers"),
    (["--save-embeddings", "{tmp}/v.txt"], "is not a name for a store"),
    (["--save-embeddings", "{tmp}/none/v.h5"], "there is no folder"),
    (["--unwanted", "least"], "--unwanted requires --out-dir"),
    (["--max-silence", "1"], "--max-silence requires --out-dir"),
    (["--unwanted", "a,,b", "--out-dir", "{tmp}/o"], "empty name"),
    (["--unwanted", "least", "--mute", "--cut", "--out-dir", "{tmp}/o"], "--mute and --cut"),
    (["--mute", "--out-dir", "{tmp}/o"], "--mute requires --unwanted"),
    (["--set", "silence_threshold=-40", "--out-dir", "{tmp}/o"], "requires --max-silence"),
    (["--max-silence", "0.1", "--out-dir", "{tmp}/o"], "--max-silence 0.1 cannot be reached"),
    (["--max-silence", "1", "--set", "silence_threshold=3", "--out-dir", "{tmp}/o"], "not a level below full scale"),
    (["--uem", "{tmp}/x.uem"], "--uem requires --reference"),
    (["--force"], "--force requires --rttm or --out or --out-dir or --save-embeddings or --keep"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_refused_before_work(
    options: list[str], message: str, sound: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    tiny = CPU if "vbx" in options else TINY
    result = knn("diarize", sound / "one.wav", *(one.format(tmp=tmp_path) for one in options), *tiny)
    assert result.exit_code == 1 and any(one in result.stderr for one in message.split("|")), result.output
    assert not asked and result.stdout == "" and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_format_by_the_suffix(sound: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    for name, known in TURN_FORMATS.items():
        out = tmp_path / f"turns{known.suffix}"
        named = ("--format", name) if known.named_only else ()
        assert done("diarize", sound / "one.wav", "-o", out, *named, *TINY).stdout == ""
        done("diarize", sound / "one.wav", "--format", name, "--out-dir", tmp_path / "out", *TINY)
        again = tmp_path / "out" / f"one{known.suffix}"
        if name not in ("eaf", "html"):  # which hold the time, and where the recording is from there
            assert out.read_bytes() == again.read_bytes(), name
        assert again.stat().st_size > 100
    done("diarize", sound / "one.wav", "-o", tmp_path / "labels", "--format", "audacity", *TINY)
    assert (tmp_path / "labels").read_bytes() == (tmp_path / f"turns{TURN_FORMATS['audacity'].suffix}").read_bytes()


def test_several_in_one_file(sound: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    both = [sound / "one.wav", sound / "two.wav"]
    text = done("diarize", *both, "-o", tmp_path / "all.rttm", *TINY)
    assert text.stdout == "" and list(read_rttm(tmp_path / "all.rttm")) == ["one", "two"]
    lines = done("diarize", *both, "--json", *TINY).stdout.splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["one", "two"]
    refused = knn("diarize", *both, "-o", tmp_path / "all.html", *TINY)
    assert refused.exit_code == 1 and "could not be distinguished" in refused.stderr
    same = done("diarize", sound / "one.wav", sound / "stereo" / "one.wav", *TINY)
    assert {line.split()[1] for line in same.stdout.splitlines()} == {"one", "stereo/one"}


@pytest.mark.parametrize(
    "more", [[], ["--link-speakers"], ["--unwanted", "least", "--cut"], ["--save-embeddings", "{tmp}/v.h5"]]
)
def test_one_file_that_fails_costs_none_of_the_others(
    more: list[str], sound: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    files = [sound / "one.wav", tmp_path / "bad.wav", sound / "two.wav"]
    options = [one.format(tmp=tmp_path) for one in more]
    result = knn("diarize", *files, "--out-dir", tmp_path / "out", *options, *TINY)
    assert result.exit_code == 1 and "bad.wav is not audio" in result.stderr
    assert speakers(tmp_path / "out" / "one.rttm")[:2] == ["SPEAKER_00", "SPEAKER_01"]
    assert "--link-speakers" not in more or "3 speakers in 2 recordings" in result.stderr
    assert (tmp_path / "out" / "two.rttm").exists() and not (tmp_path / "out" / "bad.rttm").exists()
    old = tmp_path / "old.rttm"
    old.write_text("older")
    assert knn("diarize", tmp_path / "bad.wav", "-o", old, *TINY).exit_code == 1 and old.read_text() == "older"


def test_known_speakers_are_named(sound: Path, asked: list[dict[str, Any]], known: Path) -> None:
    both = [sound / "one.wav", sound / "two.wav", sound / "silent.wav"]
    result = done("diarize", *both, "--speakers", known, "--json", *TINY)
    one, two, silent = map(json.loads, result.stdout.splitlines())
    assert [turn["speaker"] for turn in one["turns"]] == ["anna", "SPEAKER_00", "SPEAKER_01", "anna"]
    assert [turn["speaker"] for turn in two["turns"]] == ["SPEAKER_00", "anna"]
    assert one["recognised"][0] == {
        **{"speaker": "anna", "known": True, "who": "anna", "reason": None, "nearest": "anna"},
        **{"llr": None, "probability": None, "cosine": {"anna": 1.0, "zoe": 0.0}},
    }
    assert one["recognised"][1]["who"] is None and "below the threshold" in one["recognised"][1]["reason"]
    assert one["decision"]["origin"] == "uncalibrated" and one["decision"]["threshold"] == 0.55
    assert [fact["known"] for fact in two["recognised"]] == [False, True] and silent["recognised"] == []
    assert "one.wav: anna (1.00), SPEAKER_00 is nobody known (below the threshold" in result.stderr
    assert "from a cosine of 0.55, uncalibrated, since nothing was measured for this model" in result.stderr
    done("diarize", sound / "one.wav", "--speakers", known, "-o", known.with_name("one.json"), *TINY)
    done("diarize", sound / "two.wav", "--speakers", known, "--json", "--out-dir", known.parent, *TINY)
    assert [json.loads(known.with_name(f"{name}.json").read_text()) for name in ("one", "two")] == [one, two]
    nobody = done(
        "diarize", sound / "two.wav", "--speakers", known, "--set", "identification_threshold=1", "--json", *TINY
    )
    assert "anna" in nobody.stdout  # a cosine of 1 is not below 1
    refused = knn("diarize", sound / "one.wav", "--speakers", known, "--save-embeddings", known, "--force", *TINY)
    assert refused.exit_code == 1 and "is one of the sources" in refused.stderr


def test_enrolment_from_a_folder(example: Path, tmp_path: Path, asked: list[dict[str, Any]], sound: Path) -> None:
    """Real clips; the made-up voices are like none of them."""
    turns, (samples, rate) = read_rttm(example.with_suffix(".rttm"))["meeting"], soundfile.read(example)
    for name in ("ruth", "otto"):
        longest = max(turns.label_timeline(name), key=lambda turn: turn.duration)
        (tmp_path / "voices" / name).mkdir(parents=True)
        clip = samples[round(longest.start * rate) : round(longest.end * rate)]
        soundfile.write(tmp_path / "voices" / name / "clip.wav", clip, rate)
    result = done(
        "diarize",
        sound / "one.wav",
        "--speakers",
        tmp_path / "voices",
        "--set",
        "identification_threshold=0.99",
        "-v",
        *TINY,
    )
    assert "2 known speakers, 2 clips" in result.stderr and "one.wav: who: nobody known" in result.stderr
    assert "SPEAKER_02" in result.stdout


def test_one_label_per_speaker(sound: Path, asked: list[dict[str, Any]], known: Path, tmp_path: Path) -> None:
    both = [sound / "one.wav", sound / "two.wav"]
    result = done("diarize", *both, "--link-speakers", "--save-embeddings", tmp_path / "v.h5", *TINY)
    assert "3 speakers in 2 recordings." in result.stderr and "5 speaker embeddings by tiny-test@" in result.stderr
    labels = [line.split()[7] for line in result.stdout.splitlines()]
    assert labels == [f"SPEAKER_{who:02d}" for who in (0, 1, 2, 0, 1, 0)]
    rows = hdf5.read(tmp_path / "v.h5")
    assert rows.speaker.tolist() == ["SPEAKER_00", "SPEAKER_01", "SPEAKER_02", "SPEAKER_01", "SPEAKER_00"]
    assert rows.name.tolist() == ["one"] * 3 + ["two"] * 2 and rows.data.shape == (5, DIMENSION)
    exists = knn("diarize", *both, "--save-embeddings", tmp_path / "v.h5", *TINY)
    assert exists.exit_code == 1 and "exists already" in exists.stderr
    done("diarize", *both, "--save-embeddings", tmp_path / "v.h5", "--force", *TINY)
    assert hdf5.read(tmp_path / "v.h5").speaker.tolist()[3] == "two/SPEAKER_00"

    # What the first run exported is what a second one knows; facts have the labels that the turns have.
    lines = done("diarize", *both, "--link-speakers", "--speakers", known, "--json", *TINY).stdout.splitlines()
    two = json.loads(lines[1])
    assert [turn["speaker"] for turn in two["turns"]] == ["SPEAKER_00", "anna"]
    assert [(fact["speaker"], fact["known"]) for fact in two["recognised"]] == [("SPEAKER_00", False), ("anna", True)]
    apart = done("diarize", *both, "--link-speakers", "--set", "linking_threshold=1", "--json", *TINY)
    assert "3 speakers" in apart.stderr


def read_parts(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_unwanted_parts_are_listed(sound: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    result = done("diarize", sound / "one.wav", "--unwanted", "SPEAKER_01", "--out-dir", tmp_path, *TINY)
    assert read_parts(tmp_path / "one_unwanted.csv") == [
        ["Start [s]", "End [s]", "Speaker"],
        ["4.000", "5.000", "SPEAKER_01"],
        ["5.000", "5.500", "OVERLAPPED"],
        ["5.500", "6.000", "SPEAKER_01"],
    ]
    assert "3 parts of SPEAKER_01, 2.0 s" in result.stderr
    assert outputs_in(tmp_path) == ["one.rttm", "one_unwanted.csv"]


def test_cutting(sound: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    cut = ["diarize", sound / "one.wav", "--unwanted", "SPEAKER_01", "--cut", "--max-silence", "1"]
    result = done(*cut, "--out-dir", tmp_path, *TINY)
    assert "one_cut.wav: 7.2 s of 12.0 s kept, 2.0 s cut out as unwanted, 2.8 s cut out as silence." in result.stderr
    samples, rate = soundfile.read(tmp_path / "one_cut.wav")
    assert rate == RATE and abs(len(samples) - round(7.2 * RATE)) <= RATE // 50
    (turns,) = read_rttm(tmp_path / "one_cut.rttm").values()
    assert turns.uri == "one_cut"
    assert [(one.start, one.end) for one in turns.itersegments()] == [(0, 4), (4, 7)]
    done(*cut, "--out-dir", tmp_path, *TINY)
    (tmp_path / "one_cut.wav").write_bytes((sound / "two.wav").read_bytes())
    again = knn(*cut, "--out-dir", tmp_path, *TINY)
    assert again.exit_code == 1 and "one_cut.wav exists already" in again.stderr and "--force" in again.stderr
    done(*cut, "--out-dir", tmp_path, "--force", *TINY)


def test_muting_and_silence_alone(sound: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    both = [sound / "one.wav", sound / "two.wav"]
    mute = ["--unwanted", "least", "--mute", "--format", "json", "--out-dir", tmp_path / "m"]
    result = done("diarize", *both, *mute, *TINY)
    assert "one_muted.wav: 12.0 s of 12.0 s kept, 0.5 s muted." in result.stderr
    assert "All 2 recordings: 24.0 s of 24.0 s kept, 3.5 s muted." in result.stderr
    samples, _ = soundfile.read(tmp_path / "m" / "one_muted.wav")
    assert not samples[5 * RATE : round(5.5 * RATE)].any() and samples[: 4 * RATE].any()
    turns = json.loads((tmp_path / "m" / "one_muted.json").read_text())
    assert turns["file"] == "one_muted" and turns["speakers"] == ["SPEAKER_00", "SPEAKER_01"]
    silence = ["--max-silence", "0.5", "--set", "silence_threshold=-40", "--out-dir", tmp_path / "s"]
    said = done("diarize", sound / "one.wav", *silence, *TINY).stderr
    assert "one_shortened.wav: 9.2 s of 12.0 s kept, 2.8 s cut out as silence." in said
    assert outputs_in(tmp_path / "s") == ["one.rttm", "one_shortened.rttm", "one_shortened.wav"]


def test_who_is_unwanted_and_not_there(sound: Path, asked: list[dict[str, Any]], known: Path, tmp_path: Path) -> None:
    cut = ["--cut", "--out-dir", tmp_path / "out", "--force"]
    alone = done("diarize", sound / "alone.wav", "--unwanted", "least", *cut, *TINY)
    assert "no unwanted speaker, since there is only one" in alone.stderr
    assert read_parts(tmp_path / "out" / "alone_unwanted.csv") == [["Start [s]", "End [s]", "Speaker"]]
    assert soundfile.info(tmp_path / "out" / "alone_cut.wav").frames == 12 * RATE
    # An unknown name costs this file, after its turns are written; those of the others are not at risk.
    wrong = knn("diarize", sound / "alone.wav", sound / "one.wav", "--unwanted", "SPEAKER_01", *cut, *TINY)
    assert wrong.exit_code == 1 and "There is no speaker SPEAKER_01 in alone." in wrong.stderr
    assert (tmp_path / "out" / "one_cut.wav").exists()
    never = knn("diarize", sound / "one.wav", "--unwanted", "anna", "--cut", "--out-dir", tmp_path / "never", *TINY)
    assert "It is one of SPEAKER_00 and so on" in never.stderr and not outputs_in(tmp_path / "never")
    # Known speakers, and those of other files with --link-speakers, need not be in every file.
    absent = done("diarize", sound / "one.wav", "--speakers", known, "--unwanted", "zoe", *cut, *TINY)
    assert "they do not speak there" in absent.stderr
    files = [sound / "alone.wav", sound / "one.wav"]
    across_files = done("diarize", *files, "--link-speakers", "--unwanted", "SPEAKER_01", *cut, *TINY)
    assert "alone.wav: no unwanted speaker" in across_files.stderr
    gone = knn("diarize", sound / "alone.wav", "--unwanted", "SPEAKER_00", "--max-silence", "9", *cut, *TINY)
    assert gone.exit_code == 0
    silent = done("diarize", sound / "silent.wav", "--unwanted", "least", *cut, *TINY)
    assert "holds no speech" in silent.stderr


def test_outputs_never_meet(sound: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    for name in ("one", "one_cut"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(RATE), RATE)
    files = [tmp_path / "one.wav", tmp_path / "one_cut.wav"]
    before = [path.read_bytes() for path in files]
    for folder, message in (
        (tmp_path / "out", "Two outputs"),
        (tmp_path, "exists already|is one of the sources|Two outputs"),
    ):
        result = knn("diarize", *files, "--unwanted", "least", "--cut", "--out-dir", folder, *TINY)
        assert result.exit_code == 1 and any(one in result.stderr for one in message.split("|")), result.output
    forced = knn("diarize", files[0], files[1], "--unwanted", "least", "--cut", "--force", "--out-dir", tmp_path, *TINY)
    assert forced.exit_code == 1 and not asked
    assert [path.read_bytes() for path in files] == before


def test_per_channel(sound: Path, asked: list[dict[str, Any]], known: Path) -> None:
    stereo = sound / "stereo" / "one.wav"
    lines = done("diarize", stereo, "--per-channel", "--num-speakers", "2", *TINY).stdout.splitlines()
    assert [one["channel"] for one in asked] == ["1", "2"] and asked[1]["num_speakers"] == 2
    left = [f"left_SPEAKER_{who:02d}" for who in (0, 1, 2, 0)]
    assert [line.split()[7] for line in lines] == [left[0], "right", *left[1:]]
    named = done("diarize", stereo, "--per-channel", "--speakers", known, "--json", *TINY)
    found = json.loads(named.stdout)
    # One voice at most is anna; the others keep the names of their channels.
    assert sorted(set(found["speakers"]) - {"anna"}) in ([*left[1:3], "right"], left[:3])
    assert {fact["speaker"] for fact in found["recognised"]} == set(found["speakers"])
    mono = knn("diarize", sound / "two.wav", stereo, "--per-channel", *TINY)
    assert mono.exit_code == 1 and "two.wav has one channel" in mono.stderr and "SPEAKER one" in mono.stdout


def test_channels_with_the_same_sound_are_diarized_once(
    sound: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 9 * RATE)) * 0.1
    soundfile.write(tmp_path / "one.wav", np.stack([one, 0.5 * one], axis=1), RATE)
    result = done("diarize", tmp_path / "one.wav", "--per-channel", *TINY)
    assert [one["channel"] for one in asked] == ["1"]
    assert result.stdout == done("diarize", sound / "one.wav", *TINY).stdout
    assert "one.wav has the same sound in channels 1 and 2; channel 2 is left out." in result.stderr
    asked.clear()
    soundfile.write(tmp_path / "one.wav", np.stack([one, other, one], axis=1), RATE)
    lines = done("diarize", tmp_path / "one.wav", "--per-channel", *TINY).stdout.splitlines()
    assert [one["channel"] for one in asked] == ["1", "2"]
    assert {line.split()[7].split("_SPEAKER")[0] for line in lines} == {"channel_1", "channel_2"}


def test_channels_are_merged_by_hand() -> None:
    merged = channels.merge([made_up("one.wav"), made_up("alone.wav"), made_up("silent.wav")], "call")
    turns = [(turn.start, turn.end, turn.speaker) for turn in merged.turns]
    assert turns == [
        (0, 4, "channel_1_SPEAKER_00"),
        (1, 5, "channel_2"),
        (4, 6, "channel_1_SPEAKER_01"),
        (5, 5.5, "channel_1_SPEAKER_02"),
        (6, 9, "channel_1_SPEAKER_00"),
    ]
    assert (merged.name, merged.seconds, {turn.confidence for turn in merged.turns}) == ("call", 12, {0.9})
    assert set(merged.speaker_embeddings) == set(merged.clean_speech_seconds) == {label for *_, label in turns}
    assert np.array_equal(merged.speaker_embeddings["channel_2"], np.eye(DIMENSION)[0])
    assert channels.names(2) == ["left", "right"]


def test_scores(sound: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    for name in ("one", "two"):
        done("diarize", sound / f"{name}.wav", "--rttm", tmp_path / "truth" / f"{name}.rttm", *TINY)
    (tmp_path / "x.uem").write_text("one 1 0 6\ntwo 1 0 6\n")
    files = [sound / "one.wav", sound / "two.wav"]
    scored = ["--reference", tmp_path / "truth", "--uem", tmp_path / "x.uem"]
    rows = done("diarize", *files, *scored, "--out-dir", tmp_path / "out", *TINY).stdout.splitlines()
    assert [row.split("\t")[:2] for row in rows[1:]] == [["one", "0.00"], ["two", "0.00"], ["(all)", "0.00"]]
    inside = knn("diarize", *files, *scored, "--out-dir", tmp_path / "truth", *TINY)
    assert inside.exit_code == 1 and "is one of the sources" in inside.stderr


def test_default_thresholds_are_those_of_the_package(
    monkeypatch: pytest.MonkeyPatch, sound: Path, asked: list[dict[str, Any]], known: Path
) -> None:
    seen: dict[str, float] = {}

    def spy(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **more: Any) -> Any:
            seen[name] = more["decision"].threshold if "decision" in more else more["threshold"]
            return real(*values, **more)

        return run

    monkeypatch.setattr(identification, "identify", spy("known", identification.identify))
    monkeypatch.setattr(linking, "link_speakers", spy("linked", linking.link_speakers))
    command = ["diarize", sound / "one.wav", "--speakers", known, "--link-speakers", *TINY]
    done(*command)
    assert seen == {"known": UNCALIBRATED.threshold, "linked": UNCALIBRATED.linking_threshold}
    done(*command, "--set", "identification_threshold=0.4", "--set", "linking_threshold=0.7")
    assert seen == {"known": 0.4, "linked": 0.7}


def test_as_a_real_process(example: Path, tmp_path: Path) -> None:
    """A real recording, turns and all: the speaker who says least is cut out."""
    options = ["--num-speakers", "3", "--unwanted", "least", "--cut", "--json", "--min-turn", "0.8", *TINY]
    command = [sys.executable, "-m", "knn_cli", "diarize", str(example), *options, "--out-dir", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr
    before, after = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("meeting", "meeting_cut"))
    least = min(before["spoken"], key=before["spoken"].get)
    assert len(before["speakers"]) == 3 and least not in after["speakers"]
    cut = sum(float(row[1]) - float(row[0]) for row in read_parts(tmp_path / "meeting_unwanted.csv")[1:])
    length = soundfile.info(example).duration - soundfile.info(tmp_path / "meeting_cut.flac").duration
    assert length == pytest.approx(cut, abs=0.01) and after["duration"] == pytest.approx(
        before["duration"] - cut, abs=0.1
    )


def test_a_reference_that_we_wrote_is_found_by_names_with_spaces(tmp_path: Path) -> None:
    reference = tmp_path / "truth.rttm"
    with reference.open("w") as file:
        for name in ("part two", "half"):
            turns = Annotation(uri=name)
            turns[Segment(0, 1), 0] = "anna"
            write_rttm(turns, file)
    found = recordings.read_references([Path("part two.flac"), Path("half.flac")], reference, None)
    assert {name: truth.uri for name, (truth, _) in found.items()} == {"part two": "part_two", "half": "half"}


def test_thousands_of_outputs_are_checked_at_once(tmp_path: Path) -> None:
    sources = [tmp_path / f"{number}.wav" for number in range(3000)]
    check_outputs([path.with_suffix(".rttm") for path in sources], sources)
    with pytest.raises(KnnError, match="one of the sources"):
        check_outputs([tmp_path / "a.rttm", sources[-1]], sources)


def test_given_turns_are_not_looked_for(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_model(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(bundle, "find", no_model)
    (tmp_path / "one.csv").write_text("Start [s],End [s],Speaker\n0,4,Ada\n3,6,Ben\n8,20,Ada\n", encoding="utf-8")
    given = ["--turns", str(tmp_path / "one.csv")]
    run = done("diarize", sound / "one.wav", *given, "--rename", "Ben=Bo", "-o", tmp_path / "one.rttm")
    assert "ends at 12.0 s, its turns at 20.0 s" in run.stderr
    turns = read_rttm(tmp_path / "one.rttm")["one"]
    rows = [(segment.start, segment.end, label) for segment, _, label in turns.itertracks(yield_label=True)]
    assert rows == [(0.0, 4.0, "Ada"), (3.0, 6.0, "Bo"), (8.0, 12.0, "Ada")]
    for overlap, unwanted, kept in (
        ("keep", ["4.000,6.000,Ben"], 10.0),
        ("mute", ["3.000,4.000,OVERLAPPED", "4.000,6.000,Ben"], 10.0),
        ("cut", ["3.000,4.000,OVERLAPPED", "4.000,6.000,Ben"], 9.0),
    ):
        folder = tmp_path / overlap
        removal = ["--unwanted", "Ben", "--cut", "--overlap", overlap, "--out-dir", folder]
        run = done("diarize", sound / "one.wav", *given, *removal)
        assert (folder / "one_unwanted.csv").read_text().splitlines()[1:] == unwanted
        assert soundfile.info(folder / "one_cut.wav").duration == pytest.approx(kept)
        assert ("1.0 s muted" in run.stderr) == (overlap == "mute")
    for more, said in ((["--num-speakers", "2"], "cannot be combined"), (["--overlap", "mute"], "--out-dir")):
        refused = knn("diarize", sound / "one.wav", *given, *more)
        assert refused.exit_code == 1 and said in refused.stderr.replace("\n", " ")
    (tmp_path / "other.csv").write_text("file,start,end,speaker\na,0,4,Ada\nb,3,6,Ben\n", encoding="utf-8")
    missing = knn("diarize", sound / "one.wav", "--turns", tmp_path / "other.csv")
    assert missing.exit_code == 1 and "no turns of one" in missing.stderr
