"""Output of `knn diarize` besides turns: who was recognised, as JSON, and error rates against references."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

from knn_cli.cli.output import json_line
from knn_cli.core.tables import tsv_field
from knn_cli.formats.span_tables import write_turns_json

if TYPE_CHECKING:
    from knn_cli.evaluation.diarization_error import DiarizationScore
    from knn_cli.formats.spans import SpanDocument
    from knn_cli.recognition.speaker_decision import SpeakerDecision


def recognised_turns(
    stream: TextIO, document: SpanDocument, recognised: Sequence[Mapping[str, Any]], decision: SpeakerDecision
) -> None:
    """Write a JSON line of turns, with what is known of its speakers and by which decision."""
    text = StringIO()
    write_turns_json(document, text)
    json_line(stream, {**json.loads(text.getvalue()), "decision": decision.facts(), "recognised": list(recognised)})


def diarization_scores(stream: TextIO, scores: Mapping[str, DiarizationScore]) -> None:
    """Write a line per file and one for all: error rates in percent of the speaker time in the reference, and JER.

    Where nobody speaks in the reference, there is nothing to take percents of: the false alarm is in seconds.
    """
    columns = "file DER missed false_alarm confusion JER DER_collar_0.25_no_overlap speakers found miscounted"
    stream.write("\t".join(columns.split()) + "\n")
    rows = dict(scores)
    if len(rows) > 1:
        first, *rest = rows.values()
        rows["(all)"] = reduce(operator.add, rest, first)
    for name, score in rows.items():
        error, total = score.error, score.error.total or math.inf
        rates = [error.rate, error.missed / total, error.false_alarm / total, error.confusion / total, score.jer]
        cells = [f"{100 * rate:.2f}" for rate in (*rates, score.error_with_collar.rate)]
        if not error.total:
            cells[2] = f"{error.false_alarm:.2f} s"
        counts = [score.reference_speakers, score.hypothesis_speakers, score.speaker_count_error]
        stream.write("\t".join([tsv_field(name), *cells, *map(str, counts)]) + "\n")
