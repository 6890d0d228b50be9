"""Speaker removal: unwanted speakers, their spans, and audio without them.

The turns of an unwanted speaker are muted or cut out completely, including overlapped speech of others; long silences
are shortened. Rate, channels, format and bit depth stay the same, and so does every sample outside the edits.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from knn_cli.audio import edits, writing
from knn_cli.audio.edits import Edit
from knn_cli.audio.segments import EPSILON, merge, total_seconds
from knn_cli.core.errors import KnnError
from knn_cli.core.texts import tidy
from knn_cli.core.values import Diarization, Segment, Turn, sort_turns
from knn_cli.core.visible_text import cell, visible

if TYPE_CHECKING:
    from knn_cli.audio.writing import AudioFormat, Frames

Removal = Literal["mute", "cut"]
LEAST_TALKATIVE = "least"
OVERLAPPED = "OVERLAPPED"
SILENCE_THRESHOLD_DB = -50.0  # dB against full scale
MIN_SILENCE_SECONDS = edits.SILENCE_KEPT_SECONDS


@dataclass(frozen=True)
class UnwantedSpan:
    """An unwanted span of a recording in seconds, with its speaker or OVERLAPPED."""

    start: float
    end: float
    speaker: str


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


def speaking_seconds(turns: Sequence[Turn]) -> dict[str, float]:
    """Seconds of speech of each speaker, including overlap, in order of first appearance."""
    segments: dict[str, list[Segment]] = {}
    for turn in turns:
        segments.setdefault(turn.speaker, []).append(Segment(turn.start, turn.end))
    return {name: total_seconds(merge(spoken)) for name, spoken in segments.items()}


def unwanted_speakers(
    turns: Sequence[Turn], spec: str, known: Collection[str] = (), *, recording: str | None = None
) -> list[str]:
    """The speakers that `spec` names.

    Parameters
    ----------
    turns : sequence of Turn
    spec : str
        Names separated by commas, or "least" for the speaker with the least speech: the one who begins last among
        equals, and none where there are fewer than two speakers.
    known : collection of str
        Names that need not occur in this recording, such as those of enrolled speakers.
    recording : str, optional
        The recording's name, for messages.

    Returns
    -------
    list of str

    Raises
    ------
    KnnError
        For an empty name, and for a name that is neither in the recording nor known; it lists the speakers.
    """
    spoken = speaking_seconds(turns)
    if spec.strip() == LEAST_TALKATIVE:
        return [min(reversed(spoken), key=lambda name: spoken[name])] if len(spoken) > 1 else []
    names = list(dict.fromkeys(tidy(name) for name in spec.split(",")))
    if "" in names:
        raise KnnError(f"`unwanted` {spec!r} has an empty name.", "Give names between commas, or `least`.")
    missing = [name for name in names if name not in spoken and name not in known]
    if spoken and missing:
        who = ", ".join(f"{name} ({seconds:.1f} s)" for name, seconds in spoken.items())
        where = f" in {recording}" if recording else ""
        raise KnnError(f"There is no speaker {', '.join(missing)}{where}.", f"Speakers: {who}; or use `least`.")
    return [name for name in names if name in spoken]


def unwanted(
    turns: Sequence[Turn], spec: str, *, known: Collection[str] = (), all_overlap: bool = False
) -> list[UnwantedSpan]:
    """Spans of the unwanted speakers, by time; where others speak at the same time, the label is OVERLAPPED.

    Parameters
    ----------
    turns : sequence of Turn
    spec, known
        See `unwanted_speakers`.
    all_overlap : bool
        Include overlapped speech of other speakers.

    Returns
    -------
    list of UnwantedSpan

    Raises
    ------
    KnnError
        As `unwanted_speakers`.
    """
    return unwanted_spans(turns, unwanted_speakers(turns, spec, known), all_overlap=all_overlap)


def unwanted_spans(
    turns: Sequence[Turn], speakers: Collection[str], *, all_overlap: bool = False
) -> list[UnwantedSpan]:
    """`unwanted` for these speakers. Spans do not overlap; those of the same label that touch are merged."""
    changes: list[tuple[float, int, str]] = []
    for turn in turns:
        changes += [(turn.start, 1, turn.speaker), (turn.end, -1, turn.speaker)]
    active: dict[str, int] = {}  # speaker -> number of simultaneous turns
    spans: list[UnwantedSpan] = []
    before = 0.0
    for time, change, name in sorted(changes):
        label = _label(active, speakers, all_overlap)
        if label is not None and time - before > EPSILON:
            if spans and spans[-1].speaker == label and before - spans[-1].end <= EPSILON:
                spans[-1] = replace(spans[-1], end=time)
            else:
                spans.append(UnwantedSpan(before, time, label))
        before = time
        active[name] = active.get(name, 0) + change
        if not active[name]:
            del active[name]
    return spans


def _label(active: Collection[str], speakers: Collection[str], all_overlap: bool) -> str | None:
    """Label of a span with these active speakers, None where it is wanted."""
    if len(active) > 1:
        return OVERLAPPED if all_overlap or any(name in speakers for name in active) else None
    return next((name for name in active if name in speakers), None)


def write_unwanted_csv(parts: Iterable[UnwantedSpan], file: TextIO) -> None:
    """Write spans as CSV, by time, to the millisecond: Start [s],End [s],Speaker."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("Start [s]", "End [s]", "Speaker"))
    for part in sorted(parts, key=lambda part: (part.start, part.end)):
        start, end = round(part.start * 1000), round(part.end * 1000)
        if end > start:
            rows.writerow((f"{start / 1000:.3f}", f"{end / 1000:.3f}", cell(visible(part.speaker))))


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
    """Path of the edited recording, with the suffix that `remove_speakers` requires: `<stem>_<word>.<suffix>`."""
    return writing.derived_path(source, writing.output_format(source, track=track), word, folder)


def remove_speakers(
    source: str | Path,
    target: str | Path,
    parts: Sequence[UnwantedSpan] = (),
    *,
    how: Removal | None = None,
    overlap: Removal | None = None,
    max_silence: float | None = None,
    threshold: float = SILENCE_THRESHOLD_DB,
    track: int = 0,
) -> RemovalResult:
    """Write a recording without its unwanted spans and with long silences shortened, in bounded memory.

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
    RemovalResult

    Raises
    ------
    KnnError
        For a target that is the source, has the wrong suffix, cannot be written or would be empty, and as
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
    writing.write_frames(target, form, _applied(applied, writing.read_frames(source, form)), counts[-1])
    return _result(Path(source), Path(target), form, counts, applied, len(removals))


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
