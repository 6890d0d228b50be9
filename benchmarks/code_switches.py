"""A fixed set of recordings in which the language changes, for `benchmarks/timelines.py`.

    python -m benchmarks.code_switches --data DATA --out FOLDER

Speech of `DATA/speech` in two languages is joined into recordings of about a minute: segments of 5 to 20 s of speech,
pauses of 0.1 to 0.8 s between them, each segment by one of up to two speakers of its language. Four of five segments
change the language; the others change, at most, the speaker. The languages are halved at random, so that settings can
be chosen on one half and reported on the other: no language, and no speaker, is in both. English and Spanish are in one
half, because one speaker of both (Allison Smith) gives switches without a change of voice.

FOLDER/HALF/NAME.flac has a NAME.rttm beside it, in which the speaker of a turn is its language. Existing recordings are
kept.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.conversations import RATE, SpeechSource, read_speaker
from tools.shipped_models.data import read_manifest

HALVES = ("chosen", "reported")
RECORDINGS = 10  # of each half
SPEECH_SECONDS = 60.0  # of a recording
MIN_SECONDS = 50.0  # of speech of a language, and
MIN_SPEAKER_SECONDS = 30.0  # of a speaker
SAME_VOICE = ("en", "es", "Allison_Smith")
FLOOR = 3e-4  # of the noise in all recordings, silent pauses included
SEED = 14

Speakers = dict[str, dict[str, list[Path]]]  # language -> speaker -> files


def speakers_of_languages(data: Path, languages: Sequence[str]) -> Speakers:
    """The speakers with enough speech of each of the languages that have enough."""
    files: Speakers = defaultdict(lambda: defaultdict(list))
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for row in read_manifest(data / "speech" / "manifest.tsv"):
        if row["language"] in languages:
            files[row["language"]][row["speaker"]].append(data / "speech" / row["path"])
            seconds[row["language"], row["speaker"]] += float(row["active_seconds"])
    kept: Speakers = {}
    for language in sorted(files):
        speakers = {
            name: paths for name, paths in files[language].items() if seconds[language, name] >= MIN_SPEAKER_SECONDS
        }
        if sum(seconds[language, name] for name in speakers) >= MIN_SECONDS:
            kept[language] = speakers
    return kept


def halves(languages: Sequence[str]) -> dict[str, list[str]]:
    """The languages of each half."""
    first, second, _ = SAME_VOICE
    order = np.random.default_rng(SEED).permutation([each for each in sorted(languages) if each != second]).tolist()
    result = {half: sorted(order[number::2]) for number, half in enumerate(HALVES)}
    for members in result.values():
        if first in members:
            members.append(second)
    return result


def pairs(languages: Sequence[str], generator: np.random.Generator) -> list[tuple[str, str, str]]:
    """Two languages for each recording, each language about as often; a speaker where both are to be that one's."""
    result: list[tuple[str, str, str]] = [SAME_VOICE] if set(SAME_VOICE[:2]) <= set(languages) else []
    waiting: list[str] = []
    while len(result) < RECORDINGS:
        if len(waiting) < 2:
            waiting += generator.permutation([each for each in languages if each not in waiting]).tolist()
        result.append((waiting.pop(), waiting.pop(), ""))
    return result


def join(
    pair: tuple[str, str], sources: dict[str, list[SpeechSource]], generator: np.random.Generator
) -> tuple[NDArray[np.float32], list[tuple[float, float, str]]]:
    """Samples, and the speech regions (start, end, language) in seconds, of segments in turn."""
    parts: list[NDArray[np.float32]] = []
    truth: list[tuple[float, float, str]] = []
    place, spoken, number = 0, 0.0, int(generator.integers(2))
    while spoken < SPEECH_SECONDS:
        language = pair[number % 2]
        left = [source for source in sources[language] if source.seconds > 5]
        if not left:
            break
        piece, regions = left[int(generator.integers(len(left)))].take(float(generator.uniform(5, 20)))
        truth += [((place + start) / RATE, (place + end) / RATE, language) for start, end in regions]
        spoken += sum(end - start for start, end in regions) / RATE
        pause = np.zeros(round(generator.uniform(0.1, 0.8) * RATE), dtype=np.float32)
        parts += [piece, pause]
        place += len(piece) + len(pause)
        number += int(generator.random() < 0.8)
    mix = np.concatenate(parts)
    mix += FLOOR * generator.standard_normal(len(mix)).astype(np.float32)
    return mix * np.float32(0.5 / np.abs(mix).max()), truth


def write(data: Path, folder: Path, languages: Sequence[str]) -> dict[str, list[Path]]:
    """Write the seeded recordings of both halves; existing ones are kept."""
    known = speakers_of_languages(data, languages)
    written: dict[str, list[Path]] = {}
    for number, (half, members) in enumerate(halves(list(known)).items()):
        (folder / half).mkdir(parents=True, exist_ok=True)
        chosen = pairs(members, np.random.default_rng([SEED, number]))
        written[half] = []
        for row, (first, second, voice) in enumerate(chosen):
            path = folder / half / f"{row:02d}-{first}-{second}.flac"
            written[half].append(path)
            if path.exists() and path.with_suffix(".rttm").exists():
                continue
            generator = np.random.default_rng([SEED, number, row])
            sources = {}
            for language in (first, second):
                names = [voice] if voice else generator.permutation(sorted(known[language]))[:2].tolist()
                sources[language] = [
                    SpeechSource(read_speaker(generator.permutation(sorted(known[language][name]))[:12].tolist()))
                    for name in names
                ]
            mix, truth = join((first, second), sources, generator)
            soundfile.write(path, mix, RATE)
            lines = [
                f"SPEAKER {path.stem} 1 {start:.3f} {end - start:.3f} <NA> <NA> {language} <NA> <NA>\n"
                for start, end, language in truth
            ]
            path.with_suffix(".rttm").write_text("".join(lines), encoding="utf-8")
    return written


def main() -> None:
    """Write the set and print a line for each recording."""
    from knn_cli.formats.rttm import read_rttm
    from knn_cli.recognition.classifier import Classifier

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="the languages are those that it knows; by default the shipped model")
    arguments = parser.parse_args()
    for half, paths in write(arguments.data, arguments.out, Classifier(arguments.model).known_labels).items():
        for path in paths:
            truth = list(read_rttm(path.with_suffix(".rttm"))[path.stem].itertracks(yield_label=True))
            switches = sum(before[2] != after[2] for before, after in itertools.pairwise(truth))
            seconds = soundfile.info(path).duration
            spoken = sum(segment.duration for segment, _, _ in truth)
            print(f"{half}/{path.name}: {seconds:.0f} s, {spoken:.0f} s of speech, {switches} switches")


if __name__ == "__main__":
    main()
