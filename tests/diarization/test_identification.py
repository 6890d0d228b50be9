"""Known speakers: enrolment, names by hand, one label per speaker over recordings, round trips through stores."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, EmbeddingSet, Turn
from knn_cli.diarization.enrollment import EnrolledSpeakers, enroll
from knn_cli.diarization.identification import SpeakerScore, identify
from knn_cli.diarization.linking import link_speakers, rename_speakers
from knn_cli.diarization.speaker_export import export_speakers
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_file
from knn_cli.networks.conversion import convert
from knn_cli.recognition.speaker_decision import UNCALIBRATED
from knn_cli.store import hdf5
from knn_cli.store.writer import write_store


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


def diarized(
    uri: str = "file", speech: dict[str, float] | None = None, /, **embeddings: list[float] | None
) -> Diarization:
    """Speakers with one turn each, in the order given; None: without an embedding."""
    turns = [Turn(2.0 * place + 1, 2.0 * place + 2, name, 0.5 + place / 10) for place, name in enumerate(embeddings)]
    vectors = {name: np.array(row, dtype=np.float32) for name, row in embeddings.items() if row is not None}
    return Diarization(
        tuple(turns),
        uri,
        speaker_embeddings=vectors,
        clean_speech_seconds=dict.fromkeys(vectors, 1.0) | (speech or {}),
        seconds=2.0 * len(embeddings) + 1,
    )


def known(**vectors: list[float]) -> EnrolledSpeakers:
    rows = np.array(list(vectors.values()), dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    count = len(rows)
    return EnrolledSpeakers(tuple(vectors), rows, np.ones(count, np.int64), np.full(count, 9.0), np.full(count, np.nan))


def at(degrees: float) -> list[float]:
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def confidences(diarization: Diarization) -> list[float | None]:
    return [turn.confidence for turn in diarization.turns]


def labels(diarization: Diarization) -> list[str]:
    return [turn.speaker for turn in diarization.turns]


def clip(path: Path, start: float, end: float, example: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, reading.read(example).crop(start, end).samples, 16000, subtype="FLOAT")
    return path


# Enrolment.


def test_a_folder_of_clips_and_folders(tiny: Embedder, tmp_path: Path, example: Path) -> None:
    anna = [clip(tmp_path / "anna.wav", 0, 4, example), clip(tmp_path / "anna" / "deep" / "b.wav", 4, 6, example)]
    clip(tmp_path / "Béla K.wav", 6, 9, example)
    (tmp_path / "notes.txt").write_text("no sound")
    done: list[tuple[int, int]] = []
    enrolled = enroll(tmp_path, tiny, progress=lambda *steps: done.append(steps))
    assert enrolled.names == ("Béla K", "anna") and len(enrolled) == 2
    assert enrolled.clips.tolist() == [1, 2] and enrolled.seconds == pytest.approx([3, 6])
    assert done == [(1, 3), (2, 3), (3, 3)]
    rows = np.concatenate([embed_file(path, tiny).data for path in anna]).astype(np.float64)
    rows = rows[:, tiny.bundle.view("speaker")]
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mean = (4 * units[0] + 2 * units[1]) / 6
    assert enrolled.vectors[1] == pytest.approx(mean / np.linalg.norm(mean))
    assert np.isnan(enrolled.clip_cosines[0]) and enrolled.clip_cosines[1] == pytest.approx(units[0] @ units[1])


def test_dissimilar_clips_are_inconsistent(tiny: Embedder, tmp_path: Path) -> None:
    """Mean cosine of the pairs, by hand: 0, 0 and 1 with weights 1 x 2, 1 x 3 and 2 x 3."""
    data = np.zeros((4, tiny.dimension), dtype=np.float32)
    data[0, 0], data[1:3, 1], data[3, 2] = 5.0, 0.1, 1.0
    write_store(
        tmp_path / "v.h5",
        EmbeddingSet.from_columns(
            data, list("abcd"), speaker=["one", "one", "one", "two"], start=[0] * 4, end=[1, 2, 3, 4]
        ),
    )
    enrolled = enroll(tmp_path / "v.h5", tiny)
    assert enrolled.clip_cosines[0] == pytest.approx(6 / 11) and enrolled.inconsistent == []
    assert enrolled.vectors[0, :3] == pytest.approx(np.array([1, 5, 0]) / np.sqrt(26))
    data[2, :2] = 0, 0
    data[2, 3] = 1.0
    rows = EmbeddingSet.from_columns(data, list("abcd"), speaker=["one", "one", "one", "two"])
    write_store(tmp_path / "v.h5", rows, force=True)
    enrolled = enroll(tmp_path / "v.h5", tiny)
    assert (
        enrolled.inconsistent == ["one"]
        and enrolled.clip_cosines[0] == pytest.approx(0)
        and np.isnan(enrolled.seconds).all()
    )


def test_a_store_of_sound_enrols_as_its_files(tiny: Embedder, tmp_path: Path, example: Path) -> None:
    clip(tmp_path / "voices" / "anna.wav", 0, 4, example)
    clip(tmp_path / "voices" / "ben.wav", 5, 8, example)
    convert(tmp_path / "voices", tmp_path / "v.h5", label_rule=r"(?P<speaker>\w+)\.wav")
    folder, sound = enroll(tmp_path / "voices", tiny), enroll(tmp_path / "v.h5", tiny)
    assert sound.names == folder.names == ("anna", "ben")
    assert sound.vectors == pytest.approx(folder.vectors, abs=2e-3)


def test_every_failing_clip_is_listed(tiny: Embedder, tmp_path: Path, example: Path) -> None:
    clip(tmp_path / "anna.wav", 0, 3, example)
    soundfile.write(tmp_path / "ben.wav", np.zeros(32000), 16000)
    with pytest.raises(KnnError, match=r"ben\.wav holds no speech"):
        enroll(tmp_path, tiny)
    (tmp_path / "carl.wav").write_text("no sound at all")
    with pytest.raises(KnnError, match=r"ben\.wav holds no speech.*carl\.wav"):
        enroll(tmp_path, tiny)


def test_a_speaker_of_blanks_is_nobody(tiny: Embedder, tmp_path: Path, example: Path) -> None:
    (tmp_path / "clips" / "  ").mkdir(parents=True)
    (tmp_path / "clips" / "  " / "a.flac").symlink_to(example)
    with pytest.raises(KnnError, match="is blank, so it names no speaker"):
        enroll(tmp_path / "clips", tiny)


def test_what_cannot_be_enrolled(tiny: Embedder, tmp_path: Path, example: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(KnnError, match="holds no audio"):
        enroll(tmp_path / "empty", tiny)
    with pytest.raises(KnnError, match="does not exist"):
        enroll(tmp_path / "nothing", tiny)
    with pytest.raises(KnnError, match="no folder of clips and no store"):
        enroll(example, tiny)
    data = np.ones((2, tiny.dimension), dtype=np.float32)
    for rows, message in (
        (EmbeddingSet.from_columns(data, "ab", speaker=["x", ""]), "1 of 2 rows of .* have no Speaker"),
        (EmbeddingSet.from_columns(data, "ab", speaker=["x", "y"], embedder="other@1"), "other@1.*tiny-test"),
        (EmbeddingSet.from_columns(data[:, 1:], "ab", speaker=["x", "y"]), "tiny-test"),
        (EmbeddingSet.from_columns(data * [[1], [0]], "ab", speaker=["x", "y"]), "no usable embedding of y"),
        (EmbeddingSet.from_columns(data[:0], [], speaker=[]), "is empty"),
    ):
        write_store(tmp_path / "v.h5", rows, force=True)
        with pytest.raises(KnnError, match=message):
            enroll(tmp_path / "v.h5", tiny)
    with pytest.raises(ValueError, match="distinct names"):
        EnrolledSpeakers(("a", "a"), np.eye(2), np.ones(2, np.int64), np.ones(2), np.ones(2))


# Recognition.


def test_who_matches_is_named_the_others_are_numbered() -> None:
    embedded = diarized(SPEAKER_00=at(100), SPEAKER_01=at(5), SPEAKER_02=None, SPEAKER_03=at(-60))
    result = identify(embedded, known(ben=at(90), anna=at(0)), threshold=0.9)
    assert labels(result.diarization) == ["ben", "anna", "SPEAKER_00", "SPEAKER_01"]
    assert result.names == {"SPEAKER_00": "ben", "SPEAKER_01": "anna"}
    assert (
        set(result.diarization.speaker_embeddings)
        == {"ben", "anna", "SPEAKER_01"}
        == set(result.diarization.clean_speech_seconds)
    )
    assert confidences(result.diarization) == confidences(embedded) and result.diarization.seconds == embedded.seconds
    assert result.diarization.name == "file"
    assert result.speakers == ("ben", "anna", "SPEAKER_00", "SPEAKER_01") and result.enrolled == ("ben", "anna")
    assert result.cosines[0] == pytest.approx([np.cos(np.radians(10)), np.cos(np.radians(100))])
    assert np.isnan(result.cosines[2]).all()
    scores = list(result.scores())
    assert [(one.speaker, one.enrolled, one.matched) for one in scores] == [
        ("ben", "ben", True),
        ("ben", "anna", False),
        ("anna", "anna", True),
        ("anna", "ben", False),
        ("SPEAKER_01", "anna", False),
        ("SPEAKER_01", "ben", False),
    ]
    assert isinstance(scores[0], SpeakerScore) and scores[4].cosine == pytest.approx(0.5)
    facts = result.facts(1)[1:]
    kept = ("speaker", "known", "who", "reason", "nearest", "cosine")
    silent, far = "no embedding: too little speech alone", "below the threshold: cosine 0.50 with anna"
    assert [tuple(fact[name] for name in kept) for fact in facts] == [
        ("anna", True, "anna", None, "anna", {"anna": 0.9962}),
        ("SPEAKER_00", False, None, silent, None, {}),
        ("SPEAKER_01", False, None, far, "anna", {"anna": 0.5}),
    ]


def test_weak_match_never_replaces_a_strong_one() -> None:
    """The largest sum of cosines (0.71 + 0.71 > 1 + 0) would exchange the names of both speakers."""
    embedded, enrolled = diarized(a=[1, 0, 0], b=[1, 1e-6, -1]), known(x=[1, 0, 0], y=[1, 0, 1])
    assert identify(embedded, enrolled, threshold=0.6).names == {"a": "x"}


def test_the_threshold_itself_matches() -> None:
    embedded, enrolled = diarized(a=[3, 4]), known(x=[1, 0])
    assert identify(embedded, enrolled, threshold=float((enrolled.vectors @ np.array([0.6, 0.8]))[0])).names == {
        "a": "x"
    }
    assert identify(embedded, enrolled, threshold=0.61).names == {}
    for wrong in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(KnnError, match="threshold"):
            identify(embedded, enrolled, threshold=wrong)


def test_two_enrolled_speakers_about_as_similar_are_no_answer() -> None:
    """0.9962 with anna and 0.9659 with her sister: further apart than 0.02, not than 0.05."""
    embedded, enrolled = diarized(a=at(5), b=at(180)), known(anna=at(0), sister=at(20))
    near = replace(UNCALIBRATED, threshold=0.5, margin=0.02)
    assert identify(embedded, enrolled, decision=near).names == {"a": "anna"}
    wide = identify(embedded, enrolled, decision=replace(near, margin=0.05))
    assert wide.names == {}
    assert wide.facts()[0]["reason"] == "within the margin: anna and sister are about as similar"
    assert identify(embedded, known(anna=at(0)), decision=replace(near, margin=0.05)).names == {"a": "anna"}


def test_a_name_goes_to_one_speaker_of_a_recording() -> None:
    result = identify(diarized(a=at(30), b=at(2)), known(anna=at(0)), threshold=0.8)
    assert result.names == {"b": "anna"}
    assert result.facts()[0]["reason"] == "anna is another speaker of the recording"


def test_numbered_labels_skip_enrolled_names() -> None:
    """An enrolled speaker from a store of an earlier diarization may be called SPEAKER_00."""
    embedded = diarized(SPEAKER_00=at(80), SPEAKER_01=at(0), SPEAKER_02=at(180))
    result = identify(embedded, known(SPEAKER_00=at(0), SPEAKER_02=at(270)), threshold=0.9)
    assert labels(result.diarization) == ["SPEAKER_01", "SPEAKER_00", "SPEAKER_03"]
    assert list(result.diarization.speaker_embeddings["SPEAKER_00"]) == [1, 0]


def test_embeddings_of_another_size_and_empty_recordings() -> None:
    with pytest.raises(KnnError, match="3 values"):
        identify(diarized(a=[1, 0, 0]), known(x=[1, 0]))
    silent = identify(diarized(), known(x=[1, 0]))
    assert silent.speakers == () and list(silent.scores()) == [] == silent.facts()
    assert identify(diarized(a=[0, 0]), known(x=[1, 0])).names == {}


def test_only_the_view_is_looked_at() -> None:
    enrolled = known(x=[1, 0])
    viewed = EnrolledSpeakers(
        enrolled.names, enrolled.vectors, enrolled.clips, enrolled.seconds, enrolled.clip_cosines, slice(1, 3)
    )
    assert identify(diarized(a=[9, 1, 0]), viewed).names == {"a": "x"}
    first, second = link_speakers([diarized(a=[9, 1, 0]), diarized(a=[-9, 1, 0])], view=slice(1, 3))
    assert labels(first) == labels(second)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5), st.integers(1, 5), st.floats(0.05, 0.9))
def test_no_assignment_is_better(seed: int, speakers: int, count: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    embedded = diarized(**{f"s{place}": rng.normal(size=3).tolist() for place in range(speakers)})
    enrolled = known(**{f"v{place}": rng.normal(size=3).tolist() for place in range(count)})
    result = identify(embedded, enrolled, threshold=threshold)
    gains = np.maximum(result.cosines - threshold, 0.0)
    wide = np.zeros((speakers, count + speakers))  # a column of its own for nobody
    wide[:, :count] = gains
    best = max(
        sum(wide[row, column] for row, column in enumerate(p)) for p in permutations(range(count + speakers), speakers)
    )
    place = {name: row for row, name in enumerate(embedded.speaker_embeddings)}
    got = [(place[speaker], enrolled.names.index(voice)) for speaker, voice in result.names.items()]
    assert sum(gains[pair] for pair in got) == pytest.approx(best)
    assert all(result.cosines[pair] >= threshold for pair in got)
    assert len(set(result.names.values())) == len(result.names)


# Linking.


def test_one_label_per_speaker() -> None:
    files = [
        diarized("one", SPEAKER_00=at(90), SPEAKER_01=at(0)),
        diarized("two", SPEAKER_00=at(10), SPEAKER_01=None, SPEAKER_02=at(200)),
        diarized("three", SPEAKER_00=at(95), SPEAKER_01=at(-10)),
        diarized("four"),
    ]
    linked = link_speakers(files, threshold=0.9)
    assert [labels(diarization) for diarization in linked] == [
        ["SPEAKER_00", "SPEAKER_01"],
        ["SPEAKER_01", "SPEAKER_02", "SPEAKER_03"],
        ["SPEAKER_00", "SPEAKER_01"],
        [],
    ]
    assert [diarization.name for diarization in linked] == ["one", "two", "three", "four"]
    assert list(linked[1].speaker_embeddings["SPEAKER_01"]) == list(files[1].speaker_embeddings["SPEAKER_00"])
    assert set(linked[1].speaker_embeddings) == {"SPEAKER_01", "SPEAKER_03"} and confidences(linked[2]) == confidences(
        files[2]
    )
    assert [labels(diarization) for diarization in link_speakers(files, threshold=0.9)] == [
        labels(diarization) for diarization in linked
    ]
    assert link_speakers([]) == []


def test_two_speakers_of_a_recording_stay_two() -> None:
    """Though a and b are nearest to each other, and c is near both: c goes to the nearer one, the other stays alone."""
    first, second = link_speakers([diarized(a=at(0), b=at(1)), diarized(c=at(1.2))], threshold=0.5)
    assert labels(first) == ["SPEAKER_00", "SPEAKER_01"] and labels(second) == ["SPEAKER_01"]


def test_seconds_weigh() -> None:
    """A group of 0 and 40 degrees with c at 75: mean cosine 0.54 by equal weights, 0.76 when b has spoken longest."""
    files = [diarized(a=at(0)), diarized(b=at(40)), diarized(c=at(75))]
    assert [labels(diarization)[0] for diarization in link_speakers(files, threshold=0.7)] == [
        "SPEAKER_00",
        "SPEAKER_01",
        "SPEAKER_01",
    ]
    files = [diarized(a=at(0)), diarized(b=at(35)), diarized(c=at(75))]
    assert [labels(diarization)[0] for diarization in link_speakers(files, threshold=0.6)] == [
        "SPEAKER_00",
        "SPEAKER_00",
        "SPEAKER_01",
    ]
    files = [diarized(a=at(0)), diarized("two", {"b": 9.0}, b=at(35)), diarized(c=at(75))]
    assert len({labels(diarization)[0] for diarization in link_speakers(files, threshold=0.6)}) == 1


def test_known_names_hold_and_spread() -> None:
    files = [
        diarized(SPEAKER_00=at(0), anna=at(180)),
        diarized(anna=at(170), ben=at(172)),
        diarized(SPEAKER_00=at(175), SPEAKER_01=at(2), ben=at(90)),
        diarized(SPEAKER_00=at(171)),
    ]
    linked = link_speakers(files, known=("anna", "ben", "SPEAKER_01"), threshold=0.8)
    assert labels(linked[0]) == ["SPEAKER_01", "anna"]  # the name of the known speaker at 2 degrees
    assert labels(linked[1]) == ["anna", "ben"]
    assert labels(linked[2]) == ["anna", "SPEAKER_01", "ben"]
    assert labels(linked[3]) == ["anna"]
    alone = link_speakers([diarized(anna=None), diarized(anna=at(0), SPEAKER_00=at(1))], known=["anna"])
    assert [labels(diarization) for diarization in alone] == [["anna"], ["anna", "SPEAKER_00"]]


def test_what_cannot_be_linked() -> None:
    with pytest.raises(KnnError, match="different sizes"):
        link_speakers([diarized(a=[1, 0]), diarized(a=[1, 0, 0])])
    with pytest.raises(KnnError, match="threshold"):
        link_speakers([diarized(a=[1, 0])], threshold=0)
    with pytest.raises(ValueError, match="one name"):
        rename_speakers(diarized(a=None, b=None), {"a": "b"})
    assert labels(rename_speakers(diarized(a=None, b=None), {"a": "b", "b": "a"})) == ["b", "a"]


def agglomerated(files: list[Diarization], threshold: float, known: tuple[str, ...]) -> list[set[tuple[int, str]]]:
    """Merge the most alike allowed pair of groups again and again, by the mean over all their pairs of speakers."""
    groups: list[set[tuple[int, str]]] = [
        {(f, s)} for f, one in enumerate(files) for s in one.speaker_embeddings if s not in known
    ]
    groups += [
        g for name in known if (g := {(f, name) for f, one in enumerate(files) if name in one.speaker_embeddings})
    ]

    def cosine(one: set[tuple[int, str]], other: set[tuple[int, str]]) -> float:
        if {f for f, _ in one} & {f for f, _ in other}:
            return -1.0
        if any(s in known for _, s in one) and any(s in known for _, s in other):
            return -1.0
        total = weight = 0.0
        for f, s in one:
            for g, t in other:
                u, v = files[f].speaker_embeddings[s].astype(float), files[g].speaker_embeddings[t].astype(float)
                w = files[f].clean_speech_seconds[s] * files[g].clean_speech_seconds[t]
                total, weight = total + w * float(u @ v) / np.linalg.norm(u) / np.linalg.norm(v), weight + w
        return total / weight

    while len(groups) > 1:
        best, i, j = max((cosine(groups[i], groups[j]), i, j) for i in range(len(groups)) for j in range(i))
        if best < threshold:
            break
        groups[j] |= groups.pop(i)
    return groups


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.floats(0.1, 0.9))
def test_linking_is_greedy_average_linkage(seed: int, sizes: list[int], threshold: float) -> None:
    rng = np.random.default_rng(seed)
    names, files = ("anna", "ben"), []
    for size in sizes:
        chosen = [f"SPEAKER_{place:02d}" for place in range(size)]
        for place in range(size):
            if rng.random() < 0.2 and names[place % 2] not in chosen:
                chosen[place] = names[place % 2]
        speech = {name: float(rng.uniform(1, 20)) for name in chosen}
        files.append(diarized("f", speech, **{name: rng.normal([1, 0, 0]).tolist() for name in chosen}))
    linked = link_speakers(files, threshold=threshold, known=names)
    groups: dict[str, set[tuple[int, str]]] = {}
    for place, (before, after) in enumerate(zip(files, linked, strict=True)):
        assert len(set(labels(after))) == len(labels(after))  # never two of one recording
        for old, new in zip(labels(before), labels(after), strict=True):
            groups.setdefault(new, set()).add((place, old))
            assert old == new or old not in names
    key = sorted(map(sorted, groups.values()))
    assert key == sorted(map(sorted, agglomerated(files, threshold, names)))
    fresh = [name for name in groups if name not in names]
    assert fresh == [f"SPEAKER_{place:02d}" for place in range(len(fresh))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), max_size=12), st.booleans())
def test_equal_embeddings_end_and_never_share_a_recording(seed: int, sizes: list[int], zero: bool) -> None:
    """Ties everywhere: vectors of two directions only, and some of zeros."""
    rng = np.random.default_rng(seed)
    choices = [[1.0, 0.0], [0.0, 1.0], *([[0.0, 0.0]] if zero else [])]
    files = [diarized(**{f"s{place}": choices[rng.integers(len(choices))] for place in range(size)}) for size in sizes]
    for diarization in link_speakers(files, threshold=1.0):
        assert len(set(labels(diarization))) == len(labels(diarization))


def test_many_files() -> None:
    """200 files of five out of 40 speakers: one label per speaker."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, 64))
    drawn = [rng.permutation(40)[:5].tolist() for _ in range(200)]
    files = [
        diarized(
            **{f"s{place}": (centers[number] + 0.3 * rng.normal(size=64)).tolist() for place, number in enumerate(file)}
        )
        for file in drawn
    ]
    linked = link_speakers(files)
    given = [label for diarization in linked for label in labels(diarization)]
    assert len(set(zip([one for file in drawn for one in file], given, strict=True))) == 40


# Stores.


def test_export_and_enrollment_round_trip(tiny: Embedder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=tiny.dimension).tolist() for name in ("SPEAKER_00", "anna")}
    embedded = diarized("talk", {"anna": 4.0}, **vectors, SPEAKER_01=None)
    assert export_speakers([("talk", embedded)], tiny.bundle.fingerprint, tmp_path / "v.h5") == 2
    rows = hdf5.read(tmp_path / "v.h5")
    assert rows.embedder == tiny.bundle.fingerprint
    assert rows.name.tolist() == ["talk"] * 2 and rows.speaker.tolist() == ["SPEAKER_00", "anna"]
    assert rows.start.tolist() == [1, 3] and rows.end.tolist() == [2, 7]
    assert np.array_equal(rows.data[1], embedded.speaker_embeddings["anna"])
    enrolled = enroll(tmp_path / "v.h5", tiny)
    again = identify(
        rename_speakers(embedded, {"SPEAKER_00": "SPEAKER_07", "anna": "SPEAKER_09"}), enrolled, threshold=0.99
    )
    assert again.names == {"SPEAKER_07": "SPEAKER_00", "SPEAKER_09": "anna"}
    assert labels(again.diarization) == ["SPEAKER_00", "anna", "SPEAKER_01"]


def test_labels_of_several_recordings_are_distinguished(tmp_path: Path) -> None:
    files = [("one", diarized(SPEAKER_00=at(0), anna=at(90))), ("two", diarized(SPEAKER_00=at(180), anna=at(90)))]
    export_speakers(files, "", tmp_path / "v.h5", known=["anna"])
    assert hdf5.read(tmp_path / "v.h5").speaker.tolist() == ["one/SPEAKER_00", "anna", "two/SPEAKER_00", "anna"]
    with pytest.raises(KnnError, match="exists already"):
        export_speakers(files, "", tmp_path / "v.h5")
    linked = link_speakers([one for _, one in files], known=["anna"])
    export_speakers([("one", linked[0]), ("two", linked[1])], "", tmp_path / "v.h5", linked=True, force=True)
    assert hdf5.read(tmp_path / "v.h5").speaker.tolist() == ["SPEAKER_00", "anna", "SPEAKER_01", "anna"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="no speaker embedding to write"):
        export_speakers([("one", diarized(a=None))], "", tmp_path / "v.h5")
    with pytest.raises(KnnError, match="different sizes"):
        export_speakers([("one", diarized(a=[1, 0])), ("two", diarized(a=[1]))], "", tmp_path / "v.h5")
    with pytest.raises(KnnError, match="one of the sources"):
        export_speakers([("one", diarized(a=[1, 0]))], "", tmp_path / "v.h5", sources=[tmp_path / "v.h5"])
    assert not list(tmp_path.iterdir())


# Real speech.


def test_real_speakers_are_recognised(shared: Path, tmp_path: Path) -> None:
    """Two speakers outside the training data, enrolled with some recordings, are recognised in others."""
    embedder = Embedder("voice", device="cpu")
    with (shared / "data" / "speech" / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = ("gc_Jone_de_la_Cruz_Plazaola", "gc_Jorge_Mariano", "klet_ar")
    paths = {name: [shared / "data" / "speech" / r["path"] for r in rows if r["speaker"] == name] for name in names}
    for name in names[:2]:
        (tmp_path / name).mkdir()
        for path in paths[name][:3]:
            (tmp_path / name / path.name).symlink_to(path)
    enrolled = enroll(tmp_path, embedder)
    files = [paths[name][-1] for name in names]
    embedded = {f"SPEAKER_{n:02d}": embed_file(path, embedder).data[0].tolist() for n, path in enumerate(files)}
    assert identify(diarized(**embedded), enrolled).names == {"SPEAKER_00": names[0], "SPEAKER_01": names[1]}
