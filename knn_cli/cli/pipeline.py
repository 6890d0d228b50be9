"""Commands over many files: one bad file is one failure in the list, and costs none of the others.

Every function here takes and returns plain values; the command line only prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, Failure, KnnError
from knn_cli.core.output_paths import check_output
from knn_cli.core.values import EmbeddingSet, Progress
from knn_cli.embedding.embedder import BATCH_SECONDS, Embedder, embed_file, no_speech
from knn_cli.embedding.embedder import embed_store as embed_rows
from knn_cli.embedding.options import EmbeddingOptions, RowsWithoutSpeech
from knn_cli.networks import bundle
from knn_cli.store import hdf5, labels
from knn_cli.store.hdf5 import Store
from knn_cli.store.labels import Labels
from knn_cli.store.writer import StoreWriter, source_stamp


@dataclass
class Embedding:
    """What `embed_into` wrote: rows of this run, rows of a store left out for want of speech, and files that failed."""

    rows: int = 0
    silent: int = 0
    failures: list[Failure] = field(default_factory=list)


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the audio files below them, each once. Raises AudioError for a folder without."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
        elif below := reading.find(path):
            found += below
        else:
            raise AudioError(f"{path} holds no audio files.", "Audio is found at any depth, by suffix.")
    return list(dict.fromkeys(found))


def audio_files(paths: Sequence[Path], rule: str = "folder") -> list[tuple[Path, Labels]]:
    """`expand` with labels: of files in a folder by the rule, of files named one by one by their name only."""
    apply = labels.rule(rule)
    found: dict[Path, Labels] = {}
    for path in paths:
        files = expand([path])
        below = [PurePosixPath(one.relative_to(path).as_posix() if path.is_dir() else one.name) for one in files]
        for file, label in zip(files, labels.label_all(apply, below), strict=True):
            found.setdefault(file, label)
    names = labels.distinct([one.name for one in found.values()], [file.parent for file in found])
    return [(file, replace(one, name=name)) for (file, one), name in zip(found.items(), names, strict=True)]


def check_text_output(out: Path | None, sources: Sequence[Path]) -> None:
    """KnnError when a text output would replace a source, or is called like sound or a store."""
    check_output(out, sources)
    if out is not None and out.suffix.lower() in {*reading.SUFFIXES, *hdf5.SUFFIXES}:
        raise KnnError(f"{out} is no name for a text file.", "Is it a recording? The output comes after the option.")


def line_names(files: Sequence[tuple[Path, Labels]]) -> list[str]:
    """What each file's line is called on stdout: its stem, so that pieces of one recording differ, made distinct."""
    return labels.distinct([path.stem for path, _ in files], [path.parent for path, _ in files])


def embed(
    files: Sequence[tuple[Path, Labels]], embedder: Embedder, options: EmbeddingOptions
) -> Iterator[tuple[str, EmbeddingSet | KnnError]]:
    """(file, its embeddings or why there are none), file after file."""
    for path, label in files:
        yield str(path), _attempt(path, label, embedder, options)


def _attempt(path: Path, label: Labels, embedder: Embedder, options: EmbeddingOptions) -> EmbeddingSet | KnnError:
    try:
        return embed_file(path, embedder, label=label, **vars(options))
    except AudioError as error:
        return error


def embed_into(
    source: Path | Sequence[tuple[Path, Labels]],
    out: Path,
    embedder: Embedder,
    options: EmbeddingOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Embedding:
    """Embeddings of an audio store or of files into an embedding store; an interrupted run is gone on with.

    Raises StoreError as `StoreWriter`, KnnError when nothing could be embedded.
    """
    result = Embedding()
    attributes = {"embedder": embedder.bundle.fingerprint}
    plan: dict[str, Any] = {"embedder": embedder.bundle.fingerprint, "options": vars(options)}
    if isinstance(source, Path):
        check_output(out, [source])
        plan |= {"store": source_stamp(source)}
        with (
            Store(source, "audio") as opened,
            StoreWriter(
                out, "embeddings", attributes, plan={**plan, "batch": embedder.batch_seconds}, force=force
            ) as writer,
        ):
            options.check_store()
            total = len(opened)
            for group in embed_rows(opened, embedder, use_vad=options.use_vad, skip=writer.finished):
                result.rows += writer.add(group.key, group.embeddings) if len(group.embeddings) else 0
                result.silent += group.silent
                if progress is not None:
                    progress(group.done, total)
            if not result.rows and not writer.finished:
                raise no_speech(str(source), options.use_vad)
        return result
    check_output(out, [path for path, _ in source])
    plan["files"] = [(source_stamp(path) if path.exists() else str(path), vars(label)) for path, label in source]
    with StoreWriter(out, "embeddings", attributes, plan=plan, force=force) as writer:
        left = [(path, label) for path, label in source if str(path) not in writer.finished]
        for done, (name, found) in enumerate(embed(left, embedder, options), start=1):
            if isinstance(found, KnnError):
                result.failures.append(Failure(name, found))
            else:
                result.rows += writer.add(name, found)
            if progress is not None:
                progress(done, len(left))
        if not result.rows and not writer.finished:
            raise result.failures[0].error
    return result


def embed_store(
    path: Path, embedder: Embedder, options: EmbeddingOptions
) -> Iterator[EmbeddingSet | RowsWithoutSpeech]:
    """The embeddings of an audio store, group of rows after group of rows; SilenceError when there are none at all."""
    options.check_store()
    rows = silent = 0
    with Store(path, "audio") as opened:
        for group in embed_rows(opened, embedder, use_vad=options.use_vad):
            rows, silent = rows + len(group.embeddings), silent + group.silent
            yield group.embeddings
    if not rows:
        raise no_speech(str(path), options.use_vad)
    if silent:
        yield RowsWithoutSpeech(silent)


def training_source(
    path: Path,
    model: str | None = None,
    device: str = "auto",
    batch_seconds: float = BATCH_SECONDS,
    *,
    label: str = "group",
    use_vad: bool = True,
    progress: Progress | None = None,
) -> EmbeddingSet | Path:
    """An embedding store as it is, to be gone through in blocks, or the rows that a model makes of an audio store.

    Without a `model` it is the shipped one of voices where `label` is speaker, else that of languages.
    """
    with Store(path) as opened:
        if opened.kind == "embeddings":
            if model is not None:
                raise KnnError(f"{path} holds embeddings already, so --model has nothing to do.", "Leave it out.")
            return path
        usual = bundle.VOICE if label == "speaker" else bundle.LANGUAGE
        embedder = Embedder(usual if model is None else model, device=device, batch_seconds=batch_seconds)
        parts = []
        for group in embed_rows(opened, embedder, use_vad=use_vad):
            parts.append(group.embeddings)
            if progress is not None:
                progress(group.done, len(opened))
    if not sum(map(len, parts)):
        raise no_speech(str(path), use_vad)
    return EmbeddingSet.concatenate(parts)
