"""Words go to the speaker of their time: by hand, and against an oracle that looks at every turn."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.values import Turn
from knn_cli.formats.span_formats import write
from knn_cli.formats.spans import SpanDocument
from knn_cli.formats.transcripts import (
    TranscriptSegment,
    Word,
    joined,
    segments_of_words,
    spoken_rows,
    with_speakers,
)

TURNS = [Turn(0.0, 2.0, "Anna"), Turn(1.5, 4.0, "Ben"), Turn(6.0, 8.0, "Anna")]


def speaker_of(start: float, end: float) -> str:
    return with_speakers([TranscriptSegment(start, end, "x")], TURNS)[0].speaker


def test_speakers_by_hand() -> None:
    assert speaker_of(0.2, 1.8) == "Anna"  # 1.6 s against 0.3
    assert speaker_of(1.6, 3.0) == "Ben"
    assert speaker_of(1.6, 1.9) == "Anna"  # both all the time: whose turn begins first
    assert speaker_of(4.2, 4.6) == "Ben" and speaker_of(5.5, 5.9) == "Anna"  # beside all turns: the nearest
    assert speaker_of(4.9, 5.1) == "Ben"  # as near as Anna, and earlier
    assert speaker_of(9.0, 9.5) == "Anna" and speaker_of(3.0, 3.0) == "Ben"
    assert speaker_of(1.0, 7.5) == "Anna"  # 1 s and 1.5 s of her turns, as much as his, and she begins first
    assert with_speakers([TranscriptSegment(0, 1, "x")], [])[0].speaker == ""


def test_segments_are_cut_where_the_speaker_changes() -> None:
    words = (
        Word(0.1, 0.5, "Well,"),
        Word(1.6, 1.9, "yes."),
        Word(2.2, 2.5, "No"),
        Word(2.5, 2.6, "!", spaced=False),
        Word(1.7, 1.8, "Oh"),
    )
    found = with_speakers([TranscriptSegment(0.0, 3.0, joined(words), words)], TURNS)
    assert [(one.start, one.end, one.speaker, one.text) for one in found] == [
        (0.1, 1.9, "Anna", "Well, yes."),  # the second word is of both, and of her who has the word before
        (2.2, 2.6, "Ben", "No! Oh"),
    ]
    assert joined(words) == "Well, yes. No! Oh"


def test_segments_of_words_end_at_pauses_and_in_time() -> None:
    words = [Word(at, at + 0.5, "a") for at in (0.0, 0.6, 2.2, 3.2)] + [Word(5 + at, 5.9 + at, "b") for at in range(12)]
    assert [(one.start, one.end, len(one.words)) for one in segments_of_words(words)] == [
        (0.0, 1.1, 2),
        (2.2, 3.7, 2),
        (5.0, 14.9, 10),
        (15.0, 16.9, 2),
    ]
    assert segments_of_words([]) == ()


def test_no_word_is_lost_for_its_length(tmp_path: Path) -> None:
    said = [("Anna", 0.0, 2.0, "Well."), ("Ben", 2.0, 2.0, "No!"), ("Anna", 1.0, 1.5, "Yes.")]
    segments = [TranscriptSegment(start, end, text, speaker=speaker) for speaker, start, end, text in said]
    assert {name: rows for name, (rows, _) in spoken_rows(segments).items()} == {
        "Anna": [(0, 2000, "Well."), (2000, 2001, "Yes.")],
        "Ben": [(2000, 2001, "No!")],
    }
    document = SpanDocument("turns", "talk", 2.0, [], transcript=segments)
    for suffix in (".srt", ".vtt", ".TextGrid", ".eaf"):
        write(document, path := tmp_path / f"talk{suffix}")
        assert all(text in path.read_text() for _, _, _, text in said), suffix
    assert "00:00:02,000 --> 00:00:02,001\nBen: No!" in (tmp_path / "talk.srt").read_text()
    assert "\nxmax = 2.001 \n" in (tmp_path / "talk.TextGrid").read_text()


times = st.integers(0, 60)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(times, st.integers(1, 20), st.sampled_from("ABC")), max_size=8),
    st.tuples(times, st.integers(1, 9)),
)
def test_the_speaker_overlaps_most_or_is_nearest(turns: list[tuple[int, int, str]], part: tuple[int, int]) -> None:
    start, end = part[0], part[0] + part[1]
    given = [Turn(float(at), float(at + length), speaker) for at, length, speaker in turns]
    [said] = with_speakers([TranscriptSegment(float(start), float(end), "x")], given)
    overlap: dict[str, float] = {}
    for turn in given:
        overlap[turn.speaker] = overlap.get(turn.speaker, 0) + max(0.0, min(end, turn.end) - max(start, turn.start))
    if not given:
        assert said.speaker == ""
    elif max(overlap.values()) > 0:
        assert overlap[said.speaker] == max(overlap.values())
    else:
        distance = {turn: max(turn.start - end, start - turn.end) for turn in given}
        nearest = min(distance.values())
        assert said.speaker in {turn.speaker for turn in given if distance[turn] == nearest}
