"""Embeddings by workers of a cluster: the store of one process, failures and notes included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading_notes
from knn_cli.core.cluster import opened_cluster
from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.embedding.cluster_embedding import EmbedderPlace, embed_on_cluster
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_recordings
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.embedding.stores import embed_recordings_into
from knn_cli.store.corpora import recording_map
from knn_cli.store.corpora.recordings import CorpusRecording
from knn_cli.store.corpora.registry import read_corpora

pytest.importorskip("distributed")
TINY = Path(__file__).parents[1] / "data" / "tiny-test"


def test_the_store_is_that_of_one_process(loopback: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a worker is killed on the way; a recording that ends workers is named, its neighbours are not lost."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    random = np.random.default_rng(0)
    for number in range(9):
        soundfile.write(sounds / f"{number}.wav", 0.1 * random.standard_normal(8000 + 2000 * number), 16000)
    (sounds / "bad.wav").write_bytes(b"nothing")
    noise = 0.1 * random.standard_normal(16000)
    soundfile.write(sounds / "inverted.wav", np.stack([noise, -noise], axis=1), 16000)  # read with a note
    options = EmbeddingOptions(use_vad=False)
    embedder = Embedder(TINY, device="cpu")
    monkeypatch.setattr(recording_map, "UNIT_RECORDINGS", 4)
    place = EmbedderPlace.of(embedder, "cpu")

    with opened_cluster("local:4") as cluster:

        def embed(
            recordings: Sequence[CorpusRecording], embedder: Embedder, options: EmbeddingOptions
        ) -> Iterator[tuple[str, EmbeddingSet | KnnError]]:
            results = embed_on_cluster(cluster, recordings, place, options)
            yield next(results)
            cluster._client.run(lambda: __import__("os")._exit(1), nanny=False, on_error="ignore", workers=[one()])
            yield from results

        def one() -> str:
            return next(iter(cluster._client.nthreads()))

        monkeypatch.chdir(tmp_path)
        recordings = read_corpora([Path("sounds")])
        said: dict[str, list[object]] = {}
        summaries = {}
        for name, embedding in (("here", embed_recordings), ("there", embed)):
            listening = reading_notes.listening(lambda *note, name=name: said.setdefault(name, []).append(note))
            with listening:
                summaries[name] = embed_recordings_into(
                    recordings, tmp_path / f"{name}.h5", embedder, options, embed=embedding
                )
        assert said["here"] == said["there"] and len(said["here"]) == 1
        assert [(f.file, str(f.error)) for f in summaries["here"].failures] == [
            (f.file, str(f.error)) for f in summaries["there"].failures
        ]
        assert summaries["here"].seconds == summaries["there"].seconds > 5
        with h5py.File(tmp_path / "here.h5") as here, h5py.File(tmp_path / "there.h5") as there:
            assert here.keys() == there.keys() and len(here["Data"]) == 10
            assert all(
                np.array_equal(here[key][...], there[key][...]) for key in here if isinstance(here[key], h5py.Dataset)
            )

        lost = EmbedderPlace("nobody@000000000000", tmp_path / "nowhere", "cpu", 120.0)
        with pytest.raises(KnnError, match="No model here computes embeddings of nobody"):
            next(embed_on_cluster(cluster, recordings, lost, options))
