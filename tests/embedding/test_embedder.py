"""From sound to embeddings: one clip gives one embedding, whatever batch, chunk or door it comes through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import speech_activity
from knn_cli.core.errors import AudioError, BundleError, KnnError, SilenceError
from knn_cli.core.values import Waveform
from knn_cli.embedding import embedder as room
from knn_cli.embedding.embedder import Embedder, embed_file, embed_store
from knn_cli.store.hdf5 import AudioRow, Store
from knn_cli.store.writer import StoreWriter


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=round(seconds * 16000)) * 0.1).astype(np.float32)


def test_batch_equals_single(tiny: Embedder) -> None:
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.31, 2.0, 0.7, 2.0, 1.234))]
    together = tiny(clips)
    assert together.shape == (5, tiny.dimension) and together.dtype == np.float32
    for clip, row in zip(clips, together, strict=True):
        assert np.allclose(tiny([clip])[0], row, atol=1e-5)


def test_small_batches_equal_large_ones() -> None:
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.5, 1.5, 1.0, 0.6))]
    assert np.allclose(Embedder("tiny-test", batch_seconds=0.1)(clips), Embedder("tiny-test")(clips), atol=1e-5)


def test_averages_are_weighted_by_length_and_streamed(tiny: Embedder) -> None:
    clips = [noise(1.0, 1), noise(3.0, 2), noise(2.0, 3)]
    single = tiny(clips)
    found = tiny.averages(iter([(7, clips[0]), (7, clips[1]), (9, clips[2])]))
    assert np.allclose(found[7], (single[0] + 3 * single[1]) / 4, atol=1e-5)
    assert np.allclose(found[9], single[2], atol=1e-5)


def test_chunks_keep_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_SECONDS", 0.01)  # 160 samples
    sound = np.arange(1000, dtype=np.float32)
    chunks = list(room._chunked([(0, sound[:333]), (0, sound[333:]), (1, sound[:50])], 16000))
    assert np.array_equal(np.concatenate([chunk for row, chunk in chunks if row == 0]), sound)
    lengths = [len(chunk) for row, chunk in chunks if row == 0]
    assert max(lengths) <= 160 and min(lengths) > 80  # no stub
    assert [len(chunk) for row, chunk in chunks if row == 1] == [50]


def test_file_store_and_call_agree(tiny: Embedder, tmp_path: Path) -> None:
    sound = np.round(noise(3.0) * 32768).clip(-32768, 32767) / 32768
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    direct = tiny([sound.astype(np.float32)])[0]
    by_file = embed_file(tmp_path / "a.wav", tiny, use_vad=False)
    assert np.allclose(by_file.data[0], direct, atol=1e-5)
    assert (by_file.start[0], by_file.end[0], by_file.name[0]) == (0.0, 3.0, "a")
    assert by_file.embedder == tiny.bundle.fingerprint
    row = AudioRow(Waveform(sound.astype(np.float32), 16000), "a", "g", "g-1", "s", 0.0, 3.0)
    with StoreWriter(tmp_path / "a.h5", "audio", {"rate": 16000}, plan={}) as writer:
        writer.add("a", [row, row])
    with Store(tmp_path / "a.h5") as store:
        (group,) = embed_store(store, tiny, use_vad=False)
    assert np.allclose(group.embeddings.data, direct, atol=1e-5)
    assert (group.silent, group.done, group.embeddings.subgroup[0]) == (0, 2, "g-1")


def test_segments_of_a_file(tiny: Embedder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(2.5), 16000, subtype="FLOAT")
    rows = embed_file(tmp_path / "a.wav", tiny, segment=1.0, use_vad=False)
    assert list(zip(rows.start, rows.end, strict=True)) == [(0, 1), (1, 2), (2, 2.5)]
    assert np.allclose(rows.data[1], tiny([noise(2.5)[16000:32000]])[0], atol=1e-5)


def test_refusals(tiny: Embedder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(32000), 16000)
    for use_vad in (True, False):
        with pytest.raises(SilenceError, match=r"silence.wav holds no speech"):
            embed_file(tmp_path / "silence.wav", tiny, use_vad=use_vad)
    soundfile.write(tmp_path / "short.wav", noise(0.05), 16000)
    with pytest.raises(AudioError, match=r"too short: 0.05 s, at least 0.25 s"):
        embed_file(tmp_path / "short.wav", tiny)
    with pytest.raises(BundleError, match="no model 'nosuch'"):
        Embedder("nosuch")
    with pytest.raises(KnnError, match="no device 'gpu'"):
        Embedder("tiny-test", device="gpu")
    with pytest.raises(KnnError, match="Batches of 0 s"):
        Embedder("tiny-test", batch_seconds=0)


def test_speech_is_found_in_a_conversation(example: Path) -> None:
    """The truth of the example says when somebody speaks: nearly all of that is found, and little more."""
    from knn_cli.audio import reading
    from knn_cli.formats.rttm import read_rttm

    truth = next(iter(read_rttm(example.with_suffix(".rttm")).values())).get_timeline().support()
    found = speech_activity.speech(reading.blocks(example))
    seconds = reading.info(example).seconds
    both = truth.crop(found, mode="intersection").duration()
    assert truth.duration() - both < 0.02 * seconds
    assert found.duration() - both < 0.15 * seconds  # pauses under 0.6 s count as speech


def test_lanes_change_nothing_but_the_warm_up(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into lanes of ten seconds, a recording has the same speech as in one go, to a few frames at the cuts."""
    from knn_cli.audio import reading

    waveform = reading.read(example)
    (whole,) = speech_activity.probabilities([waveform.samples])
    monkeypatch.setattr(speech_activity, "LANE_FRAMES", 10 * speech_activity.RATE // speech_activity.FRAME)
    lanes = list(speech_activity._lanes(reading.blocks(example, seconds=7.0)))
    assert len(lanes) > 4
    regions = speech_activity.speech(reading.blocks(example, seconds=7.0))
    assert regions.duration() > 0
    from knn_cli.audio.segments import binarize

    once = binarize(whole, speech_activity.FRAME / speech_activity.RATE, end=waveform.seconds)
    difference = regions.duration() + once.duration() - 2 * regions.crop(once, mode="intersection").duration()
    assert difference < 0.05 * waveform.seconds


def test_probabilities_of_a_batch_are_those_of_each(example: Path) -> None:
    from knn_cli.audio import reading

    sound = reading.read(example).samples
    clips = [sound[:16000], sound[20000:60000], sound[:0], sound[5000:5100]]
    together = speech_activity.probabilities(clips)
    assert [len(found) for found in together] == [32, 79, 0, 1]
    for clip, found in zip(clips, together, strict=True):
        assert np.allclose(speech_activity.probabilities([clip])[0], found, atol=1e-4)


def test_a_long_span_is_read_in_pieces(tiny: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from knn_cli.audio import reading

    soundfile.write(tmp_path / "a.wav", noise(9.0), 16000, subtype="FLOAT")
    whole = embed_file(tmp_path / "a.wav", tiny, use_vad=False).data
    monkeypatch.setattr(room, "CHUNK_SECONDS", 2.0)
    asked: list[float] = []
    real = reading.crops

    def watched(path, spans, **settings):  # type: ignore[no-untyped-def]
        asked.extend(span.duration for span in spans)
        return real(path, spans, **settings)

    monkeypatch.setattr(reading, "crops", watched)
    embed_file(tmp_path / "a.wav", tiny, use_vad=False)
    assert max(asked) <= 2.0 and sum(asked) == pytest.approx(9.0) and whole.shape == (1, tiny.dimension)
