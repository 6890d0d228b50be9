"""`--jobs`: the same output for any number of processors, in every command that goes through recordings."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from knn_cli.core import parallel
from knn_cli.store.hdf5 import AudioRow, Store
from tests.helpers.command import done, knn

MEETING = Path(__file__).parents[2] / "examples/meeting.flac"
COMMANDS = {
    "embed": [],
    "classify": ["--json"],
    "timeline": ["--json"],
    "diarize": [],
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    paths = [folder / f"{number}.wav" for number in range(2)]
    for path, start, seconds in zip(paths, (0, 20), (2.5, 3.0), strict=True):
        sound, rate = soundfile.read(MEETING, start=16000 * start, frames=round(16000 * seconds))
        soundfile.write(path, sound, rate)
    return paths


@pytest.mark.parametrize("command", COMMANDS)
def test_output_is_the_same_for_any_number(command: str, sounds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    processors = parallel._processors
    monkeypatch.setattr(
        parallel, "_processors", lambda jobs, threads: asked.append(processors(jobs, threads)) or asked[-1]
    )
    said = []
    for number in (1, 2, 3):
        said.append(done(command, *sounds, *COMMANDS[command], "--jobs", str(number)).stdout)
        assert asked and max(asked) == number
        asked.clear()
    assert said[0] and said[1:] == said[:1] * 2


def test_stores_of_sound_are_the_same_for_any_number(sounds: list[Path], tmp_path: Path) -> None:
    stores = [tmp_path / f"{number}.h5" for number in (1, 2, 3)]
    for number, store in enumerate(stores, start=1):
        done("convert", sounds[0].parent, store, "--segment", "1", "--jobs", str(number))
    read = [[(row.name, row.start, row.waveform.samples.tobytes()) for row in audio_rows(store)] for store in stores]
    assert len(read[0]) == 5 and read[1:] == read[:1] * 2
    refused = knn("convert", stores[0], tmp_path / "x.npz", "--jobs", "2")
    assert refused.exit_code == 1 and "1.h5 holds no recordings" in refused.stderr


def audio_rows(path: Path) -> list[AudioRow]:
    with Store(path, "audio") as store:
        return [*store.segments(range(len(store)))]


@pytest.mark.parametrize("command", ["embed", "classify", "diarize", "convert"])
def test_a_cluster_has_its_own(command: str) -> None:
    more = ["-o", "out.h5"] if command == "embed" else ["out.h5"] if command == "convert" else []
    result = knn(command, "a.wav", *more, "--jobs", "2", "--cluster", "local:2")
    assert result.exit_code == 1 and "--jobs and --cluster cannot be combined" in result.stderr
    assert knn(command, "a.wav", "--jobs", "0").exit_code == 2
