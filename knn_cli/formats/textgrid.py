"""TextGrids of Praat: tiers of intervals without gaps, for spans and for what is said in them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import TextIO

from knn_cli.formats.span_registry import span_format
from knn_cli.formats.spans import RoundedSpan, SpanDocument, format_seconds, new_name, one_line
from knn_cli.formats.transcripts import TimedText, spoken_rows

# What counts in a text file of Praat: texts, numbers and flags that stand alone.
TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<![\w"\[])(-?\d+\.?\d*(?:[eE][-+]?\d+)?)(?![\w"\]])|<(exists|absent)>')


@span_format("textgrid", ".TextGrid", words=True)
def write_textgrid(document: SpanDocument, file: TextIO) -> None:
    """Write Praat's TextGrid in the long text format, each tier from 0 to the end of the recording without gaps.

    Intervals hold labels only. The probabilities of a timeline are a tier of the same intervals below each tier, so
    that labels stay what a script looks for.

    References
    ----------
    https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html: intervals cover their tier, quotes are doubled.
    """
    tiers = document_tiers(document)
    last_rows = [rows[-1][1] for _, rows in tiers if rows]
    end_ms = max([1, math.ceil(document.seconds * 1000 - 1e-6), last_ms(document), *last_rows])
    file.write('File type = "ooTextFile"\nObject class = "TextGrid"\n\n')
    file.write(f"xmin = 0 \nxmax = {number(end_ms)} \ntiers? <exists> \nsize = {len(tiers)} \nitem []: \n")
    for place, (name, rows) in enumerate(tiers, start=1):
        intervals = [(number(start), number(end), text) for start, end, text in without_gaps(rows, 0, end_ms)]
        file.write(long_tier(place, name, "0", number(end_ms), intervals))


def last_ms(document: SpanDocument) -> int:
    """Return the end of the last turn or word of a document in milliseconds, 0 where there is none."""
    segments = document.transcript or ()
    spoken = [one.end for one in segments] + [word.end for one in segments for word in one.words]
    return max([0, *(span.end_ms for span in document.rounded()), *(round(end * 1000) for end in spoken)])


def document_tiers(document: SpanDocument, taken: Collection[str] = ()) -> list[tuple[str, list[TimedText]]]:
    """Return the tiers of a document, at least one, each with rows that do not overlap: milliseconds and text.

    Below the tiers of a timeline are those of its probabilities; below each speaker's turns, with `template`, a tier of
    the same intervals without text; and behind all of them, with `transcript`, each speaker's utterances and words.

    Parameters
    ----------
    document : SpanDocument
    taken : collection of str
        Names that other tiers of the file have.
    """
    names = {*taken}
    tiers: list[tuple[str, list[TimedText]]] = []
    for name, layer in _tiers_without_overlap(document.rounded(), document.tier) or [(document.tier, [])]:
        name = new_name(name, names)
        tiers.append((name, [(span.start_ms, span.end_ms, span.label) for span in layer]))
        if document.kind == "timeline":
            texts = ["" if (p := span.span.probability) is None else f"{p:.4f}" for span in layer]
            if any(texts):
                rows = [(span.start_ms, span.end_ms, text) for span, text in zip(layer, texts, strict=True)]
                tiers.append((new_name(f"{name} probability", names), rows))
        elif document.template and document.transcript is None and layer:
            empty = [(span.start_ms, span.end_ms, "") for span in layer]
            tiers.append((new_name(f"{name} transcription", names), empty))
    for speaker, layers in spoken_rows(document.transcript or ()).items():
        for suffix, rows in zip(("transcription", "words"), layers, strict=True):
            if rows:
                tiers.append((new_name(f"{speaker} {suffix}".strip(), names), rows))
    return tiers


def long_tier(place: int, name: str, start: str, end: str, intervals: Sequence[tuple[str, str, str]]) -> str:
    """Return an interval tier in the long format; times as they are written, intervals without gaps."""
    lines = [f"    item [{place}]:", '        class = "IntervalTier" ', f"        name = {_praat_string(name)} "]
    lines += [f"        xmin = {start} ", f"        xmax = {end} ", f"        intervals: size = {len(intervals)} "]
    for row, (begin, finish, text) in enumerate(intervals, start=1):
        lines += [f"        intervals [{row}]:", f"            xmin = {begin} ", f"            xmax = {finish} "]
        lines.append(f"            text = {_praat_string(text)} ")
    return "\n".join(lines) + "\n"


def short_tier(place: int, name: str, start: str, end: str, intervals: Sequence[tuple[str, str, str]]) -> str:
    """Like `long_tier`, in the short format, which has no numbers of tiers."""
    lines = ['"IntervalTier"', _praat_string(name), start, end, str(len(intervals))]
    for begin, finish, text in intervals:
        lines += [begin, finish, _praat_string(text)]
    return "\n".join(lines) + "\n"


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


def without_gaps(rows: Sequence[tuple[float, float, str]], start: float, end: float) -> list[tuple[float, float, str]]:
    """Return rows of a tier with the gaps between them, and before and behind them, as rows with an empty text."""
    intervals: list[tuple[float, float, str]] = []
    covered = start
    for first, last, text in rows:
        if first > covered:
            intervals.append((covered, first, ""))
        intervals.append((first, last, text))
        covered = last
    if covered < end:
        intervals.append((covered, end, ""))
    return intervals


def number(milliseconds: float) -> str:
    """Seconds without trailing zeros: 0, 1.5, 12.345."""
    return format_seconds(milliseconds).rstrip("0").rstrip(".")


def _praat_string(text: str) -> str:
    doubled = one_line(text).replace('"', '""')
    return f'"{doubled}"'
