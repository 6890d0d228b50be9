"""Pointers of Git LFS are named as such by every reader, whatever they lie in place of."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.lfs import check_pointer
from knn_cli.core.texts import read_table
from knn_cli.diarization import corrections
from knn_cli.formats.rttm import read_rttm
from knn_cli.formats.uem import read_uem
from knn_cli.networks import bundle
from knn_cli.networks.importers import checkpoint_files
from knn_cli.recognition.split_file import read_split
from knn_cli.recognition.trials import read_trials
from knn_cli.store import hdf5
from knn_cli.store.corpora import tar_shards
from knn_cli.store.embedding_readers import READERS, read_embeddings
from knn_cli.training import recipe_reader

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
TINY = Path(__file__).parents[1] / "data" / "tiny-test"


def names_it(read: Callable[[Path], object], path: Path) -> None:
    path.write_bytes(POINTER)
    with pytest.raises(KnnError, match=r"is a Git LFS pointer") as caught:
        read(path)
    assert path.name in caught.value.message


@pytest.mark.parametrize("suffix", READERS.names())
def test_files_of_embeddings(suffix: str, tmp_path: Path) -> None:
    names_it(read_embeddings, tmp_path / f"x{suffix}")


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_table(path, "a table of labels"),
        *(read_rttm, read_uem, read_split, read_trials, corrections.read, recipe_reader.read, tar_shards.members),
        *(hdf5.read, checkpoint_files.read, checkpoint_files.read_json, checkpoint_files.read_yaml),
    ],
)
def test_tables_stores_and_checkpoints(read: Callable[[Path], object], tmp_path: Path) -> None:
    names_it(read, tmp_path / "x")


def test_an_archive_that_a_script_names(tmp_path: Path) -> None:
    (tmp_path / "x.scp").write_text("key x.ark:4\n")
    names_it(lambda path: read_embeddings(tmp_path / "x.scp"), tmp_path / "x.ark")


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_the_files_of_a_model(name: str, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    names_it(lambda path: bundle.load_network(bundle.find(tmp_path / "m")), tmp_path / "m" / name)


def test_the_plda_of_a_model(tmp_path: Path) -> None:
    from knn_cli.diarization.clustering import plda

    shutil.copytree(TINY, tmp_path / "m")
    names_it(lambda path: plda.load(bundle.find(tmp_path / "m")), tmp_path / "m" / plda.FILE)


def test_other_files_are_not(tmp_path: Path) -> None:
    for content in (b"", b"version 2", b"RIFF"):
        (tmp_path / "x").write_bytes(content)
        check_pointer(tmp_path / "x")
    check_pointer(tmp_path / "none")
    check_pointer(tmp_path)
