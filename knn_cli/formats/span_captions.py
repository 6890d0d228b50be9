"""Spans as tiers, labels and captions of editors and players: each format is one function.

TextGrids of Praat, label tracks of Audacity, SubRip and WebVTT; ELAN's documents have a module of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from knn_cli.formats.span_registry import span_format
from knn_cli.formats.spans import RoundedSpan, Span, SpanDocument, format_seconds, one_line


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
