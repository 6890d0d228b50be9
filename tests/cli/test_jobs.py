"""`--jobs`: the same output for any number of processors, in every command that goes through recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.core import parallel
from tests.helpers.command import done, knn

COMMANDS = {
    "embed": ["--model", "tiny-test", "--no-vad"],
    "classify": ["--json"],
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.wav" for number in range(2)]
    for path, seconds in zip(paths, (1.5, 2.0), strict=True):
        soundfile.write(path, 0.1 * random.standard_normal(round(16000 * seconds)), 16000)
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


@pytest.mark.parametrize("command", ["embed", "classify"])
def test_a_cluster_has_its_own(command: str) -> None:
    more = ["-o", "out.h5"] if command == "embed" else []
    result = knn(command, "a.wav", *more, "--jobs", "2", "--cluster", "local:2")
    assert result.exit_code == 1 and "--jobs and --cluster cannot be combined" in result.stderr
    assert knn(command, "a.wav", "--jobs", "0").exit_code == 2
