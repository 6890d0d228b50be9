"""Spans as labels and captions of editors and players - Audacity, SubRip, WebVTT: each format is one function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TextIO

from knn_cli.formats.span_registry import span_format
from knn_cli.formats.spans import Span, SpanDocument, format_seconds, one_line


@span_format("audacity", ".txt")
def write_audacity(document: SpanDocument, file: TextIO) -> None:
    """Write Audacity's label track: start, end (seconds, six digits as it writes them) and text, separated by tabs."""
    for start_ms, end_ms, span in document.rounded():
        file.write(f"{format_seconds(start_ms, 6)}\t{format_seconds(end_ms, 6)}\t{_caption(document, span)}\n")


@span_format("srt", ".srt", words=True)
def write_srt(document: SpanDocument, file: TextIO) -> None:
    """Write SubRip: numbered captions, of what is said where that is known.

    The format has no escapes, so a label that looks like markup is not changed.
    """
    for number, cue in enumerate(_cues(document), start=1):
        text = f"{one_line(cue.voice)}: {one_line(cue.text)}" if cue.voice not in ("", cue.text) else one_line(cue.text)
        file.write(f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{text}\n\n")


@span_format("vtt", ".vtt", words=True)
def write_vtt(document: SpanDocument, file: TextIO) -> None:
    """Write WebVTT (W3C): cues, with the speaker or tier as the voice span (`<v>`) of its cue, markup escaped.

    A cue of turns says what is said where that is known, otherwise the speaker's name. A timeline's text is label, name
    and probability; the labels of tiers, the languages of speakers, are a comment.
    """
    file.write("WEBVTT\n")
    for tier, (label, probability) in document.tier_labels.items():
        file.write(f"\nNOTE {_vtt_text(f'{tier}: {document.described(label, probability)}')}\n")
    for cue in _cues(document):
        tag = f"<v {_vtt_text(cue.voice)}>" if cue.voice else ""
        file.write(f"\n{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{tag}{_vtt_text(cue.text)}\n")


class _Cue(NamedTuple):
    start_ms: int
    end_ms: int
    voice: str
    text: str


def _cues(document: SpanDocument) -> Iterator[_Cue]:
    if document.transcript is not None:
        for spoken in document.transcript:
            start_ms = round(spoken.start * 1000)  # a word that has no length is said all the same
            yield _Cue(start_ms, max(round(spoken.end * 1000), start_ms + 1), spoken.speaker, spoken.text)
        return
    for start_ms, end_ms, span in document.rounded():
        yield _Cue(start_ms, end_ms, span.tier, _text(document, span))


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
