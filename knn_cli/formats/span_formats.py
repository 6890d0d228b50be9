"""The formats of span files, by name or by suffix: each is one function below, decorated with `span_format`.

Speaker turns and languages over time share these formats; some are for one of them only. Writers that need more
than text - ELAN documents, the plot, the player - live in modules of their own, imported when they are used.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO, TypeVar

from knn_cli.core.atomic import replacing, replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.tables import tsv_field
from knn_cli.core.visible_text import cell, json_text, visible
from knn_cli.formats import rttm
from knn_cli.formats.spans import (
    RoundedSpan,
    Span,
    SpanDocument,
    SpanKind,
    format_seconds,
    one_line,
    seconds_by_label,
)

SpanWriter = TypeVar("SpanWriter", bound=Callable[..., None])


@dataclass(frozen=True)
class SpanFormat:
    """A file format for spans.

    Attributes
    ----------
    name : str
    suffix : str
        Suffix of its files.
    write : callable
        Takes a SpanDocument and a file open for writing: a text file (UTF-8, no translation of line ends), or a binary
        file where `binary` is true.
    binary : bool
        Whether it is written to files only, never to a terminal or a pipe.
    multiple : bool
        Whether one file can hold several recordings, one written after the other.
    """

    name: str
    suffix: str
    write: Callable[[SpanDocument, IO[Any]], None]
    binary: bool = False
    multiple: bool = False


TURN_FORMATS: dict[str, SpanFormat] = {}
TIMELINE_FORMATS: dict[str, SpanFormat] = {}
_FORMATS: dict[SpanKind, dict[str, SpanFormat]] = {"turns": TURN_FORMATS, "timeline": TIMELINE_FORMATS}
_NOUNS: dict[SpanKind, str] = {"turns": "turns", "timeline": "a timeline"}


def span_format(
    name: str,
    suffix: str,
    *,
    kinds: Sequence[SpanKind] = ("turns", "timeline"),
    binary: bool = False,
    multiple: bool = False,
) -> Callable[[SpanWriter], SpanWriter]:
    """Register the decorated function as the writer of a format; for the parameters see `SpanFormat`."""

    def register(writer: SpanWriter) -> SpanWriter:
        for kind in kinds:
            if name in _FORMATS[kind]:
                raise ValueError(f"the format {name!r} of {_NOUNS[kind]} is registered already")
            _FORMATS[kind][name] = SpanFormat(name, suffix, writer, binary, multiple)
        return writer

    return register


def format_by_suffix(kind: SpanKind, path: str | Path) -> SpanFormat | None:
    """Return the format of a file's suffix, in upper or lower case; None if no format has it."""
    suffix = Path(path).suffix.lower()
    return next((known for known in _FORMATS[kind].values() if known.suffix.lower() == suffix), None)


def find_format(kind: SpanKind, name: str | None = None, path: str | Path | None = None) -> SpanFormat:
    """Return the format of a name or, if that is None, of a path's suffix.

    Raises
    ------
    KnnError
        If there is no such format for this kind of spans; the hint lists the known formats.
    """
    if name is None and path is not None:
        wanted, problem = format_by_suffix(kind, path), f"The suffix of {path} names no format"
    else:
        wanted, problem = _FORMATS[kind].get(name or ""), f"There is no format {name!r}"
    if wanted is None:
        names = ", ".join(f"{known.name} ({known.suffix})" for known in _FORMATS[kind].values())
        raise KnnError(f"{problem} of {_NOUNS[kind]}.", f"Known: {names}.")
    return wanted


def write(document: SpanDocument, path: str | Path, name: str | None = None) -> None:
    """Write spans to a file, which appears only once it is complete, and is their `location` if they have none.

    Parameters
    ----------
    document : SpanDocument
    path : path
    name : str, optional
        Name of the format; by default that of the suffix of `path`.

    Raises
    ------
    KnnError
        If the format is unknown, if a player has no recording, or if the file cannot be written.
    AudioError
        If the player cannot read the recording.
    """
    known = find_format(document.kind, name, path)
    document = replace(document, location=document.location or Path(path))
    if known.binary:
        with replacing(path) as part, part.open("wb") as binary_file:
            known.write(document, binary_file)
    else:
        with replacing_text(path) as file:
            known.write(document, file)


def write_text(document: SpanDocument, file: TextIO, name: str) -> None:
    """Write spans into an open text file or stream; KnnError for a format that is not text."""
    known = find_format(document.kind, name)
    if known.binary:
        raise KnnError(f"A {name} file is not text.", "Name a file or a folder for it.")
    known.write(document, file)


@span_format("rttm", ".rttm", kinds=["turns"], multiple=True)
def write_turns_rttm(document: SpanDocument, file: TextIO) -> None:
    """Write RTTM SPEAKER lines, without confidence."""
    rttm.write_turns(document, file)


@span_format("csv", ".csv", kinds=["turns"])
def write_turns_csv(document: SpanDocument, file: TextIO) -> None:
    """Write CSV with a header: file, start, end (seconds), speaker, and confidence if any turn has one."""
    rows = csv.writer(file, lineterminator="\n")
    has_confidence = any(span.probability is not None for span in document.spans)
    rows.writerow(("file", "start", "end", "speaker", *["confidence"] * has_confidence))
    for start_ms, end_ms, span in document.rounded():
        confidence = "" if span.probability is None else f"{span.probability:.3f}"
        times = format_seconds(start_ms), format_seconds(end_ms)
        name, label = (cell(visible(text)) for text in (document.name or "", span.label))
        rows.writerow((name, *times, label, *[confidence] * has_confidence))


@span_format("table", ".tsv", kinds=["timeline"], multiple=True)
def write_timeline_tsv(
    document: SpanDocument, file: TextIO, *, header: bool = True, alternatives: int | None = None
) -> None:
    """Write tab-separated lines: file, start, end, tier, label, name, probability, label_2, name_2, probability_2, ...

    Names are left out where no label has one. Where tiers have labels (the languages of speakers), tier_label,
    tier_name and tier_probability come after the tier.

    Parameters
    ----------
    document : SpanDocument
    file : text file
    header : bool
        Whether to write the column names first; a table of several recordings has one header.
    alternatives : int, optional
        Number of alternatives to reserve columns for, even if these spans have fewer.
    """
    spans = document.rounded()
    count = max((len(span.alternatives) for _, _, span in spans), default=0)
    ranks = range(2, 2 + max(count, alternatives or 0))
    group = ["label", "name", "probability"] if document.label_names else ["label", "probability"]
    columns = [f"tier_{column}" for column in group] if document.tier_labels else []
    columns += [*group, *(f"{column}_{rank}" for rank in ranks for column in group)]
    if header:
        file.write("\t".join(["file", "start", "end", "tier", *columns]) + "\n")
    for start_ms, end_ms, span in spans:
        ranked: list[tuple[str, float | None]] = [(span.label, span.probability), *span.alternatives]
        if document.tier_labels:
            ranked.insert(0, document.tier_labels.get(span.tier, ("", None)))
        names = [[document.label_names.get(label, "")] if document.label_names else [] for label, _ in ranked]
        probabilities = ["" if p is None else f"{p:.4f}" for _, p in ranked]
        fields = [
            text for (label, _), name, p in zip(ranked, names, probabilities, strict=True) for text in (label, *name, p)
        ]
        fields += [""] * (len(columns) - len(fields))
        row = [document.name or "", format_seconds(start_ms), format_seconds(end_ms), span.tier, *fields]
        file.write("\t".join(map(tsv_field, row)) + "\n")


@span_format("json", ".json", kinds=["turns"], multiple=True)
def write_turns_json(document: SpanDocument, file: TextIO) -> None:
    """Write one line of JSON, all times in seconds.

    {"file", "duration", "speakers": [...], "spoken": {speaker: seconds}, "turns": [{"start", "end", "speaker"}, ...]};
    a turn also has "confidence" if it is known, and "no_speech_probability" with "probably_no_speaker" (from 0.5
    on) where that was looked for; "duration" is left out if it is unknown.
    """
    spans = document.rounded()
    turns = []
    for start_ms, end_ms, span in spans:
        turn: dict[str, Any] = {"start": start_ms / 1000, "end": end_ms / 1000, "speaker": span.label}
        if span.probability is not None:
            turn["confidence"] = round(float(span.probability), 3)
        if span.no_speech_probability is not None:
            turn["no_speech_probability"] = round(float(span.no_speech_probability), 3)
            turn["probably_no_speaker"] = span.probably_no_speaker
        turns.append(turn)
    line: dict[str, Any] = {"file": document.name}
    if document.seconds > 0:
        line["duration"] = round(document.seconds, 3)
    line["speakers"] = list(dict.fromkeys(span.label for span in spans))
    line |= {"spoken": seconds_by_label(spans), "turns": turns}
    file.write(json_text(line) + "\n")


@span_format("json", ".json", kinds=["timeline"], multiple=True)
def write_timeline_json(document: SpanDocument, file: TextIO) -> None:
    """Write a line of JSON, all times in seconds.

    {"file", "seconds", "spans": [{"start", "end", "label", "name", "tier", "probability", "alternatives"}]}; "name" is
    left out where no label has one.
    """
    rows = []
    for start_ms, end_ms, span in document.rounded():
        row: dict[str, Any] = {"start": start_ms / 1000, "end": end_ms / 1000, "label": span.label}
        if document.label_names:
            row["name"] = document.label_names.get(span.label)
        if span.tier:
            row["tier"] = span.tier
        if span.probability is not None:
            row["probability"] = round(span.probability, 6)
            row["alternatives"] = {label: round(p, 6) for label, p in span.alternatives}
        rows.append(row)
    line = {"file": document.name, "seconds": round(document.seconds, 3), "spans": rows, **document.metadata}
    file.write(json_text(line) + "\n")


@span_format("textgrid", ".TextGrid")
def write_textgrid(document: SpanDocument, file: TextIO) -> None:
    """Write Praat's TextGrid in the long text format, each tier from 0 to the end of the recording without gaps.

    Intervals hold labels only. The probabilities of a timeline are a tier of the same intervals below each tier, so
    that labels stay what a script looks for.

    References
    ----------
    https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html: intervals cover their tier, quotes are doubled.
    """
    spans = document.rounded()
    end_ms = max([1, math.ceil(document.seconds * 1000 - 1e-6), *(span.end_ms for span in spans)])
    layers = _tiers_without_overlap(spans, document.tier) or [(document.tier, [])]
    tiers = [(name, _intervals(layer, [span.label for span in layer], end_ms)) for name, layer in layers]
    if document.kind == "timeline":
        for place, (name, layer) in reversed(list(enumerate(layers, start=1))):
            texts = ["" if (p := span.span.probability) is None else f"{p:.4f}" for span in layer]
            if any(texts):
                tiers.insert(place, (f"{name} probability", _intervals(layer, texts, end_ms)))
    file.write('File type = "ooTextFile"\nObject class = "TextGrid"\n\n')
    file.write(f"xmin = 0 \nxmax = {_praat_number(end_ms)} \ntiers? <exists> \nsize = {len(tiers)} \nitem []: \n")
    for number, (name, intervals) in enumerate(tiers, start=1):
        file.write(f'    item [{number}]:\n        class = "IntervalTier" \n        name = {_praat_string(name)} \n')
        file.write(f"        xmin = 0 \n        xmax = {_praat_number(end_ms)} \n")
        file.write(f"        intervals: size = {len(intervals)} \n")
        for place, (start, end, label) in enumerate(intervals, start=1):
            file.write(f"        intervals [{place}]:\n            xmin = {_praat_number(start)} \n")
            file.write(f"            xmax = {_praat_number(end)} \n            text = {_praat_string(label)} \n")


def _tiers_without_overlap(spans: Sequence[RoundedSpan], default: str) -> list[tuple[str, list[RoundedSpan]]]:
    """Tiers by first appearance; spans that overlap others of their tier are moved to an additional tier."""
    tiers: dict[str, list[list[RoundedSpan]]] = {}
    for span in spans:
        layers = tiers.setdefault(span.span.tier or default, [])
        free_layer = next((layer for layer in layers if layer[-1].end_ms <= span.start_ms), None)
        if free_layer is None:
            layers.append([span])
        else:
            free_layer.append(span)
    return [
        (name if number == 1 else f"{name} ({number})", layer)
        for name, layers in tiers.items()
        for number, layer in enumerate(layers, start=1)
    ]


def _intervals(spans: Sequence[RoundedSpan], texts: Sequence[str], end_ms: int) -> list[tuple[int, int, str]]:
    """(start, end, text) of a whole tier, gaps included as intervals with an empty text; milliseconds."""
    intervals: list[tuple[int, int, str]] = []
    covered_ms = 0
    for span, text in zip(spans, texts, strict=True):
        if span.start_ms > covered_ms:
            intervals.append((covered_ms, span.start_ms, ""))
        intervals.append((span.start_ms, span.end_ms, text))
        covered_ms = span.end_ms
    if covered_ms < end_ms:
        intervals.append((covered_ms, end_ms, ""))
    return intervals


def _praat_number(milliseconds: int) -> str:
    """Seconds without trailing zeros: 0, 1.5, 12.345."""
    return format_seconds(milliseconds).rstrip("0").rstrip(".")


def _praat_string(text: str) -> str:
    doubled = one_line(text).replace('"', '""')
    return f'"{doubled}"'


@span_format("audacity", ".txt")
def write_audacity(document: SpanDocument, file: TextIO) -> None:
    """Write Audacity's label track: start, end (seconds, six digits as it writes them) and text, separated by tabs."""
    for start_ms, end_ms, span in document.rounded():
        file.write(f"{format_seconds(start_ms, 6)}\t{format_seconds(end_ms, 6)}\t{_caption(document, span)}\n")


@span_format("srt", ".srt")
def write_srt(document: SpanDocument, file: TextIO) -> None:
    """Write SubRip: numbered captions. The format has no escapes, so a label that looks like markup is not changed."""
    for number, (start_ms, end_ms, span) in enumerate(document.rounded(), start=1):
        file.write(f"{number}\n{_clock(start_ms, ',')} --> {_clock(end_ms, ',')}\n{_caption(document, span)}\n\n")


@span_format("vtt", ".vtt")
def write_vtt(document: SpanDocument, file: TextIO) -> None:
    """Write WebVTT (W3C): cues, a tier as the voice span (`<v>`) of its cue, markup escaped.

    A timeline's text is label, name and probability; the labels of tiers, the languages of speakers, are a comment.
    """
    file.write("WEBVTT\n")
    for tier, (label, probability) in document.tier_labels.items():
        file.write(f"\nNOTE {_vtt_text(f'{tier}: {document.described(label, probability)}')}\n")
    for start_ms, end_ms, span in document.rounded():
        tag = "" if span.tier in ("", span.label) else f"<v {_vtt_text(span.tier)}>"
        file.write(f"\n{_clock(start_ms, '.')} --> {_clock(end_ms, '.')}\n{tag}{_vtt_text(_text(document, span))}\n")


def _text(document: SpanDocument, span: Span) -> str:
    """The label of a span; in a timeline with its name and probability."""
    return span.label if document.kind == "turns" else document.described(span.label, span.probability)


def _caption(document: SpanDocument, span: Span) -> str:
    """One line of text, preceded by the tier if that differs from the label."""
    text = _text(document, span)
    return one_line(text if span.tier in ("", span.label) else f"{span.tier}: {text}")


def _clock(milliseconds: int, point: str) -> str:
    seconds, remainder = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{remainder:03d}"


def _vtt_text(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@span_format("rttm", ".rttm", kinds=["timeline"], multiple=True)
def write_timeline_rttm(document: SpanDocument, file: TextIO) -> None:
    """Write RTTM SPEAKER lines, with labels in place of speakers and the probability as the confidence."""
    rttm.write_timeline(document, file)


@span_format("eaf", ".eaf", kinds=["turns"])
def write_elan(document: SpanDocument, file: TextIO) -> None:
    """Write an ELAN document with a tier per speaker."""
    from knn_cli.formats import elan

    elan.write_eaf(document, file)


@span_format("png", ".png", kinds=["turns"], binary=True)
def write_plot(document: SpanDocument, file: BinaryIO) -> None:
    """Write a plot of who speaks when."""
    from knn_cli.formats import turn_plot

    file.write(turn_plot.png(document))


@span_format("html", ".html", kinds=["turns"], binary=True)
def write_player(document: SpanDocument, file: BinaryIO) -> None:
    """Write a page that plays the recording and shows its turns."""
    from knn_cli.formats import player

    player.write_html(document, file)
