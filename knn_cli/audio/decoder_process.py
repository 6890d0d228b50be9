"""The program that decodes compressed sound for `decoding`, in a process of its own: FFmpeg's libraries, through PyAV.

It reads one request a line, as JSON, and answers each with two sizes, JSON and bytes:

    {"open": PATH AS HEX, "track": N, "decode": bool, "part": null or [FIRST BYTE, BYTE BEHIND IT]}
                     what the file is, or {"error"}
    {"next": true}   a piece of sound, or {"end"} and what was wrong with the file
    {"close": true}

Nothing in a file makes it open another one: only these demuxers, only the protocol of files and of their parts. A
request that takes longer than its limit ends the process, whoever is still there, by the system's alarm clock.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from knn_cli.audio import mp3_frames
from knn_cli.audio.placement import Placement

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler, Packet
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SIZES = struct.Struct("<II")
PIECE_SECONDS = 4.0
MAX_PIECE_BYTES = 1 << 24
MAX_MEMORY_BYTES = 3 << 29  # 1.5 GiB
MAX_CHANNELS = 64
MAX_PLANES = 7  # PyAV 18 reads beyond the pointers of frames that have more
MIN_RATE, MAX_RATE = 1000, 768_000
# Containers of sound and video; none that refers to other files, and none of images, texts, devices or filters.
DEMUXERS = (
    "3g2 3gp aac aax ac3 act adx aiff aea amr amrnb amrwb ape apm asf asf_o au avi avr caf dsf dss dts dtshd dv eac3 "
    "f4v flac flv gsm iff ilbc ircam loas m4a matroska mj2 mlp mov mp3 mp4 mpc mpc8 mpeg mpegts mxf nistsphere nsv nut "
    "ogg oma osq paf pvf qcp qoa rka rm shn smk sox spdif swf tak truehd tta voc w64 wav wsd wtv webm wv xwma"
)
_PARENT_SECONDS = 0.2  # how often it is asked whether the parent is still there
_CHECKED = {"flac": "crccheck+explode"}  # decoders that otherwise give noise for damaged frames


@dataclass
class Faults:
    """What could not be decoded: seconds, packets, and the time of the first."""

    seconds: float = 0.0
    packets: int = 0
    first: float | None = None
    skipped: int = 0  # bytes between packets
    skipped_at: float | None = None
    unknown_length: bool = False


@dataclass
class _Pending:
    """Frames that are sent together: all of one format, rate and number of channels."""

    form: tuple[str, int, int]
    planes: list[list[bytes]] = field(default_factory=list)
    samples: int = 0
    size: int = 0

    @property
    def is_full(self) -> bool:
        return self.samples >= PIECE_SECONDS * self.form[1] or self.size >= MAX_PIECE_BYTES

    def add(self, frame: AudioFrame, first: int, stop: int) -> None:
        """Add the samples of a frame from `first` on, before `stop`."""
        channels = 1 if frame.format.is_planar else self.form[2]
        width = frame.format.bytes * channels
        self.planes = self.planes or [[] for _ in frame.planes]
        for pieces, plane in zip(self.planes, frame.planes, strict=True):
            pieces.append(bytes(memoryview(plane)[width * first : width * stop]))
            self.size += len(pieces[-1])
        self.samples += stop - first

    def message(self) -> tuple[dict[str, Any], bytes]:
        """The answer and its bytes: one plane after the other."""
        kind, rate, channels = self.form
        answer = {"form": kind, "rate": rate, "channels": channels, "samples": self.samples}
        return answer, b"".join(piece for plane in self.planes for piece in plane)


def main() -> None:
    """Answer requests until there are no more."""
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to the parent too, which ends this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    limit, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _limit_memory()
    _watch(limit)
    import av

    av.logging.set_level(av.logging.PANIC)
    recording: Recording | None = None
    while line := requests.readline():
        request = json.loads(line)
        _watch(limit)
        payload = b""
        if "open" in request:
            recording = Recording(bytes.fromhex(request["open"]), request["track"], decode=request["decode"])
            answer = recording.open(request["part"])
        elif "next" in request and recording is not None:
            answer, payload = recording.next()
        else:
            answer = {}
            if recording is not None:
                recording.close()
                recording = None
        _send(answers, answer, payload)
        _watch(0)


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, even in the middle of a file."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(0)


def _send(answers: BinaryIO, answer: dict[str, Any], payload: bytes) -> None:
    head = json.dumps(answer).encode()
    answers.write(SIZES.pack(len(head), len(payload)) + head)
    answers.write(payload)
    answers.flush()


def _watch(seconds: int) -> None:
    """End the process in so many seconds; 0: not at all. Systems without alarms have none."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # systems without limits, or with lower ones
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Recording:
    """A file that is decoded from its beginning to its end, once.

    Parameters
    ----------
    name : bytes
        Its path.
    track : int
        Which audio track, from 1; 0 for the first.
    decode : bool
        Whether the samples are wanted, or only how many there are.
    """

    def __init__(self, name: bytes, track: int, *, decode: bool) -> None:
        self._name, self._track, self._decode = name, track, decode
        self._container: InputContainer | None = None
        self._faults = Faults()
        self._packer: tuple[tuple[str, int, str], AudioResampler] | None = None
        self._tag_end, self._rest = 0, b""  # of an MP3: where a tag ends, and bytes that may be half a frame

    def open(self, part: list[int] | None) -> dict[str, Any]:
        """Open it, or these of its bytes; return what it is, or {"error": why it cannot be read}."""
        import av
        from av.stream import Discard

        options = {"protocol_whitelist": "file,subfile", "format_whitelist": DEMUXERS.replace(" ", ",")}
        chosen = "" if part is None else f"subfile,,start,{part[0]},end,{part[1]},,:"
        try:
            container = av.open(f"{chosen}file:{os.fsdecode(self._name)}", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:
            return {"error": type(error).__name__}
        self._container = container
        tracks = container.streams.audio
        if not tracks:
            return {"error": "no sound"}
        demuxer = container.format.name.split(",")[0]
        facts: dict[str, Any] = {"tracks": 1 if demuxer == "flv" else len(tracks), "demuxer": demuxer}
        if self._track > facts["tracks"]:
            return facts
        self._stream = tracks[max(0, self._track - 1)]
        for stream in container.streams:
            if stream is not self._stream:
                stream.discard = Discard.all
        context = self._stream.codec_context
        try:
            context.thread_count = 1
            if context.name in _CHECKED:
                context.options = {"err_detect": _CHECKED[context.name]}
            context.open(strict=False)
            rate, channels, kind = context.sample_rate, context.layout.nb_channels, context.format.name
        except (av.error.FFmpegError, ValueError, MemoryError, AttributeError) as error:
            return {**facts, "error": type(error).__name__}
        start = container.start_time
        self._total = None if not container.duration else container.duration / av.time_base
        self._placement = Placement(facts["demuxer"], None if start is None else start / av.time_base, self._total)
        self._pieces = self._sound() if self._decode else self._lengths()
        tags = {**container.metadata, **self._stream.metadata}
        return facts | {
            "rate": rate,
            "channels": channels,
            "codec": context.name,
            "kind": kind,
            "seconds": self._total,
            "promised": self._promised(),
            "tags": {name: text for name, text in tags.items() if isinstance(text, str)},
        }

    def _promised(self) -> float | None:
        """Seconds that the container counts of this stream; None where it tells only those of all its streams."""
        assert self._container is not None
        stream, demuxer = self._stream, self._placement.demuxer
        if demuxer == "mov" and stream.duration is not None and stream.time_base is not None:
            return float((stream.duration + max(0, stream.start_time or 0)) * stream.time_base)
        if demuxer == "flv":  # its end may look like another stream
            return None if self._container.streams.video else self._total
        return self._total if demuxer == "matroska" and len(self._container.streams) == 1 else None

    def next(self) -> tuple[dict[str, Any], bytes]:
        """The next piece of sound, or the end."""
        piece = next(self._pieces, None)
        if piece is not None:
            return piece
        placement, faults = self._placement, self._faults
        end = {"end": placement.seconds, "overlap": placement.overlap, "missing": placement.missing}
        return {**end, **vars(faults)}, b""

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def _packets(self) -> Iterator[Packet[AudioStream]]:
        """The packets of the stream, to the end or to where the container cannot be read on; the last is empty."""
        import av

        assert self._container is not None
        stream, end, counted = self._stream, None, self._placement.is_counted
        is_mp3 = self._stream.codec_context.name.startswith("mp3") and self._placement.demuxer == "mp3"
        try:
            for packet in self._container.demux(stream):
                if packet.size and counted and packet.pos is not None and packet.pos >= 0:
                    if end is not None and packet.pos > end:
                        self._skip(packet.pos - end)
                    end = packet.pos + packet.size
                yield from self._mp3_packets(packet) if is_mp3 else (packet,)
        except (av.error.FFmpegError, OSError, MemoryError):
            self._fault(0.0)

    def _mp3_packets(self, packet: Packet[AudioStream]) -> Iterator[Packet[AudioStream]]:
        """The packet, or the frames in it and the last ones: behind damage the demuxer cuts packets anywhere."""
        from av import Packet

        data = bytes(packet)
        frame = mp3_frames.parse_frame(data[:4])
        if not data:
            yield packet
            return
        if frame is not None and frame.size == len(data) and not self._rest:
            if not mp3_frames.is_count(data):
                yield packet
            return
        at = (packet.pos or 0) - len(self._rest)
        data, self._rest = self._rest + data, b""
        self._tag_end = max(self._tag_end, at + mp3_frames.tag_size(data[:10]))
        data, end = data[max(0, self._tag_end - at) :], 0
        for place, frame in mp3_frames.find_frames(data):
            self._skip(place - end)
            end = place + frame.size
            if mp3_frames.is_count(data[place:end]):
                continue
            piece: Packet[Any] = Packet(data[place:end])
            piece.stream, piece.time_base = packet.stream, packet.time_base
            piece.duration = round(frame.samples / frame.rate / (packet.time_base or 1))
            yield piece
        first = max(end, len(data) - mp3_frames.MAX_FRAME_BYTES)
        self._rest = data[first:]
        if not data[end:].startswith((b"TAG", b"APETAGEX")):
            self._skip(first - end)

    def _skip(self, size: int) -> None:
        self._faults.skipped += size
        if size and self._faults.skipped_at is None:
            self._faults.skipped_at = self._placement.seconds

    def _fault(self, seconds: float) -> None:
        faults = self._faults
        faults.packets += 1
        faults.seconds += seconds
        if faults.first is None:
            faults.first = self._placement.seconds

    def _frames(self) -> Iterator[tuple[AudioFrame, float]]:
        """Frames of all packets that can be decoded, and of how many seconds each is: the last may be padded."""
        import av

        packets = self._packets()
        packet = next(packets, None)
        while packet is not None:
            following = next(packets, None)
            seconds = float((packet.duration or 0) * (packet.time_base or 0))
            is_last = following is None or not following.size
            length = seconds if seconds and is_last and self._placement.demuxer == "mov" else math.inf
            try:
                for frame in packet.decode():
                    yield frame, length
            except (av.error.FFmpegError, ValueError, MemoryError):
                self._fault(seconds)
            packet = following

    def _sound(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Pieces of sound of about `PIECE_SECONDS`, with silence between them where the times leave gaps."""
        pending: _Pending | None = None
        for frame, length in self._frames():
            rate, channels = frame.sample_rate, frame.layout.nb_channels
            samples = round(min(frame.samples, length * rate))
            if not (samples and MIN_RATE <= rate <= MAX_RATE and 0 < channels <= MAX_CHANNELS):
                self._fault(0.0)
                continue
            silence, left_out = self._placement.place(frame.time, samples, rate)
            if frame.format.is_planar and channels > MAX_PLANES:
                frame = self._packed(frame)
            form = frame.format.name, rate, channels
            if pending is not None and (silence or pending.form != form or pending.is_full):
                yield pending.message()
                pending = None
            if silence:
                yield {"silence": silence, "rate": rate, "channels": channels}, b""
            pending = pending or _Pending(form)
            pending.add(frame, left_out, samples)
        if pending is not None:
            yield pending.message()

    def _packed(self, frame: AudioFrame) -> AudioFrame:
        """The frame with one plane for all channels."""
        from av import AudioResampler

        form = frame.format.name, frame.sample_rate, frame.layout.name
        if self._packer is None or self._packer[0] != form:
            self._packer = form, AudioResampler(frame.format.packed, frame.layout, frame.sample_rate)
        (packed,) = self._packer[1].resample(frame)
        return packed

    def _lengths(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Nothing: the packets are placed by their times and lengths, without decoding them."""
        rate, skip = self._stream.codec_context.sample_rate, 0
        for packet in self._packets():
            if not packet.size or packet.is_discard:
                continue
            frame_size = self._stream.codec_context.frame_size
            if packet.time_base is None or not (packet.duration or frame_size):
                self._faults.unknown_length = True
                return
            end = 0
            if packet.has_sidedata("skip_samples"):
                first, end = struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples")))
                skip += first
            samples = round(packet.duration * packet.time_base * rate) if packet.duration else frame_size
            skipped = min(samples, skip)
            skip -= skipped
            if self._placement.demuxer == "ogg":
                end = 0  # its last packet's duration is without the padding
            if samples - skipped - end > 0:
                time = None if packet.pts is None else float(packet.pts * packet.time_base) + skipped / rate
                self._placement.place(time, samples - skipped - end, rate)
        yield from ()
