"""Where decoded sound belongs: times of packets become one line of samples, with silence where there is none.

A player shows times of the container. Frames are placed by these: sound that starts late begins with silence, gaps
between packets are silent, and what overlaps sound that is there already is left out. Elementary streams (MP3, ADTS,
AC-3) carry no times; theirs are counted by the demuxer, which takes tags and damage for sound, so they are joined.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Between times that are rounded to milliseconds, or jitter by less than a frame, and a gap.
TOLERANCE = 0.02
JITTER = 0.1  # seconds that a frame may come early without being an overlap
MAX_GAP = 6 * 3600.0  # a longer pause is a damaged time
MAX_JUMP = 10.0  # in formats whose times may start anew, a longer one is no pause
_COUNTED = frozenset({"mp3", "aac", "ac3", "eac3", "dts", "dtshd", "amr", "amrnb", "amrwb", "loas", "mlp", "truehd"})
_FROM_ZERO = frozenset({"mov", "matroska", "asf", "avi"})  # their times count from the beginning of the recording
_WITHOUT_PAUSES = frozenset({"ogg", "flac"})
_RESTARTING = frozenset({"ogg", "flac", "mpegts", "mpeg", "flv"})  # files of these can be joined byte by byte


@dataclass
class Placement:
    """The place of each frame of one stream, in the order of decoding.

    Parameters
    ----------
    demuxer : str
        libavformat's name of the format, such as "matroska".
    start : float or None
        Seconds at which the container starts, by its own times.
    total : float or None
        Seconds of the whole recording, where the container tells.

    Attributes
    ----------
    seconds : float
        End of what has been placed.
    overlap : list of float
        Seconds left out, and where the first of them lay.
    missing : list of float
        Seconds of silence in formats that leave no pauses, and where the first of them lie.
    """

    demuxer: str
    start: float | None
    total: float | None
    seconds: float = 0.0
    overlap: list[float] = field(default_factory=list)
    missing: list[float] = field(default_factory=list)
    _shift: float = 0.0
    _first: float | None = None
    _previous: float = -1.0

    def __post_init__(self) -> None:
        self._restarts = self.demuxer in _RESTARTING
        if self.demuxer not in _FROM_ZERO:
            self._shift = -(self.start or 0.0)

    @property
    def is_counted(self) -> bool:
        """Whether the demuxer counts times itself, since the format has none."""
        return self.demuxer in _COUNTED

    def place(self, time: float | None, samples: int, rate: int) -> tuple[int, int]:
        """Return how many samples of silence precede a frame, and how many of its first samples are left out.

        Parameters
        ----------
        time : float or None
            Seconds of the frame's first sample by its container; None follows the last frame.
        samples, rate : int
            Length of the frame, and its samples per second.
        """
        silence = left_out = 0
        if time is not None and not self.is_counted:
            at = time + self._shift
            if self._first is None:
                self._first = time
            silence, left_out = self._difference(at, samples, rate)
            self._previous = at
        self.seconds += (silence + samples - left_out) / rate
        return silence, left_out

    def _difference(self, at: float, samples: int, rate: int) -> tuple[int, int]:
        """Silence before, and samples of, a frame whose time is `at`."""
        early = self.seconds - at
        if early < -TOLERANCE:
            if self._is_pause(at):
                if self.demuxer in _WITHOUT_PAUSES and self.seconds > 0:
                    self.missing = self.missing or [0.0, self.seconds]
                    self.missing[0] -= early
                return round(-early * rate), 0
            self._follow(early)
        elif early > JITTER or (early > TOLERANCE and at <= self._previous):
            if self._goes_back(at, early):
                self._follow(early)
            else:
                left_out = min(samples, round(early * rate))
                self.overlap = self.overlap or [0.0, self.seconds]
                self.overlap[0] += left_out / rate
                return 0, left_out
        return 0, 0

    def _follow(self, early: float) -> None:
        """Let times from here on continue where the sound is."""
        self._shift += early

    def _is_pause(self, at: float) -> bool:
        """Whether nothing but silence lies between the sound so far and `at`."""
        gap = at - self.seconds
        if self._restarts and gap > MAX_JUMP and self.seconds > 0:
            return False
        if self.total is not None and self.total > 0 and at > self.total + 60.0:
            return False
        return gap <= MAX_GAP

    def _goes_back(self, at: float, early: float) -> bool:
        """Whether the times start anew, as where two files were joined, and lead to no sound that was there before."""
        assert self._first is not None
        begins = self._restarts and early > 0.5 and at - self._shift <= self._first + JITTER
        return begins or early > MAX_JUMP or self.seconds == 0
