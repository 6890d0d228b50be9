"""What is said in a recording, by speech recognition, and who says it: each word goes to the speaker of its time.

A transcript is a sequence of segments, as the recogniser cut it, of words with times where it gave such. Reading them
from files is `word_readers`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from knn_cli.core.values import Turn

TimedText = tuple[int, int, str]  # start and end in milliseconds, text
PAUSE_SECONDS = 1.0  # that parts segments where only words are known
SEGMENT_SECONDS = 10.0  # beyond which such a segment ends


@dataclass(frozen=True)
class Word:
    """A word of a transcript.

    Attributes
    ----------
    start, end : float
        Seconds from the beginning of the recording.
    text : str
        Without white space around it, punctuation included.
    probability : float or None
        0 to 1; None where unknown.
    spaced : bool
        Whether a blank stands between it and the word before; Chinese and Japanese have none.
    """

    start: float
    end: float
    text: str
    probability: float | None = None
    spaced: bool = True


@dataclass(frozen=True)
class TranscriptSegment:
    """A part of a transcript: a sentence or a caption.

    Attributes
    ----------
    start, end : float
        Seconds from the beginning of the recording.
    text : str
    words : tuple of Word
        () where only the segment has times.
    speaker : str
        "" where unknown.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    speaker: str = ""


def joined(words: Iterable[Word]) -> str:
    """Return the text of words that follow one another."""
    return "".join(f" {word.text}" if word.spaced else word.text for word in words).strip()


def segments_of_words(words: Sequence[Word]) -> tuple[TranscriptSegment, ...]:
    """Return words in segments that end at a pause of 1 s, or after 10 s."""
    parts: list[list[Word]] = []
    for word in sorted(words, key=lambda word: (word.start, word.end)):
        if (
            not parts
            or word.start - parts[-1][-1].end >= PAUSE_SECONDS
            or word.end - parts[-1][0].start > (SEGMENT_SECONDS)
        ):
            parts.append([])
        parts[-1].append(word)
    return tuple(TranscriptSegment(part[0].start, part[-1].end, joined(part), tuple(part)) for part in parts)


def with_speakers(segments: Sequence[TranscriptSegment], turns: Sequence[Turn]) -> tuple[TranscriptSegment, ...]:
    """Give each word to the speaker whose turns overlap it longest, and cut segments where the speaker changes.

    Of several speakers with the same overlap, as where all speak at once, it is the speaker of the word before in the
    segment, or else the one whose turn begins first. A word beside all turns goes to the nearest of them, the earlier
    of two. A segment without words goes to one speaker as a whole.

    Parameters
    ----------
    segments : sequence of TranscriptSegment
    turns : sequence of Turn

    Returns
    -------
    tuple of TranscriptSegment
        By start; their `speaker` is "" only where there are no turns.

    Examples
    --------
    >>> from knn_cli.core.values import Turn
    >>> from knn_cli.formats.transcripts import TranscriptSegment, Word, with_speakers
    >>> words = (Word(0.0, 0.4, "Well?"), Word(0.6, 0.9, "Yes."))
    >>> turns = [Turn(0.0, 0.5, "Anna"), Turn(0.5, 1.0, "Ben")]
    >>> spoken = with_speakers([TranscriptSegment(0.0, 0.9, "Well? Yes.", words)], turns)
    >>> [(one.speaker, one.text) for one in spoken]
    [('Anna', 'Well?'), ('Ben', 'Yes.')]
    """
    finder = _SpeakerFinder(turns)
    found: list[TranscriptSegment] = []
    for segment in segments:
        if not segment.words:
            found.append(replace(segment, speaker=finder.speaker(segment.start, segment.end)))
            continue
        speakers: list[str] = []
        for word in segment.words:
            speakers.append(finder.speaker(word.start, word.end, speakers[-1] if speakers else ""))
        for speaker, pairs in groupby(zip(speakers, segment.words, strict=True), key=lambda pair: pair[0]):
            words = tuple(word for _, word in pairs)
            end = max(word.end for word in words)
            found.append(TranscriptSegment(words[0].start, end, joined(words), words, speaker))
    return tuple(sorted(found, key=lambda segment: (segment.start, segment.end)))


def spoken_rows(segments: Iterable[TranscriptSegment]) -> dict[str, tuple[list[TimedText], list[TimedText]]]:
    """Return what each speaker says, for tiers: segments, and words as far as they have times, none over another.

    Returns
    -------
    dict of str to (list of (int, int, str), list of (int, int, str))
        Speaker -> segments and words, by first appearance: start and end in milliseconds, and text. Where one begins
        before the one before it has ended, it begins when that ends; what is then of no length gets a millisecond.
    """
    found: dict[str, tuple[list[TimedText], list[TimedText]]] = {}
    for segment in segments:
        parts, words = found.setdefault(segment.speaker, ([], []))
        for rows, spoken in ((parts, [segment]), (words, segment.words)):
            for one in spoken:
                start = max(round(one.start * 1000), rows[-1][1] if rows else 0)
                rows.append((start, max(round(one.end * 1000), start + 1), one.text))
    return found


class _SpeakerFinder:
    """Finds the speaker of a time among turns, without looking at turns far from it."""

    def __init__(self, turns: Iterable[Turn]) -> None:
        self._turns = sorted((turn for turn in turns if turn.end > turn.start), key=lambda turn: (turn.start, turn.end))
        self._starts = [turn.start for turn in self._turns]
        self._ends = [*accumulate((turn.end for turn in self._turns), max)]  # the latest end so far

    def speaker(self, start: float, end: float, before: str = "") -> str:
        """Return the speaker of a part, "" where there are no turns; `before` decides between equals."""
        after = bisect_left(self._starts, max(end, start + 1e-6))  # the first turn that begins behind the part
        overlaps: dict[str, float] = {}
        place = after - 1
        while place >= 0 and self._ends[place] > start:
            turn = self._turns[place]
            if (shared := min(turn.end, end) - max(turn.start, start)) > 0 or turn.start <= start == end < turn.end:
                overlaps[turn.speaker] = overlaps.pop(turn.speaker, 0.0) + shared  # last comes who began first
            place -= 1
        if overlaps:
            most = max(overlaps.values())
            equal = [speaker for speaker, shared in overlaps.items() if shared > most - 1e-6]
            return before if before in equal else equal[-1]
        return self._nearest(start, end, after)

    def _nearest(self, start: float, end: float, after: int) -> str:
        candidates = []
        if after:
            last = bisect_left(self._ends, self._ends[after - 1])  # the first turn with the latest end before the part
            candidates.append((start - self._turns[last].end, 0, self._turns[last].speaker))
        if after < len(self._turns):
            candidates.append((self._turns[after].start - end, 1, self._turns[after].speaker))
        return min(candidates)[2] if candidates else ""
