"""Six pieces of three recordings as every kind of corpus that `store.corpora` reads: a function each."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from knn_cli.core.values import Floats

RATE = 16000
SECONDS = 3.0
# Key of the fork's pipeline -> recording, dialect.
PIECES = {
    f"NAKI/{folder}/{name}_SPLIT_{piece:03d}.wav": (name, folder)
    for name, folder in {"10_A": "1-1", "11_B": "1-2", "12_C": "2-1"}.items()
    for piece in range(2)
}


def sound(key: str) -> Floats:
    """Noise of its own for each key, of 3 s."""
    seed = sorted(PIECES).index(key)
    return (0.1 * np.random.default_rng(seed).standard_normal(round(SECONDS * RATE))).astype(np.float32)


def folder(root: Path) -> Path:
    for key in PIECES:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / key, sound(key), RATE)
    return root / "NAKI"


def kaldi(root: Path) -> Path:
    folder(root)
    (root / "wav.scp").write_text("".join(f"{key}  {root / key}\n" for key in PIECES))
    (root / "utt2spk").write_text("".join(f"{key} {key.split('/')[1]}\n" for key in PIECES))
    (root / "reco2dur").write_text("".join(f"{key} {SECONDS}\n" for key in PIECES))
    return root


def kaldi_segments(root: Path) -> Path:
    """Long recordings, and where their pieces lie in them; classes in utt2lang."""
    lines: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2lang", "utt2spk")}
    for name in dict.fromkeys(name for name, _ in PIECES.values()):
        keys = [key for key, (recording, _) in PIECES.items() if recording == name]
        soundfile.write(root / f"{name}.flac", np.concatenate([sound(key) for key in keys]), RATE)
        lines["wav.scp"].append(f"{name} {name}.flac")
        for place, key in enumerate(keys):
            utterance = f"eva-{name}-{place}"
            lines["segments"].append(f"{utterance} {name} {place * SECONDS} {(place + 1) * SECONDS}")
            lines["utt2lang"].append(f"{utterance} {PIECES[key][1]}")
            lines["utt2spk"].append(f"{utterance} eva")
    for name, texts in lines.items():
        (root / name).write_text("\n".join(texts) + "\n")
    return root


def kaldi_speakers(root: Path) -> Path:
    """The same with spk2utt in place of utt2spk."""
    kaldi(root)
    keys: dict[str, list[str]] = {}
    for line in (root / "utt2spk").read_text().splitlines():
        key, speaker = line.split()
        keys.setdefault(speaker, []).append(key)
    (root / "spk2utt").write_text("".join(f"{speaker} {' '.join(found)}\n" for speaker, found in keys.items()))
    (root / "utt2spk").unlink()
    return root


def raw_list(root: Path) -> Path:
    folder(root)
    lines = [{"key": key, "spk": PIECES[key][1], "wav": str(root / key)} for key in PIECES]
    (root / "raw.list").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "raw.list"


def _shard(path: Path, keys: list[str], labels: str) -> None:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            buffer = io.BytesIO()
            soundfile.write(buffer, sound(key), RATE, format="WAV")
            for suffix, data in ((labels, PIECES[key][1].encode()), (".wav", buffer.getvalue())):
                info = tarfile.TarInfo(key + suffix)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def shard_list(root: Path) -> Path:
    keys = list(PIECES)
    for number in range(2):
        _shard(root / f"shards_{number:09d}.tar", keys[number::2], ".spk")
    (root / "shard.list").write_text("".join(f"{root}/shards_{number:09d}.tar\n" for number in range(2)))
    return root / "shard.list"


def shard_folder(root: Path) -> Path:
    _shard(root / "one.tar", list(PIECES), ".cls")
    return root


def lhotse(root: Path) -> Path:
    kaldi_segments(root)
    segments = [line.split() for line in (root / "segments").read_text().splitlines()]
    classes = dict(line.split() for line in (root / "utt2lang").read_text().splitlines())
    recordings = [
        {
            "id": name,
            "sources": [{"type": "file", "channels": [0], "source": f"{name}.flac"}],
            "sampling_rate": RATE,
            "num_samples": round(2 * SECONDS * RATE),
            "duration": 2 * SECONDS,
        }
        for name in dict.fromkeys(segment[1] for segment in segments)
    ]
    supervisions = [
        {"id": key, "recording_id": name, "start": float(start), "duration": SECONDS, "channel": 0}
        | {"language": classes[key], "speaker": "eva"}
        for key, name, start, _ in segments
    ]
    for name, lines in (("recordings", recordings), ("supervisions", supervisions)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"naki_{name}_train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("wav.scp", "segments", "utt2lang", "utt2spk"):
        (root / name).unlink()
    return root


def lhotse_cuts(root: Path) -> Path:
    """A cut for each piece, with its recording and a supervision that begins where the cut does."""
    lhotse(root)
    recordings, supervisions = (
        [json.loads(line) for line in gzip.decompress((root / name).read_bytes()).splitlines()]
        for name in ("naki_recordings_train.jsonl.gz", "naki_supervisions_train.jsonl.gz")
    )
    known = {recording["id"]: recording for recording in recordings}
    cuts = [
        {key: found[key] for key in ("start", "duration", "channel")}
        | {"id": f"cut-{found['id']}", "type": "MonoCut", "recording": known[found["recording_id"]]}
        | {"supervisions": [found | {"start": 0.0}]}
        for found in supervisions
    ]
    for path in root.glob("*.gz"):
        path.unlink()
    (root / "cuts.jsonl").write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    return root / "cuts.jsonl"


def _clips(root: Path) -> dict[str, str]:
    """Name of a clip -> its dialect; the names keep which recording it is of."""
    (root / "clips").mkdir()
    names = {}
    for key, (_, dialect) in PIECES.items():
        name = key.rsplit("/", 1)[1]
        soundfile.write(root / "clips" / name, sound(key), RATE)
        names[name] = dialect
    return names


def common_voice(root: Path) -> Path:
    lines = ["client_id\tpath\tsentence\tlocale"]
    lines += [f'eva\t{name}\t"An unclosed quotation\t{dialect}' for name, dialect in _clips(root).items()]
    (root / "validated.tsv").write_text("\n".join(lines) + "\n")
    return root


def metadata(root: Path) -> Path:
    lines = ["file_name,dialect,speaker_id", *(f"clips/{name},{place},eva" for name, place in _clips(root).items())]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def metadata_lines(root: Path) -> Path:
    lines = [
        {"file_name": f"clips/{name}", "dialect": place, "speaker_id": "eva"} for name, place in _clips(root).items()
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


CORPORA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folder": (folder, ""),
    "kaldi": (kaldi, ""),
    "kaldi speakers": (kaldi_speakers, ""),
    "kaldi segments": (kaldi_segments, "eva"),
    "raw list": (raw_list, ""),
    "shard list": (shard_list, ""),
    "shard folder": (shard_folder, ""),
    "lhotse": (lhotse, "eva"),
    "lhotse cuts": (lhotse_cuts, "eva"),
    "Common Voice": (common_voice, "eva"),
    "metadata": (metadata, "eva"),
    "metadata lines": (metadata_lines, "eva"),
}  # name -> how it is made, and its speaker
