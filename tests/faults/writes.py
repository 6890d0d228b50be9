"""Every way in which a command writes, with the smallest inputs, and what is compared of its outputs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from knn_cli.core.output_records import RECORD
from tests.faults.targets import HEARD, TINY

# Parameters of commands that name files: read, or written. A command with a parameter in neither fails a test.
READ = frozenset(
    "src sources config stores trials cohort speakers reference uem corrections split groups recipe turns "
    "speech average tables keys measures fusion adapt names audio words add_to precisions".split()
)
WRITTEN = frozenset("out out_dir rttm save_embeddings keep report".split())
SILERO = ("--segmentation", "silero")


@dataclass(frozen=True)
class Write:
    """A command that writes below the folder {d}.

    Attributes
    ----------
    arguments : tuple of str
    locked : bool
        Whether only one of two at once may say that it is done.
    before : tuple of str
        A command that makes what is replaced.
    """

    name: str
    arguments: tuple[str, ...]
    locked: bool = True
    before: tuple[str, ...] = ()

    def command(self, folder: Path, before: bool = False) -> list[str]:
        return [part.replace("{d}", str(folder)) for part in (self.before if before else self.arguments)]


def _texts(name: str, *arguments: str) -> Write:
    return Write(name, arguments, locked=False)


WRITES = (
    Write("recordings to a store", ("convert", "corpus", "{d}/out.h5")),
    Write(
        "recordings to a store again",
        ("convert", "corpus", "{d}/out.h5", "--segment", "0.7", "--min-segment", "0.1", "--force"),
        before=("convert", "corpus", "{d}/out.h5"),
    ),
    _texts("store to CSV", "convert", "emb.h5", "{d}/out.csv"),
    _texts("store to npz", "convert", "emb.h5", "{d}/out.npz"),
    Write("store to Kaldi", ("convert", "emb.h5", "{d}/out.ark")),
    Write("store to Kaldi folder", ("convert", "emb.h5", "{d}/out")),
    Write(
        "store to Kaldi again",
        ("convert", "other.h5", "{d}/out.ark", "--force"),
        before=("convert", "emb.h5", "{d}/out.ark"),
    ),
    Write("npz to store", ("convert", "emb.npz", "{d}/out.h5")),
    Write("sound to Kaldi folder", ("convert", "audio.h5", "{d}/out")),
    Write("checkpoint", ("convert", "checkpoints/avg_model.pt", "{d}/out", "--origin", "wespeaker")),
    Write(
        "checkpoint again",
        ("convert", "checkpoints/lang-id", "{d}/out", "--force"),
        before=("convert", "checkpoints/avg_model.pt", "{d}/out", "--origin", "wespeaker"),
    ),
    Write("labels of a model", ("convert", "head", "{d}/out", "--languages", "a,b")),
    Write("adapted PLDA", ("convert", "voices", "{d}/out", "--adapt", "emb.h5")),
    Write("turns to ELAN", ("convert", "corpus.rttm", "{d}/out", "--format", "eaf,textgrid,csv")),
    Write("8 bits", ("convert", "tiny", "{d}/out", "--int8")),
    *([Write("onnx", ("convert", "tiny", "{d}/out.onnx"))] if find_spec("onnx") and find_spec("onnxruntime") else []),
    Write("embed", ("embed", "corpus", *TINY, "-o", "{d}/out.h5")),
    Write("embed a store", ("embed", "audio.h5", *TINY, "--no-vad", "-o", "{d}/out.h5")),
    _texts("split", "split", "emb.h5", "-o", "{d}/out.tsv"),
    Write("train", ("train", "emb.h5", "-o", "{d}/out")),
    Write(
        "train again", ("train", "other.h5", "-o", "{d}/out", "--force"), before=("train", "emb.h5", "-o", "{d}/out")
    ),
    Write("train a network", ("train", "audio.h5", "--recipe", "recipe.toml", "-o", "{d}/out", *HEARD)),
    _texts("evaluate", "evaluate", "emb.h5", "--model", "dialects", "--draws", "2", "-o", "{d}/out.txt"),
    Write("report", ("evaluate", "emb.h5", "--model", "dialects", "--draws", "2", "--report", "{d}/page")),
    _texts("classify", "classify", "corpus", "--model", "head", *HEARD, "-o", "{d}/out.tsv"),
    _texts("timeline", "timeline", "plain.wav", "--model", "head", *HEARD, "-o", "{d}/out.srt"),
    _texts(
        "timelines",
        "timeline",
        "plain.wav",
        "silence.wav",
        "--model",
        "head",
        *HEARD,
        "--out-dir",
        "{d}/out",
        "--format",
        "json",
    ),
    _texts("fuse", "fuse", "scores.tsv", "--folds", "0", "-o", "{d}/out.json"),
    _texts("verify", "verify", "trials.txt", "emb.h5", "-o", "{d}/out.tsv"),
    _texts("diarize to RTTM", "diarize", "meeting.wav", *TINY, *SILERO, "--rttm", "{d}/out.rttm"),
    _texts("diarize to a player", "diarize", "plain.wav", *TINY, *SILERO, "-o", "{d}/out.html"),
    _texts("diarize a folder", "diarize", "corpus", *TINY, *SILERO, "--out-dir", "{d}/out", "--format", "json,eaf"),
    _texts(
        "tune",
        *("tune", "corpus", "--reference", "corpus.rttm", *TINY, *SILERO, "--grid", "margin=0", "-o", "{d}/out.toml"),
    ),
    Write("keep", ("diarize", "meeting.wav", *TINY, *SILERO, "--keep", "{d}/kept.h5", "--rttm", "{d}/out.rttm")),
    Write(
        "speakers",
        ("diarize", "meeting.wav", *TINY, *SILERO, "--save-embeddings", "{d}/out.h5", "--rttm", "{d}/out.rttm"),
    ),
    _texts(
        "removal", "diarize", "meeting.wav", *TINY, *SILERO, "--unwanted", "least", "--mute", "--out-dir", "{d}/out"
    ),
    _texts("corrections", "diarize", "kept.h5", "--corrections", "corrections.json", "-o", "{d}/out.TextGrid"),
)

_TIMES = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+\d\d:\d\d|Z)?|\"(seconds|time|speed)\": ?[\d.e+-]+"
)


def _values(path: Path) -> bytes:
    """What a file says, without the time at which it was written."""
    import numpy as np

    if path.suffix == ".h5":
        import h5py

        found: list[bytes] = []

        def add(name: str, item: Any) -> None:
            found.append(
                repr(
                    (name, sorted((key, str(value)) for key, value in item.attrs.items() if key != "created"))
                ).encode()
            )
            if isinstance(item, h5py.Dataset):
                value = np.asarray(item[()])
                found.append(
                    b"\0".join(map(_bytes, value.ravel().tolist())) if value.dtype == object else value.tobytes()
                )

        with h5py.File(path, "r") as file:
            add("", file)
            file.visititems(add)
        return b"\0".join(found)
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return b"".join(name.encode() + archive[name].tobytes() for name in sorted(archive.files))
    return _TIMES.sub(b"", path.read_bytes())


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.tobytes() if hasattr(value, "tobytes") else str(value).encode()


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder but records of outputs, by name; names of this folder do not count."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD:  # which has times
            data = _values(path).replace(str(folder).encode(), b"")
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()[:16]
    return found
