"""Words are read from what recognisers write: the same two sentences in each of their formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.formats.transcripts import TranscriptSegment
from knn_cli.formats.word_readers import read_words

WORDS = [("Good", 0.5, 0.9), ("morning.", 1.0, 1.5), ("It's", 3.0, 3.2), ("2", 3.2, 3.6), ("here.", 3.6, 4.0)]
TEXTS = ("Good morning.", "It's 2 here.")
TIMES = ((0.5, 1.5), (3.0, 4.0))


def timed(sure: str = "probability", first: str = " ") -> list[dict[str, Any]]:
    return [{"word": first + text, "start": start, "end": end, sure: 0.9} for text, start, end in WORDS]


def whisper(words: list[dict[str, Any]], **more: Any) -> str:
    parts = [words[:2], words[2:]]
    segments = [
        {"id": at, "seek": 0, "start": start, "end": end, "text": " " + text, "words": part}
        for at, ((start, end), text, part) in enumerate(zip(TIMES, TEXTS, parts, strict=True))
    ]
    return json.dumps({"text": " ".join(TEXTS), "segments": segments, "language": "en", **more})


def cpp(tokens: bool = True) -> str:
    def at(start: float, end: float) -> dict[str, Any]:
        return {
            "timestamps": {"from": "-", "to": "-"},
            "offsets": {"from": round(1000 * start), "to": round(1000 * end)},
        }

    spelt = [
        [("[_BEG_]", 0.5, 0.5), (" Good", 0.5, 0.9), (" mor", 1.0, 1.2), ("ning", 1.2, 1.4), (".", 1.4, 1.5)],
        [
            (" It", 3.0, 3.1),
            ("'s", 3.1, 3.2),
            (" 2", 3.2, 3.6),
            (" here", 3.6, 3.9),
            (".", 3.9, 4.0),
            ("[_TT_200]", 4, 4),
        ],
    ]
    parts = []
    for (start, end), text, spelling in zip(TIMES, TEXTS, spelt, strict=True):
        part: dict[str, Any] = {**at(start, end), "text": " " + text}
        if tokens:
            part["tokens"] = [{"text": token, **at(*when), "id": 1, "p": 0.9} for token, *when in spelling]
        parts.append(part)
    return json.dumps(
        {"systeminfo": "", "model": {}, "params": {}, "result": {"language": "en"}, "transcription": parts}
    )


def chunks() -> str:
    return json.dumps(
        {
            "text": "",
            "chunks": [{"text": " " + text, "timestamp": [*times]} for times, text in zip(TIMES, TEXTS, strict=True)],
        }
    )


def untimed() -> list[dict[str, Any]]:
    """What whisperX makes of a number: a word without times."""
    return [{"word": "2"} if word["word"] == "2" else word for word in timed(sure="score", first="")]


CUES = ["00:00:00.500 --> 00:00:01.500\nGood\nmorning.\n", "00:00:03.000 --> 00:00:04.000\nIt's 2 here.\n"]
WITH_WORDS = {
    "openai-whisper.json": whisper(timed()),
    "whisperx.json": whisper(untimed(), word_segments=untimed()),
    "faster-whisper.json": json.dumps(json.loads(whisper(timed()))["segments"]),
    "whisper.cpp.json": cpp(),
    "openai-api.json": json.dumps({"text": " ".join(TEXTS), "words": timed(first="")}),
    "vosk.json": json.dumps({"result": timed(sure="conf", first=""), "text": "x"}),
    "vosk-parts.json": json.dumps([{"text": ""}, {"result": timed(sure="conf", first="")}]),
    "plain.json": json.dumps(timed(first="")),
    "talk.ctm": ";; a comment\n"
    + "".join(f"talk 1 {start} {end - start:.3f} {text} 0.9\n" for text, start, end in WORDS),
}
WITHOUT_WORDS = {
    "openai-whisper.json": whisper([]),
    "whisper.cpp.json": cpp(tokens=False),
    "transformers.json": chunks(),
    "talk.srt": "".join(f"{at}\n{cue.replace('.', ',', 2)}\n" for at, cue in enumerate(CUES, start=1)),
    "talk.vtt": "WEBVTT\n\n" + "\n".join(CUES).replace("Good", "<v A><00:00:00.700>Good"),
    "whisper.tsv": "start\tend\ttext\n500\t1500\tGood morning.\n3000\t4000\tIt's 2 here.\n",
}


def read(path: Path, text: str) -> tuple[TranscriptSegment, ...]:
    path.write_text(text, encoding="utf-8")
    [(name, segments)] = read_words(path).items()
    assert name == ("talk" if path.suffix == ".ctm" else path.stem)
    assert [(one.start, one.end, one.text) for one in segments] == [
        (*times, text) for times, text in zip(TIMES, TEXTS, strict=True)
    ]
    return segments


@pytest.mark.parametrize("name", WITH_WORDS)
def test_words(tmp_path: Path, name: str) -> None:
    segments = read(tmp_path / name, WITH_WORDS[name])
    words = [word for segment in segments for word in segment.words]
    assert [word.text for word in words] == [text for text, *_ in WORDS]
    assert [(word.start, word.end) for word in words] == [pytest.approx(times, abs=1e-9) for _, *times in WORDS]
    assert {word.probability for word in words} <= {0.9, None} and all(word.spaced for word in words[1:])


@pytest.mark.parametrize("name", WITHOUT_WORDS)
def test_segments(tmp_path: Path, name: str) -> None:
    assert not any(segment.words for segment in read(tmp_path / name, WITHOUT_WORDS[name]))


def test_words_without_blanks_between(tmp_path: Path) -> None:
    words = [{"word": text, "start": at, "end": at + 1} for at, text in enumerate("你好吗")]
    segments = [{"start": 0, "end": 3, "text": "你好吗", "words": words}]
    (tmp_path / "a.json").write_text(json.dumps({"segments": segments}), encoding="utf-8")
    [segment] = read_words(tmp_path / "a.json")["a"]
    assert [word.spaced for word in segment.words] == [False] * 3


def test_tokens_that_are_no_text_leave_the_segment(tmp_path: Path) -> None:
    raw = cpp().encode().replace(b'" Good"', b'" Go\xe4\xbd"')  # half a character
    (tmp_path / "a.json").write_bytes(raw)
    first, second = read_words(tmp_path / "a.json")["a"]
    assert first.text == TEXTS[0] and not first.words and len(second.words) == 3


def test_a_folder_and_several_recordings(tmp_path: Path) -> None:
    (tmp_path / "talk.srt").write_text(WITHOUT_WORDS["talk.srt"], encoding="utf-8")
    (tmp_path / "talk.json").write_text(whisper(timed()), encoding="utf-8")
    (tmp_path / "two.ctm").write_text("a 1 0.5 0.5 x\nb 1 0 1 y\n", encoding="utf-8")
    found = read_words(tmp_path)
    assert sorted(found) == ["a", "b", "talk"] and found["talk"][0].words  # JSON says more than captions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", '{"text": "x"}'),
        ("a.json", "3"),
        ("a.json", '{"segments": [3]}'),
        ("a.json", '{"segments": [{"start": 0, "text": 3}]}'),
        ("a.json", '{"segments": [{"start": -1, "end": 2, "text": "x"}]}'),
        ("a.json", '{"segments": [{"start": 1, "end": 2, "text": "x", "words": [{}]}]}'),
        ("a.json", '{"transcription": [{"text": "x"}]}'),
        ("a.json", "[" * 100_000),
        ("a.ctm", "a 1 0 0.5\n"),
        ("a.srt", "hello\n"),
        ("a.tsv", "a\tb\n"),
        ("a.doc", "x"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(KnnError, match=name):
        read_words(tmp_path / name)
