"""Diarizations for tests, from annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyannote.core import Annotation

from knn_cli.core.values import Diarization, Turn


def diarization(annotation: Annotation, confidence: Sequence[float | None] = (), **fields: Any) -> Diarization:
    """The turns of an annotation, by start and end, with a confidence each where given."""
    tracks = list(annotation.itertracks(yield_label=True))
    turns = tuple(Turn(segment.start, segment.end, str(label)) for segment, _, label in tracks)
    if confidence:
        turns = tuple(replace(turn, confidence=value) for turn, value in zip(turns, confidence, strict=True))
    return Diarization(turns, name=annotation.uri, **fields)


def by_track(annotation: Annotation, confidence: Mapping[int, float] | None) -> list[float | None]:
    """The confidences of tracks in the order of the turns."""
    return [(confidence or {}).get(track) for _, track in annotation.itertracks()]
