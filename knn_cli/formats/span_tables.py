"""Spans as tables, JSON and RTTM, for programs: each format is one function, decorated with `span_format`."""

from __future__ import annotations

import csv
from typing import Any, TextIO

from knn_cli.core.display_names import is_uncertain
from knn_cli.core.tables import tsv_field
from knn_cli.core.visible_text import cell, json_text, visible
from knn_cli.formats import rttm
from knn_cli.formats.span_registry import span_format
from knn_cli.formats.spans import SpanDocument, format_seconds, seconds_by_label
from knn_cli.formats.transcripts import TranscriptSegment


@span_format("rttm", ".rttm", kinds=["turns"], multiple=True)
def write_turns_rttm(document: SpanDocument, file: TextIO) -> None:
    """Write RTTM SPEAKER lines, without confidence."""
    rttm.write_turns(document, file)


@span_format("csv", ".csv", kinds=["turns"], multiple=True)
def write_turns_csv(document: SpanDocument, file: TextIO) -> None:
    """Write CSV with a header: file, start, end (seconds), speaker, and confidence if any turn has one.

    A file of several recordings has one header and always a column of confidence.
    """
    rows = csv.writer(file, lineterminator="\n")
    has_confidence = document.place is not None or any(span.probability is not None for span in document.spans)
    if not document.place:
        rows.writerow(("file", "start", "end", "speaker", *["confidence"] * has_confidence))
    for start_ms, end_ms, span in document.rounded():
        confidence = "" if span.probability is None else f"{span.probability:.3f}"
        times = format_seconds(start_ms), format_seconds(end_ms)
        name, label = (cell(visible(text)) for text in (document.name or "", span.label))
        rows.writerow((name, *times, label, *[confidence] * has_confidence))


@span_format("knn-proj", ".csv", kinds=["turns"], named_only=True)
def write_start_end_csv(document: SpanDocument, file: TextIO) -> None:
    """Write CSV of one recording as KNN-proj does: Start [s],End [s],Speaker."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("Start [s]", "End [s]", "Speaker"))
    for start_ms, end_ms, span in document.rounded():
        rows.writerow((format_seconds(start_ms), format_seconds(end_ms), cell(visible(span.label))))


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


@span_format("json", ".json", kinds=["turns"], multiple=True, words=True)
def write_turns_json(document: SpanDocument, file: TextIO) -> None:
    """Write one line of JSON, all times in seconds.

    {"file", "duration", "speakers": [...], "spoken": {speaker: seconds}, "turns": [{"start", "end", "speaker"}, ...]};
    a turn also has "confidence" if it is known, and "no_speech_probability" with "probably_no_speaker" (from 0.5
    on) where that was looked for; "duration" is left out if it is unknown. Where it is known what the speakers say,
    "segments" is a list of {"start", "end", "speaker", "text", "words": [{"word", "start", "end", "probability"}]},
    whose words and probabilities are there as far as they are known.
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
    if document.transcript is not None:
        line["segments"] = [_segment(segment) for segment in document.transcript]
    file.write(json_text(line) + "\n")


def _segment(segment: TranscriptSegment) -> dict[str, Any]:
    times = {"start": round(segment.start, 3), "end": round(segment.end, 3)}
    found: dict[str, Any] = {**times, "speaker": segment.speaker or None, "text": segment.text}
    if segment.words:
        found["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            | ({} if word.probability is None else {"probability": round(word.probability, 3)})
            for word in segment.words
        ]
    return found


@span_format("json", ".json", kinds=["timeline"], multiple=True)
def write_timeline_json(document: SpanDocument, file: TextIO) -> None:
    """Write a line of JSON, all times in seconds.

    {"file", "seconds", "spans": [{"start", "end", "label", "name", "tier", "probability", "uncertain",
    "alternatives"}]}; "name" is left out where no label has one, and "uncertain" is a probability under 0.5.
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
            row["uncertain"] = is_uncertain(span.probability)
            row["alternatives"] = {label: round(p, 6) for label, p in span.alternatives}
        rows.append(row)
    line = {"file": document.name, "seconds": round(document.seconds, 3), "spans": rows, **document.metadata}
    file.write(json_text(line) + "\n")


@span_format("rttm", ".rttm", kinds=["timeline"], multiple=True)
def write_timeline_rttm(document: SpanDocument, file: TextIO) -> None:
    """Write RTTM SPEAKER lines, with labels in place of speakers and the probability as the confidence."""
    rttm.write_timeline(document, file)
