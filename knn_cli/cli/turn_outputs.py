"""Where turns of recordings go, and in which form; that nothing is replaced which should stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.audio import reading
from knn_cli.cli import pipeline
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.output_paths import check_output, make_output_folder
from knn_cli.formats import turns as report
from knn_cli.store import hdf5

if TYPE_CHECKING:
    from knn_cli.diarization.post_processing import Cleaning


@dataclass(frozen=True)
class Ways:
    """Where turns go, in which form: to one file (`out`), to a file each (`targets`) in a `folder`, else to stdout."""

    form: str
    out: Path | None
    folder: Path | None
    targets: Mapping[Path, Path]

    @property
    def stdout(self) -> bool:
        return self.out is None and self.folder is None


def ways(sources: Sequence[Path], out: Path | None, folder: Path | None, form: str | None) -> Ways:
    """The form asked for, else that of `out`'s suffix, else RTTM.

    Raises KnnError for a form and a suffix that contradict each other, for a suffix of no form, and for a form that
    cannot hold what is asked for.
    """
    by_suffix = None if out is None else report.form_of(out)
    if form is None and out is not None and by_suffix is None:
        known = ", ".join(map(report.suffix, report.SUFFIXES | report.FILE_SUFFIXES))
        raise KnnError(f"The suffix of {out} names no form of turns.", f"Known: {known}; or give --format.")
    if None not in (form, by_suffix) and form != by_suffix:
        raise KnnError(f"The suffix of {out} is that of {by_suffix}, not of {form}.", "Name one form only.")
    wanted = form or by_suffix or "rttm"
    if folder is not None:
        return Ways(wanted, None, folder, {path: folder / f"{path.stem}{report.suffix(wanted)}" for path in sources})
    if len(sources) > 1 and wanted not in report.TOGETHER:
        raise KnnError(f"Several recordings in one {wanted} file could not be told apart.", "Give --out-dir.")
    if wanted in report.FILES_ONLY and out is None:
        raise KnnError(f"The form {wanted} is not for stdout.", "Give -o or --out-dir.")
    return Ways(wanted, out, None, {})


def check(
    ways: Ways,
    clean: Cleaning | None,
    voices: Path | None,
    sources: Sequence[Path],
    others: Sequence[Path] = (),
    *,
    force: bool = False,
) -> None:
    """Before hours of work: KnnError when an output would replace what is read, or another output, or cannot be made;
    and where sound or a store is there already, unless `force`. Makes the folder.

    voices : the store of speakers' embeddings
    others : what is read besides the recordings; of a folder its RTTM files and its sound
    """
    read = [*sources, *others]
    for place in filter(Path.is_dir, others):
        read += [*place.glob("*.rttm"), *reading.find(place)]
    pipeline.check_text_output(ways.out, read)
    if voices is not None:
        if voices.suffix.lower() not in hdf5.SUFFIXES:
            raise KnnError(f"{voices} is no name for a store.", "Name a file such as voices.h5.")
        check_output(voices, read)
        hdf5.check_free(voices, force)
    for out in (ways.out, voices):
        if out is not None and not out.parent.is_dir():
            raise KnnError(f"{out} cannot be written: there is no folder {out.parent}.", "Create the folder first.")
    if ways.folder is None:
        return
    targets = list(ways.targets.values())
    if clean is not None:
        for source in sources:
            targets += _cleaned(clean, source, force)
    if len(set(targets)) < len(targets):
        twice = Counter(targets).most_common(1)[0][0]
        raise KnnError(f"Two outputs would be called {twice}.", "Rename a recording, or do it by itself.")
    make_output_folder(ways.folder, targets, read)


def _cleaned(clean: Cleaning, source: Path, force: bool) -> list[Path]:
    """What cleaning writes of a recording; of one that cannot be read nothing, which is said when its turn comes."""
    listed = [clean.listed(source)] if clean.unwanted is not None else []
    if not clean.writes_sound:
        return listed
    try:
        sound, turns = clean.sound(source), clean.turns(source)
    except AudioError:
        return listed
    if sound.exists() and not force:
        raise KnnError(f"{sound} exists already.", "Name another folder, or replace it with --force.")
    return [*listed, sound, turns]
