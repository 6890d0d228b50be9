"""Small sound inputs of every kind, from which damaged ones are made: containers of sound, stores, tables, models."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from knn_cli.core.values import EmbeddingSet
from tests.helpers.oracles import load_transformers
from tests.helpers.speechbrain_settings import hyperparams
from tests.helpers.whisper_checkpoints import random_whisper, save_ctranslate2
from tests.helpers.windows import windows_of

TOP = Path(__file__).resolve().parents[2]
RATE, DIMENSION = 16000, 24  # of tiny-test's embeddings
SECONDS = 2.4

# Written by libsndfile: suffix -> format, subtype.
SNDFILE = {
    "pcm16.wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "extensible.wav": ("WAVEX", "PCM_24"),
    "ulaw.wav": ("WAV", "ULAW"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "gsm.wav": ("WAV", "GSM610"),
    "x.w64": ("W64", "PCM_16"),
    "rf64.wav": ("RF64", "PCM_16"),
    "x.aiff": ("AIFF", "PCM_16"),
    "x.au": ("AU", "PCM_16"),
    "x.caf": ("CAF", "PCM_16"),
    "x.sph": ("NIST", "PCM_16"),
    "x.flac": ("FLAC", "PCM_16"),
    "vorbis.ogg": ("OGG", "VORBIS"),
    "opus.ogg": ("OGG", "OPUS"),
    "x.mp3": ("MP3", "MPEG_LAYER_III"),
}
# Written by ffmpeg: name -> options.
FFMPEG = {
    "x.m4a": ["-c:a", "aac"],
    "x.mp4": ["-c:a", "aac", "-movflags", "+faststart"],
    "x.aac": ["-c:a", "aac"],
    "x.mkv": ["-c:a", "flac"],
    "x.webm": ["-c:a", "libopus", "-ar", "48000"],
    "x.opus": ["-c:a", "libopus", "-ar", "48000"],
    "plain.mp3": ["-c:a", "libmp3lame", "-write_xing", "0"],
    "x.ac3": ["-c:a", "ac3"],
    "x.wma": ["-c:a", "wmav2"],
    "x.avi": ["-c:a", "pcm_s16le"],
    "x.ts": ["-c:a", "mp2"],
    "x.mp2": ["-c:a", "mp2"],
    "x.mov": ["-c:a", "pcm_s16le"],
    "ffmpeg.ogg": ["-c:a", "flac"],
    "x.3gp": ["-c:a", "aac"],
}

RECIPE = """
[encoder]
name = "wavlm"
convolutions = [[16, 10, 5], [16, 8, 8], [16, 4, 4]]
channels = 32
blocks = 2
heads = 2
inner = 64
position_kernel = 16
position_groups = 4
[pooling]
name = "mhfa"
heads = 4
compression = 16
dimension = 16
[head]
name = "aam-softmax"
margin = 0.1
scale = 16.0
[data]
label = "group"
seconds = 0.3
held_out = 0.25
evaluate_seconds = 1.0
[optimizer]
rate = 2e-3
[schedule]
epochs = 2
[loop]
batch = 4
checkpoint = 2
"""


def speech() -> Any:
    """Six pieces of the example meeting, (6, samples) float32."""
    sound, rate = soundfile.read(TOP / "examples" / "meeting.flac", dtype="float32")
    assert rate == RATE
    length = round(SECONDS * RATE)
    return np.stack([sound[round(start * RATE) :][:length] for start in (1, 4, 7, 10, 14, 18)])


def sounds(folder: Path, containers: bool = True) -> None:
    """`sound/`: one piece in every container; `corpus/`: labelled folders of short recordings."""
    pieces = speech()
    (folder / "sound").mkdir()
    for number, piece in enumerate(pieces):
        place = folder / "corpus" / "ab"[number % 2] / f"r{number}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(place, piece[: round((1.2 + 0.1 * number) * RATE)], RATE)
    soundfile.write(folder / "plain.wav", pieces[0], RATE)
    meeting = soundfile.read(TOP / "examples" / "meeting.flac", dtype="float32")[0][: 12 * RATE]
    soundfile.write(folder / "meeting.wav", meeting, RATE)
    if not containers:
        return
    for name, (kind, subtype) in SNDFILE.items():
        channels = pieces[0] if subtype == "GSM610" else np.stack([pieces[0], pieces[1]], axis=1)
        soundfile.write(folder / "sound" / name, channels, RATE, subtype, format=kind)
    for name, options in FFMPEG.items() if shutil.which("ffmpeg") else ():
        command = ["ffmpeg", "-v", "error", "-y", "-i", "plain.wav", "-fflags", "+bitexact", *options, f"sound/{name}"]
        subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)
    with tarfile.open(folder / "shard.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted((folder / "corpus").rglob("*.wav")):
            for name, data in (
                (f"{path.stem}.wav", path.read_bytes()),
                (f"{path.stem}.cls", path.parent.name.encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def embeddings(embedder: str, seed: int = 0) -> EmbeddingSet:
    """Three classes of six recordings with two rows each, near tiny-test's dimension."""
    generator = np.random.default_rng(seed)
    rows, columns = [], []
    for label in range(3):
        for recording in range(6):
            centre = 2 * np.eye(DIMENSION)[label] + 0.2 * generator.normal(size=DIMENSION)
            for part in range(2):
                rows.append(centre + 0.4 * generator.normal(size=DIMENSION))
                columns.append(
                    (f"r{label}-{recording}", "xyz"[label], "abc"[label], f"s{label}{recording % 3}", 2.0 * part)
                )
    name, group, subgroup, speaker, start = zip(*columns, strict=True)
    end = [one + 2.0 for one in start]
    return EmbeddingSet.from_columns(
        np.asarray(rows, np.float32),
        name,
        group=group,
        subgroup=subgroup,
        speaker=speaker,
        start=start,
        end=end,
        embedder=embedder,
    )


def models(folder: Path) -> None:
    """`tiny` embeds, `head` classifies with a head, `who` finds local speakers, `speaker` tells speakers apart.

    All of them have weights drawn by a seed.
    """
    import torch

    from knn_cli.core.registry import SEGMENTERS
    from knn_cli.networks import bundle
    from tests.helpers.head_bundles import CALIBRATION, write_head_bundle

    shutil.copytree(TOP / "tests" / "data" / "tiny-test", folder / "tiny")
    torch.manual_seed(0)
    write_head_bundle(folder / "head", "abcd", calibration=CALIBRATION)
    args = {"filters": 8, "stride": 20, "widths": [5], "hidden": 4, "depth": 1, "linear": [6]}
    config = {"name": "who", "kind": "segmenter", "audio": {"rate": RATE, "scale": 1.0}}
    state = SEGMENTERS.build("pyannet", **args).state_dict()
    bundle.write(folder / "who", {**config, "segmenter": {"name": "pyannet", "args": args}}, state=state)
    _speaker_model(folder)


def _speaker_model(folder: Path) -> None:
    """`speaker`: a CAM++ with a speaker decision and a PLDA."""
    from knn_cli.diarization.clustering import plda
    from knn_cli.networks import bundle
    from knn_cli.networks.construction import build_network

    shipped = json.loads((TOP / "models" / "voice" / "config.json").read_text())
    sizes = {"width": 4, "channels": 8, "growth": 4, "bottleneck": 2, "blocks": [1, 1, 1], "bins": 16}
    config = {"name": "speaker", "kind": "embedder", "audio": {"rate": RATE, "scale": 1.0}}
    config |= {
        "encoder": {"name": "campplus", "args": sizes},
        "pooling": {"name": "campplus", "args": {"dimension": 8}},
    }
    config["speaker_decision"] = shipped["speaker_decision"]
    written = bundle.write(folder / "speaker", config, state=build_network(config).state_dict())
    rows = np.random.default_rng(0).normal(size=(60, 8)) + np.repeat(np.eye(8)[:6], 10, axis=0)
    fitted = plda.EmbeddingPLDA.fit(rows, np.repeat(np.arange(6), 10), dimension=4)
    fitted.save(folder / "speaker" / plda.FILE, embedder=written.fingerprint)


def stores(folder: Path, knn: Any) -> None:
    """Stores, all formats of embeddings, a trained classifier, kept analyses."""
    from knn_cli.diarization import kept_analysis
    from knn_cli.networks import bundle
    from knn_cli.store.writer import write_store

    maker = bundle.find(folder / "tiny").fingerprint
    write_store(folder / "emb.h5", embeddings(maker))
    write_store(folder / "other.h5", embeddings(maker, seed=1))
    for target in ("emb.npz", "emb.csv", "emb.tsv", "emb.ark", "emb.txt", "kaldi"):
        knn("convert", "emb.h5", target)
    knn("convert", "corpus", "audio.h5")
    (folder / "text" / "3-2").mkdir(parents=True)
    for number, row in enumerate(embeddings(maker).data[:4]):
        with gzip.open(folder / "text" / "3-2" / f"rec_SPLIT_{number:03d}.i.gz", "wt") as file:
            file.write(" ".join(f"{value:.6f}" for value in row) + "\n")
    knn("split", "emb.h5", "-o", "split.tsv", "--held-out", "0.4")
    knn("train", "emb.h5", "-o", "dialects", "--out-of-set", "c", "--transforms", "center,lda:1")
    knn("train", "emb.h5", "-o", "voices", "--level", "speaker", "--units", "name")
    windows = windows_of([(0.0, 4.0, 0), (4.4, 8.0, 1), (8.4, 14.0, 0)], 14.0, np.eye(DIMENSION)[:2])
    kept = kept_analysis.KeptAnalysis(windows, "meeting", 14.0, "mix", maker, kept_analysis.SILERO, "meeting.wav")
    kept_analysis.save(kept, folder / "kept.h5")


def tables(folder: Path) -> None:
    names = [f"r{label}-{recording}" for label in range(3) for recording in range(6)]
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "groups.csv").write_text("label,group\na,north\nb,north\nc,south\n")
    header = "file,group,subgroup,speaker\n"
    lines = [
        f"{path.name},{path.parent.name},{path.parent.name}1,s{path.stem}\n"
        for path in (folder / "corpus").rglob("*.wav")
    ]
    (folder / "labels.csv").write_text(header + "".join(sorted(lines)))
    (folder / "trials.txt").write_text(
        "".join(f"{int(one[:2] == two[:2])} {one} {two}\n" for one in names[::3] for two in names[1::3])
    )
    scores = [[(row * 7 + column * 3) % 5 - 2 for column in range(3)] for row in range(len(names))]
    (folder / "scores.tsv").write_text(
        "name\tlabel\ta\tb\tc\n"
        + "".join(
            f"{name}\t{'abc'[int(name[1])]}\t{a}\t{b}\t{c}\n" for name, (a, b, c) in zip(names, scores, strict=True)
        )
    )
    fusion = {"schema": 1, "kind": "fusion of labels", "systems": ["scores"], "labels": ["a", "b", "c"], "quality": []}
    fusion |= {"centre": [], "weights": [[0.5]], "offsets": [[0.1], [0.0], [-0.1]], "measured": {}}
    (folder / "fusion.json").write_text(json.dumps(fusion))
    (folder / "turns.rttm").write_text(
        "".join(
            f"SPEAKER plain 1 {start:.3f} {length:.3f} <NA> <NA> {who} <NA> <NA>\n"
            for start, length, who in ((0.1, 0.8, "anna"), (0.9, 0.7, "bea"), (1.5, 0.6, "anna"))
        )
    )
    (folder / "corpus.rttm").write_text(
        "".join(
            f"SPEAKER {path.stem} 1 0.1 0.8 <NA> <NA> anna <NA> <NA>\n"
            for path in sorted((folder / "corpus").rglob("*.wav"))
        )
    )
    (folder / "plain.uem").write_text("plain 1 0.000 2.200\n")
    edits = [
        {"edit": "merge", "speaker": "SPEAKER_01", "into": "SPEAKER_00"},
        {"edit": "rename", "speaker": "SPEAKER_00", "to": "anna"},
    ]
    text = {"knn": "corrections", "version": 1, "recording": "meeting", "edits": edits}
    (folder / "corrections.json").write_text(json.dumps(text))


def checkpoints(folder: Path) -> None:
    """Checkpoints of other programs with small random weights, one per importer that can be written here."""
    import torch
    from torch import nn

    from knn_cli.core.registry import ENCODERS, POOLINGS

    place = folder / "checkpoints"
    place.mkdir()
    torch.manual_seed(0)
    encoder = ENCODERS.build("resnet", depth=18, width=2)
    pooling = POOLINGS.build("resnet", layers=1, channels=encoder.channels, dimension=8, two=False)
    modules: list[nn.Module] = [encoder, pooling]
    state = {key: value.clone() for module in modules for key, value in module.state_dict().items()}
    torch.save(state, place / "avg_model.pt")
    hidden = {"pyannote.audio": {"versions": {"torch": torch.__version__}}}
    (place / "pyannote").mkdir()
    torch.save(
        {"state_dict": {f"resnet.{key}": value for key, value in state.items()}, **hidden},
        place / "pyannote" / "pytorch_model.bin",
    )
    _speechbrain(place / "lang-id")
    try:
        transformers = load_transformers()
    except ImportError:
        return
    from safetensors.torch import save_file

    config = transformers.WavLMConfig(
        conv_dim=[8] * 7,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=8,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=30,
        num_buckets=32,
    )
    wavlm = transformers.WavLMModel(config)
    wavlm.config.save_pretrained(place / "wavlm")
    save_file({key: value.clone() for key, value in wavlm.state_dict().items()}, place / "wavlm" / "model.safetensors")
    save_ctranslate2(random_whisper(transformers, channels=6), place / "whisper", "int8")


def _speechbrain(folder: Path) -> None:
    import torch

    from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
    from knn_cli.networks.importers.weight_names import ECAPA, ECAPA_POOLING, speechbrain_classifier

    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(hyperparams(classes=2))
    encoder = ENCODERS.build("ecapa-tdnn", channels=[16] * 4 + [24], scale=4, squeeze=6, bins=60)
    pooling = POOLINGS.build("ecapa-tdnn", layers=1, channels=24, attention=8, dimension=12)
    head = HEADS.build("deep-softmax", dimension=12, classes=2, hidden=[10])
    parts = {
        "embedding_model.ckpt": ((encoder, ECAPA), (pooling, ECAPA_POOLING)),
        "classifier.ckpt": ((head, speechbrain_classifier(1)),),
    }
    for name, modules in parts.items():
        state = {
            names.source_name(key): value for module, names in modules for key, value in module.state_dict().items()
        }
        torch.save(state, folder / name)
    (folder / "label_encoder.txt").write_text(
        f"'cs: Czech' => 0\n'de: German' => 1\n{'=' * 16}\n'starting_index' => 0\n"
    )


def build(folder: Path, knn: Any, *, containers: bool = True) -> Path:
    """Make all seeds in a new folder.

    `knn(*arguments)` runs a command in that folder and fails where it fails; without `containers` only WAV sounds.
    """
    folder.mkdir(parents=True)
    sounds(folder, containers)
    models(folder)
    tables(folder)
    stores(folder, knn)
    checkpoints(folder)
    if (folder / "checkpoints" / "whisper").is_dir():  # as the shipped `language` is
        knn("convert", "checkpoints/whisper", "lid")
    shutil.copyfile(folder / "plain.wav", folder / "secret.wav")
    soundfile.write(folder / "silence.wav", np.zeros(RATE, np.float32), RATE)
    return folder
