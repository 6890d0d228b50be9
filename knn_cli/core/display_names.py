"""Names of labels that are codes, for figures and tables: from a table of one's own, of dialects, of languages.

`czech_dialects.tsv` has the codes of the Czech dialects that KNN-proj recognises (`utils/misc/h5_convert.py` and
`evaluate_heatmap.ipynb` there), with English names; `own` is what they are called in Czech.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from knn_cli.core.errors import KnnError
from knn_cli.core.languages import label_names
from knn_cli.core.texts import read_table, tidy
from knn_cli.core.toml_files import read_toml

__all__ = ["CZECH_DIALECTS_TABLE", "czech_dialect_names", "display_names", "is_uncertain", "named", "read_names"]

CZECH_DIALECTS_TABLE = "czech-dialects"  # what stands for the table of knn in place of a file
_HINT = 'It has the columns label and name, or in TOML lines such as "1-1" = "Northeastern Bohemian".'
_LABEL_COLUMNS = ("label", "code")


@cache
def czech_dialect_names() -> Mapping[str, str]:
    """Return code -> English name of the Czech dialects and of their groups.

    Examples
    --------
    >>> from knn_cli.core.display_names import czech_dialect_names
    >>> czech_dialect_names()["1-1"]
    'Northeastern Bohemian'
    """
    return MappingProxyType(_read_table(Path(__file__).with_name("czech_dialects.tsv")))


def read_names(source: Path | str) -> dict[str, str]:
    """Read names of labels.

    Parameters
    ----------
    source : path
        A table (.tsv, .csv) with the columns `label` (or `code`) and `name`, a TOML file with a text for each label, or
        "czech-dialects" for the table of knn.

    Returns
    -------
    dict of str to str
        Label -> name; labels without a name are left out.

    Raises
    ------
    KnnError
        For a file that cannot be read or is no such table, and for a label with two names.
    """
    path = Path(source)
    if str(source) == CZECH_DIALECTS_TABLE:
        return dict(czech_dialect_names())
    return _read_toml(path) if path.suffix.lower() == ".toml" else _read_table(path)


def _read_table(path: Path) -> dict[str, str]:
    columns, rows = read_table(path, "a table of names")
    label = next((columns.index(name) for name in _LABEL_COLUMNS if name in columns), None)
    if label is None or "name" not in columns:
        raise KnnError(f"{path} has no columns label and name; it has {', '.join(columns) or 'none'}.", _HINT)
    names: dict[str, str] = {}
    for number, cells in rows:
        name = cells[columns.index("name")]
        if not name:
            continue
        if names.setdefault(cells[label], name) != name:
            both = f"{names[cells[label]]} and {name}"
            raise KnnError(f"Line {number} of {path} gives {cells[label]} a second name: {both}.", "Keep one of them.")
    return names


def _read_toml(path: Path) -> dict[str, str]:
    table = read_toml(path, "table of names", _HINT)
    for label, name in table.items():
        if not isinstance(name, str):
            raise KnnError(f"{path} has no text as the name of {label}.", _HINT)
    return {tidy(label): tidy(name) for label, name in table.items() if tidy(name)}


def display_names(labels: Iterable[str], given: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the names of labels: those given, and otherwise those of languages, see `languages.label_names`.

    Examples
    --------
    >>> from knn_cli.core.display_names import display_names
    >>> display_names(["1-1", "1-2"], {"1-1": "Northeastern Bohemian"})
    {'1-1': 'Northeastern Bohemian'}
    >>> display_names(["cs", "sk"])
    {'cs': 'Czech', 'sk': 'Slovak'}
    """
    listed = list(labels)
    names = label_names(listed) | {label: given[label] for label in listed if label in given}
    return {label: names[label] for label in listed if label in names}


def named(label: str, names: Mapping[str, str]) -> str:
    """Return a label with its name, such as "cs Czech"; the label alone where it has none."""
    return f"{label} {names[label]}" if label in names else label


def is_uncertain(probability: float | None) -> bool:
    """Whether an answer is less probable than all others together, so that it is to be shown as a guess.

    Examples
    --------
    >>> is_uncertain(0.14), is_uncertain(0.5), is_uncertain(None)
    (True, False, False)
    """
    return probability is not None and probability < 0.5
