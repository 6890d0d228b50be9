"""Speaker removal: who is unwanted, where they speak, and the sound without them.

The turns of an unwanted speaker are muted or cut out whole, with whatever others say at the same time; long silences
are shortened. Rate, channels, format and bit depth stay, and so does every sample outside the changes.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from knn_cli.audio import edits, writing
from knn_cli.audio.edits import Edit
from knn_cli.audio.segments import EPSILON, merge, total_seconds
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Segment, Turn, sort_turns

if TYPE_CHECKING:
    from knn_cli.audio.writing import AudioFormat, Frames

LEAST_TALKATIVE = "least"
OVERLAPPED = "OVERLAPPED"
HOWS = ("mute", "cut")
SILENCE_THRESHOLD_DB = -50.0  # dB against full scale
MIN_SILENCE_SECONDS = edits.SILENCE_KEPT_SECONDS


@dataclass(frozen=True)
class UnwantedSpan:
    """An unwanted span of a recording: seconds, and its speaker, or OVERLAPPED."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class RemovalResult:
    """What was done to a recording; lengths in samples per channel.

    note     : why it is in another form than its source, "" where it is not
    how      : "mute" or "cut", None where only silences were shortened
    whole    : length of the source
    kept     : length of the target
    unwanted : muted or cut as unwanted
    silence  : taken out as silence; what is muted is silence too
    parts    : stretches muted or cut; parts that overlap or adjoin are one
    silences : how many were shortened
    edits    : what was done, in this order; `retime` follows it
    """

    target: Path
    form: str
    note: str
    rate: int
    how: str | None
    whole: int
    kept: int
    unwanted: int
    silence: int
    parts: int
    silences: int
    edits: tuple[Edit, ...]

    def seconds(self) -> dict[str, float]:
        """The four lengths in seconds, by name."""
        return {name: getattr(self, name) / self.rate for name in ("whole", "kept", "unwanted", "silence")}


def speaking_seconds(turns: Sequence[Turn]) -> dict[str, float]:
    """Seconds that each speaker speaks, overlap included, in the order in which they first speak."""
    segments: dict[str, list[Segment]] = {}
    for turn in turns:
        segments.setdefault(turn.speaker, []).append(Segment(turn.start, turn.end))
    return {name: total_seconds(merge(own)) for name, own in segments.items()}


def unwanted_speakers(
    turns: Sequence[Turn], spec: str, known: Collection[str] = (), *, recording: str | None = None
) -> list[str]:
    """The speakers that `spec` names: "least", for the one who speaks least, or names between commas.

    Of those who speak equally little it is the one who begins last. One who speaks alone is not "least" of anybody:
    nobody is unwanted then, and where nobody speaks.
    known : names that need not be in this recording, such as those of speakers enrolled for several
    Raises KnnError for a name that is neither here nor known, and lists those that are.
    """
    spoken = speaking_seconds(turns)
    if spec.strip() == LEAST_TALKATIVE:
        return [min(reversed(spoken), key=lambda name: spoken[name])] if len(spoken) > 1 else []
    names = list(dict.fromkeys(name.strip() for name in spec.split(",")))
    if "" in names:
        raise KnnError(f"`unwanted` {spec!r} has an empty name.", "Give names between commas, or `least`.")
    missing = [name for name in names if name not in spoken and name not in known]
    if spoken and missing:
        who = ", ".join(f"{name} ({seconds:.1f} s)" for name, seconds in spoken.items())
        where = f" in {recording}" if recording else ""
        raise KnnError(f"There is no speaker {', '.join(missing)}{where}.", f"Speakers: {who}; or say `least`.")
    return [name for name in names if name in spoken]


def unwanted(
    turns: Sequence[Turn], spec: str, *, known: Collection[str] = (), all_overlap: bool = False
) -> list[UnwantedSpan]:
    """Where unwanted speakers speak, by time: alone under their name, together with anybody else as OVERLAPPED.

    spec, known : see `unwanted_speakers`, which raises KnnError
    all_overlap : also where only others speak at the same time
    """
    return unwanted_spans(turns, unwanted_speakers(turns, spec, known), all_overlap=all_overlap)


def unwanted_spans(
    turns: Sequence[Turn], speakers: Collection[str], *, all_overlap: bool = False
) -> list[UnwantedSpan]:
    """`unwanted` for these speakers. Parts do not overlap; those of one label that meet are one."""
    changes: list[tuple[float, int, str]] = []
    for turn in turns:
        changes += [(turn.start, 1, turn.speaker), (turn.end, -1, turn.speaker)]
    active: dict[str, int] = {}  # who speaks -> in how many turns at once
    found: list[UnwantedSpan] = []
    before = 0.0
    for time, change, name in sorted(changes):
        label = _label(active, speakers, all_overlap)
        if label is not None and time - before > EPSILON:
            if found and found[-1].speaker == label and before - found[-1].end <= EPSILON:
                found[-1] = replace(found[-1], end=time)
            else:
                found.append(UnwantedSpan(before, time, label))
        before = time
        active[name] = active.get(name, 0) + change
        if not active[name]:
            del active[name]
    return found


def _label(active: Collection[str], speakers: Collection[str], all_overlap: bool) -> str | None:
    """Label of a span in which these speak, None where it is wanted."""
    if len(active) > 1:
        return OVERLAPPED if all_overlap or any(name in speakers for name in active) else None
    return next((name for name in active if name in speakers), None)


def write_unwanted_csv(parts: Iterable[UnwantedSpan], file: TextIO) -> None:
    """Write parts as CSV, by time, to the millisecond: Start [s],End [s],Speaker."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("Start [s]", "End [s]", "Speaker"))
    for part in sorted(parts, key=lambda part: (part.start, part.end)):
        start, end = round(part.start * 1000), round(part.end * 1000)
        if end > start:
            rows.writerow((f"{start / 1000:.3f}", f"{end / 1000:.3f}", part.speaker))


def check_silence(max_silence: float | None, threshold: float) -> None:
    """Raise KnnError for durations and levels that no silence has."""
    if max_silence is not None and not MIN_SILENCE_SECONDS <= max_silence < math.inf:
        raise KnnError(
            f"`max_silence` {max_silence:g} cannot be held: {1000 * MIN_SILENCE_SECONDS:.0f} ms of a silence stay.",
            f"Give {MIN_SILENCE_SECONDS:g} seconds or more.",
        )
    if not -200 <= threshold < 0:
        raise KnnError(
            f"A silence threshold of {threshold:g} dB is no level below full scale.", "Give a number such as -50."
        )


def output_path(source: str | Path, word: str = "cleaned", folder: str | Path | None = None) -> Path:
    """A name for the cleaned recording, with the suffix that `remove_speakers` wants: `<stem>_<word>.<suffix>`."""
    return writing.derived_path(source, writing.output_format(source), word, folder)


def remove_speakers(
    source: str | Path,
    target: str | Path,
    parts: Sequence[UnwantedSpan] = (),
    *,
    how: Literal["mute", "cut"] | None = None,
    max_silence: float | None = None,
    threshold: float = SILENCE_THRESHOLD_DB,
) -> RemovalResult:
    """Write the recording without its unwanted parts and with its long silences shortened, in bounded memory.

    how         : "mute" makes every sample that a part touches zero, "cut" takes it out; the sound that stays falls in
                  the 50 ms before and rises in the 50 ms after, to and from nothing. None leaves the parts alone.
    max_silence : of silences longer than so many seconds 200 ms stay (see `edits.shorten_silences`). They are looked
                  for in what muting and cutting leave, so that the target has none that is longer.
    threshold   : what silence is, in dB against full scale

    The target has the source's rate, channels, format and bit depth: whole numbers are read and written as they are.
    OGG, Opus and MP3 are coded anew; what libsndfile cannot write becomes 24-bit WAV, and `note` says so. Muted
    samples are exactly zero in every form but A-law, which has no zero, and the coded ones.
    Raises AudioError for the source, KnnError for a target that is the source, has a suffix of another form or cannot
    be written, for nothing that would be left, and as `check_silence`.
    """
    if how is None and max_silence is None:
        raise ValueError("nothing to do: neither how nor max_silence")
    check_silence(max_silence, threshold)
    form = writing.output_format(source)
    writing.check_target(target, source, form)
    applied: list[Edit] = []
    if how is not None:
        applied = [edits.mute_or_cut(((part.start, part.end) for part in parts), form.rate, removes=how == "cut")]
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
    counts = [sum(lengths)]  # samples per channel, before and after each edit
    if not counts[0]:
        raise KnnError(f"{source} holds no samples.", "Check that the recording was written to its end.")
    for edit in applied:
        counts.append(edit.output_length(counts[-1]))
    if not counts[-1]:
        raise KnnError(f"Nothing of {source} would be left.", "Mute it, or name fewer unwanted speakers.")
    writing.write_frames(target, form, _applied(applied, writing.read_frames(source, form)), counts[-1])
    return _result(Path(source), Path(target), form, how, counts, applied)


def _result(
    source: Path, target: Path, form: AudioFormat, how: str | None, counts: Sequence[int], applied: Sequence[Edit]
) -> RemovalResult:
    """What was done: `counts` are samples before and after each of the edits that were `applied`."""
    whole = counts[0]
    first = applied[0] if how is not None else None
    shortened = applied[-1] if len(applied) > (how is not None) else None
    note = f"{source.name} has a form that can only be read; written as {form.name}."
    return RemovalResult(
        target=target,
        form=form.name,
        note="" if form.matches_source else note,
        rate=form.rate,
        how=how,
        whole=whole,
        kept=counts[-1],
        unwanted=first.covered_samples(whole) if first else 0,
        silence=counts[-2] - counts[-1] if shortened is not None else 0,
        parts=sum(begin < whole for begin, _ in first.spans) if first else 0,
        silences=len(shortened.spans) if shortened is not None else 0,
        edits=tuple(applied),
    )


def _applied(done: Sequence[Edit], sound: Iterator[Frames]) -> Iterator[Frames]:
    for edit in done:
        sound = edit.apply(sound)
    return sound


def _counted(sound: Iterator[Frames], lengths: list[int]) -> Iterator[Frames]:
    """The same blocks; their lengths are noted as they pass."""
    for block in sound:
        lengths.append(len(block))
        yield block


def retime(found: Diarization, cleaned: RemovalResult) -> Diarization:
    """The turns at their times in the edited recording.

    What was muted or cut is no part of any turn, what follows comes earlier, and turns of which nothing is left go,
    with the embeddings of speakers who no longer speak. Pieces of a turn that muting splits keep its confidence.
    """
    turns: list[Turn] = []
    muted = [span for edit in cleaned.edits if not edit.removes for span in edit.spans]
    for turn in found.turns:
        for start, end in _outside(turn.start * cleaned.rate, turn.end * cleaned.rate, muted):
            times = [min(start, cleaned.whole), min(end, cleaned.whole)]
            for edit in cleaned.edits:
                times = [float(time) for time in edit.new_positions(times)]
            if times[1] - times[0] < 0.5:  # of a sample
                continue
            turns.append(replace(turn, start=times[0] / cleaned.rate, end=times[1] / cleaned.rate))
    left = {turn.speaker for turn in turns}
    return Diarization(
        sort_turns(turns),
        found.name,
        {name: vector for name, vector in found.speaker_embeddings.items() if name in left},
        {name: seconds for name, seconds in found.clean_speech_seconds.items() if name in left},
        cleaned.kept / cleaned.rate,
    )


def _outside(start: float, end: float, spans: Sequence[edits.Span]) -> Iterator[tuple[float, float]]:
    """What of [start, end) lies outside the spans, which are sorted and apart."""
    at = bisect_right(spans, start, key=lambda span: span[1])
    while at < len(spans) and spans[at][0] < end:
        if spans[at][0] > start:
            yield start, spans[at][0]
        start = spans[at][1]
        at += 1
    if end > start:
        yield start, end
