"""A split as a file: drawn by hand, written, read back strictly, applied to another store, counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.recognition.make_split import SplitOptions, count_split, make_split
from knn_cli.recognition.split_file import KINDS, Split, SplitLine, read_split, write_split
from knn_cli.store import hdf5
from knn_cli.store.writer import write_store


def rows_of(*lines: tuple[str, str, str, str, float]) -> EmbeddingSet:
    """Rows without vectors: recording, group, subgroup, speaker, seconds."""
    name, group, subgroup, speaker, seconds = zip(*lines, strict=True)
    zeros = np.zeros((len(lines), 0))
    return EmbeddingSet.from_columns(
        zeros,
        name,
        group=group,
        subgroup=subgroup,
        speaker=speaker,
        start=np.zeros(len(lines)),
        end=np.asarray(seconds, dtype=np.float64),
    )


def corpus(count: int = 8) -> EmbeddingSet:
    """Classes x and y, `count` recordings each, two rows a recording, two recordings a speaker, two sources."""
    return rows_of(
        *(
            (f"{label}{one}", f"g{one % 2}", label, f"{label}-{one // 2}", 1.0 + one)
            for label in "xy"
            for one in range(count)
            for _ in range(2)
        )
    )


def sides(made: Split) -> dict[str, str]:
    return {line.recording: line.part for line in made.lines}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fraction": 0.5, "units": "speaker"},
        {"kind": "folds", "count": 3},
        {"kind": "folds", "count": 2, "units": "speaker"},
        {"kind": "leave-one-out", "units": "group"},
        {"kind": "quartiles", "number": 2},
        {"kind": "quartiles", "number": 1, "side": "test", "ignore": ["y"]},
    ],
)
def test_every_kind_comes_back_from_its_file(tmp_path: Path, options: dict[str, object]) -> None:
    rows = corpus()
    made = make_split(rows, SplitOptions(seed=3, **options))  # type: ignore[arg-type]
    write_split(tmp_path / "s.tsv", made)
    again = read_split(tmp_path / "s.tsv")
    assert again == made
    for (name, train, test), (other, one, two) in zip(made.masks(rows.name), again.masks(rows.name), strict=True):
        assert name == other and np.array_equal(train, one) and np.array_equal(test, two)
        assert not (train & test).any() and train.any() and test.any()
        for values in (rows.name, rows.label(made.units)):
            assert not set(values[train]) & set(values[test])
        used = ~np.isin(rows.subgroup, made.rule["ignore"])
        np.testing.assert_array_equal(train | test, used)
        assert set(rows.subgroup[train]) == set(rows.subgroup[used])


def test_by_hand() -> None:
    rows = corpus(4)  # lengths in seconds: 2, 4, 6, 8 a class; quartiles 3.5 and 6.5
    assert sides(make_split(rows, SplitOptions(kind="leave-one-out", units="group"))) == {
        f"{label}{one}": f"g{one % 2}" for label in "xy" for one in range(4)
    }
    drawn = sides(make_split(rows, SplitOptions(kind="quartiles", number=2)))
    assert drawn == {f"{label}{one}": "train" if one in (1, 2) else "test" for label in "xy" for one in range(4)}
    other = sides(make_split(rows, SplitOptions(kind="quartiles", number=2, side="test")))
    assert other == {name: "test" if side == "train" else "train" for name, side in drawn.items()}
    one = [sides(make_split(rows, SplitOptions(kind="quartiles", number=1, seed=seed))) for seed in range(20)]
    assert {name for drawn in one for name, side in drawn.items() if side == "train"} == {"x1", "x2", "y1", "y2"}
    assert all(sum(side == "train" for side in drawn.values()) == 2 for drawn in one)
    # without times, a recording is as long as the number of its rows: 1 to 4, quartiles 1.75 and 3.25
    lines = [(f"{label}{one}", "", label, "", np.nan) for label in "xy" for one in range(4)]
    counted = rows_of(*[line for line in lines for _ in range(int(line[0][1]) + 1)])
    drawn = sides(make_split(counted, SplitOptions(kind="quartiles", number=2)))
    assert drawn == {f"{label}{one}": "train" if one in (1, 2) else "test" for label in "xy" for one in range(4)}


def test_the_file_by_hand(tmp_path: Path) -> None:
    rows = rows_of(("b", "", "x", "", 1), ("a", "", "x", "", 1), ("é", "", "y", "", 1), ("d", "", "y", "", 1))
    write_split(tmp_path / "s.tsv", make_split(rows, SplitOptions(kind="folds", count=2, ignore=["y", "y"])))
    text = (tmp_path / "s.tsv").read_text(encoding="utf-8")
    head, a, b, d, e, end = text.split("\n", 3)[3].split("\n")
    assert text.split("\n")[:3] == [
        "# knn split\t1",
        '# rule\t{"count": 2, "ignore": ["y"], "kind": "folds", "label": "subgroup", "units": "name"}',
        "# seed\t0",
    ]
    assert head == "recording\tunit\tclass\tfold" and {a, b} in (
        {"a\ta\tx\t0", "b\tb\tx\t1"},
        {"a\ta\tx\t1", "b\tb\tx\t0"},
    )
    assert (d, e, end) == ("d\td\ty\t", "é\té\ty\t", "")


def test_reading_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    write_split(path, make_split(corpus(3)))
    text = path.read_text()
    lines = text.split("\n")
    for broken, message in (
        ("", "line 1: no split file"),
        (text.replace("split\t1", "split\t2"), "schema 2"),
        (text.replace('"kind"', '"king"'), "line 2"),
        (text.replace('{"f', "{f"), "line 2: the rule is no JSON"),
        (text.replace('"ignore": []', '"ignore": [["x"]]'), "line 2: the rule lacks"),
        (text.replace("seed\t0", "seed\tx"), "line 3"),
        (text.replace("\tside", "\tfold"), "line 4"),
        (text[:-1], "cut off"),
        ("\n".join(lines[:4]) + "\n", "cut off"),
        (text.replace("x0\tx0\tx", "x0\tx"), "line 5: 3 columns"),
        (text.replace("\ttrain\n", "\tdev\n", 1), "'dev' is no side"),
        ("\n".join([*lines[:4], lines[5], lines[4], *lines[6:]]), "line 6: the lines are not sorted"),
        (text.replace("x0\tx0\tx\t", "x0\ta\tx\ttrain\nx0\tb\tx\ttest\nx0\tx0\tx\t"), "line 6: 'x0' is on two sides"),
    ):
        path.write_text(broken)
        with pytest.raises(KnnError, match=message):
            read_split(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KnnError, match="UTF-16"):
        read_split(path)
    with pytest.raises(KnnError, match="cannot be read"):
        read_split(tmp_path / "none.tsv")
    with pytest.raises(KnnError, match="tab or a line break"):
        write_split(path, make_split(rows_of(("a\tb", "", "x", "", 1), ("c", "", "x", "", 1))))


def test_another_store_of_the_same_recordings() -> None:
    made = make_split(corpus())
    some = corpus().take(np.asarray([4, 5, 20, 4]))
    np.testing.assert_array_equal(made.part_of(some.name), [sides(made)[name] for name in some.name])
    assert made.absent_from(some.name) == tuple(sorted(set(corpus().name.tolist()) - set(some.name.tolist())))
    with pytest.raises(KnnError, match=r"'new' \(nor 1 others\)"):
        made.part_of(np.asarray(["x0", "new", "newer"]))


def test_units_that_are_unknown_are_recordings_and_those_that_share_one_are_one() -> None:
    rows = rows_of(
        ("r1", "", "x", "ann", 1),
        ("r2", "", "x", "ann", 1),
        ("r2", "", "x", "bob", 1),
        ("r3", "", "x", "bob", 1),
        ("r4", "", "x", "", 1),
        ("r5", "", "x", "", 1),
    )
    made = make_split(rows, SplitOptions(units="speaker", fraction=0.4))
    assert len({sides(made)[name] for name in ("r1", "r2", "r3")}) == 1
    assert made.unit_of(np.asarray(["r1", "r3", "r4"])).tolist() == ["ann", "ann", "r4"]


def test_counts_by_hand() -> None:
    rows = rows_of(
        ("a1", "", "a", "", 1.5),
        ("a1", "", "a", "", 2.5),
        ("a2", "", "a", "", 1.0),
        ("b1", "", "b", "", 9.0),
        ("n1", "", "", "", 3.0),
    )
    made = Split(
        tuple(
            SplitLine(name, name, label, part)
            for name, label, part in (("a1", "a", "train"), ("a2", "a", "test"), ("b1", "b", ""), ("n1", "", ""))
        ),
        {"kind": "held-out", "label": "subgroup", "units": "name", "ignore": ["b"]},
        0,
    )
    assert [tuple(row) for row in count_split(made, rows)] == [
        ("a", "train", 2, 1, 4.0),
        ("a", "test", 1, 1, 1.0),
        ("", "", 1, 1, 3.0),
        ("b", "", 1, 1, 9.0),
    ]


def test_mistakes_are_named() -> None:
    same = rows_of(*[(f"r{one}", "g", "x", f"s{one}", 1.0) for one in range(6)])
    lonely = rows_of(("a", "g", "x", "", 1), ("b", "h", "x", "", 1), ("c", "h", "y", "", 1), ("d", "h", "y", "", 1))
    cut = rows_of(("a", "g", "x", "", 1), ("a", "h", "x", "", 1))
    silent = rows_of(*[(f"r{one}", "", "x", "", np.nan if one == 2 else 1.0) for one in range(4)])
    mixed = rows_of(("a", "", "x", "", 1), ("a", "", "y", "", 1), ("b", "", "x", "", 1))
    for rows, options, message in (
        (same, {"label": "colour"}, "no label level 'colour'"),
        (same, {"units": "colour"}, "no label level 'colour'"),
        (same, {"kind": "random"}, "no kind of split 'random'"),
        (same, {"seed": -1}, "seed -1 is negative"),
        (same, {"label": "name"}, "recordings as classes"),
        (same, {"ignore": ["x"]}, "No row has a subgroup"),
        (silent, {"units": "speaker"}, "No row has a speaker"),
        (same, {"units": "group"}, "class 'x' has a single"),
        (same, {"kind": "leave-one-out", "units": "group"}, "there is only 'g'"),
        (lonely, {"kind": "leave-one-out", "units": "group"}, "class 'y' has rows in 'h' alone"),
        (cut, {"kind": "leave-one-out", "units": "group"}, "'a' belongs to 'g' and to 'h'"),
        (same, {"kind": "quartiles"}, "number of recordings"),
        (same, {"kind": "quartiles", "number": 0}, "0 recordings"),
        (same, {"kind": "quartiles", "number": 6}, "class 'x' has 6 recordings, which would all"),
        (same, {"kind": "quartiles", "number": 7}, "class 'x' has fewer recordings between"),
        (same, {"kind": "quartiles", "number": 2, "side": "left"}, "no side 'left'"),
        (same, {"kind": "quartiles", "number": 2, "units": "speaker"}, "cannot keep the level speaker"),
        (mixed, {"kind": "quartiles", "number": 1}, "'a' holds the classes 'x' and 'y'"),
    ):
        with pytest.raises(KnnError, match=message) as refused:
            make_split(rows, SplitOptions(**options))  # type: ignore[arg-type]
        if options.get("number", 0) in (6, 7):
            number = {6: 5, 7: 6}[int(str(options["number"]))]
            assert f"sk for {number}" in str(refused.value.hint)


@st.composite
def corpora(draw: st.DrawFn) -> EmbeddingSet:
    """Recordings of one class, speaker and source each, one to three rows a recording."""
    lines = []
    for label in range(draw(st.integers(1, 3))):
        for recording in range(draw(st.integers(4, 9))):
            who, where = draw(st.integers(0, 3)), recording % 2
            row = (f"r{recording}of{label}", f"g{where}", f"l{label}", f"s{where}-{who}")
            lines += [(*row, draw(st.floats(0.1, 30))) for _ in range(draw(st.integers(1, 3)))]
    return rows_of(*lines)


@given(corpora(), st.integers(0, 99), st.sampled_from(KINDS), st.sampled_from(["name", "speaker"]))
@settings(max_examples=25, deadline=None)
def test_disjoint_covering_and_the_same_in_any_order(rows: EmbeddingSet, seed: int, kind: str, units: str) -> None:
    if kind == "quartiles":
        units = "name"
    if kind == "leave-one-out":
        units = "group"
    try:
        made = make_split(rows, SplitOptions(kind=kind, units=units, number=1, seed=seed))
    except KnnError as error:
        assert any(f"{label!r}" in error.message for label in set(rows.subgroup.tolist()))
        return
    masks = made.masks(rows.name)
    for _, train, test in masks:
        np.testing.assert_array_equal(train ^ test, True)
        for values in (rows.name, rows.label(units)):
            assert not set(values[train]) & set(values[test])
        assert set(rows.subgroup[train]) == set(rows.subgroup)
    if made.has_folds:
        np.testing.assert_array_equal(np.sum([test for *_, test in masks], axis=0), 1)
    order = np.random.default_rng(seed).permutation(len(rows))
    assert make_split(rows.take(order), SplitOptions(kind=kind, units=units, number=1, seed=seed)) == made
    assert sum(row.rows for row in count_split(made, rows)) == len(rows)
    if kind == "quartiles":
        for label in set(rows.subgroup.tolist()):
            own = sorted({name for name in rows.name[rows.subgroup == label].tolist()})
            total = [sum(sorted(rows.end[rows.name == name].tolist())) for name in own]
            first, third = np.quantile(total, [0.25, 0.75])
            taken = [length for name, length in zip(own, total, strict=True) if sides(made)[name] == "train"]
            assert len(taken) == 1 and first - 1e-9 <= taken[0] <= third + 1e-9


def test_labels_of_stores_are_enough(tmp_path: Path) -> None:
    rows = corpus()
    whole = EmbeddingSet.from_columns(
        np.random.default_rng(0).normal(size=(len(rows), 3)),
        rows.name,
        group=rows.group,
        subgroup=rows.subgroup,
        speaker=rows.speaker,
        start=rows.start,
        end=rows.end,
        embedder="e@1",
    )
    write_store(tmp_path / "s.h5", whole)
    labels = hdf5.labels(tmp_path / "s.h5")
    assert labels.data.shape == (len(rows), 0) and labels.embedder == "e@1"
    assert make_split(labels, SplitOptions(kind="quartiles", number=1)) == make_split(
        rows, SplitOptions(kind="quartiles", number=1)
    )
    with hdf5.Store(tmp_path / "s.h5") as opened:
        parts = list(opened.blocks(5))
        assert [len(part) for part in parts] == [5] * 6 + [2]
        np.testing.assert_array_equal(opened.data(3, 9), whole.data[3:9])
    joined = EmbeddingSet.concatenate(parts)
    np.testing.assert_array_equal(joined.data, whole.data)
    np.testing.assert_array_equal(joined.name, whole.name)
