"""Speaker removal: recordings without the spans of unwanted speakers.

The turns of an unwanted speaker are muted or cut out completely, including overlapped speech of others; long silences
are shortened. Rate, channels, format and bit depth stay the same, and so does every sample outside the edits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from knn_cli.audio import edits, writing
from knn_cli.audio.edits import Edit
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Turn, sort_turns
from knn_cli.diarization.unwanted_spans import OVERLAPPED, UnwantedSpan

if TYPE_CHECKING:
    from knn_cli.audio.writing import AudioFormat, Frames

Removal = Literal["mute", "cut"]
SILENCE_THRESHOLD_DB = -50.0  # dB against full scale
MIN_SILENCE_SECONDS = edits.SILENCE_KEPT_SECONDS


@dataclass(frozen=True)
class RemovalResult:
    """Edits of a recording; lengths are in samples per channel.

    Attributes
    ----------
    target : Path
        The edited recording.
    form : str
        Its audio format.
    note : str
        Why its format differs from that of the source, "" where it does not.
    rate : int
        Samples per second.
    whole : int
        Length of the source.
    kept : int
        Length of the target.
    unwanted : int
        Length of the unwanted spans that were muted or cut.
    muted : int
        Length of those of them that were muted and are still there.
    silence : int
        Length of the silence that was removed; muted spans count as silence.
    parts : int
        Number of spans that were muted or cut, after merging those that overlap or touch.
    silences : int
        Number of silences that were shortened.
    edits : tuple of Edit
        The edits in the order in which they were applied; `retime` uses them.
    """

    target: Path
    form: str
    note: str
    rate: int
    whole: int
    kept: int
    unwanted: int
    muted: int
    silence: int
    parts: int
    silences: int
    edits: tuple[Edit, ...]

    def seconds(self) -> dict[str, float]:
        """Whole, kept, muted, cut and silent length in seconds, by name."""
        samples = {"whole": self.whole, "kept": self.kept, "muted": self.muted, "cut": self.unwanted - self.muted}
        return {name: length / self.rate for name, length in {**samples, "silence": self.silence}.items()}


def check_silence(max_silence: float | None, threshold: float) -> None:
    """Raise KnnError for an impossible maximum duration of silences or an impossible silence threshold."""
    if max_silence is not None and not MIN_SILENCE_SECONDS <= max_silence < math.inf:
        raise KnnError(
            f"`max_silence` {max_silence:g} cannot be reached: {1000 * MIN_SILENCE_SECONDS:.0f} ms of a silence stay.",
            f"Give {MIN_SILENCE_SECONDS:g} seconds or more.",
        )
    if not -200 <= threshold < 0:
        raise KnnError(
            f"A silence threshold of {threshold:g} dB is not a level below full scale.", "Give a number such as -50."
        )


def output_path(source: str | Path, word: str = "cleaned", folder: str | Path | None = None, *, track: int = 0) -> Path:
    """Path of the edited recording, with the suffix that `plan_removal` requires: `<stem>_<word>.<suffix>`."""
    return writing.derived_path(source, writing.output_format(source, track=track), word, folder)


@dataclass(frozen=True)
class PlannedRemoval:
    """A recording without its unwanted spans, to be written.

    Attributes
    ----------
    source : Path
    form : AudioFormat
    edits : sequence of Edit
        In the order in which they are applied.
    result : RemovalResult
        What will have been done.
    """

    source: Path
    form: AudioFormat
    edits: Sequence[Edit]
    result: RemovalResult

    def write(self, part: Path | None = None) -> RemovalResult:
        """Write the target, or the file `part` that will become it. KnnError where that cannot be done."""
        sound = _applied(self.edits, writing.read_frames(self.source, self.form))
        writing.write_frames(self.result.target, self.form, sound, self.result.kept, part=part)
        return self.result


def plan_removal(
    source: str | Path,
    target: str | Path,
    parts: Sequence[UnwantedSpan] = (),
    *,
    how: Removal | None = None,
    overlap: Removal | None = None,
    max_silence: float | None = None,
    threshold: float = SILENCE_THRESHOLD_DB,
    track: int = 0,
) -> PlannedRemoval:
    """Plan a recording without its unwanted spans and with long silences shortened; read and written block by block.

    The target has the rate, channels, format and bit depth of the source; integer samples are read and written without
    conversion. OGG, Opus and MP3 are encoded again; formats that libsndfile cannot write become 24-bit WAV, with a
    `note`. Muted samples are exactly zero, except in lossy formats and in A-law, which has no zero.

    Parameters
    ----------
    source, target : path
    parts : sequence of UnwantedSpan
    how : {"mute", "cut"}, optional
        Set samples of `parts` to zero, or remove them, with fades of 50 ms before and after; None leaves them.
    overlap : {"mute", "cut"}, optional
        The same for those of them that are OVERLAPPED; as the others by default.
    max_silence : float, optional
        Longer silences, in seconds, are shortened to 200 ms (see `edits.shorten_silences`), after muting and cutting.
    threshold : float
        Silence threshold in dB against full scale.
    track : int
        Which audio track of the source is read, from 1; 0 for the first.

    Returns
    -------
    PlannedRemoval

    Raises
    ------
    KnnError
        For a target that is the source, has the wrong suffix or would be empty, and as
        `check_silence`; AudioError for a source that cannot be read.
    """
    if how is None and overlap is None and max_silence is None:
        raise ValueError("nothing to do: neither how nor overlap nor max_silence")
    check_silence(max_silence, threshold)
    form = writing.output_format(source, track=track)
    writing.check_target(target, source, form)
    removals = _removals(parts, form.rate, how, overlap or how)
    applied, samples = _find_edits(source, form, removals, max_silence, threshold)
    counts = [samples]  # samples per channel, before and after each edit
    if not counts[0]:
        raise KnnError(f"{source} holds no samples.", "Check that the recording was written to its end.")
    for edit in applied:
        counts.append(edit.output_length(counts[-1]))
    if not counts[-1]:
        raise KnnError(f"Nothing of {source} would be left.", "Mute it, or name fewer unwanted speakers.")
    result = _result(Path(source), Path(target), form, counts, applied, len(removals))
    return PlannedRemoval(Path(source), form, applied, result)


def _removals(parts: Sequence[UnwantedSpan], rate: int, how: Removal | None, overlap: Removal | None) -> list[Edit]:
    """What mutes and then what cuts the spans; the times of what is cut hold after muting."""
    spans: dict[Removal, list[tuple[float, float]]] = {"mute": [], "cut": []}
    for part in parts:
        removal = overlap if part.speaker == OVERLAPPED else how
        if removal is not None:
            spans[removal].append((part.start, part.end))
    return [edits.mute_or_cut(times, rate, removes=removal == "cut") for removal, times in spans.items() if times]


def _find_edits(
    source: str | Path, form: AudioFormat, removals: Sequence[Edit], max_silence: float | None, threshold: float
) -> tuple[list[Edit], int]:
    """Edits in the order in which they are applied, and the length of the source in samples per channel."""
    applied = list(removals)
    lengths: list[int] = []
    sound = _applied(applied, _counted(writing.read_frames(source, form), lengths))
    if max_silence is not None:
        shortened, _ = edits.shorten_silences(
            sound, form.rate, full_scale=form.full_scale, max_silence=max_silence, threshold=threshold
        )
        applied.append(shortened)
    else:
        for _ in sound:
            pass
    return applied, sum(lengths)


def _result(
    source: Path, target: Path, form: AudioFormat, counts: Sequence[int], applied: Sequence[Edit], removals: int
) -> RemovalResult:
    """Summary of the edits; `counts` are samples before the first and after each of the edits that were `applied`.

    removals : how many of those muted or cut spans
    """
    whole = counts[0]
    unwanted = edits.joined(edit.spans for edit in applied[:removals])
    cut = [edit for edit in applied[:removals] if edit.removes]
    removed = sum(edit.covered_samples(whole) for edit in cut)
    shortened = applied[-1] if len(applied) > removals else None
    note = f"{source.name} has a format that can only be read; written as {form.name}."
    return RemovalResult(
        target=target,
        form=form.name,
        note="" if form.matches_source else note,
        rate=form.rate,
        whole=whole,
        kept=counts[-1],
        unwanted=unwanted.covered_samples(whole),
        muted=unwanted.covered_samples(whole) - removed,
        silence=counts[-2] - counts[-1] if shortened is not None else 0,
        parts=sum(begin < whole for begin, _ in unwanted.spans),
        silences=len(shortened.spans) if shortened is not None else 0,
        edits=tuple(applied),
    )


def _applied(applied: Sequence[Edit], sound: Iterator[Frames]) -> Iterator[Frames]:
    for edit in applied:
        sound = edit.apply(sound)
    return sound


def _counted(sound: Iterator[Frames], lengths: list[int]) -> Iterator[Frames]:
    """The same blocks; their lengths are appended to `lengths`."""
    for block in sound:
        lengths.append(len(block))
        yield block


def retime(diarization: Diarization, cleaned: RemovalResult) -> Diarization:
    """Map the turns of a diarization to the edited recording.

    Muted and cut spans are removed from all turns, and later turns are shifted. Turns that become empty are dropped,
    and so are the embeddings of speakers without turns. Where muting splits a turn, its parts keep its confidence.

    Parameters
    ----------
    diarization : Diarization
        Turns of the source.
    cleaned : RemovalResult

    Returns
    -------
    Diarization
    """
    turns: list[Turn] = []
    muted = [span for edit in cleaned.edits if not edit.removes for span in edit.spans]
    for turn in diarization.turns:
        for start, end in edits.outside(turn.start * cleaned.rate, turn.end * cleaned.rate, muted):
            times = [min(start, cleaned.whole), min(end, cleaned.whole)]
            for edit in cleaned.edits:
                times = [float(time) for time in edit.new_positions(times)]
            if times[1] - times[0] < 0.5:  # of a sample
                continue
            turns.append(replace(turn, start=times[0] / cleaned.rate, end=times[1] / cleaned.rate))
    left = {turn.speaker for turn in turns}
    return Diarization(
        sort_turns(turns),
        diarization.name,
        {name: vector for name, vector in diarization.speaker_embeddings.items() if name in left},
        {name: seconds for name, seconds in diarization.clean_speech_seconds.items() if name in left},
        cleaned.kept / cleaned.rate,
    )
