r"""Labels of recordings from their paths: recording name, group, subgroup, speaker.

There are four kinds of rule:

    folder                       subgroup = parent folder ("3-2"), group = its first part ("3")
    group/speaker/file           the last parts of the path, named in order; `*` skips one
    (?P<group>\w+)-.*            a regular expression with named groups, searched in the relative path
    labels.csv, labels.tsv       a table with a column path, file or name, and label columns
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path, PurePath

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.texts import path_text, read_table, tidy
from knn_cli.core.visible_text import visible

DEFAULT_RULE = "folder"
SPLIT_MARK = "_SPLIT"  # in names of segments of a recording: RECORDING_SPLIT_007.wav
_VOXLINGUA_PIECE = re.compile(r"(?<=.)__U__S\d+---\d+\.\d+-\d+\.\d+$")  # VIDEO__U__S12---0003.450-0012.330.wav


@dataclass(frozen=True)
class Labels:
    """Labels of one recording, "" where unknown."""

    name: str
    group: str = ""
    subgroup: str = ""
    speaker: str = ""


Rule = Callable[[PurePath], Labels]

FIELDS = ("name", "group", "subgroup", "speaker")  # of Labels, in its order
_COLUMNS = {  # common column names of tables
    "group": ("group", "language", "locale", "lang", "label"),
    "subgroup": ("subgroup", "dialect", "variety", "accent"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
_KEYS = ("path", "file", "name")


def recording_name(path: PurePath) -> str:
    """Return the stem up to `_SPLIT`, or VoxLingua107's `__U__`, which segments of one recording share.

    It is tidy and visible; `_` for blanks.
    """
    return _shared_stem(visible(path_text(path.stem))) or "_"


def _shared_stem(stem: str) -> str:
    """What the stems of the segments of a recording share."""
    return _VOXLINGUA_PIECE.sub("", stem.split(SPLIT_MARK)[0] or stem)


def label_all(apply: Rule, paths: Sequence[PurePath], root: Path | None = None) -> list[Labels]:
    """Return the labels of many recordings, as `visible_text.visible` shows them.

    Names that come from file names are made `distinct`. A path that is a folder below `root`, which could not be listed
    (see `folders.files_below`), has a name only.

    Raises
    ------
    KnnError
        For two files of a folder whose names differ only in blanks around them, or in how letters are composed; for
        paths that the rule does not match: how many, and one of them.
    """
    _refuse_merged(paths)
    known, unmatched = [], []
    for path in paths:
        try:
            known.append(Labels(path.name) if root is not None and is_folder(root / path) else apply(path))
        except KnnError as error:
            unmatched.append(error)
    if unmatched:
        more = f" So it is with {len(unmatched)} of {len(paths)}." if len(paths) > 1 else ""
        raise KnnError(unmatched[0].message + more, unmatched[0].hint) from unmatched[0]
    labels = [Labels(*map(visible, astuple(label))) for label in known]
    names = distinct([label.name for label in labels], [path.parent for path in paths])
    return [
        replace(label, name=visible(name)) if label.name == recording_name(path) else label
        for path, label, name in zip(paths, labels, names, strict=True)
    ]


def _refuse_merged(paths: Sequence[PurePath]) -> None:
    first: dict[tuple[PurePath, str], PurePath] = {}
    for path in paths:
        other = first.setdefault((path.parent, recording_name(path)), path)
        if _shared_stem(other.stem) != _shared_stem(path.stem):
            both = f"{str(other)!r} and {str(path)!r}"
            raise KnnError(f"Two files would be one recording {recording_name(path)}: {both}.", "Rename one.")


def distinct(names: Sequence[str], folders: Sequence[PurePath]) -> list[str]:
    """Put folders in front of names that occur in several folders: `r1/audio` and `r2/audio`.

    Equal names in one folder stay equal: they are segments of one recording.
    """
    homes: dict[str, set[PurePath]] = {}
    for name, folder in zip(names, folders, strict=True):
        homes.setdefault(name, set()).add(folder)
    return [
        "/".join([*folder.parts[_common(homes[name]) :], name]) if len(homes[name]) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]


def recording_names(files: Sequence[Path]) -> list[str]:
    """Names that tell recordings apart: the stem, or the whole name where several files of a folder share the stem.

    Folders stand in front where several folders hold that name.
    """
    return distinct([path.name for path in _short(files)], [path.parent.resolve() for path in files])


def _short(files: Sequence[Path]) -> list[Path]:
    """The files without their suffix, but where that would make two of a folder one, or the name of another file."""
    folders = {path.parent: path.parent.resolve() for path in files}
    stems = [folders[path.parent] / path.stem for path in files]
    same = Counter(stems)
    same.update(folders[path.parent] / path.name for path in files if path.suffix)
    return [path.with_name(path.stem) if same[stem] == 1 else path for path, stem in zip(files, stems, strict=True)]


def output_places(sources: Sequence[Path], files: Sequence[Path]) -> dict[Path, Path]:
    """Where the outputs of files belong, relative to their folder and without the suffix of outputs.

    The folders between a source and a file of it stay. The suffix of a file stays where it alone tells it from another,
    and where files of several sources would still meet, their folders stand in front.

    Parameters
    ----------
    sources : sequence of Path
        Files and folders.
    files : sequence of Path
        The files, and those below the folders.

    Examples
    --------
    >>> files = [Path("tapes/1/a.wav"), Path("tapes/2/a.wav"), Path("tapes/2/a.mp3"), Path("b.wav")]
    >>> [place.as_posix() for place in output_places([Path("tapes"), Path("b.wav")], files).values()]
    ['1/a', '2/a.wav', '2/a.mp3', 'b']
    """
    roots = [next((one for one in sources if one in path.parents), path.parent) for path in files]
    places = [path.relative_to(root) for path, root in zip(_short(files), roots, strict=True)]
    if len(set(places)) < len(places):
        names = distinct([str(place) for place in places], [root.resolve() for root in roots])
        places = [Path(name) for name in names]
    return dict(zip(files, places, strict=True))


def _common(folders: set[PurePath]) -> int:
    """How many leading parts several folders share."""
    count = 0
    while len({folder.parts[count] if count < len(folder.parts) else None for folder in folders}) == 1:
        count += 1
    return count


def rule(spec: str) -> Rule:
    """Return the rule that a text describes: a function of the path relative to the converted folder.

    Raises
    ------
    KnnError
        If it is none of the four kinds.
    """
    if spec == "folder":
        return by_folder
    if "(?P<" in spec:
        return _by_expression(spec)
    if spec.lower().endswith((".csv", ".tsv", ".txt")) or spec.startswith("/dev/"):  # a pipe, as of `<(command)`
        return _by_table(Path(spec))
    parts = spec.split("/")
    if len(parts) > 1 and parts[-1] in {"file", "*"} and set(parts[:-1]) <= {*FIELDS, "*"}:
        return _by_parts(parts)
    raise KnnError(
        f"There is no label rule {spec!r}.",
        "Use folder, a pattern such as group/speaker/file, a regular expression with (?P<group>...), or a table.csv.",
    )


def of_class(name: str, text: str) -> Labels:
    """Label by the text of a class: it is the subgroup, such as `3-2`, and its first part the group, `3`."""
    return Labels(name, text.split("-")[0], text)


def by_folder(path: PurePath) -> Labels:
    """Label by folder, see `of_class`."""
    return of_class(recording_name(path), path_text(path.parent.name))


def _by_parts(parts: list[str]) -> Rule:
    def apply(path: PurePath) -> Labels:
        if len(path.parts) < len(parts):
            raise KnnError(
                f"{path} has {len(path.parts)} parts, the label pattern {'/'.join(parts)} asks for {len(parts)}.",
                "Convert a folder higher up, or name fewer parts.",
            )
        values = dict(zip(reversed(parts[:-1]), map(path_text, reversed(path.parts[:-1])), strict=False))
        values.pop("*", None)
        return Labels(**{"name": recording_name(path), **values})

    return apply


def _by_expression(spec: str) -> Rule:
    try:
        expression = re.compile(spec)
    except re.error as error:
        raise KnnError(f"The label expression {spec!r} is not a regular expression: {error}.") from error
    if unknown := set(expression.groupindex) - set(FIELDS):
        raise KnnError(f"The label expression names {', '.join(sorted(unknown))}.", f"Known: {', '.join(FIELDS)}.")

    def apply(path: PurePath) -> Labels:
        match = expression.search(path_text(path.as_posix()))
        if match is None:
            raise KnnError(f"The label expression {spec!r} does not match {path}.")
        values = {key: tidy(value) for key, value in match.groupdict().items() if value is not None}
        return Labels(**{"name": recording_name(path), **values})

    return apply


def label_columns(columns: Sequence[str]) -> dict[str, list[str]]:
    """Return which columns of a table give group, subgroup and speaker, of those that there are.

    Examples
    --------
    >>> label_columns(["file_name", "language", "client_id"])
    {'group': ['language'], 'speaker': ['client_id']}
    """
    return {
        field: present for field, names in _COLUMNS.items() if (present := [name for name in names if name in columns])
    }


def _by_table(table: Path) -> Rule:
    columns, lines = read_table(table, "a table of labels")
    key = next((key for key in _KEYS if key in columns), None)
    fields = label_columns(columns)
    if key is None or not fields:
        raise KnnError(
            f"The label table {table} has the columns {', '.join(columns) or '(none)'}.",
            "It needs one of path, file, name, and at least one of group, subgroup, speaker.",
        )
    known: dict[str, tuple[int, dict[str, str]]] = {}
    for number, cells in lines:
        row = dict(zip(columns, cells, strict=True))
        found = {field: only_label(row, names, f"Line {number} of {table}") for field, names in fields.items()}
        if not row[key]:
            raise KnnError(f"Line {number} of the label table {table} has no {key}.", "Add it, or leave the line out.")
        first, before = known.setdefault(row[key].removeprefix("./"), (number, found))
        if before != found:
            raise KnnError(
                f"The label table {table} says one thing of {row[key]} in line {first} and another in line {number}.",
                "Leave one of the lines out.",
            )

    def apply(path: PurePath) -> Labels:
        name = recording_name(path)
        for candidate in map(path_text, (path.as_posix(), path.name, path.stem, name)):
            for spelling in (candidate.replace("\\", "\\\\"), candidate):  # as TSV has backslashes
                if (row := known.get(spelling)) is not None:
                    return Labels(name, **row[1])
        raise KnnError(f"The label table {table} has no row for {path}.", f"Its column {key!r} must name every file.")

    return apply


def only_label(row: Mapping[str, str], columns: Sequence[str], where: str) -> str:
    """What a line says in columns that mean the same. KnnError if it says two things."""
    values = {row[column]: column for column in reversed(columns) if row[column]}
    if len(values) > 1:
        (one, first), (two, second) = list(values.items())[:2]
        raise KnnError(
            f"{where} says {second} {two!r} and {first} {one!r}, which mean the same.",
            "Leave one of the columns out, or give it another name.",
        )
    return next(iter(values), "")


def read_groups(table: Path) -> dict[str, str]:
    """Read label -> group, such as dialect -> region, from a table with the columns `label` and `group`.

    Parameters
    ----------
    table : Path
        UTF-8 text with commas or tabs.

    Raises
    ------
    KnnError
        If the header differs, a cell is empty, or a label is in two groups.
    """
    columns, lines = read_table(table, "a table of groups")
    hint = "Expected: a header `label,group`, then a line for each label; commas or tabs."
    if columns != ["label", "group"]:
        raise KnnError(f"{table} has not the columns label and group.", hint)
    groups: dict[str, str] = {}
    for number, cells in lines:
        if not all(cells):
            raise KnnError(f"Line {number} of {table} has not a label and its group.", hint)
        if groups.setdefault(cells[0], cells[1]) != cells[1]:
            raise KnnError(f"{table} has the label {cells[0]!r} twice, in two groups.", "Leave one of the lines out.")
    return groups
