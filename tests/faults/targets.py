"""Where damaged inputs go: for each kind of seed, the commands that read it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

HEARD = ("--device", "cpu")
TINY = ("--model", "tiny", *HEARD)
DIARIZE = ("diarize", "{x}", *TINY, "--json", "--segmentation")
RTTM_OF = ("diarize", "plain.wav", *TINY, "--segmentation", "silero", "--reference")

SOUND: tuple[tuple[str, ...], ...] = (
    ("info", "{x}"),
    ("info", "{x}", "--json"),
    ("convert", "{x}", "{out}.h5"),
    ("convert", "{x}", "{out}.h5", "--channel", "2", "--segment", "0.5", "--min-segment", "0.1"),
    ("embed", "{x}", *TINY, "--no-vad", "--json"),
    ("embed", "{x}", *TINY, "-o", "{out}.h5"),
    ("classify", "{x}", "--model", "head", *HEARD, "--json"),
    ("timeline", "{x}", "--model", "head", *HEARD, "--json"),
    (*DIARIZE, "silero"),
    (*DIARIZE, "who"),
    (*DIARIZE, "who", "--per-channel"),
    ("diarize", "{x}", *TINY, "--segmentation", "who", "--out-dir", "{out}", "--unwanted", "least", "--mute"),
)
EMBEDDINGS: tuple[tuple[str, ...], ...] = (
    *(
        ("info", "{x}"),
        ("convert", "{x}", "{out}.csv"),
        ("convert", "{x}", "{out}.ark"),
        ("convert", "{x}", "{out}.npz"),
    ),
    ("classify", "{x}", "--model", "dialects", "--json"),
    ("evaluate", "{x}", "--model", "dialects", "--draws", "5", "--json"),
    ("train", "{x}", "-o", "{out}"),
    ("split", "{x}", "-o", "{out}.tsv"),
    ("verify", "trials.txt", "{x}", "--json"),
    ("verify", "trials.txt", "emb.h5", "--cohort", "{x}", "--as-norm", "5"),
)
AUDIO_STORE: tuple[tuple[str, ...], ...] = (
    *(("info", "{x}"), ("convert", "{x}", "{out}"), ("embed", "{x}", *TINY, "--no-vad", "-o", "{out}.h5")),
    *(
        ("split", "{x}", "-o", "{out}.tsv", "--level", "group"),
        ("classify", "{x}", "--model", "head", *HEARD, "--json"),
    ),
)


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes
    ----------
    name : str
    source : str
        The seed: a file, or a folder of which one file is damaged.
    commands : tuple
        Arguments in which {x} is the damaged file or folder and {out} a name for outputs.
    weight : int
        How often it is chosen.
    damaged : tuple of str
        Files of the folder, or companions of the file, that may be damaged; empty: the file itself.
    beside : tuple of str
        Files that are laid beside the damaged one.
    endless : bool
        Whether the input may rightly ask for work without an end.
    """

    name: str
    source: str
    commands: tuple[tuple[str, ...], ...]
    weight: int = 4
    damaged: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    endless: bool = False

    def lay(self, seeds: Path, folder: Path) -> tuple[Path, list[Path]]:
        """Copy the seed into a folder: what {x} stands for, and the files of which one is to be damaged."""
        source, copy = seeds / self.source, folder / Path(self.source).name
        if source.is_dir():
            shutil.copytree(source, copy)
            return copy, [copy / name for name in self.damaged]
        for name in (self.source, *self.beside):
            shutil.copyfile(seeds / name, folder / Path(name).name)
        return copy, [folder / name for name in self.damaged] or [copy]


def targets(seeds: Path) -> list[Target]:
    """All kinds of inputs for which there are seeds."""
    of_sound = [
        Target(f"sound {path.name}", f"sound/{path.name}", SOUND, 3) for path in sorted((seeds / "sound").iterdir())
    ]
    embed = ("embed", "plain.wav", "--no-vad", "--json", "--model", "{x}", *HEARD)
    verify = ("verify", "trials.txt", "emb.h5", "--json", "--model", "{x}")
    labels = ("convert", "{x}", "{out}", "--languages", "a,b")
    of_speakers = ("--segmentation", "silero", "--model", "{x}", *HEARD)
    kaldi = ("emb.utt2spk", "emb.utt2lang", "emb.utt2subgroup", "emb.scp")
    table = (("convert", "{x}", "{out}.h5"),)
    found = [
        *of_sound,
        Target("store of embeddings", "emb.h5", EMBEDDINGS, 20),
        Target("store of sound", "audio.h5", AUDIO_STORE, 14),
        Target("kept analysis", "kept.h5", (("info", "{x}"), ("diarize", "{x}", "--json", "--clusterer", "ahc")), 12),
        Target("npz", "emb.npz", table, 12),
        *(Target(name, f"emb.{name}", table, 4) for name in ("csv", "tsv", "txt")),
        Target("scp", "emb.scp", table, 4),
        Target("ark", "emb.ark", table, 6, beside=kaldi),
        Target("tables of Kaldi", "emb.ark", table, 2, kaldi[:3], kaldi),
        Target("gz", "text/3-2/rec_SPLIT_000.i.gz", table, 4),
        Target("tar", "shard.tar", (("train", "{x}", "--recipe", "recipe.toml", "-o", "{out}", *HEARD),), 4),
        Target(
            "recipe", "recipe.toml", (("train", "audio.h5", "--recipe", "{x}", "-o", "{out}", *HEARD),), 2, endless=True
        ),
        Target("table of labels", "labels.csv", (("convert", "corpus", "{out}.h5", "--labels", "{x}"),), 4),
        Target("table of groups", "groups.csv", (("train", "emb.h5", "-o", "{out}", "--groups", "{x}"),), 4),
        Target(
            "split",
            "split.tsv",
            (
                ("train", "emb.h5", "-o", "{out}", "--split", "{x}"),
                ("evaluate", "emb.h5", "--model", "dialects", "--draws", "2", "--split", "{x}"),
            ),
            4,
        ),
        Target("scores", "scores.tsv", (("fuse", "{x}", "--folds", "2", "-o", "{out}"),), 4),
        Target("fusion", "fusion.json", (("fuse", "scores.tsv", "--fusion", "{x}"),), 4),
        Target("trials", "trials.txt", (("verify", "{x}", "emb.h5", "--json"),), 4),
        Target(
            "RTTM",
            "turns.rttm",
            ((*RTTM_OF, "{x}"), ("timeline", "plain.wav", "--model", "head", *HEARD, "--turns", "{x}", "--json")),
            8,
        ),
        Target("UEM", "plain.uem", ((*RTTM_OF, "turns.rttm", "--uem", "{x}"),), 4),
        Target("corrections", "corrections.json", (("diarize", "kept.h5", "--json", "--corrections", "{x}"),), 6),
        Target("model that embeds", "tiny", (("info", "{x}"), embed), 10, ("config.json", "weights.safetensors")),
        Target(
            "model with a head",
            "head",
            (("info", "{x}"), ("classify", "plain.wav", "--no-vad", "--json", "--model", "{x}", *HEARD), labels),
            10,
            ("config.json", "config.json", "weights.safetensors"),
        ),
        Target(
            "segmentation network",
            "who",
            (("info", "{x}"), ("diarize", "plain.wav", *TINY, "--segmentation", "{x}")),
            6,
            ("config.json", "weights.safetensors"),
        ),
        Target(
            "classifier",
            "dialects",
            (("info", "{x}"), ("classify", "emb.h5", "--json", "--model", "{x}")),
            12,
            ("classifier.h5", "classifier.h5", "classifier.h5", "config.json"),
        ),
        Target(
            "model of speakers",
            "speaker",
            (
                ("info", "{x}"),
                embed,
                ("diarize", "meeting.wav", *of_speakers, "--clusterer", "vbx", "--num-speakers", "2", "--json"),
                ("diarize", "plain.wav", *of_speakers, "--speakers", "corpus", "--json"),
                ("timeline", "meeting.wav", "--diarize", "--model", "{x}", *HEARD),
            ),
            10,
            ("config.json", "config.json", "plda.safetensors", "plda.safetensors", "weights.safetensors"),
        ),
        Target("classifier with PLDA", "voices", (verify,), 4, ("classifier.h5",)),
    ]
    if (seeds / "lid").is_dir():
        classify = ("classify", "plain.wav", "--no-vad", "--json", "--model", "{x}", *HEARD)
        timeline = ("timeline", "plain.wav", "--model", "{x}", *HEARD)
        files = ("config.json", "config.json", "weights.safetensors")
        found.append(Target("model of languages", "lid", (("info", "{x}"), classify, timeline, labels), 8, files))
    convert = (("convert", "{x}", "{out}"),)
    for path in sorted((seeds / "checkpoints").iterdir()):
        inside = tuple(sorted(one.name for one in path.iterdir())) if path.is_dir() else ()
        found.append(Target(f"checkpoint {path.name}", f"checkpoints/{path.name}", convert, 5, inside))
    return found
