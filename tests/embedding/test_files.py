"""Embeddings of files: in segments, in parts of bounded length, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, KnnError, SilenceError
from knn_cli.embedding import chunks
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_file, embed_recordings, expand_folders
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.store.corpora.registry import read_corpora


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=round(seconds * 16000)) * 0.1).astype(np.float32)


def test_segments_of_a_file(tiny: Embedder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(2.5), 16000, subtype="FLOAT")
    rows = embed_file(tmp_path / "a.wav", tiny, segment=1.0, use_vad=False)
    assert list(zip(rows.start, rows.end, strict=True)) == [(0, 1), (1, 2), (2, 2.5)]
    assert np.allclose(rows.data[1], tiny([noise(2.5)[16000:32000]])[0], atol=1e-5)


def test_silent_and_short_files_are_refused(tiny: Embedder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(32000), 16000)
    for use_vad in (True, False):
        with pytest.raises(SilenceError, match=r"silence.wav holds no speech"):
            embed_file(tmp_path / "silence.wav", tiny, use_vad=use_vad)
    soundfile.write(tmp_path / "short.wav", noise(0.05), 16000)
    with pytest.raises(AudioError, match=r"too short: 0.05 s, at least 0.25 s"):
        embed_file(tmp_path / "short.wav", tiny)


def test_a_long_span_is_read_in_pieces(tiny: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", noise(9.0), 16000, subtype="FLOAT")
    whole = embed_file(tmp_path / "a.wav", tiny, use_vad=False).data
    monkeypatch.setattr(chunks, "READ_SECONDS", 2.0)
    asked: list[float] = []
    real = reading.HeldRecording.crops

    def watched(sound, spans):  # type: ignore[no-untyped-def]
        asked.extend(span.duration for span in spans)
        return real(sound, spans)

    monkeypatch.setattr(reading.HeldRecording, "crops", watched)
    embed_file(tmp_path / "a.wav", tiny, use_vad=False)
    assert max(asked) <= 2.0 and sum(asked) == pytest.approx(9.0) and whole.shape == (1, tiny.dimension)


def test_folders_are_expanded_and_files_come_once(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("x/a.wav", "x/b.flac", "x/notes.txt", "c.wav"):
        (tmp_path / name).touch()
    found = expand_folders([tmp_path / "x", tmp_path / "c.wav", tmp_path / "x" / "a.wav"])
    assert [path.name for path in found] == ["a.wav", "b.flac", "c.wav"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="empty holds no audio files"):
        expand_folders([tmp_path / "empty"])


def test_files_of_a_folder_have_its_labels(tmp_path: Path) -> None:
    for name in ("x/deu/a.wav", "x/fra/a.wav", "b.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    known = read_corpora([tmp_path / "x"])
    found = {entry.sound.path.relative_to(tmp_path).as_posix(): entry.parts[0].labels for entry in known}
    assert {path: label.group for path, label in found.items()} == {"x/deu/a.wav": "deu", "x/fra/a.wav": "fra"}
    assert len({label.name for label in found.values()}) == 2
    alone = read_corpora([tmp_path / "b.wav"])[0].parts[0].labels
    assert (alone.name, alone.group) == ("b", "")


def test_embeddings_are_the_same_bits_for_any_number_of_processors(tiny: Embedder, tmp_path: Path) -> None:
    """Also those of a file alone, and whatever number of threads torch would use for one operation."""
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for seed, (path, seconds) in enumerate(zip(paths, (3.0, 0.01, 45.0), strict=True)):
        soundfile.write(path, noise(seconds, seed), 16000, subtype="FLOAT")
    options = EmbeddingOptions(segment=5.0, use_vad=False)

    def embedded(jobs: int | None) -> list[bytes | str]:
        results = embed_recordings(read_corpora([tmp_path], "folder"), tiny, options, jobs=jobs)
        return [found.message if isinstance(found, KnnError) else found.data.tobytes() for _, found in results]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = [embed_file(path, tiny, segment=5.0, use_vad=False).data.tobytes() for path in paths[::2]]
        many = [embedded(jobs) for jobs in (None, 1, 2, 3)]
        torch.set_num_threads(1)
        many.append(embedded(None))
    finally:
        torch.set_num_threads(before)
    assert [alone[0], alone[1]] == many[0][::2] and "is too short" in str(many[0][1])
    assert all(other == many[0] for other in many)
