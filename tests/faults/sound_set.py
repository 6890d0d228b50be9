"""Sound files of every kind that ffmpeg writes, with what ffprobe and ffmpeg say of their length and start.

    python -m tests.faults.sound_set FOLDER [--count 300]

generates the set (containers x codecs x oddities) into a folder and prints each file on which `knn info` or
`knn convert` differs from a player by more than 20 ms without refusing it. It needs ffmpeg and ffprobe. The short form,
`SHORT`, is a test: tests/faults/test_sound_set.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from knn_cli.store.hdf5 import Store
from tests.helpers.command import knn

TOLERANCE = 0.02  # seconds
PADDING = 0.13  # seconds that decoders drop at the end or not: a frame of AAC at 8 kHz
NOTES = ("short", "damage", "missing", "broken")  # words of a note on sound that is lost
BURST, PAUSE = 0.6, 0.4  # seconds of noise and of silence, in turn, so that times can be measured
SPOKEN_RATE = 16_000

# Name -> suffix, codec and further options of ffmpeg: every kind of file of which variants are made.
KINDS: dict[str, tuple[str, str]] = {
    "wav-u8": ("wav", "pcm_u8"),
    "wav-16": ("wav", "pcm_s16le"),
    "wav-24": ("wav", "pcm_s24le"),
    "wav-32": ("wav", "pcm_s32le"),
    "wav-float": ("wav", "pcm_f32le"),
    "wav-double": ("wav", "pcm_f64le"),
    "wav-alaw": ("wav", "pcm_alaw"),
    "wav-mulaw": ("wav", "pcm_mulaw"),
    "wav-ima": ("wav", "adpcm_ima_wav"),
    "wav-ms": ("wav", "adpcm_ms"),
    "wav-mp3": ("wav", "libmp3lame"),
    "rf64": ("wav", "pcm_s16le -rf64 always"),
    "w64": ("w64", "pcm_s16le"),
    "w64-float": ("w64", "pcm_f32le"),
    "aiff": ("aiff", "pcm_s16be"),
    "aiff-24": ("aiff", "pcm_s24be"),
    "aifc-sowt": ("aif", "pcm_s16le"),
    "aifc-mulaw": ("aifc", "pcm_mulaw -f aiff"),
    "au": ("au", "pcm_s16be"),
    "au-mulaw": ("au", "pcm_mulaw"),
    "au-float": ("au", "pcm_f32be"),
    "caf": ("caf", "pcm_s16be"),
    "caf-alac": ("caf", "alac"),
    "voc": ("voc", "pcm_u8"),
    "flac": ("flac", "flac"),
    "flac-24": ("flac", "flac -sample_fmt s32"),
    "ogg-flac": ("oga", "flac"),
    "ogg-vorbis": ("ogg", "libvorbis"),
    "ogg-opus": ("opus", "libopus"),
    "ogg-opus-60": ("opus", "libopus -frame_duration 60 -b:a 16k"),
    "ogg-speex": ("spx", "libspeex"),
    "mp3-cbr": ("mp3", "libmp3lame -b:a 64k"),
    "mp3-vbr": ("mp3", "libmp3lame -q:a 4"),
    "mp3-vbr-no-count": ("mp3", "libmp3lame -q:a 4 -write_xing 0 -id3v2_version 0"),
    "mp2": ("mp2", "mp2"),
    "adts": ("aac", "aac"),
    "ac3": ("ac3", "ac3"),
    "eac3": ("eac3", "eac3"),
    "dts": ("dts", "dca -strict -2"),
    "m4a": ("m4a", "aac"),
    "m4a-alac": ("m4a", "alac"),
    "m4a-fragments": ("m4a", "aac -movflags frag_keyframe+empty_moov -frag_duration 500000"),
    "m4a-faststart": ("m4a", "aac -movflags +faststart"),
    "mp4-opus": ("mp4", "libopus -strict -2"),
    "mp4-flac": ("mp4", "flac -strict -2"),
    "mp4-mp3": ("mp4", "libmp3lame"),
    "mov-pcm": ("mov", "pcm_s16le"),
    "mov-aac": ("mov", "aac"),
    "3gp": ("3gp", "aac"),
    "mka-opus": ("mka", "libopus"),
    "mka-vorbis": ("mka", "libvorbis"),
    "mka-flac": ("mka", "flac"),
    "mka-pcm": ("mka", "pcm_s16le"),
    "mkv-aac": ("mkv", "aac"),
    "mkv-mp3": ("mkv", "libmp3lame"),
    "mkv-ac3": ("mkv", "ac3"),
    "webm-opus": ("webm", "libopus"),
    "webm-vorbis": ("webm", "libvorbis"),
    "avi-pcm": ("avi", "pcm_s16le"),
    "avi-mp3": ("avi", "libmp3lame"),
    "wma1": ("wma", "wmav1"),
    "wma2": ("wma", "wmav2"),
    "ts-aac": ("ts", "aac"),
    "ts-mp2": ("ts", "mp2"),
    "ts-opus": ("ts", "libopus"),
    "mpg": ("mpg", "mp2"),
    "flv-aac": ("flv", "aac"),
    "flv-mp3": ("flv", "libmp3lame"),
    "wavpack": ("wv", "wavpack"),
    "tta": ("tta", "tta"),
    "nut": ("nut", "pcm_s16le"),
    "ircam": ("sf", "pcm_s16le -f ircam"),
}
# Kinds whose codec takes one rate or few; the others are tried with several.
FIXED_RATES = {"flv-aac": 44100, "flv-mp3": 44100, "ogg-speex": 16000, "wma1": 44100, "dts": 48000}
ONE_CHANNEL = {"ogg-speex"}
NO_PICTURE = {"m4a", "m4a-alac", "m4a-faststart", "m4a-fragments", "mka-opus", "mka-vorbis", "mka-flac", "mka-pcm"}
VIDEO_SUFFIXES = {"mp4", "mov", "mkv", "webm", "ts", "avi", "mpg", "flv", "nut", "3gp"}
FORMATS_WITH_TIMES = VIDEO_SUFFIXES | {"m4a", "mka"}
CAN_STREAM = {"wav-16", "flac", "ogg-vorbis", "ogg-opus", "mp3-vbr", "au", "mka-opus", "mkv-aac", "webm-opus", "ts-aac"}
CAN_STREAM |= {"adts", "nut", "flv-aac", "tta", "w64", "rf64", "wavpack", "ogg-flac"}
CAN_JOIN = {
    "mp3-cbr",
    "mp3-vbr",
    "mp3-vbr-no-count",
    "mp2",
    "adts",
    "ac3",
    "eac3",
    "ogg-vorbis",
    "ogg-opus",
    "ogg-flac",
}
CAN_JOIN |= {"ts-aac", "wavpack", "flac", "dts", "ogg-speex"}
# Formats with a header, of which ffmpeg reads the first recording only; the parts are judged.
CAN_JOIN |= {"wav-16", "aiff", "au", "caf", "w64", "voc", "m4a", "m4a-fragments", "mka-opus", "webm-vorbis", "flv-aac"}
CAN_JOIN |= {"tta", "wma2"}
TAGGED = {"mp3-cbr", "mp3-vbr-no-count", "adts", "flac", "aiff"}
# Of the set, what pytest tries: containers, codecs and oddities once each.
SHORT = frozenset(
    "wav-16/bytes-behind wav-16/header-of-half wav-24/cut-short wav-mp3/cut-short aiff/tag-before aiff/joined "
    "flac/joined flac/cut-short ogg-flac/joined ogg-vorbis/joined-other-rate ogg-opus/joined-other-rate "
    "mp3-vbr-no-count/tag-before mp3-cbr/cover m4a/trimmed-copy mp4-opus/gap webm-opus/late m4a/joined "
    "flv-mp3/cut-short ts-mp2/late".split()
)


@dataclass(frozen=True)
class Sound:
    """A file of the set, how it was made (kind/oddity), and the files that it was joined of."""

    name: str
    path: Path
    parts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Times:
    """What is known of a file's sound.

    probed : (start, end) in seconds after the start of the file, as ffprobe states them; None where it does not
    end : seconds at which the sound that ffmpeg decodes ends, pauses of the container counted
    edges : seconds at which its bursts begin and end
    """

    probed: tuple[float, float] | None
    end: float
    edges: NDArray[np.float64]


def bursts(seconds: float, rate: int, channels: int = 1) -> NDArray[np.float64]:
    """(S, channels) noise of 0.6 s in turn with silence of 0.4 s, seeded."""
    rng = np.random.default_rng(round(seconds * 1000) + rate + channels)
    noise = rng.normal(size=(round(seconds * rate), 1)) * 0.1
    smooth = np.cumsum(noise, axis=0)
    smooth[3:] = (smooth[3:] - smooth[:-3]) / 2  # less of the high frequencies, which codecs drop
    inside = (np.arange(len(noise)) / rate) % (BURST + PAUSE) < BURST
    return np.clip(np.repeat(smooth * inside[:, None], channels, axis=1), -0.9, 0.9)


def run(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg or ffprobe; the output is captured."""
    return subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=60)


def encode(sources: Sequence[str], codec: str, out: Path, *more: str) -> bool:
    """Whether ffmpeg wrote a file of its inputs."""
    words = ["ffmpeg", "-v", "error", "-y", *sources, "-c:a", *codec.split(), *more, "-bitexact", str(out)]
    return run(*words).returncode == 0 and out.is_file() and out.stat().st_size > 0


class Generator:
    """Writes the set into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def source(self, seconds: float, rate: int, channels: int) -> Path:
        path = self.folder / f"source_{seconds:g}_{rate}_{channels}.wav"
        if not path.is_file():
            soundfile.write(path, bursts(seconds, rate, channels), rate, subtype="PCM_16")
        return path

    def plain(self, kind: str, name: str, seconds: float = 3.2, rate: int = 44100, channels: int = 1) -> Path | None:
        """A file without oddities, None where ffmpeg cannot write it."""
        suffix, codec = KINDS[kind]
        rate = FIXED_RATES.get(kind, 48000 if "opus" in codec else rate)
        source = self.source(seconds, rate, 1 if kind in ONE_CHANNEL else channels)
        out = self.folder / f"{kind}_{name}.{suffix}"
        return out if encode(["-i", str(source)], codec, out) else None

    def all(self, names: Collection[str] | None = None) -> Iterator[Sound]:
        """Every file, or those of these names; plain ones first."""
        for kind in KINDS:
            for oddity, make in self.oddities(kind):
                name = f"{kind}/{oddity}"
                path = None if names is not None and name not in names else make()
                if path is not None:
                    yield Sound(name, path, self.parts(kind, oddity))

    def parts(self, kind: str, oddity: str) -> tuple[Path, ...]:
        """The files that a joined one was made of, where the format has headers."""
        if kind.startswith(("mp", "adts", "ac3", "eac3", "dts", "ts")) or not oddity.startswith("joined"):
            return ()
        if oddity == "joined":
            plain = self.plain(kind, "plain")
            return () if plain is None else (plain, plain)
        suffix = KINDS[kind][0]
        return self.folder / f"{kind}_first.{suffix}", self.folder / f"{kind}_second.{suffix}"

    def oddities(self, kind: str) -> Iterator[tuple[str, Callable[[], Path | None]]]:
        """(name, maker) of each variant of a kind."""
        suffix = KINDS[kind][0]
        yield "plain", lambda: self.plain(kind, "plain")
        yield "stereo-48k-4.137s", lambda: self.plain(kind, "stereo", 4.137, 48000, 2)
        yield "cut-short", lambda: self.changed(kind, "cut", lambda data: data[: len(data) * 3 // 5])
        if kind in CAN_STREAM:
            yield "streamed", lambda: self.streamed(kind)
        if kind in CAN_JOIN:
            yield "joined", lambda: self.changed(kind, "joined", lambda data: data + data)
        if kind in TAGGED:
            yield "tag-before", lambda: self.changed(kind, "tag", lambda data: id3(20000) + data)
            yield "tag-after", lambda: self.changed(kind, "tag_after", lambda data: data + b"TAG" + bytes(125))
        if suffix in FORMATS_WITH_TIMES:
            yield "gap", lambda: self.with_gap(kind)
        if suffix in VIDEO_SUFFIXES and kind not in NO_PICTURE:
            yield "late", lambda: self.with_picture(kind, 1.5)
            yield "picture-late", lambda: self.with_picture(kind, -1.25)
        if suffix in {"m4a", "mp4", "mov", "mka", "mkv"}:
            yield "trimmed-copy", lambda: self.trimmed(kind)
        yield from self.rarer(kind)

    def rarer(self, kind: str) -> Iterator[tuple[str, Callable[[], Path | None]]]:
        """Variants of few kinds."""
        if kind in {"wav-16", "flac", "mp3-vbr", "ogg-vorbis", "ogg-opus", "m4a", "adts", "wma2", "webm-opus", "caf"}:
            yield "long-63s-8k", lambda: self.plain(kind, "long", 63.02, 8000)
            yield "short-0.15s", lambda: self.plain(kind, "short", 0.15, 16000)
        if kind in {"wav-16", "wav-24", "flac", "ogg-opus", "ac3", "m4a"}:
            yield "six-channels", lambda: self.plain(kind, "six", 2.6, 48000, 6)
        if kind in {"wav-16", "wav-float", "flac", "m4a-alac", "wavpack"}:
            yield "rate-96k", lambda: self.plain(kind, "96k", 2.6, 96000)
        if kind in {"mp3-cbr", "ogg-vorbis", "flac", "m4a", "wav-16"}:
            yield "wrong-suffix", lambda: self.renamed(kind, ".dat" if kind == "m4a" else ".flac")
        if kind in {"wav-16", "w64", "aiff", "au", "caf"}:
            yield "bytes-behind", lambda: self.changed(kind, "behind", lambda data: data + bytes(range(256)) * 40)
        if kind in {"mp3-cbr", "adts", "ac3"}:
            yield "noise-before", lambda: self.changed(kind, "before", lambda data: b"\x00\x11" * 700 + data)
        if kind == "wav-16":
            yield "header-of-half", lambda: self.changed(kind, "half", half_header)
            yield "header-of-nothing", lambda: self.changed(kind, "nothing", lambda data: sized(data, 0))
            yield "header-of-most", lambda: self.changed(kind, "most", lambda data: sized(data, 0xFFFFFFFF))
        if kind in {"ogg-vorbis", "ogg-opus", "ogg-flac", "ogg-speex"}:
            yield "no-last-page", lambda: self.changed(kind, "open", without_end_of_stream)
        if kind in {"ogg-vorbis", "ogg-opus", "mp3-cbr"}:
            yield "joined-other-rate", lambda: self.joined_rates(kind)
        if kind in {"mp3-cbr", "mp3-vbr-no-count", "adts", "ts-aac"}:
            yield "hole", lambda: self.changed(kind, "hole", with_hole)
        if kind in {"m4a", "flac", "mp3-cbr"}:
            yield "cover", lambda: self.with_cover(kind)

    def changed(self, kind: str, name: str, change: Callable[[bytes], bytes]) -> Path | None:
        path = self.plain(kind, name)
        if path is not None:
            path.write_bytes(change(path.read_bytes()))
        return path

    def renamed(self, kind: str, suffix: str) -> Path | None:
        path = self.plain(kind, "renamed")
        return None if path is None else path.rename(path.with_suffix(suffix if path.suffix != suffix else ".wav"))

    def streamed(self, kind: str) -> Path | None:
        """Written to a pipe, so that nothing can be filled in later."""
        suffix, codec = KINDS[kind]
        source = self.source(3.2, FIXED_RATES.get(kind, 48000), 1)
        names = {"ts": "mpegts", "mka": "matroska", "mkv": "matroska", "aac": "adts", "wv": "wv", "oga": "oga"}
        container = [] if "-f" in codec.split() else ["-f", names.get(suffix, suffix)]
        done = run("ffmpeg", "-v", "error", "-i", str(source), "-c:a", *codec.split(), *container, "-")
        out = self.folder / f"{kind}_streamed.{suffix}"
        out.write_bytes(done.stdout)
        return out if done.stdout else None

    def with_gap(self, kind: str) -> Path | None:
        """Packets are missing for 1.5 s, as in recordings of calls."""
        suffix, codec = KINDS[kind]
        source = self.source(5.2, FIXED_RATES.get(kind, 48000), 1)
        out = self.folder / f"{kind}_gap.{suffix}"
        chosen = "aselect='not(between(t,2,3.5))'"
        return out if encode(["-i", str(source)], codec, out, "-af", chosen) else None

    def with_picture(self, kind: str, late: float) -> Path | None:
        """A film whose sound starts so many seconds after its picture, or before."""
        suffix, codec = KINDS[kind]
        source = self.source(3.2, FIXED_RATES.get(kind, 48000), 1)
        video = {"webm": "libvpx -deadline realtime -cpu-used 8", "mpg": "mpeg2video", "flv": "flv"}
        size = "128x96" if suffix in {"3gp"} else "64x48"
        picture = ["-f", "lavfi", "-i", f"color=c=gray:s={size}:r=25:d=6"]
        sound = ["-i", str(source)]
        shift = ["-itsoffset", f"{abs(late):g}"]
        inputs = [*picture, *shift, *sound] if late > 0 else [*shift, *picture, *sound]
        more = ["-map", "0:v", "-map", "1:a", "-c:v", *video.get(suffix, "mpeg4").split()]
        out = self.folder / f"{kind}_{'late' if late > 0 else 'early'}.{suffix}"
        return out if encode(inputs, codec, out, *more) else None

    def trimmed(self, kind: str) -> Path | None:
        """Cut without encoding again, which MP4 does by an edit list."""
        whole = self.plain(kind, "whole", 5.2)
        if whole is None:
            return None
        out = whole.with_name(f"{kind}_trimmed{whole.suffix}")
        return out if encode(["-ss", "1.31", "-i", str(whole)], "copy", out, "-t", "2.5") else None

    def joined_rates(self, kind: str) -> Path | None:
        first, second = self.plain(kind, "first", rate=44100), self.plain(kind, "second", 2.2, 22050, 2)
        if first is None or second is None:
            return None
        out = first.with_name(f"{kind}_rates{first.suffix}")
        out.write_bytes(first.read_bytes() + second.read_bytes())
        return out

    def with_cover(self, kind: str) -> Path | None:
        plain = self.plain(kind, "bare")
        if plain is None:
            return None
        picture = ["-f", "lavfi", "-i", "color=c=red:s=64x64:d=0.04"]
        out = plain.with_name(f"{kind}_cover{plain.suffix}")
        more = ["-map", "0:a", "-map", "1:v", "-c:v", "mjpeg", "-disposition:v", "attached_pic"]
        return out if encode(["-i", str(plain), *picture], "copy", out, *more) else None


def id3(size: int) -> bytes:
    """An ID3v2 tag of so many bytes of padding."""
    return b"ID3\x04\x00\x00" + bytes([size >> shift & 0x7F for shift in (21, 14, 7, 0)]) + bytes(size)


def sized(data: bytes, size: int) -> bytes:
    """A WAV whose header gives this many bytes of sound."""
    at = data.index(b"data") + 4
    return data[:at] + size.to_bytes(4, "little") + data[at + 4 :]


def half_header(data: bytes) -> bytes:
    """A WAV whose header counts half of its sound."""
    at = data.index(b"data") + 4
    return sized(data, int.from_bytes(data[at : at + 4], "little") // 4 * 2)


def without_end_of_stream(data: bytes) -> bytes:
    """An Ogg stream whose last page is not marked as the last; its checksum is right."""
    at = data.rindex(b"OggS")
    page = bytearray(data[at:])
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = ogg_checksum(bytes(page)).to_bytes(4, "little")
    return data[:at] + bytes(page)


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of Ogg (RFC 3533): polynomial 04c11db7, neither reflected nor inverted."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def with_hole(data: bytes) -> bytes:
    """Zeros in place of 3 % of the bytes, in the middle."""
    first, size = len(data) // 2, len(data) // 33
    return data[:first] + bytes(size) + data[first + size :]


def edges(samples: NDArray[np.floating], rate: int) -> NDArray[np.float64]:
    """(2 B,) seconds at which bursts begin and end; pauses and bursts below 0.1 s do not count."""
    hop = rate // 200
    power = np.square(samples[: len(samples) // hop * hop].astype(np.float64)).reshape(-1, hop).mean(axis=1)
    if not len(power) or power.max() <= 0:
        return np.zeros(0)
    active = power > power.max() * 0.01
    changes = np.flatnonzero(np.diff(np.concatenate([[0], active, [0]]).astype(int)))
    spans = [list(span) for span in changes.reshape(-1, 2).tolist()]
    joined: list[list[int]] = []
    for span in spans:
        if joined and span[0] - joined[-1][1] < 20:
            joined[-1][1] = span[1]
        else:
            joined.append(span)
    return np.array([edge for span in joined if span[1] - span[0] >= 20 for edge in span]) / 200


def times(path: Path) -> Times | None:
    """What ffprobe and ffmpeg say of the first track of a file, None where they find no sound."""
    entries = "format=duration,start_time:stream=start_time,duration"
    probe = run("ffprobe", "-v", "quiet", "-of", "json", "-select_streams", "a:0", "-show_entries", entries, str(path))
    facts = json.loads(probe.stdout or b"{}")
    origin = float(facts.get("format", {}).get("start_time", 0))
    stream = (facts.get("streams") or [{}])[0]
    probed = None
    start = float(stream.get("start_time", origin))
    if "duration" in stream:
        probed = (start - origin, start + float(stream["duration"]) - origin)
    elif "duration" in facts.get("format", {}):
        probed = (start - origin, float(facts["format"]["duration"]))
    # As a player does: the clock starts with the file, and what has no sound until the next packet is silence.
    clock = "aresample=16000:async=1:min_hard_comp=0.01:first_pts=0"
    raw = ["-map", "0:a:0", "-af", clock, "-ac", "1", "-f", "f32le", "-"]
    decoded = np.frombuffer(run("ffmpeg", "-v", "quiet", "-i", str(path), *raw).stdout[: 1 << 28], dtype="<f4")
    if not len(decoded):
        return None
    end, found = len(decoded) / SPOKEN_RATE, edges(decoded, SPOKEN_RATE)
    if probed is not None and probed[0] > 0.5 and abs(end - (probed[1] - probed[0])) < PADDING:
        end, found = end + probed[0], found + probed[0]  # ffmpeg shifts times of MPEG to those of the sound
    return Times(probed, end, found)


def expected_times(sound: Sound) -> Times | None:
    """What is known of a file: of a joined one, by its parts."""
    known = [times(part) for part in sound.parts]
    if not known:
        return times(sound.path)
    end, found = 0.0, list[NDArray[np.float64]]()
    for part in known:
        if part is None:
            return None
        found.append(part.edges + end)
        end += part.probed[1] if part.probed is not None and abs(part.probed[1] - part.end) < PADDING else part.end
    return Times(None, end, _united(np.concatenate(found)))


def _united(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges without those between bursts that follow each other."""
    gaps = np.flatnonzero(found[2::2] - found[1:-1:2] < 0.1)
    return np.delete(found, np.concatenate([2 * gaps + 1, 2 * gaps + 2]))


def differences(expected: Times, told: float, converted: NDArray[np.floating], rate: int) -> list[str]:
    """In what `knn info` (seconds), and `knn convert` (samples), differ from a player.

    Where the length that ffprobe states is not that of the sound, the sound counts: many formats leave ffprobe to guess
    by the bit rate, and a film can last longer than its sound.
    """
    found = []
    length = len(converted) / rate
    for what, seconds in (("info", told), ("convert", length)):
        if abs(seconds - expected.end) > TOLERANCE and not _as_probed(expected, seconds):
            found.append(f"{what} has {seconds:.3f} s, ffmpeg {expected.end:.3f} s, ffprobe {expected.probed}")
    heard = edges(converted, rate)
    if len(heard) != len(expected.edges):
        found.append(f"{len(heard) // 2} bursts, not {len(expected.edges) // 2}")
    elif len(heard) and (worst := float(np.abs(heard - expected.edges).max())) > TOLERANCE + 0.005:
        found.append(f"a burst is {worst * 1000:.0f} ms off")
    return found


def _as_probed(expected: Times, seconds: float, limit: float = PADDING) -> bool:
    """Whether ffprobe's end is that of the sound too, up to the padding that a decoder may or may not drop."""
    if expected.probed is None:
        return False
    end = expected.probed[1]
    return abs(seconds - end) <= TOLERANCE and abs(end - expected.end) <= limit


def check(sound: Sound, expected: Times | None, work: Path) -> tuple[str, list[str]]:
    """("right", "refused", "wrong" or "unjudged", and why) of a file."""
    out = work / "checked.h5"
    told = knn("info", sound.path, "--json")
    made = knn("convert", sound.path, out, "--force", "--segment", "900", "--min-segment", "0")
    for result in (told, made):
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return "wrong", [f"traceback: {result.exception!r}"]
    if made.exit_code:
        return "refused", [line for line in made.stderr.splitlines() if line.strip()][:1]
    if told.exit_code:
        return "wrong", ["info refuses what convert takes"]
    if expected is None:
        return "unjudged", ["ffmpeg finds no sound in it"]
    with Store(out) as store:
        parts = [segment.waveform for segment in store.segments()]
    samples = np.concatenate([part.samples for part in parts])
    seconds = json.loads(told.stdout)["seconds"]
    found = differences(expected, seconds, samples, parts[0].rate)
    oddity = sound.name.partition("/")[2]
    if (
        oddity in ("bytes-behind", "header-of-half")
        and "in its header; all" in made.stderr
        and "in its header" in told.stderr
    ):
        found = []  # whether what follows the sound is sound is not known; it is read, and said
    lost = expected.probed is not None and expected.probed[1] - len(samples) / parts[0].rate > 0.5
    if sound.name.endswith("/cut-short") and lost and not any(word in made.stderr for word in NOTES):
        found.append(f"no note that {len(samples) / parts[0].rate:.2f} of {expected.probed} s are there")
    return ("wrong" if found else "right"), found


def evenly(count: int, total: int) -> list[int]:
    """`count` of the numbers below `total`, spread evenly."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    sounds = list(Generator(options.folder).all())
    chosen = [sounds[index] for index in evenly(options.count, len(sounds))]
    counts = {"right": 0, "refused": 0, "wrong": 0, "unjudged": 0}
    for sound in chosen:
        verdict, found = check(sound, expected_times(sound), options.folder)
        counts[verdict] += 1
        if verdict != "right":
            print(f"{verdict}: {sound.name} ({sound.path.name}): {'; '.join(found)}", flush=True)
    print(f"{len(chosen)} of {len(sounds)} files: {counts}")
    sys.exit(counts["wrong"] > 0)


if __name__ == "__main__":
    main()
