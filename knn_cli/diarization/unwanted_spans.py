"""Unwanted speakers of a recording, and the spans in which they speak."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from knn_cli.audio.segments import EPSILON, merge, total_seconds
from knn_cli.core.errors import KnnError
from knn_cli.core.texts import similar, suggestion, tidy
from knn_cli.core.values import Segment, Turn
from knn_cli.formats.span_tables import write_start_end_csv
from knn_cli.formats.spans import Span, SpanDocument

LEAST_TALKATIVE = "least"
OVERLAPPED = "OVERLAPPED"


@dataclass(frozen=True)
class UnwantedSpan:
    """An unwanted span of a recording in seconds, with its speaker or OVERLAPPED."""

    start: float
    end: float
    speaker: str


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
        meant = suggestion([near for name in missing for near in similar(name, {*spoken, *known})])
        raise KnnError(f"There is no speaker {', '.join(missing)}{where}.", f"{meant}Speakers: {who}; or use `least`.")
    return [name for name in names if name in spoken]


def unwanted_spans(
    turns: Sequence[Turn], speakers: Collection[str], *, all_overlap: bool = False
) -> list[UnwantedSpan]:
    """Spans of these speakers, by time; where others speak at the same time, the label is OVERLAPPED.

    Spans do not overlap; those of the same label that touch are merged. With `all_overlap`, overlapped speech of
    other speakers is included.
    """
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
    spans = [Span(part.start, part.end, part.speaker) for part in parts]
    write_start_end_csv(SpanDocument("turns", None, 0.0, spans), file)
