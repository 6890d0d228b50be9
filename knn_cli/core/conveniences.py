"""What values can do at a prompt. The work is that of later packages, which are imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.atomic import replacing_text

if TYPE_CHECKING:
    import pandas


def _module(name: str) -> Any:
    return import_module(f"knn_cli.{name}")


class ScoreConveniences:
    """Answers, probabilities and tables of a `ScoreTable`."""

    @property
    def best(self) -> NDArray[np.str_]:
        """(N,) the answer for each row, as `knn classify` gives it: a label, `unknown`, or `zxx` without speech."""
        best: NDArray[np.str_] = _module("recognition.predictions").predict(self).label
        return best

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, C) probability of each label under equal priors; rows sum to 1, and are NaN where there is no speech."""
        predictions = _module("recognition.predictions").predict(self)
        return np.asarray(np.where(predictions.silent[:, None], np.nan, predictions.posteriors))

    def to_frame(self) -> pandas.DataFrame:
        """A row for each row: name, start, end, label (the true one, where known), and each label's probability."""
        table: pandas.DataFrame = _module("recognition.predictions").frame(self)
        return table

    def to_csv(self, path: str | Path) -> None:
        """Write `to_frame` as comma-separated values, which `knn evaluate` and `knn fuse` read.

        Raises
        ------
        KnnError
            The file cannot be written.
        """
        with replacing_text(path) as file:
            self.to_frame().to_csv(file, index=False, lineterminator="\n")


class DiarizationConveniences:
    """A short form and files of a `Diarization`."""

    turns: Any
    name: Any
    seconds: Any
    speakers: Any

    def __repr__(self) -> str:
        turns, speakers = len(self.turns), len(self.speakers)
        return f"<Diarization of {self.name!r}, {self.seconds:.1f} s: {turns} turns, {speakers} speakers>"

    def to_rttm(self) -> str:
        """The turns as lines of RTTM, to the millisecond."""
        lines = StringIO()
        _module("formats.rttm").write_rttm(self, lines)
        return lines.getvalue()

    def save(self, path: str | Path, *, audio: str | Path | None = None) -> None:
        """Write the turns in the format of a suffix: .rttm, .TextGrid, .eaf, .csv, .json, .srt, .vtt, .html and others.

        Parameters
        ----------
        path : path
            A file, which is replaced.
        audio : path, optional
            The recording, which a page (.html) plays and a picture draws.

        Raises
        ------
        KnnError
            The suffix names no format, a page has no recording, or the file cannot be written.
        """
        document = _module("formats.spans").turn_document(self, audio_path=audio)
        _module("formats.span_formats").write(document, path)
