"""Diarization error rate and cost of `knn diarize` compared with other programs that run on a CPU.

    benchmarks/peers/setup.sh PEERS
    python -m benchmarks.diarization [--peers PEERS] [--work WORK] [--data FOLDER] [--variant "NAME=ARGUMENTS"] [--json]

FOLDER holds a folder per set, with NAME.flac and NAME.rttm. AMI excerpts are scored from 0 to 30 s, other files
completely. In the folder WORK, conversations of held-out speakers are simulated and scored too. PEERS holds the
environments of senko, sherpa-onnx and resemblyzer; without it only `knn` is measured. A variant is `knn` with further
arguments: presets ("pyannote-3.1=--preset pyannote-3.1"), other networks ("CAM++ 32 bits=--model FOLDER"), settings.

No system is given the number of speakers. A system diarizes a set in a single process; processor seconds (user and
system) are totals over its files, also given minus those for one second of speech, which is the cost of starting up.
Error rates are given at collar 0 with overlap, and at a collar of 0.25 s on each side without overlap; our metric is
checked against pyannote.metrics. The baselines are a single speaker for the whole file, and a single speaker wherever
`knn` detects speech. A last table per set has each system's mean with its interval, on all recordings and on both
halves, and what choosing among them on one half gives on the other (`benchmarks.folds`).
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import soundfile
from pyannote.core import Annotation, Segment, Timeline

from benchmarks import folds
from knn_cli.evaluation.diarization_error import COLLAR_SECONDS, diarization_error
from knn_cli.formats.rttm import read_rttm

TOP = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"
AMI_SECONDS = 30.0
VERSIONS = {  # packages whose versions are printed for each environment
    "knn": ("torch",),
    "senko": ("senko", "silero-vad", "torch"),
    "sherpa": ("sherpa-onnx",),
    "resemblyzer": ("resemblyzer", "silero-vad", "spectralcluster", "torch"),
}
CONVENTIONS = {"strict": "collar 0, overlap scored", "lenient": f"collar {COLLAR_SECONDS:g}, no overlap"}


@dataclass(frozen=True)
class Recording:
    """A file to diarize, its reference, and the scored region."""

    set: str
    path: Path
    reference: Annotation
    scored: Segment

    @property
    def seconds(self) -> float:
        return float(soundfile.info(self.path).duration)


@dataclass(frozen=True)
class System:
    """A program: its command, to which the files, `outputs` and a folder for RTTM files are appended."""

    name: str
    command: Sequence[str]
    outputs: str = "--out"

    @property
    def is_knn(self) -> bool:
        return self.outputs == "--out-dir"


@dataclass(frozen=True)
class Cost:
    """Processor seconds, seconds, and peak memory in MB of one process."""

    cpu: float
    wall: float
    peak: float


def recordings(folder: Path) -> list[Recording]:
    """Every FLAC file two levels down that has an RTTM file beside it."""
    cases = []
    for path in sorted(folder.glob("*/*.flac")):
        rttm = path.with_suffix(".rttm")
        if not rttm.is_file():
            continue
        end = AMI_SECONDS if path.parent.name == "ami" else soundfile.info(path).duration
        reference = read_rttm(rttm).get(path.stem, Annotation(uri=path.stem))
        cases.append(Recording(path.parent.name, path, reference, Segment(0, end)))
    return cases


def systems(peers: Path | None, variants: Mapping[str, Sequence[str]]) -> list[System]:
    """`knn` as it is, variants of it with additional arguments, then the installed peers."""
    command = [sys.executable, "-m", "knn_cli", "diarize"]
    installed = [
        System(name, [*command, *arguments], "--out-dir") for name, arguments in {"knn": (), **variants}.items()
    ]
    for name in ("senko", "sherpa", "resemblyzer"):
        if peers is not None and (python := peers / name / "bin" / "python").exists():
            extra = ["--models", str(peers / "models")] if name == "sherpa" else []
            installed.append(System(name, [str(python), str(PEERS / f"run_{name}.py"), *extra]))
    return installed


def run(system: System, files: Iterable[Path], out: Path, threads: int = 2) -> Cost:
    """Diarize the files in one process; SystemExit with its standard error if it fails."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMBA")
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names}
    environment["PYTHONPATH"] = str(TOP) if system.is_knn else ""
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles the peers; knn runs from source
    command = [sys.executable, "-S", str(PEERS / "measure.py"), *system.command, *map(str, files)]
    done = subprocess.run(
        [*command, system.outputs, str(out)], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{system.name}: {shlex.join(command)}\n{done.stderr}")
    return Cost(**json.loads(done.stdout))


def score(recording: Recording, hypothesis: Annotation) -> dict[str, Any]:
    """Both error rates as fractions, their denominators in seconds, and true and estimated numbers of speakers."""
    reference, uem = recording.reference, Timeline([recording.scored])
    strict = diarization_error(reference, hypothesis, uem=uem)
    lenient = diarization_error(reference, hypothesis, uem=uem, collar=COLLAR_SECONDS, skip_overlap=True)
    return {
        "set": recording.set,
        "file": recording.path.stem,
        "speakers": len(reference.crop(uem).labels()),
        "estimated_speakers": len(hypothesis.crop(uem).labels()),
        "strict": strict.rate,
        "missed": strict.missed / max(strict.total, 1e-9),
        "false_alarm": strict.false_alarm / max(strict.total, 1e-9),
        "confusion": strict.confusion / max(strict.total, 1e-9),
        "strict_seconds": strict.total,
        "lenient": lenient.rate,
        "lenient_seconds": lenient.total,
        "check": max(
            abs(a - b) for a, b in zip(_pyannote_rates(recording, hypothesis), (strict.rate, lenient.rate), strict=True)
        ),
    }


def _pyannote_rates(recording: Recording, hypothesis: Annotation) -> tuple[float, float]:
    """The two rates by pyannote.metrics, whose collar is the total of both sides."""
    from pyannote.metrics.diarization import DiarizationErrorRate

    uem = Timeline([recording.scored])
    metrics = DiarizationErrorRate(), DiarizationErrorRate(collar=2 * COLLAR_SECONDS, skip_overlap=True)
    strict, lenient = (float(metric(recording.reference, hypothesis, uem=uem)) for metric in metrics)
    return strict, lenient


def single_speaker(speech: Iterable[Segment]) -> Annotation:
    """An annotation with all of `speech` attributed to a single speaker."""
    annotation = Annotation()
    for segment in speech:
        annotation[segment] = "speaker"
    return annotation


def baselines(case: Recording, hypothesis: Annotation) -> dict[str, Annotation]:
    """Hypotheses with a single speaker, for the whole file or wherever the system detects speech."""
    return {
        "single speaker, all": single_speaker([case.scored]),
        "single speaker, detected speech": single_speaker(hypothesis.get_timeline().support()),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean rates over files, pooled rates, and the mean absolute error of the number of speakers."""
    result: dict[str, Any] = {}
    for name in CONVENTIONS:
        result[name] = fmean(row[name] for row in rows)
        seconds = sum(row[f"{name}_seconds"] for row in rows)
        result[f"{name}_pooled"] = sum(row[name] * row[f"{name}_seconds"] for row in rows) / max(seconds, 1e-9)
    for name in ("missed", "false_alarm", "confusion"):
        result[name] = fmean(row[name] for row in rows)
    result["count_error"] = fmean(abs(row["estimated_speakers"] - row["speakers"]) for row in rows)
    return result


def benchmark(cases: Sequence[Recording], tried: Sequence[System], threads: int = 2) -> dict[str, list[dict[str, Any]]]:
    """`files`: a row per system (or baseline) and file; `sets`: a row per system and set, with costs."""
    files: list[dict[str, Any]] = []
    sets: list[dict[str, Any]] = []
    for system in tried:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            start = run(system, [_one_second_of_speech(cases[0], folder)], folder / "start", threads)
            for name in dict.fromkeys(case.set for case in cases):
                members = [case for case in cases if case.set == name]
                out = folder / "sets" / name
                cost = run(system, [case.path for case in members], out, threads)
                print(f"{system.name}, {name}: {cost.cpu:.1f} CPU s", file=sys.stderr, flush=True)
                rows: dict[str, list[dict[str, Any]]] = {}
                for case in members:
                    rttm = out / f"{case.path.stem}.rttm"
                    hypothesis = read_rttm(rttm).get(case.path.stem, Annotation())
                    answers = {system.name: hypothesis}
                    if system.name == "knn":
                        answers |= baselines(case, hypothesis)
                    for who, answer in answers.items():
                        rows.setdefault(who, []).append({"system": who, **score(case, answer)})
                seconds = sum(case.seconds for case in members)
                for who, scored in rows.items():
                    files += scored
                    row = {"system": who, "set": name, "seconds": seconds, **summary(scored)}
                    if who == system.name:
                        row |= asdict(cost) | {"rtf": cost.cpu / seconds, "start": start.cpu}
                        row["rtf_started"] = (cost.cpu - start.cpu) / seconds
                    sets.append(row)
    return {"sets": sets, "files": files}


def _one_second_of_speech(case: Recording, folder: Path) -> Path:
    """Write a file with one second of speech."""
    first = min(case.reference.itersegments(), default=Segment(0, 1)).start
    rate = soundfile.info(case.path).samplerate
    samples, _ = soundfile.read(case.path, start=round(first * rate), frames=rate, dtype="int16")
    soundfile.write(folder / "second.flac", samples, rate)
    return folder / "second.flac"


def markdown(result: dict[str, list[dict[str, Any]]]) -> str:
    """Two tables, rates in percent: systems by set, and the error at collar 0 of every file."""
    strict, lenient = CONVENTIONS.values()
    lines = [
        f"| set | system | DER, {strict}: mean per file | pooled | missed | false alarm | confusion "
        f"| DER, {lenient}: mean per file | pooled | speaker count error "
        "| CPU s per second | without start-up | peak MB |",
        "|---|---|" + "--:|" * 11,
    ]
    rates = ("strict", "strict_pooled", "missed", "false_alarm", "confusion", "lenient", "lenient_pooled")
    names = list(dict.fromkeys(row["set"] for row in result["sets"]))
    for row in sorted(result["sets"], key=lambda row: names.index(row["set"])):
        cells = [row["set"], row["system"], *(f"{100 * row[key]:.1f}" for key in rates), f"{row['count_error']:.1f}"]
        cost = ("rtf", "{:.3f}"), ("rtf_started", "{:.3f}"), ("peak", "{:.0f}")
        cells += [template.format(row[key]) if key in row else "" for key, template in cost]
        lines.append("| " + " | ".join(cells) + " |")
    tried = list(dict.fromkeys(row["system"] for row in result["files"]))
    lines += [
        "",
        f"DER of each recording, {strict} (estimated speakers):",
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
        cells += [f"{100 * rows[who]['strict']:.1f} ({rows[who]['estimated_speakers']})" for who in tried]
        lines.append("| " + " | ".join(cells) + " |")
    for name in names:
        rates: dict[str, dict[str, float]] = {}
        for row in result["files"]:
            if row["set"] == name:
                rates.setdefault(row["system"], {})[row["file"]] = row["strict"]
        if len(next(iter(rates.values()))) > 3:
            compared = {system: row for system, row in rates.items() if not system.startswith("single speaker")}
            lines += ["", f"DER on {name}, {strict}:", "", folds.markdown(compared)]
    worst = max(row["check"] for row in result["files"])
    return "\n".join([*lines, "", f"Largest difference from pyannote.metrics: {worst:.1e}."])


def machine(tried: Sequence[System], threads: int) -> list[str]:
    """A description of the machine, and the package versions of each system."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    lines = [f"{os.cpu_count()} cores of {model}, {platform.system()}, Python {platform.python_version()}, "]
    lines[0] += f"{threads} threads each"
    code = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    for system in tried:
        packages = VERSIONS["knn" if system.is_knn else system.name]
        versions = subprocess.run(
            [system.command[0], "-c", code, *packages], capture_output=True, text=True, check=False
        )
        lines.append(f"{system.name}: {versions.stdout.strip()}")
    return lines


def main() -> int:
    """Run from the command line; returns 1 if the folder holds no recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=TOP.parent / "shared" / "data" / "diar", help="folder of sets")
    parser.add_argument("--work", type=Path, help="folder to simulate conversations of held-out speakers in")
    parser.add_argument("--peers", type=Path, help="folder created by benchmarks/peers/setup.sh")
    parser.add_argument("--systems", nargs="+", help="run only these systems")
    parser.add_argument("--sets", nargs="+", help="run only on these sets")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        help='"NAME=ARGUMENTS": `knn diarize` with these arguments too',
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    cases = recordings(options.data)
    if options.work:
        from benchmarks.conversations import write

        simulated = options.work / "benchmark" / "held-out"
        write(options.data.parent, simulated)
        cases += recordings(simulated.parent)
    cases = [case for case in cases if not options.sets or case.set in options.sets]
    if not cases:
        print(f"{options.data} holds no folder with NAME.flac and NAME.rttm.", file=sys.stderr)
        return 1
    variants = {name: shlex.split(arguments) for name, _, arguments in (one.partition("=") for one in options.variant)}
    tried = systems(options.peers, variants)
    tried = [system for system in tried if not options.systems or system.name in options.systems]
    result = benchmark(cases, tried, options.threads)
    if options.json:
        print(json.dumps({"machine": machine(tried, options.threads), **result}, indent=1))
    else:
        print(*machine(tried, options.threads), "", markdown(result), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
