"""Diarization error and cost of `knn diarize` and of other programs that run on a CPU, side by side.

    benchmarks/peers/setup.sh PEERS
    python -m benchmarks.diarization [--peers PEERS] [--work WORK] [--data FOLDER] [--arguments "..."] [--json]

FOLDER holds one folder a set with NAME.flac and NAME.rttm. Of the AMI excerpts 0-30 s are scored, of others all. With
WORK (of `training.prepare`), conversations of speakers that no training heard are made and scored too. PEERS holds the
environments of senko, sherpa-onnx and resemblyzer; none is needed to see our own figures.

Nobody is told how many speakers there are. A system diarizes a set in one process; processor seconds (user and system,
also less those for one second of speech, which is what starting up costs) are over all its files. Errors are given
at collar 0 with overlap, and at 0.25 s each side without overlap; our metric is checked against pyannote.metrics.
The floors: one speaker from beginning to end, and one speaker wherever `knn` heard speech.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import soundfile
from pyannote.core import Annotation, Segment, Timeline

from knn_cli.evaluation.diarization_error import COLLAR_SECONDS, diarization_error
from knn_cli.formats.rttm import read_rttm

TOP = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"
AMI_SECONDS = 30.0
VERSIONS = {  # what to name of each environment
    "knn": ("torch",),
    "senko": ("senko", "silero-vad", "torch"),
    "sherpa": ("sherpa-onnx",),
    "resemblyzer": ("resemblyzer", "silero-vad", "spectralcluster", "torch"),
}
CONVENTIONS = {"strict": "collar 0, overlap scored", "forgiving": f"collar {COLLAR_SECONDS:g}, no overlap"}


@dataclass(frozen=True)
class Recording:
    """What to diarize, the truth, and where it is scored."""

    set: str
    path: Path
    reference: Annotation
    scored: Segment

    @property
    def seconds(self) -> float:
        return float(soundfile.info(self.path).duration)


@dataclass(frozen=True)
class System:
    """A program: the beginning of its command, to which come the files, `outputs` and a folder for RTTM files."""

    name: str
    command: Sequence[str]
    outputs: str = "--out"


@dataclass(frozen=True)
class Cost:
    """Processor seconds, seconds, and peak memory in MB of one process."""

    cpu: float
    wall: float
    peak: float


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


def systems(peers: Path | None, arguments: Sequence[str] = ()) -> list[System]:
    """Ours with more arguments, then the peers that are there."""
    found = [System("knn", [sys.executable, "-m", "knn_cli", "diarize", *arguments], "--out-dir")]
    for name in ("senko", "sherpa", "resemblyzer"):
        if peers is not None and (python := peers / name / "bin" / "python").exists():
            extra = ["--models", str(peers / "models")] if name == "sherpa" else []
            found.append(System(name, [str(python), str(PEERS / f"run_{name}.py"), *extra]))
    return found


def run(system: System, files: Iterable[Path], out: Path, threads: int = 2) -> Cost:
    """Diarize the files in one process; SystemExit with what it said when it fails."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMBA")
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names}
    environment["PYTHONPATH"] = str(TOP) if system.name == "knn" else ""
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs; ours is run where it lies
    command = [sys.executable, "-S", str(PEERS / "measure.py"), *system.command, *map(str, files)]
    done = subprocess.run(
        [*command, system.outputs, str(out)], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{system.name}: {shlex.join(command)}\n{done.stderr}")
    return Cost(**json.loads(done.stdout))


def score(recording: Recording, hypothesis: Annotation) -> dict[str, Any]:
    """Both error rates as shares, the seconds of speaker time that they are of, and the numbers of speakers."""
    reference, uem = recording.reference, Timeline([recording.scored])
    strict = diarization_error(reference, hypothesis, uem=uem)
    forgiving = diarization_error(reference, hypothesis, uem=uem, collar=COLLAR_SECONDS, skip_overlap=True)
    return {
        "set": recording.set,
        "file": recording.path.stem,
        "speakers": len(reference.crop(uem).labels()),
        "found": len(hypothesis.crop(uem).labels()),
        "strict": strict.rate,
        "missed": strict.missed / max(strict.total, 1e-9),
        "false_alarm": strict.false_alarm / max(strict.total, 1e-9),
        "confusion": strict.confusion / max(strict.total, 1e-9),
        "strict_seconds": strict.total,
        "forgiving": forgiving.rate,
        "forgiving_seconds": forgiving.total,
        "check": max(
            abs(a - b) for a, b in zip(_theirs(recording, hypothesis), (strict.rate, forgiving.rate), strict=True)
        ),
    }


def _theirs(recording: Recording, hypothesis: Annotation) -> tuple[float, float]:
    """The two rates by pyannote.metrics, whose collar is both sides together."""
    from pyannote.metrics.diarization import DiarizationErrorRate

    uem = Timeline([recording.scored])
    metrics = DiarizationErrorRate(), DiarizationErrorRate(collar=2 * COLLAR_SECONDS, skip_overlap=True)
    strict, forgiving = (float(metric(recording.reference, hypothesis, uem=uem)) for metric in metrics)
    return strict, forgiving


def one_speaker(speech: Iterable[Segment]) -> Annotation:
    """All of some speech said by one speaker."""
    annotation = Annotation()
    for segment in speech:
        annotation[segment] = "one"
    return annotation


def floors(case: Recording, hypothesis: Annotation) -> dict[str, Annotation]:
    """What one gets for saying that there is one speaker, everywhere or where a system heard speech."""
    return {
        "one speaker, all": one_speaker([case.scored]),
        "one speaker, speech heard": one_speaker(hypothesis.get_timeline().support()),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means where every file weighs the same, rates of all files pooled, and how far the speaker counts were off."""
    found: dict[str, Any] = {}
    for name in CONVENTIONS:
        found[name] = fmean(row[name] for row in rows)
        seconds = sum(row[f"{name}_seconds"] for row in rows)
        found[f"{name}_pooled"] = sum(row[name] * row[f"{name}_seconds"] for row in rows) / max(seconds, 1e-9)
    for name in ("missed", "false_alarm", "confusion"):
        found[name] = fmean(row[name] for row in rows)
    found["count_error"] = fmean(abs(row["found"] - row["speakers"]) for row in rows)
    return found


def benchmark(cases: Sequence[Recording], tried: Sequence[System], threads: int = 2) -> dict[str, list[dict[str, Any]]]:
    """`files`: a row for each system (and floor) and file; `sets`: one for each system and set, with costs."""
    files: list[dict[str, Any]] = []
    sets: list[dict[str, Any]] = []
    for system in tried:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            start = run(system, [_second(cases[0], folder)], folder / "start", threads)
            for name in dict.fromkeys(case.set for case in cases):
                mine = [case for case in cases if case.set == name]
                out = folder / "sets" / name
                cost = run(system, [case.path for case in mine], out, threads)
                print(f"{system.name}, {name}: {cost.cpu:.1f} CPU s", file=sys.stderr, flush=True)
                rows: dict[str, list[dict[str, Any]]] = {}
                for case in mine:
                    rttm = out / f"{case.path.stem}.rttm"
                    hypothesis = read_rttm(rttm).get(case.path.stem, Annotation())
                    answers = {system.name: hypothesis}
                    if system.name == "knn":
                        answers |= floors(case, hypothesis)
                    for who, answer in answers.items():
                        rows.setdefault(who, []).append({"system": who, **score(case, answer)})
                seconds = sum(case.seconds for case in mine)
                for who, scored in rows.items():
                    files += scored
                    row = {"system": who, "set": name, "seconds": seconds, **summary(scored)}
                    if who == system.name:
                        row |= asdict(cost) | {"rtf": cost.cpu / seconds, "start": start.cpu}
                        row["rtf_started"] = (cost.cpu - start.cpu) / seconds
                    sets.append(row)
    return {"sets": sets, "files": files}


def _second(case: Recording, folder: Path) -> Path:
    """A file of one second of speech."""
    first = min(case.reference.itersegments(), default=Segment(0, 1)).start
    rate = soundfile.info(case.path).samplerate
    samples, _ = soundfile.read(case.path, start=round(first * rate), frames=rate, dtype="int16")
    soundfile.write(folder / "second.flac", samples, rate)
    return folder / "second.flac"


def markdown(result: dict[str, list[dict[str, Any]]]) -> str:
    """Two tables, rates in percent: systems by set, and the error at collar 0 of every file."""
    strict, forgiving = CONVENTIONS.values()
    lines = [
        f"| set | system | DER, {strict}: mean a file | pooled | missed | false alarm | confusion "
        f"| DER, {forgiving}: mean a file | pooled | speakers off by | CPU s a second | without start | peak MB |",
        "|---|---|" + "--:|" * 11,
    ]
    rates = ("strict", "strict_pooled", "missed", "false_alarm", "confusion", "forgiving", "forgiving_pooled")
    names = list(dict.fromkeys(row["set"] for row in result["sets"]))
    for row in sorted(result["sets"], key=lambda row: names.index(row["set"])):
        cells = [row["set"], row["system"], *(f"{100 * row[key]:.1f}" for key in rates), f"{row['count_error']:.1f}"]
        cost = ("rtf", "{:.3f}"), ("rtf_started", "{:.3f}"), ("peak", "{:.0f}")
        cells += [form.format(row[key]) if key in row else "" for key, form in cost]
        lines.append("| " + " | ".join(cells) + " |")
    tried = list(dict.fromkeys(row["system"] for row in result["files"]))
    lines += [
        "",
        f"DER of each recording, {strict} (speakers found):",
        "",
        "| recording | speech, s | speakers | " + " | ".join(tried) + " |",
        "|---|" + "--:|" * (2 + len(tried)),
    ]
    table: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in result["files"]:
        table.setdefault((row["set"], row["file"]), {})[row["system"]] = row
    for (name, file), rows in table.items():
        first = next(iter(rows.values()))
        cells = [f"{name}/{file}", f"{first['strict_seconds']:.1f}", str(first["speakers"])]
        cells += [f"{100 * rows[who]['strict']:.1f} ({rows[who]['found']})" for who in tried]
        lines.append("| " + " | ".join(cells) + " |")
    worst = max(row["check"] for row in result["files"])
    return "\n".join([*lines, "", f"Largest difference from pyannote.metrics: {worst:.1e}."])


def machine(tried: Sequence[System], threads: int) -> list[str]:
    """What this ran on and the versions of what ran."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    lines = [f"{os.cpu_count()} cores of {model}, {platform.system()}, Python {platform.python_version()}, "]
    lines[0] += f"{threads} threads each"
    code = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    for system in tried:
        told = subprocess.run(
            [system.command[0], "-c", code, *VERSIONS[system.name]], capture_output=True, text=True, check=False
        )
        lines.append(f"{system.name}: {told.stdout.strip()}")
    return lines


def main() -> int:
    """Run from the command line; 1 when the folder holds no recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=TOP.parent / "shared" / "data" / "diar", help="folder of sets")
    parser.add_argument("--work", type=Path, help="folder of `training.prepare`: adds the set of held-out speakers")
    parser.add_argument("--peers", type=Path, help="folder that benchmarks/peers/setup.sh made")
    parser.add_argument("--systems", nargs="+", choices=list(VERSIONS), help="only these")
    parser.add_argument("--sets", nargs="+", help="only these")
    parser.add_argument("--arguments", default="", help='more for `knn diarize`, as one text: "--clusterer ahc"')
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    options = parser.parse_args()
    cases = recordings(options.data)
    if options.work:
        from benchmarks.conversations import write

        made = options.work / "benchmark" / "held-out"
        write(options.data.parent, options.work, made)
        cases += recordings(made.parent)
    cases = [case for case in cases if not options.sets or case.set in options.sets]
    if not cases:
        print(f"{options.data} holds no folder with NAME.flac and NAME.rttm.", file=sys.stderr)
        return 1
    tried = systems(options.peers, shlex.split(options.arguments))
    tried = [system for system in tried if not options.systems or system.name in options.systems]
    result = benchmark(cases, tried, options.threads)
    if options.json:
        print(json.dumps({"machine": machine(tried, options.threads), **result}, indent=1))
    else:
        print(*machine(tried, options.threads), "", markdown(result), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
