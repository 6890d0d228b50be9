"""Diarization error of `knn diarize` on real meetings and simulated conversations, beside two floors.

    python benchmarks/diarization.py [--data FOLDER] [--model NAME] [--clusterer NAME] [--json]

FOLDER holds one folder a set with NAME.flac and NAME.rttm. Of the AMI excerpts 0-30 s are scored, of others all.
Errors are given at collar 0 with overlap, and at 0.25 s each side without overlap, by our own metric and by
pyannote.metrics. The floors, at collar 0: one speaker from beginning to end, and one speaker wherever the system
heard speech.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import soundfile
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

from knn_cli.der import diarization_error
from knn_cli.report import read_rttm

Diarize = Callable[[Path], Annotation]

AMI_SECONDS = 30.0
COLLAR = 0.25  # seconds each side; pyannote.metrics counts both sides

RATES = {
    "knn": "DER",
    "pyannote": "DER, pyannote",
    "knn_forgiving": f"DER, collar {COLLAR:g}, no overlap",
    "pyannote_forgiving": "same, pyannote",
    "one_speaker": "one speaker, all",
    "one_speaker_on_speech": "one speaker, speech heard",
}


@dataclass(frozen=True)
class Recording:
    """What to diarize, the truth, and where it is scored."""

    set: str
    path: Path
    reference: Annotation
    scored: Segment


def recordings(folder: Path) -> list[Recording]:
    """Every FLAC file two levels down that has an RTTM file beside it."""
    found = []
    for path in sorted(folder.glob("*/*.flac")):
        rttm = path.with_suffix(".rttm")
        if not rttm.is_file():
            continue
        end = AMI_SECONDS if path.parent.name == "ami" else soundfile.info(path).duration
        reference = read_rttm(rttm).get(path.stem, Annotation(uri=path.stem))
        found.append(Recording(path.parent.name, path, reference, Segment(0, end)))
    return found


def one_speaker(speech: Iterable[Segment]) -> Annotation:
    """All of some speech said by one speaker."""
    annotation = Annotation()
    for segment in speech:
        annotation[segment] = "one"
    return annotation


def score(recording: Recording, hypothesis: Annotation) -> dict[str, Any]:
    """One row of the table: names, speaker counts, seconds scored of reference speaker time, and RATES as shares."""
    reference, uem = recording.reference, Timeline([recording.scored])
    ours = diarization_error(reference, hypothesis, uem=uem)
    ours_forgiving = diarization_error(reference, hypothesis, uem=uem, collar=COLLAR, skip_overlap=True)
    theirs = DiarizationErrorRate()
    theirs_forgiving = DiarizationErrorRate(collar=2 * COLLAR, skip_overlap=True)
    floors = one_speaker(uem), one_speaker(hypothesis.get_timeline().support())
    return {
        "set": recording.set,
        "file": recording.path.stem,
        "speakers": len(reference.crop(uem).labels()),
        "found": len(hypothesis.crop(uem).labels()),
        "seconds": ours.total,
        "seconds_forgiving": ours_forgiving.total,
        "knn": ours.rate,
        "pyannote": float(theirs(reference, hypothesis, uem=uem)),
        "knn_forgiving": ours_forgiving.rate,
        "pyannote_forgiving": float(theirs_forgiving(reference, hypothesis, uem=uem)),
        "one_speaker": diarization_error(reference, floors[0], uem=uem).rate,
        "one_speaker_on_speech": diarization_error(reference, floors[1], uem=uem).rate,
    }


def benchmark(diarize: Diarize, cases: Iterable[Recording]) -> list[dict[str, Any]]:
    """Rows of all recordings, then two a set: the mean, where every file weighs the same, and all files pooled."""
    rows = [score(case, diarize(case.path)) for case in cases]
    summaries = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        mean = {key: fmean(row[key] for row in mine) for key in ("speakers", "found", *RATES)}
        seconds = {key: sum(row[key] for row in mine) for key in ("seconds", "seconds_forgiving")}
        pooled = {}
        for key in RATES:
            weight = "seconds_forgiving" if key.endswith("forgiving") else "seconds"
            pooled[key] = sum(row[key] * row[weight] for row in mine) / seconds[weight]
        summaries.append({"set": name, "file": "mean"} | seconds | mean)
        summaries.append({"set": name, "file": "pooled"} | seconds | mean | pooled)
    return rows + summaries


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a table, rates in percent."""
    lines = [
        "| recording | seconds | speakers | found | " + " | ".join(RATES.values()) + " |",
        "|---|" + "--:|" * (3 + len(RATES)),
    ]
    for row in rows:
        cells = [f"{row['set']}/{row['file']}", f"{row['seconds']:.1f}"]
        cells += [f"{row[key]:.3g}" for key in ("speakers", "found")]
        cells += [f"{100 * row[key]:.1f}" for key in RATES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run from the command line; 1 when the folder holds no recordings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "diar"
    parser.add_argument("--data", type=Path, default=default, help="folder of sets of NAME.flac and NAME.rttm")
    parser.add_argument("--model", help="bundle of the embedder; the one that ships with knn by default")
    parser.add_argument("--clusterer", default="spectral", help="clustering method")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-speakers", type=int, help="tell the system how many there are")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args()
    cases = recordings(options.data)
    if not cases:
        print(f"{options.data} holds no folder with NAME.flac and NAME.rttm.", file=sys.stderr)
        return 1
    from knn_cli.diarization import diarize

    def system(path: Path) -> Annotation:
        return diarize(
            path,
            model=options.model,
            clusterer=options.clusterer,
            num_speakers=options.num_speakers,
            device=options.device,
        )

    rows = benchmark(system, cases)
    print(json.dumps(rows, indent=1) if options.json else markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
