"""The whole diarizer: counts obeyed, long files streamed, silence empty, and odd recordings survived."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS, SEGMENTERS
from knn_cli.core.values import Diarization, Floats
from knn_cli.diarization import pipeline, window_embeddings
from knn_cli.diarization.clustering.plda import EmbeddingPLDA
from knn_cli.diarization.options import DiarizationOptions, check_speakers
from knn_cli.diarization.segmentation import Segmenter
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle

RATE = 16000
Paths = Callable[[Floats], Path]


def diarize(path: Path, **given: Any) -> Diarization:
    """`pipeline.diarize` with the fields of its options among the arguments."""
    names = {field.name for field in fields(DiarizationOptions)} & set(given)
    options = DiarizationOptions(**{name: given.pop(name) for name in names})
    return pipeline.diarize(path, options=options, **given)


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Our own where it is there, else a random network on sound, which says something of everything."""
    if "segmentation" in bundle.available(segmenter=True):
        return Segmenter()
    args = {"filters": 8, "stride": 20, "widths": [5], "hidden": 4, "depth": 1, "linear": [6]}
    torch.manual_seed(1)
    network = SEGMENTERS.build("pyannet", **args)
    with torch.no_grad():
        network.classifier.weight *= 30
    config = {
        "name": "random",
        "kind": "segmenter",
        "audio": {"rate": RATE, "scale": 1.0},
        "segmenter": {"name": "pyannet", "args": args},
    }
    folder = tmp_path_factory.mktemp("models") / "random"
    return Segmenter(bundle.write(folder, config, state=network.state_dict()))


@pytest.fixture
def written(tmp_path: Path) -> Paths:
    def write(samples: Floats) -> Path:
        soundfile.write(tmp_path / "sound.wav", samples, RATE, subtype="PCM_16")
        return tmp_path / "sound.wav"

    return write


@pytest.fixture(scope="module")
def meeting() -> Floats:
    return reading.read(Path(__file__).resolve().parents[2] / "examples" / "meeting.flac").samples


@pytest.fixture(scope="module")
def excerpt(meeting: Floats, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty seconds and a bit of the meeting."""
    path = tmp_path_factory.mktemp("sound") / "excerpt.flac"
    soundfile.write(path, meeting[: 20 * RATE + 321], RATE)
    return path


@pytest.fixture(scope="module")
def memory() -> dict[Any, Any]:
    return {}


@pytest.fixture
def heard_once(memory: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the networks say of a recording is kept from one diarization to the next."""
    for module, name in ((pipeline, "get_segmentation"), (window_embeddings, "embed_masks")):

        def kept(path: Path, one: Any, other: Any, *rest: Any, call: Any, **more: Any) -> Any:
            what = [(mask.start, mask.mask.tobytes()) for mask in other] if isinstance(other, list) else other
            key = (path, call.__name__, str(what))
            if key not in memory:
                memory[key] = call(path, one, other, *rest, **more)
            return memory[key]

        monkeypatch.setattr(module, name, partial(kept, call=getattr(module, name)))


def told(clusterer: str, embedder: Embedder) -> dict[str, Any]:
    """Settings that a method cannot do without."""
    if clusterer == "hdbscan":
        pytest.importorskip("sklearn.cluster")
    if clusterer != "vbx":
        return {}
    size = embedder.dimension
    zeros, same = np.zeros(size), np.eye(size)
    return {"plda": EmbeddingPLDA(zeros, same, zeros, zeros, same, np.linspace(9, 0.1, size))}


def check(found: Diarization, path: Path) -> Diarization:
    """What every result promises."""
    length = reading.info(path).seconds
    assert found.seconds == pytest.approx(length, abs=0.041)
    assert all(turn.confidence is not None and 0 <= turn.confidence <= 1 for turn in found.turns)
    names = sorted(found.speakers)
    assert names == [f"SPEAKER_{number:02d}" for number in range(len(names))]
    firsts = [found.annotation.label_timeline(name)[0].start for name in names]
    assert firsts == sorted(firsts)  # named by first appearance
    assert set(found.speaker_embeddings) == set(found.clean_speech_seconds) == set(names)
    assert all(np.isfinite(one).all() and one.any() for one in found.speaker_embeddings.values())
    assert all(one > 0 for one in found.clean_speech_seconds.values())
    for segment in found.annotation.itersegments():
        assert segment.start >= 0 and segment.duration > 0 and segment.end <= found.seconds + 1e-9
    for name in names:
        assert not found.annotation.label_timeline(name).get_overlap()
    return found


def same(one: Diarization, other: Diarization) -> bool:
    return one.turns == other.turns and all(
        np.array_equal(one.speaker_embeddings[name], other.speaker_embeddings[name]) for name in one.speaker_embeddings
    )


@pytest.mark.usefixtures("heard_once")
@pytest.mark.parametrize("vad", ["silero", "ours"])
@pytest.mark.parametrize("clusterer", CLUSTERERS.names())
def test_counts_are_obeyed(clusterer: str, vad: str, tiny: Embedder, segmenter: Segmenter, excerpt: Path) -> None:
    settings = told(clusterer, tiny)

    def speakers(**bounds: int) -> int:
        own = {"segmentation": segmenter} if vad == "ours" else {}
        found = diarize(excerpt, model=tiny, vad=vad, clusterer=clusterer, clusterer_settings=settings, **own, **bounds)
        return len(check(found, excerpt).speakers)

    for number in (1, 2, 5):
        assert speakers(num_speakers=number) == number
    assert speakers(min_speakers=3) >= 3
    assert speakers(max_speakers=2) <= 2


@pytest.mark.parametrize("vad", ["silero", "ours"])
def test_more_speakers_than_windows(vad: str, tiny: Embedder, segmenter: Segmenter, excerpt: Path) -> None:
    """Told of more than there are local speakers, the recording is cut finer; short turns go, but nobody's last."""
    own = {"segmentation": segmenter} if vad == "ours" else {}
    found = diarize(excerpt, model=tiny, vad=vad, num_speakers=30, min_turn=0.8, **own)
    assert len(check(found, excerpt).speakers) == 30


@pytest.mark.parametrize("vad", ["silero", "ours"])
def test_the_same_again_and_in_blocks(
    vad: str, tiny: Embedder, segmenter: Segmenter, excerpt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in blocks of three seconds, the file has the turns that it has read at once."""
    own = {"segmentation": segmenter} if vad == "ours" else {}
    once = check(diarize(excerpt, model=tiny, vad=vad, num_speakers=3, **own), excerpt)
    assert once.name == "excerpt" and list(once.turns) == sorted(once.turns, key=lambda turn: (turn.start, turn.end))
    assert same(diarize(excerpt, model=tiny, vad=vad, num_speakers=3, **own), once)
    monkeypatch.setattr(reading, "BLOCK_SECONDS", 3.0)
    assert same(diarize(excerpt, model=tiny, vad=vad, num_speakers=3, **own), once)


@pytest.mark.parametrize("seconds", [0.005, 0.05, 12.0])
def test_silence_is_empty(tiny: Embedder, written: Paths, seconds: float) -> None:
    path = written(np.zeros(round(seconds * RATE), dtype=np.float32))
    found = check(diarize(path, model=tiny), path)
    assert not found.turns and not found.speaker_embeddings


def test_silence_is_empty_for_our_network(tiny: Embedder, segmenter: Segmenter, written: Paths) -> None:
    if segmenter.bundle.name == "random":
        pytest.skip("needs models/segmentation")
    for seconds in (0.05, 12.0):
        path = written(np.zeros(round(seconds * RATE), dtype=np.float32))
        assert not check(diarize(path, model=tiny, vad="ours", segmentation=segmenter), path).turns


@pytest.mark.parametrize("vad", ["silero", "ours"])
@pytest.mark.parametrize("seconds", [0.01, 0.3, 10.02])
def test_short_files_and_the_edge_of_a_window(
    vad: str, seconds: float, tiny: Embedder, segmenter: Segmenter, meeting: Floats, written: Paths
) -> None:
    path = written(meeting[RATE : RATE + round(seconds * RATE)])
    own = {"segmentation": segmenter} if vad == "ours" else {}
    found = check(diarize(path, model=tiny, vad=vad, **own), path)
    assert len(found.speakers) <= (1 if seconds < 1 else 10)
    if seconds > 9 and vad == "silero":
        assert found.turns


@pytest.mark.parametrize("vad", ["silero", "ours"])
def test_length_is_that_of_the_file(
    vad: str, tiny: Embedder, segmenter: Segmenter, meeting: Floats, written: Paths
) -> None:
    path = written(meeting[RATE : RATE + 160_300])
    own = {"segmentation": segmenter} if vad == "ours" else {}
    assert diarize(path, model=tiny, vad=vad, **own).seconds == pytest.approx(160_300 / RATE)


def test_each_channel_is_heard_by_itself(tiny: Embedder, meeting: Floats, tmp_path: Path) -> None:
    """A stereo file whose one side is silent: the side that speaks gives the turns that it gives alone."""
    left = meeting[: 8 * RATE]
    soundfile.write(tmp_path / "one.wav", left, RATE)
    soundfile.write(tmp_path / "two.wav", np.stack([left, np.zeros_like(left)], 1), RATE)
    alone = diarize(tmp_path / "one.wav", model=tiny, num_speakers=2)
    assert alone.turns
    assert not diarize(tmp_path / "two.wav", model=tiny, channel="2").turns
    found = diarize(tmp_path / "two.wav", model=tiny, num_speakers=2, channel="left")
    assert found.turns == alone.turns


def test_ten_speakers(shared: Path, written: Paths) -> None:
    """A turn of each of ten voices: told so, exactly ten."""
    clips: dict[str, Path] = {}
    with (shared / "data" / "speech" / "manifest.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if float(row["active_seconds"]) > 4:
                clips.setdefault(row["speaker"], shared / "data" / "speech" / row["path"])
    if len(clips) < 10:
        pytest.skip("needs ten speakers")
    sounds = [reading.read(clips[name]).samples[: 3 * RATE] for name in sorted(clips)[:10]]
    path = written(np.concatenate([np.pad(one / np.abs(one).max() * 0.5, (0, RATE // 2)) for one in sounds]))
    found = check(diarize(path, model="voice", device="cpu", num_speakers=10), path)
    assert len(found.speakers) == 10


@pytest.mark.parametrize("vad", ["silero", "ours"])
def test_music_is_survived(
    vad: str,
    shared: Path,
    tiny: Embedder,
    segmenter: Segmenter,
    written: Paths,
) -> None:
    songs = sorted((shared / "data" / "noise" / "music").glob("*.*"))
    if not songs:
        pytest.skip("needs music")
    path = written(reading.read(songs[0]).samples[: 10 * RATE])
    own = {"segmentation": segmenter} if vad == "ours" else {}
    found = check(diarize(path, model=tiny, vad=vad, **own), path)
    if segmenter.bundle.name != "random" or vad == "silero":
        assert found.annotation.get_timeline().support().duration() < 0.1 * found.seconds


# --- what is refused


def test_counts_that_contradict() -> None:
    for number, least, most in ((0, None, None), (None, 3, 2), (4, None, 3), (1, 2, None)):
        with pytest.raises(KnnError):
            check_speakers(number, least, most)
    check_speakers(3, 2, 4)
    check_speakers(None, None, None)


def test_a_margin_of_silence(tiny: Embedder, example: Path) -> None:
    """Turns keep their beginnings' and ends' silence, nobody speaks over anybody for it, and confidence stays."""
    tight, wide = (diarize(example, model=tiny, margin=margin, max_gap=0.6) for margin in (0.0, 0.4))
    gained = wide.annotation.get_timeline().support().duration() - tight.annotation.get_timeline().support().duration()
    assert gained > 0.8
    overlaps = [one.annotation.get_overlap().duration() for one in (wide, tight)]
    assert overlaps[0] == pytest.approx(overlaps[1], abs=1e-6)
    if len(wide.turns) == len(tight.turns):
        assert [turn.confidence for turn in wide.turns] == pytest.approx([turn.confidence for turn in tight.turns])


def test_lengths_that_are_none() -> None:
    for bad in (-0.1, float("nan"), float("inf")):
        for lengths in ((bad, 0.0, 0.0), (0.0, bad, 0.0), (0.0, 0.0, bad)):
            with pytest.raises(KnnError):
                DiarizationOptions(**dict(zip(("min_turn", "max_gap", "margin"), lengths, strict=True)))
    DiarizationOptions(min_turn=0.0, max_gap=0.0, margin=0.0)


def test_silero_leaves_nothing_for_a_network(tiny: Embedder, segmenter: Segmenter, example: Path) -> None:
    with pytest.raises(KnnError, match="nothing for a segmentation network"):
        diarize(example, model=tiny, vad="silero", segmentation=segmenter)


def test_vbx_needs_the_models_plda(tiny: Embedder, example: Path) -> None:
    with pytest.raises(KnnError):
        diarize(example, model=tiny, clusterer="vbx")


def test_an_unknown_detector_is_refused(tiny: Embedder, segmenter: Segmenter, example: Path) -> None:
    with pytest.raises(KnnError):
        diarize(example, model=tiny, vad="sillero", segmentation=segmenter)


def test_methods_are_checked_before_hours_of_listening(
    tiny: Embedder, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knn_cli.diarization.pipeline.get_segmentation", lambda *_: pytest.fail("listened"))
    for clusterer, settings in (("nobody", {}), ("ahc", {"threshold": 3.0}), ("ahc", {"treshold": 1.0})):
        with pytest.raises(KnnError):
            diarize(example, model=tiny, clusterer=clusterer, clusterer_settings=settings)
