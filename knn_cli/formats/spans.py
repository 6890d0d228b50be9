"""Labelled spans of one recording as files: tables, TextGrid for Praat, Audacity's labels, subtitles, RTTM.

One table of writers for languages over time and for speaker turns alike. All count in whole milliseconds: each time
is rounded once, so spans that meet still meet, and a span that rounds to nothing is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.tables import tsv_field

if TYPE_CHECKING:
    from pyannote.core import Annotation


@dataclass(frozen=True)
class Span:
    """What holds from `start` to `end` seconds of a recording.

    tier         : whose or what kind of label it is, such as a speaker; "" where there is one kind only
    probability  : of the label, None where unknown
    alternatives : other labels with their probabilities, the likeliest first
    """

    start: float
    end: float
    label: str
    tier: str = ""
    probability: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < math.inf:
            raise ValueError(f"a span goes from a time to a later one, not from {self.start} to {self.end}")
        if not self.label.strip():
            raise ValueError("a span has a label")


@dataclass(frozen=True)
class About:
    """The recording that spans are of.

    name    : as written into tables and RTTM
    seconds : its length; spans that reach beyond lengthen it
    tier    : what TextGrid calls the tier of spans that name none
    more    : what JSON adds to `file`, `seconds` and `spans`
    """

    name: str
    seconds: float
    tier: str = "labels"
    more: Mapping[str, Any] = field(default_factory=dict)


Timed = tuple[int, int, Span]  # start and end in milliseconds
Writer = Callable[[Sequence[Span], About, TextIO], None]


def turn_spans(annotation: Annotation) -> list[Span]:
    """Speaker turns as spans, each in the tier of its speaker."""
    tracks = annotation.itertracks(yield_label=True)
    return [Span(one.start, one.end, str(label), str(label)) for one, _, label in tracks]


def _timed(spans: Iterable[Span]) -> list[Timed]:
    """Spans by time, rounded; those of no length are left out."""
    found = ((round(span.start * 1000), round(span.end * 1000), span) for span in spans)
    return sorted((one for one in found if one[1] > one[0]), key=lambda one: one[:2])


def _line(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def _caption(span: Span) -> str:
    """One line that says all: the label, after its tier where that says more."""
    return _line(span.label if span.tier in ("", span.label) else f"{span.tier}: {span.label}")


def _seconds(milliseconds: int, digits: int = 3) -> str:
    return f"{milliseconds / 1000:.{digits}f}"


def write_table(
    spans: Sequence[Span], about: About, file: TextIO, *, header: bool = True, alternatives: int | None = None
) -> None:
    """Tab-separated, with a header: file, start, end, tier, label, probability, label_2, probability_2, ...

    header       : whether to write one; a table of several recordings has it once
    alternatives : columns for so many of them, though these spans have fewer
    """
    timed = _timed(spans)
    count = max((len(span.alternatives) for _, _, span in timed), default=0)
    ranks = range(2, 2 + max(count, alternatives or 0))
    more = [f"{word}_{rank}" for rank in ranks for word in ("label", "probability")]
    if header:
        file.write("\t".join(["file", "start", "end", "tier", "label", "probability", *more]) + "\n")
    for start, end, span in timed:
        ranked = [(span.label, span.probability), *span.alternatives]
        cells = [text for label, chance in ranked for text in (label, "" if chance is None else f"{chance:.4f}")]
        row = [about.name, _seconds(start), _seconds(end), span.tier, *cells, *[""] * (2 + len(more) - len(cells))]
        file.write("\t".join(map(tsv_field, row)) + "\n")


def write_json(spans: Sequence[Span], about: About, file: TextIO) -> None:
    """One line: {"file", "seconds", "spans": [{"start", "end", "tier", "label", "probability", "alternatives"}]}."""
    found = []
    for start, end, span in _timed(spans):
        one: dict[str, Any] = {"start": start / 1000, "end": end / 1000, "label": span.label}
        if span.tier:
            one["tier"] = span.tier
        if span.probability is not None:
            one["probability"] = round(span.probability, 6)
            one["alternatives"] = {label: round(chance, 6) for label, chance in span.alternatives}
        found.append(one)
    line = {"file": about.name, "seconds": round(about.seconds, 3), "spans": found, **about.more}
    file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _layers(timed: Sequence[Timed], about: About) -> list[tuple[str, list[Timed]]]:
    """Tiers in which no two spans overlap, by first appearance: what overlaps within a tier gets one more of them."""
    tiers: dict[str, list[list[Timed]]] = {}
    for one in timed:
        layers = tiers.setdefault(one[2].tier or about.tier, [])
        free = next((layer for layer in layers if layer[-1][1] <= one[0]), None)
        if free is None:
            layers.append([one])
        else:
            free.append(one)
    return [
        (name if number == 1 else f"{name} ({number})", layer)
        for name, layers in tiers.items()
        for number, layer in enumerate(layers, start=1)
    ]


def write_textgrid(spans: Sequence[Span], about: About, file: TextIO) -> None:
    """Praat's TextGrid in the long text format, one interval tier a tier, from 0 to the recording's end without holes.

    https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html: intervals cover their tier, quotes are doubled.
    """
    timed = _timed(spans)
    last = max([1, math.ceil(about.seconds * 1000 - 1e-6), *(end for _, end, _ in timed)])
    layers = _layers(timed, about) or [(about.tier, [])]
    write = file.write
    write('File type = "ooTextFile"\nObject class = "TextGrid"\n\n')
    write(f"xmin = 0 \nxmax = {_plain(last)} \ntiers? <exists> \nsize = {len(layers)} \nitem []: \n")
    for number, (name, layer) in enumerate(layers, start=1):
        intervals: list[tuple[int, int, str]] = []
        at = 0
        for start, end, span in layer:
            if start > at:
                intervals.append((at, start, ""))
            intervals.append((start, end, _line(span.label)))
            at = end
        if at < last:
            intervals.append((at, last, ""))
        write(f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{_quoted(_line(name))}" \n')
        write(f"        xmin = 0 \n        xmax = {_plain(last)} \n        intervals: size = {len(intervals)} \n")
        for place, (start, end, text) in enumerate(intervals, start=1):
            write(f"        intervals [{place}]:\n            xmin = {_plain(start)} \n")
            write(f'            xmax = {_plain(end)} \n            text = "{_quoted(text)}" \n')


def _plain(milliseconds: int) -> str:
    """Seconds without zeros that say nothing: 0, 1.5, 12.345."""
    return _seconds(milliseconds).rstrip("0").rstrip(".")


def _quoted(text: str) -> str:
    return text.replace('"', '""')


def write_audacity(spans: Sequence[Span], about: About, file: TextIO) -> None:
    """Audacity's label track: start, end (seconds, six digits as it writes them), text; separated by tabs."""
    for start, end, span in _timed(spans):
        file.write(f"{_seconds(start, 6)}\t{_seconds(end, 6)}\t{_caption(span)}\n")


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{rest:03d}"


def write_srt(spans: Sequence[Span], about: About, file: TextIO) -> None:
    """SubRip: numbered captions. The format knows no escapes, so a label that looks like markup stays what it is."""
    for number, (start, end, span) in enumerate(_timed(spans), start=1):
        file.write(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_caption(span)}\n\n")


def write_vtt(spans: Sequence[Span], about: About, file: TextIO) -> None:
    """WebVTT (W3C): cues, a tier as the voice of its cue, markup escaped."""
    file.write("WEBVTT\n")
    for start, end, span in _timed(spans):
        voice = "" if span.tier in ("", span.label) else f"<v {_escaped(_line(span.tier))}>"
        file.write(f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{voice}{_escaped(_line(span.label))}\n")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def write_rttm(spans: Sequence[Span], about: About, file: TextIO) -> None:
    """RTTM SPEAKER lines with the label as the name and the probability as the confidence; tiers have no field there.

    This is how language diarization is scored: DER with languages in place of speakers.
    """
    name = "_".join(about.name.split()) or "<NA>"
    for start, end, span in _timed(spans):
        sure = "<NA>" if span.probability is None else f"{span.probability:.4f}"
        label = "_".join(span.label.split())
        file.write(f"SPEAKER {name} 1 {_seconds(start)} {_seconds(end - start)} <NA> <NA> {label} {sure} <NA>\n")


WRITERS: dict[str, Writer] = {
    "table": write_table,
    "json": write_json,
    "textgrid": write_textgrid,
    "audacity": write_audacity,
    "srt": write_srt,
    "vtt": write_vtt,
    "rttm": write_rttm,
}
TOGETHER = frozenset({"table", "json", "rttm"})  # forms that can hold several recordings, as each span names its own
SUFFIXES = {
    ".tsv": "table",
    ".json": "json",
    ".TextGrid": "textgrid",
    ".txt": "audacity",
    ".srt": "srt",
    ".vtt": "vtt",
    ".rttm": "rttm",
}


def form_of(path: str | Path) -> str | None:
    """The form that a file's suffix asks for, in capitals or not; None where it asks for none."""
    suffix = Path(path).suffix.lower()
    return next((form for own, form in SUFFIXES.items() if own.lower() == suffix), None)


def writer(path: str | Path, form: str | None = None) -> Writer:
    """The writer that is named, or that the file's suffix asks for. Raises KnnError when there is none."""
    known = form if form is not None else form_of(path)
    if known is None or known not in WRITERS:
        what = f"There is no form {form!r}" if form is not None else f"The suffix of {path} names no form"
        suffixes = ", ".join(f"{name} ({suffix})" for suffix, name in SUFFIXES.items())
        raise KnnError(f"{what} of a timeline.", f"Known: {suffixes}.")
    return WRITERS[known]


def write(path: str | Path, spans: Sequence[Span], about: About, form: str | None = None) -> None:
    """Write spans into a UTF-8 file that is whole or not there; `form` is a name in WRITERS, None goes by the suffix.

    Raises KnnError for an unknown form and for what the file system refuses.
    """
    write_to = writer(path, form)
    with replacing_text(path) as file:
        write_to(spans, about, file)
