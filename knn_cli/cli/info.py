"""`knn info`: describe a store, a model or an audio file in a few lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.options import OUTPUT, JsonOption, QuietOption, VerboseOption, complete_models, epilog, switch, valued
from knn_cli.core.display_names import display_names
from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.input_files import check_regular
from knn_cli.core.visible_text import visible

if TYPE_CHECKING:
    from knn_cli.core.values import Waveform
    from knn_cli.networks.bundle import Bundle

MAX_LABELS = 30

EPILOG = epilog(
    "knn info corpus.h5 voice meeting.wav",
    "knn info talks/ --speech-quality > quality.tsv",
    "knn info voice --precisions meeting.wav",
)


def info(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT",
            autocompletion=complete_models,
            help="Stores, models (by name or folder), audio files, folders of audio.",
        ),
    ] = None,
    speech_quality: Annotated[
        bool,
        switch(
            "--speech-quality", panel=OUTPUT, help="Write speech and noise of recordings as a table, for `knn fuse`."
        ),
    ] = False,
    precisions: Annotated[
        list[Path] | None,
        valued(
            "--precisions",
            metavar="SOUND",
            panel=OUTPUT,
            help="Measure how near other precisions of the models come, on this sound.",
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Describe stores, models and audio files; without arguments, all installed models.

    A model that is named lists its labels, with names of languages and the figures that were measured for each.
    """
    from knn_cli.cli import output, precision_table

    if speech_quality and precisions:
        raise KnnError("--speech-quality and --precisions cannot be combined.", "Choose one of them.")
    if speech_quality:
        _write_quality([Path(name) for name in what or []], as_json)
        return
    if precisions:
        precision_table.write(what or [], precisions, as_json)
        return
    descriptions = [describe(name) for name in what] if what else models()
    for number, facts in enumerate(descriptions):
        if as_json:
            output.json_line(sys.stdout, facts)
            continue
        if number:
            typer.echo()
        names, measured = facts.pop("names", {}), facts.pop("measured", {})
        lines: list[str] = []
        shares = facts.pop("layer weights", {})
        if what and (names or measured):
            labels = facts.pop("labels")
            lines += _label_lines(labels, names, measured)
            facts["labels"] = len(labels)
        if what and shares:
            lines += _layer_lines(shares)
        width = max(map(len, facts))
        for key, value in facts.items():
            typer.echo(visible(f"{key:<{width}}  {_plain(value)}"))
        for line in lines:
            typer.echo(visible(f"  {line}"))


def _write_quality(sources: list[Path], as_json: bool) -> None:
    """Write a line for each recording, or row of a store of sound: seconds, those of speech, and SNR in dB."""
    from knn_cli.audio.sound_quality import quality_of_blocks
    from knn_cli.cli.output import json_line
    from knn_cli.core.tables import finite_or_none, tsv_text
    from knn_cli.embedding.files import expand_folders

    if not sources:
        raise KnnError("There are no recordings to measure.", "Name audio files, folders of audio or stores of sound.")
    failures = []
    columns = ("name", "start", "end", "seconds", "speech_seconds", "snr")
    if not as_json:
        sys.stdout.write("\t".join(columns) + "\n")
    paths = expand_folders(sources)
    with console.progress("Measuring") as progress:
        for done, path in enumerate(paths, start=1):
            try:
                for name, start, end, blocks in _sounds(path):
                    found = quality_of_blocks(blocks)
                    cells = (name, start, end, *(round(value, 3) for value in astuple(found)))
                    if as_json:
                        json_line(sys.stdout, dict(zip(columns, map(finite_or_none, cells), strict=True)))
                    else:
                        sys.stdout.write("\t".join(map(tsv_text, cells)) + "\n")
            except KnnError as error:
                failures.append(failed(str(path), error))
            progress(done, len(paths))
    leave(failures)


def _sounds(path: Path) -> Iterator[tuple[str, float | None, float | None, Iterable[Waveform]]]:
    """Name, start and end, and sound of a file, or of each row of a store of sound."""
    from knn_cli.audio import reading
    from knn_cli.store.hdf5 import Store, kind_of

    if kind_of(path) is None:
        yield str(path), None, None, reading.blocks(path)
        return
    with Store(path, "audio") as store:
        for row in store.segments():
            yield row.name, row.start, row.end, [row.waveform]


def _label_lines(labels: list[str], names: dict[str, str], measured: dict[str, dict[str, float | None]]) -> list[str]:
    """A line per label: the label, its name, and what was measured for it, under headings where anything was."""
    figures = list(dict.fromkeys(figure for of_label in measured.values() for figure in of_label))
    rows = [["label", "name", *figures]] if figures else []
    for label in labels:
        values = [measured.get(label, {}).get(figure) for figure in figures]
        rows.append([label, names.get(label, ""), *("" if value is None else f"{value:.4g}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[*map(str.ljust, row[:2], widths[:2]), *map(str.rjust, row[2:], widths[2:])] for row in rows]
    return ["  ".join(cells).rstrip() for cells in aligned]


def _layer_lines(shares: dict[str, list[float]]) -> list[str]:
    """A line per layer of the encoder, with its share in each of the pooling's sums and a bar of the first."""
    lines = [f"{'layer':<5}  " + "  ".join(f"{name:>7}" for name in shares)]
    for layer, row in enumerate(zip(*shares.values(), strict=True)):
        cells = "  ".join(f"{share:>7.1%}" for share in row)
        lines.append(f"{layer:>5}  {cells}  {'#' * round(40 * row[0])}".rstrip())
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {'not known' if count is None else count}" for key, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def describe(what: str | Path) -> dict[str, Any]:
    """Return facts about a store, a bundle (by name or path) or an audio file, ready for JSON.

    Raises
    ------
    KnnError
        If it is none of these.
    """
    from knn_cli.audio import reading
    from knn_cli.networks import bundle
    from knn_cli.store import hdf5

    path = Path(what)
    if (path / bundle.CONFIG).is_file() or (not path.exists() and str(what) in bundle.available(segmenter=None)):
        return _bundle(bundle.find(what, segmenter=None))
    if path.is_file() and path.suffix.lower() in hdf5.SUFFIXES:
        from knn_cli.diarization import kept_analysis

        if kept_analysis.is_kept(path):
            return {"path": str(path), **kept_analysis.describe(path), "kind": "kept diarization"}
    kind = hdf5.kind_of(path)
    if kind is not None:
        return _store(path)
    if path.is_file():
        return _audio(path)
    if path.is_dir():
        found = reading.find(path)
        closed = [str(below) for below in found if is_folder(below)]
        facts = {"path": str(path), "kind": "folder", "audio files": len(found) - len(closed)}
        return facts | ({"cannot be read": closed} if closed else {})
    known = ", ".join(sorted(bundle.available(segmenter=None))) or "(none)"
    if path.exists():
        check_regular(path, "a file, a folder or a model")
    raise KnnError(f"{what} is not a file, a folder or a model.", f"Installed models: {known}.")


def models() -> list[dict[str, Any]]:
    """Return facts about every model on the search path."""
    from knn_cli.networks import bundle

    facts = []
    for name, folder in sorted(bundle.available(segmenter=None).items()):
        try:
            facts.append(_bundle(bundle.find(folder, segmenter=None)))
        except KnnError as error:  # of one that nobody asked for
            facts.append({"path": str(folder), "kind": "model", "name": name, "error": error.message})
    return facts


def _store(path: Path) -> dict[str, Any]:
    from knn_cli.store import hdf5
    from knn_cli.store.row_counts import duration_counts, recordings_by_label, rows_by_label

    with hdf5.Store(path) as opened:
        seconds = opened.seconds()
        facts: dict[str, Any] = {
            "path": str(path),
            "kind": opened.kind.removesuffix("s") + " store",
            "rows": len(opened),
        }
        names = opened.codes("name")
        facts["recordings"] = int(names.max()) + 1
        if opened.kind == "embeddings":
            facts["dimensions"] = opened.dimension
            facts["embedder"] = opened.embedder or "unknown"
        else:
            facts["rate"] = opened.rate
            facts["seconds"] = round(float(seconds.sum()), 2)
        if lengths := duration_counts(seconds):
            facts["rows by length"] = lengths
        for level in ("group", "subgroup", "speaker"):
            labels = opened.encoded(level)
            counts = rows_by_label(labels)
            if counts:
                facts[f"{level}s"] = dict([*counts.items()][:MAX_LABELS])
                if len(counts) > MAX_LABELS:
                    facts[f"{level}s in all"] = len(counts)
                recordings = recordings_by_label(names, labels)
                facts[f"recordings by {level}"] = dict([*recordings.items()][:MAX_LABELS])
        if "created" in opened.attributes:
            facts["created"] = opened.attributes["created"]
    return facts


def _bundle(model: Bundle) -> dict[str, Any]:
    from knn_cli.networks import bundle
    from knn_cli.networks.chunk_setting import WHOLE
    from knn_cli.networks.layer_weights import layer_weights
    from knn_cli.recognition.classifier_file import read_classifier
    from knn_cli.recognition.head_settings import read_head_settings

    facts: dict[str, Any] = {"path": str(model.folder), "kind": "model", "name": model.name}
    if model.is_segmenter:
        facts["segmenter"], facts["network"] = model.fingerprint, model.config["segmenter"]["name"]
        args = model.config["segmenter"]["args"]
        names = {"speakers": "speakers at most", "most": "speakers at once", "duration": "seconds a chunk"}
        facts |= {shown: args[name] for name, shown in names.items() if name in args}
    else:
        facts["embedder"] = model.fingerprint or "unknown"
    if model.has_network:
        facts["encoder"] = model.config["encoder"]["name"]
        facts["pooling"] = model.config["pooling"]["name"]
        if shares := layer_weights(model):
            facts["layer weights"] = {name: [round(share, 4) for share in of_sum] for name, of_sum in shares.items()}
        facts["precision"] = model.precision
        if cosines := model.config.get("precision_cosines"):
            facts["cosine to fp32"] = {name: of["mean"] for name, of in cosines.items()}
        facts["chunk"] = model.chunk if model.chunk == WHOLE else f"{model.chunk:g} s"
    if model.has_network or model.is_segmenter:
        facts["rate"] = model.rate
        weights = model.folder / bundle.WEIGHTS
        facts["bytes"] = weights.stat().st_size if weights.is_file() else f"{bundle.WEIGHTS} is missing"
    if model.head_labels:
        facts["head"], facts["labels"] = model.config["head"]["name"], list(model.head_labels)
    open_set = None
    if model.classifier is not None:
        classifier = read_classifier(model.classifier)
        facts["labels"], open_set = list(classifier.labels), classifier.open_set
        facts["shrinkage"] = round(classifier.classifier.shrinkage_, 6)
        low, high = classifier.calibration.llr_bounds
        bounds = {"least LLR": round(low, 2), "largest LLR": round(high, 2)}
        facts["certainty"] = bounds if classifier.calibration.smoothing else "without bounds"
    elif model.head_labels:
        settings = read_head_settings(model)
        open_set = settings.open_set
        facts |= {"measured": settings.measured} if settings.measured else {}
    if open_set is not None:
        rates = {"threshold": open_set.threshold, "false reject": open_set.false_reject}
        rates["false accept"] = open_set.false_accept
        facts["unknown"] = {name: None if value != value else round(value, 4) for name, value in rates.items()}
    if names := display_names(facts.get("labels", []), model.config.get("names", {})):
        facts["names"] = names
    return facts


def _audio(path: Path) -> dict[str, Any]:
    from knn_cli.audio import reading

    header = reading.info(path)
    facts = {"path": str(path), "kind": "audio", "format": header.format, "rate": header.rate}
    if header.tracks > 1:
        facts["audio tracks"] = header.tracks
    return {**facts, "channels": header.channels, "seconds": round(header.seconds, 3)}
