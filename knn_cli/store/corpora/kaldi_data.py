"""Kaldi data directories: wav.scp, segments, utt2lang, utt2spk or spk2utt, reco2dur (kaldi-asr.org/doc/data_prep.html).

Pipes are never run, and archives of waveforms (`audio.ark:17`) are not read: both are refused in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.texts import read_lines, tidy
from knn_cli.core.values import Segment
from knn_cli.store import kaldi, row_labels
from knn_cli.store.corpora.recordings import SoundSource, Utterance, class_and_speaker, find_sound, refuse_command
from knn_cli.store.corpora.registry import corpus_reader
from knn_cli.store.labels import Labels

WAV_LIST = "wav.scp"
_BLANK = re.compile(r"[ \t]+")
_IN_ARCHIVE = re.compile(r".+\.ark:\d+(\[.*\])?")


def _is_data_directory(path: Path) -> bool:
    return (path / WAV_LIST).is_file() if is_folder(path) else path.name == WAV_LIST and path.is_file()


@corpus_reader("a Kaldi data directory", _is_data_directory)
def _read_data_directory(path: Path) -> Iterable[Utterance]:
    folder = path if is_folder(path) else path.parent
    sounds = _sounds(folder / WAV_LIST)
    lengths = _lengths(folder / "reco2dur", sounds)
    segments = folder / "segments"
    spans = _segments(segments, sounds) if segments.is_file() else {key: (key, None) for key in sounds}
    classes = _table(folder / "utt2lang", spans)
    speakers = _table(folder / "utt2spk", spans) or _speakers(folder / "spk2utt", spans)
    for key, (recording, span) in spans.items():
        stated = class_and_speaker(classes.get(key, ""), speakers.get(key, ""))
        stated = replace(stated, name=recording if recording != key else _own_name(key, stated))
        yield Utterance(key, sounds[recording], stated, span, seconds=lengths.get(recording))


def _sounds(path: Path) -> dict[str, SoundSource]:
    sounds: dict[str, SoundSource] = {}
    for number, line in enumerate(read_lines(path, "a wav.scp"), start=1):
        raw, _, target = _BLANK.sub(" ", line.strip(" \t"), count=1).partition(" ")
        if not raw:
            continue
        key, place = tidy(raw), f"Line {number} of {path}"
        refuse_command(target, place)
        if not target or _IN_ARCHIVE.fullmatch(target):
            what = "is in an archive, which is not read" if target else "names no file"
            raise KnnError(f"{place}: {key} {what}.", "A line is `key path/to/file.wav`.")
        if key in sounds:
            raise KnnError(f"{place} names {key} again.", "Leave one of the lines out.")
        sounds[key] = find_sound(target, path)
    return sounds


def _lengths(path: Path, sounds: Mapping[str, SoundSource]) -> dict[str, float]:
    """Seconds of recordings, as the table says."""
    try:
        return {key: float(text) for key, text in _table(path, sounds).items()}
    except ValueError as error:
        raise KnnError(f"{path} holds something that is no number: {error}.", "A line is `recording 12.3`.") from error


def _segments(path: Path, sounds: Mapping[str, SoundSource]) -> dict[str, tuple[str, Segment | None]]:
    """Utterance -> its recording and its place in it."""
    found: dict[str, tuple[str, Segment | None]] = {}
    for number, line in enumerate(read_lines(path, "a table of segments"), start=1):
        fields = line.split()
        if not fields:
            continue
        place = f"Line {number} of {path}"
        try:
            key, recording = map(tidy, fields[:2])
            start, end = float(fields[2]), float(fields[3])
        except (ValueError, IndexError) as error:
            raise KnnError(f"{place} is not `utterance recording start end`.", "Times are seconds.") from error
        if recording not in sounds:
            raise KnnError(f"{place}: the recording {recording} is not in {WAV_LIST}.", "Add it, or leave this out.")
        if not 0 <= start < (float("inf") if end == -1 else end) < float("inf") and end != -1:
            raise KnnError(f"{place}: from {start:g} to {end:g} s is no segment.", "The end comes after the start.")
        if key in found:
            raise KnnError(f"{place} names {key} again.", "Leave one of the lines out.")
        found[key] = (recording, Segment(start, float("inf") if end == -1 else end))
    return found


def _table(path: Path, known: Iterable[str]) -> dict[str, str]:
    """A table of utterances, empty where there is none. KnnError for utterances that the directory does not have."""
    if not path.is_file():
        return {}
    table = kaldi.read_table(path)
    if strange := [key for key in table if key not in known]:
        of = f"{len(strange)} of its {len(table)} names are in no other list, such as {strange[0]}"
        raise KnnError(f"{path}: {of}.", "Leave them out, as Kaldi's fix_data_dir.sh does.")
    return table


def _speakers(path: Path, known: Iterable[str]) -> dict[str, str]:
    """Utterance -> speaker, from spk2utt."""
    if not path.is_file():
        return {}
    speakers = {tidy(word): speaker for speaker, words in kaldi.read_table(path).items() for word in words.split()}
    if strange := [word for word in speakers if word not in known]:
        raise KnnError(f"{path} names {strange[0]}, which is in no other list.", "Leave it out.")
    return speakers


def _own_name(key: str, stated: Labels) -> str:
    """The name of a recording of which `knn convert` has written a row as `speaker-name-start-end`."""
    name = row_labels.untimed(key)
    return name.removeprefix(f"{stated.speaker}-") if name != key and stated.speaker else name
