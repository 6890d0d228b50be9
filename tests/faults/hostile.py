"""Inputs made by hand to do harm: each kind of the issue's parts G and H, in many spellings."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import judge
from tests.faults.mutated import Case
from tests.faults.targets import HEARD, TINY

Lay = Callable[[Path], list[str]]
PLANTED = "planted"
HTTP = "http://127.0.0.1:{port}/x.wav"


@dataclass(frozen=True)
class Hostile:
    """One input: its kind, what lays it out in a folder and returns the command, and what must come of it.

    With `refused` any exit code but 0 is right; without it the command may also do what it was asked. Files named in
    `stay` must be as they were laid.
    """

    kind: str
    lay: Lay
    refused: bool = False


def _file(name: str, data: bytes, *arguments: str) -> Lay:
    def lay(folder: Path) -> list[str]:
        (folder / name).write_bytes(data)
        return [part.replace("{x}", str(folder / name)).replace("{d}", str(folder)) for part in arguments]

    return lay


CONVERT = ("convert", "{x}", "{d}/out.h5")
INFO = ("info", "{x}")


# ---- sound ----


def playlists() -> Iterator[Hostile]:
    secret = "{seeds}/secret.wav"
    texts = {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "m3u8 path": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret}\n#EXT-X-ENDLIST\n",
        "m3u8 web": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{HTTP}\n#EXT-X-ENDLIST\n",
        "m3u8 endless": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "ffconcat web": f"ffconcat version 1.0\nfile '{HTTP}'\n",
        "ffconcat itself": "ffconcat version 1.0\n" + "file 'x.{suffix}'\n" * 50,
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=audio {port} RTP/AVP 0\na=rtpmap:0 PCMU/8000\n",
        "mpd": "<?xml version='1.0'?><MPD><Period><AdaptationSet mimeType='audio/mp4'><Representation><BaseURL>"
        f"file://{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "asx": f"<asx version='3.0'><entry><ref href='{HTTP}'/></entry></asx>",
        "pls": f"[playlist]\nFile1={secret}\nNumberOfEntries=1\n",
        "image pattern": ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=1000000000\n",
    }
    for name, text in texts.items():
        for suffix in ("wav", "mp3", "m4a", "ogg", "flac", "aac", "webm"):
            yield Hostile(
                f"playlist {name}", _file(f"x.{suffix}", text.replace("{suffix}", suffix).encode(), *CONVERT), True
            )


def _wave(
    rate: int, channels: int, bits: int, code: int = 1, size: int | None = None, samples: bytes = bytes(3200)
) -> bytes:
    align = (channels * bits // 8) & 0xFFFF
    form = struct.pack("<HHIIHH", code, channels, rate & 0xFFFFFFFF, rate * align & 0xFFFFFFFF, align, bits & 0xFFFF)
    claimed = len(samples) if size is None else size
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(samples))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", claimed & 0xFFFFFFFF)
        + samples
    )


def headers() -> Iterator[Hostile]:
    loud = np.random.default_rng(0).integers(-9000, 9000, 8000).astype("<i2").tobytes()
    for rate in (0, 1, 2, 7, 100, 999, 768001, 2**31 - 1, 2**31, 2**32 - 1):
        for command in (CONVERT, INFO, ("embed", "{x}", *TINY, "--no-vad")):
            yield Hostile("sampling rate", _file("x.wav", _wave(rate, 1, 16, samples=loud), *command))
        au = b".snd" + struct.pack(">IIIII", 24, 0xFFFFFFFF, 3, rate & 0xFFFFFFFF, 1) + loud
        yield Hostile("sampling rate of AU", _file("x.au", au, *CONVERT))
    for channels in (0, 3, 255, 1024, 65535):
        for command in (CONVERT, ("diarize", "{x}", *TINY, "--per-channel", "--segmentation", "who")):
            yield Hostile("channels", _file("x.wav", _wave(16000, channels, 16, samples=loud), *command))
    for bits in (0, 1, 7, 12, 33, 64, 128, 65535):
        yield Hostile("bits a sample", _file("x.wav", _wave(16000, 1, bits, samples=loud), *CONVERT))
    for code in (0, 2, 3, 6, 0x11, 0x31, 0x55, 0xFFFE, 0xFFFF):
        yield Hostile("codec", _file("x.wav", _wave(16000, 1, 16, code, samples=loud), *CONVERT))
    for size in (0, 1, 2**31, 2**32 - 1):
        yield Hostile("size claimed", _file("x.wav", _wave(16000, 1, 16, size=size, samples=loud), *CONVERT))
    for value in (np.nan, np.inf, 1e30, 3e38, 1e-40):
        for command in (CONVERT, ("embed", "{x}", *TINY, "--no-vad", "--json")):
            samples = np.full(16000, value, "<f4").tobytes()
            yield Hostile("samples", _file("x.wav", _wave(16000, 1, 32, 3, samples=samples), *command))


def names() -> Iterator[Hostile]:
    spellings = (
        "concat:a.wav|b.wav",
        "-i.wav",
        "--help.wav",
        "file:a.wav",
        "pipe:0.wav",
        "subfile,,start,0,end,0,,:x.wav",
        "%03d.wav",
        "[ab]*.wav",
        "~.wav",
        "$(touch planted).wav",
        ";touch planted;.wav",
        "`touch planted`.wav",
        "|touch planted|.wav",
        "\x1b[31mred.wav",
        "two\nlines.wav",
        "cr\r.wav",
        "\u202egnp.wav",
        "tab\t.wav",
        "a" * 250 + ".wav",
        " .wav",
        "...wav",
        "=1+1.wav",
        "@x.wav",
        "<b>.wav",
        "'\".wav",
        "\ufeff.wav",
        "é.wav",
        "é.wav",
        "\udcff\udcfe.wav",
        "\x7f.wav",
        "\x9b31m.wav",
    )
    commands = (
        INFO,
        CONVERT,
        ("diarize", "{x}", *TINY, "--segmentation", "who", "--out-dir", "{d}/out", "--format", "html"),
        ("classify", "{d}", "--model", "head", *HEARD, "-o", "{d}/out.tsv"),
    )
    data = _wave(16000, 1, 16, samples=np.random.default_rng(0).integers(-900, 900, 16000).astype("<i2").tobytes())
    for name in spellings:
        for command in commands:
            yield Hostile("name", _file(name, data, *command))
    for argument in ("a\0b.wav", "http://127.0.0.1/x.wav", "concat:plain.wav", "", "\udcff", "hf:", "file:plain.wav"):
        yield Hostile("argument", lambda folder, argument=argument: ["info", argument], True)


# ---- embeddings and archives ----


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b" " * (117 - len(header) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _zip_bomb(name: str, head: bytes, blocks: int) -> bytes:
    """A zip file of one member: `head`, and so many blocks of 16 MB of zeros."""
    block = bytes(16 << 20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH)
    repeated = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = start + repeated * blocks + deflate.flush()
    check = zlib.crc32(head)
    for _ in range(blocks):
        check = zlib.crc32(block, check)
    size = len(head) + blocks * len(block)
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, check, len(data), size, len(name), 0)
    local = b"PK\3\4" + common + name.encode()
    central = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return local + data + central + end


class _Plant:
    """Unpickled, it would write a file into the folder of the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {PLANTED}; touch /tmp/{PLANTED}",)


def arrays() -> Iterator[Hostile]:
    good = _npy("{'descr': '<U2', 'fortran_order': False, 'shape': (2,), }", "abcd".encode("utf-32-le"))
    for shape in (
        "(2147483648, 4)",
        "(2, 2147483648)",
        "(-1, 4)",
        "(2, -4)",
        "(9223372036854775807,)",
        "()",
        "(2,)",
        "(2, 0)",
        "(0, 4)",
        "(1.5, 2)",
        "(True, 2)",
        "('a',)",
        "[2, 4]",
        "(2, 4, 1)",
        "(10**9, 10**9)",
    ):
        for kind in ("<f4", "<f8"):
            header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
            yield Hostile(
                "npz shape", _file("x.npz", _zip({"data.npy": _npy(header, bytes(64)), "name.npy": good}), *CONVERT)
            )
    for kind in ("|O", "<U2147483647", "|V99999999", "<M8[ns]", "<c16", "x", "[('a', '<f4')]", "|b1", "<f2", ">f4"):
        header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': (2, 4), }}"
        yield Hostile(
            "npz dtype", _file("x.npz", _zip({"data.npy": _npy(header, bytes(256)), "name.npy": good}), *CONVERT)
        )
    objects = _npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", pickle.dumps([_Plant(), _Plant()]))
    for member in ("data.npy", "name.npy", "embedder.npy", "extra.npy"):
        yield Hostile(
            "npz pickle",
            _file(
                "x.npz",
                _zip(
                    {
                        "data.npy": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }", bytes(8)),
                        "name.npy": good,
                        member: objects,
                    }
                ),
                *CONVERT,
            ),
        )
    zeros = _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (600000000, 1), }") + bytes(64 << 20)
    yield Hostile("npz bomb", _file("x.npz", _zip({"data.npy": zeros, "name.npy": good}), *CONVERT), True)

    def big(folder: Path) -> list[str]:  # 3 GB of zeros that the header tells truly
        head = _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100663296, 8), }")
        (folder / "x.npz").write_bytes(_zip_bomb("data.npy", head, 192))
        return ["convert", str(folder / "x.npz"), str(folder / "out.h5")]

    yield Hostile("npz bomb", big, True)
    numbers = (2**31 - 1, 2**31, 2**32 - 1, 0, 1, 1 << 20)
    for rows in numbers:
        for columns in numbers:
            head = (
                b"key \0BFM \4" + struct.pack("<I", rows & 0xFFFFFFFF) + b"\4" + struct.pack("<I", columns & 0xFFFFFFFF)
            )
            yield Hostile("ark matrix", _file("x.ark", head + bytes(64), *CONVERT))
    for token in (b"FV ", b"DV ", b"CM ", b"CM2 ", b"CM3 ", b"SM ", b"XX ", b"FM", b"", b"B"):
        yield Hostile("ark token", _file("x.ark", b"key \0B" + token + b"\4" + b"\xff" * 40, *CONVERT))
    for line in (
        "key x.ark:0\n",
        "key |touch planted|\n",
        "key touch planted |\n",
        "key /etc/passwd:0\n",
        "key x.scp:0\n",
        "key x.ark:99999999999999999999\n",
        "key x.ark:-5\n",
        "key x.ark:0[0:99999999999]\n",
        "key -\n",
        "key /dev/zero:0\n",
        "key http://127.0.0.1/x.ark\n",
        "key\n",
        "\0\n",
        "key x.ark:\n",
    ):
        yield Hostile("scp", _file("x.scp", line.encode(), *CONVERT), True)


def compressed() -> Iterator[Hostile]:
    def bomb(name: str, *arguments: str) -> Lay:
        return _file(name, gzip.compress(b"1 " * (8 << 20), 1) * 192, *arguments)  # 3 GB

    yield Hostile("gzip bomb", bomb("x.gz", *CONVERT), True)
    yield Hostile("gzip bomb", bomb("x.tar", "train", "{x}", "--recipe", "recipe.toml", "-o", "{d}/out"), True)
    yield Hostile("gzip bomb", bomb("x.wav", *CONVERT), True)
    for suffix in ("h5", "npz", "csv", "ark", "rttm", "mp3"):
        yield Hostile("gzip under another name", _file(f"x.{suffix}", gzip.compress(bytes(1 << 20)), *CONVERT))

    def tar(change: Callable[[tarfile.TarInfo], None], data: bytes = b"") -> Lay:
        def lay(folder: Path) -> list[str]:
            sound = data or _wave(16000, 1, 16, samples=bytes(32000))
            with (folder / "x.tar").open("wb") as file:
                for label in ("a", "b"):
                    for number in range(4):
                        for suffix, content in (("wav", sound), ("cls", label.encode())):
                            member = tarfile.TarInfo(f"{label}{number}.{suffix}")
                            member.size = len(content)
                            if suffix == "wav":
                                change(member)
                            file.write(member.tobuf() + content + bytes(-len(content) % 512))
                file.write(bytes(1024))
            return ["train", str(folder / "x.tar"), "--recipe", "recipe.toml", "-o", str(folder / "out"), *HEARD]

        return lay

    def setting(**values: Any) -> Callable[[tarfile.TarInfo], None]:
        return lambda member: [setattr(member, name, value) for name, value in values.items()] and None

    for values in (
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "a0.cls"},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.DIRTYPE},
        {"name": "../../x.wav"},
        {"name": "/etc/x.wav"},
        {"size": 1 << 40},
        {"size": 1 << 32},
        {"name": "x" * 5000 + ".wav"},
        {"name": "\x1b[1m.wav"},
        {"pax_headers": {"GNU.sparse.realsize": str(1 << 40), "GNU.sparse.major": "1", "GNU.sparse.minor": "0"}},
        {"pax_headers": {"size": "nan"}},
        {"type": tarfile.GNUTYPE_SPARSE},
        {"type": tarfile.GNUTYPE_SPARSE, "size": 1 << 40},
        {"pax_headers": {"path": "y" * 100000}},
        {"name": ""},
    ):
        yield Hostile("tar", tar(setting(**values)))
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "z.cls"}
    for size in (1 << 40, 1 << 63, -1):
        headers_of = {**sparse, "GNU.sparse.realsize": str(size)}
        yield Hostile("tar", tar(setting(name="z.cls", pax_headers=headers_of), b"1\n0\n0\n" + bytes(506)))


# ---- HDF5 ----


def _hdf5(name: str, make: Callable[[Any, Path], None], *arguments: str) -> Lay:
    def lay(folder: Path) -> list[str]:
        import h5py

        with h5py.File(folder / name, "w") as file:
            make(file, folder)
        return [part.replace("{x}", str(folder / name)).replace("{d}", str(folder)) for part in arguments]

    return lay


def _store(file: Any, rows: int = 4, without: str = "") -> None:
    columns = {
        key: [f"{key}{number}" for number in range(rows)] for key in ("Name", "GroupID", "SubgroupID", "Speaker")
    }
    for key, values in columns.items():
        if key != without:
            file.create_dataset(key, data=values)
    for key in ("Start", "End"):
        if key != without:
            file.create_dataset(key, data=np.arange(rows, dtype=float) + (key == "End"))
    if without != "Data":
        file.create_dataset("Data", data=np.ones((rows, 4), np.float32))
    file.attrs["schema"], file.attrs["kind"], file.attrs["embedder"] = 1, "embeddings", "x@1"


def stores() -> Iterator[Hostile]:
    import h5py

    def outer(file: Any, folder: Path) -> None:
        with h5py.File(folder / "secret.h5", "w") as other:
            _store(other)
        _store(file, without="Data")
        file["Data"] = h5py.ExternalLink("secret.h5", "Data")

    def storage(file: Any, folder: Path) -> None:
        (folder / "secret.bin").write_bytes(b"secret!!" * 8)
        _store(file, without="Data")
        file.create_dataset("Data", (4, 4), "f4", external=[(str(folder / "secret.bin"), 0, 64)])

    def virtual(file: Any, folder: Path) -> None:
        _store(file, without="Data")
        layout = h5py.VirtualLayout((4, 4), "f4")
        layout[:] = h5py.VirtualSource(str(folder / "missing.h5"), "Data", (4, 4))
        file.create_virtual_dataset("Data", layout)

    def loop(file: Any, folder: Path) -> None:
        _store(file, without="Data")
        file["Data"] = h5py.SoftLink("/Data")

    def circle(file: Any, folder: Path) -> None:
        _store(file)
        file["group"] = file["/"]

    def nested(file: Any, folder: Path) -> None:
        _store(file)
        place = file
        for _ in range(3000):
            place = place.create_group("g")

    def made(key: str, value: Any, **more: Any) -> Callable[[Any, Path], None]:
        def make(file: Any, folder: Path) -> None:
            _store(file, without=key)
            file.create_dataset(key, **({"data": value} if value is not None else {}), **more)

        return make

    def attribute(key: str, value: Any) -> Callable[[Any, Path], None]:
        def make(file: Any, folder: Path) -> None:
            _store(file)
            file.attrs[key] = value

        return make

    huge: dict[str, Any] = {"chunks": (1, 1024), "compression": "gzip"}
    kinds = [
        ("external link", outer),
        ("external storage", storage),
        ("virtual set", virtual),
        ("link to itself", loop),
        ("circle", circle),
        ("nested", nested),
        ("bomb", made("Data", None, shape=(4, 1 << 40), dtype="f4", **huge)),
        ("bomb", made("Data", None, shape=(1 << 40, 4), dtype="f4", chunks=(1024, 4))),
        ("bomb", made("Name", None, shape=(1 << 40,), dtype=h5py.string_dtype(), chunks=(1024,))),
        ("bomb", made("Start", None, shape=(1 << 34,), dtype="f8", chunks=(1024,))),
        ("bomb", made("Name", None, shape=(4,), dtype="S1000000000", chunks=(1,))),
        *((f"Data {kind}", made("Data", np.zeros((4, 4), kind))) for kind in ("i1", "c8", "bool", "S3", "f2", ">f8")),
        *(
            (f"Data shape {shape}", made("Data", np.zeros(shape, "f4")))
            for shape in ((4,), (0, 4), (4, 0), (3, 4), (4, 4, 4), ())
        ),
        ("Data compound", made("Data", np.zeros(4, [("a", "f4"), ("b", "S3")]))),
        ("Data empty", made("Data", h5py.Empty("f4"))),
        ("Data NaN", made("Data", np.full((4, 4), np.nan))),
        ("Data large", made("Data", np.full((4, 4), 1e300))),
        *(
            (f"Name {number}", made("Name", value))
            for number, value in enumerate(
                (
                    np.arange(4),
                    [b"\xff\xfe"] * 4,
                    ["\x1b[31m"] * 4,
                    [""] * 4,
                    ["a" * 100000] * 4,
                    ["x\ny"] * 4,
                    np.zeros((4, 2)),
                    "one",
                )
            )
        ),
        *((f"Start {value}", made("Start", np.full(4, value))) for value in (np.nan, np.inf, -1.0, 1e300)),
        *(
            (f"{key} {str(value)[:9]}", attribute(key, value))
            for key in ("schema", "kind", "embedder", "rate")
            for value in (-1, 2**40, 1.5, "x" * 60000, np.zeros(5), h5py.Empty("f"), b"\xff", "\x1b[31m")
        ),
    ]
    for kind, make in kinds:
        for command in (INFO, ("convert", "{x}", "{d}/out.csv")):
            refused = kind in ("external link", "external storage", "virtual set", "link to itself")
            yield Hostile(f"HDF5 {kind}", _hdf5("x.h5", make, *command), refused)


# ---- models and checkpoints ----


def _copied(source: str, change: Callable[[Path], None], *arguments: str) -> Callable[[Path, Path], list[str]]:
    def lay(folder: Path, seeds: Path) -> list[str]:
        copy = folder / "model"
        shutil.copytree(seeds / source, copy)
        change(copy)
        return [part.replace("{x}", str(copy)).replace("{d}", str(folder)) for part in arguments]

    return lay


def _config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for path, value in values.items():
            place = config
            *parents, last = path.split("__")
            for key in parents:
                place = place[key]
            place[last] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def _replaced(name: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


EMBED = ("embed", "plain.wav", "--no-vad", "--json", "--model", "{x}", *HEARD)


def models() -> Iterator[tuple[str, Callable[[Path, Path], list[str]], bool]]:
    nan, inf = float("nan"), float("inf")
    for path, values in {
        "audio__rate": (0, 1, -16000, 2**31, 1e308, nan, "16000", None, [], 16000.5, True),
        "audio__scale": (nan, inf, -inf, 0, 1e308, "1", None, []),
        "encoder__args__blocks": (0, -1, 10**6, 10**9, 1.5, nan, "2", None, []),
        "encoder__args__channels": (0, -32, 10**6, 10**9, 33, nan, "32"),
        "encoder__args__convolutions": (
            [],
            [[16, 10, 0]],
            [[16, 0, 5]],
            [[10**9, 10, 5]],
            [[1, 1]],
            "x",
            [[16, 10**9, 5]],
            [[1, 1, 1]] * 10**4,
        ),
        "encoder__args__heads": (0, -4, 3, 10**9, nan),
        "encoder__args__position_kernel": (0, -1, 10**9, nan),
        "encoder__args__buckets": (0, -1, 10**9),
        "encoder__args__distance": (0, -1, 10**12),
        "encoder__args__x": (1,),
        "encoder__name": ("x", "", None, 1, [], "os.system", "../x"),
        "encoder__args": (None, [], "x", {}),
        "encoder": (None, [], 1, {}),
        "pooling__args__dimension": (0, -1, 10**9, 10**12, nan),
        "pooling__args__heads": (0, 10**9, -1),
        "pooling": (None, []),
        "schema": (0, -1, 10**9, "1", None, True, 1.5),
        "kind": ("x", None, [], "segmenter"),
        "name": ("", None, [], "\x1b[31m", "../x", "a" * 9999),
        "views": ({"speaker": [0, 10**9]}, {"speaker": [-1, 3]}, {"speaker": "x"}, [], {"\0": [0, 1]}),
        "weights_sha256": ("", None, "0" * 64, 5),
        "products": ("int4", None, 5),
        "training": (None, [], "x", {"splits": 5}),
        "head": (None, [], {}, {"name": "softmax", "args": {}, "labels": ["a"] * 10**5, "level": "group"}),
        "speaker_decision": (None, [], {}, {"threshold": nan}, {"threshold": "x"}),
    }.items():
        for value in values:
            yield f"config {path.replace('__', '.')}", _copied("tiny", _config(**{path: value}), *EMBED), False
    deep = b"[" * 200000
    for text in (
        b"",
        b"null",
        b"[]",
        b"{}",
        deep,
        b'{"a":' * 100000,
        b'{"schema": ' + b"9" * 10000 + b"}",
        b"\xff\xfe{}",
        b'{"schema": 1e400}',
    ):
        yield "config text", _copied("tiny", _replaced("config.json", text), *EMBED), True
        yield "config text", _copied("tiny", _replaced("config.json", text), "info", "{x}"), True
    for header in (
        b"{}",
        b"",
        deep,
        b'{"x": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}',
        b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"x": 5}',
        b"null",
        b'{"__metadata__": {"a": 5}}',
    ):
        for claimed in (len(header), 2**63, 2**40, 0):
            data = claimed.to_bytes(8, "little") + header + bytes(64)
            yield "safetensors", _copied("tiny", _replaced("weights.safetensors", data), *EMBED), True
            yield (
                "safetensors",
                lambda folder, seeds, data=data: _file("x.safetensors", data, "convert", "{x}", "{d}/out")(folder),
                True,
            )


def _trained(name: str, data: bytes) -> Hostile:
    return Hostile("pickle", _file(name, data, "convert", "{x}", "{d}/out"), True)


def checkpoints() -> Iterator[Hostile]:
    for protocol in range(6):
        evil = pickle.dumps({"state_dict": _Plant()}, protocol)
        for suffix in ("pt", "pth", "bin", "ckpt"):
            yield _trained(f"x.{suffix}", evil)
            inside = _zip({"archive/data.pkl": evil, "archive/version": b"3\n", "archive/byteorder": b"little"})
            yield _trained(f"x.{suffix}", inside)
    script = {
        "x/data.pkl": pickle.dumps(_Plant(), 2),
        "x/code/__torch__.py": b"import os\nos.system('touch planted')\n",
        "x/constants.pkl": b"N.",
        "x/version": b"3\n",
    }
    yield _trained("x.pt", _zip(script))
    yield _trained("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for text in (
        "!!python/object/apply:os.system ['touch planted']\n",
        "a: !!python/name:os.system\n",
        laughs,
        "[" * 100000,
        "a: " + "{b: " * 50000,
    ):

        def lay(folder: Path, text: str = text) -> list[str]:
            shutil.copytree(folder.parent.parent / "seeds" / "checkpoints" / "lang-id", folder / "x")
            (folder / "x" / "hyperparams.yaml").write_text(text)
            return ["convert", str(folder / "x"), str(folder / "out")]

        yield Hostile("YAML", lay, True)


# ---- tables, options, special files, foreign files ----


def tables() -> Iterator[Hostile]:
    diarize = ("diarize", "plain.wav", *TINY, "--segmentation", "silero", "--reference", "{x}")
    times = ("nan", "inf", "-1", "1e300", "1e-300", "1e999", "0x10", "1_0", "", "x", "99999999999", "١")
    for time in times:
        for line in (
            f"SPEAKER plain 1 {time} 1.0 <NA> <NA> a <NA> <NA>\n",
            f"SPEAKER plain 1 0.5 {time} <NA> <NA> a <NA> <NA>\n",
        ):
            yield Hostile("RTTM time", _file("x.rttm", line.encode(), *diarize))
        yield Hostile(
            "UEM time", _file("x.uem", f"plain 1 0.0 {time}\n".encode(), *diarize[:-1], "turns.rttm", "--uem", "{x}")
        )
    for text in (
        b"",
        b"\0" * 100,
        b"\xff" * 100,
        b"SPEAKER\n",
        b"SPEAKER plain 1 0 1 <NA> <NA> " + b"a" * 10**6 + b" <NA> <NA>\n",
        b"\x1b[31mSPEAKER plain 1 0 1 a\n",
        b"SPEAKER plain 1 0 1 <NA> <NA> \x1b[31m <NA> <NA>\n",
        b"{" * 100000,
    ):
        for name, command in (
            ("x.rttm", diarize),
            ("x.rttm", ("timeline", "plain.wav", "--model", "head", *HEARD, "--turns", "{x}")),
            ("x.csv", ("convert", "corpus", "{d}/out.h5", "--labels", "{x}")),
            ("x.csv", CONVERT),
            ("x.csv", ("train", "emb.h5", "-o", "{d}/out", "--groups", "{x}")),
            ("x.tsv", ("train", "emb.h5", "-o", "{d}/out", "--split", "{x}")),
            ("x.txt", ("verify", "{x}", "emb.h5")),
            ("x.toml", ("train", "audio.h5", "--recipe", "{x}", "-o", "{d}/out", *HEARD)),
            ("x.json", ("diarize", "kept.h5", "--corrections", "{x}")),
        ):
            yield Hostile(f"table {Path(name).suffix}", _file(name, text, *command))
    edits = (
        [],
        [{}],
        [5],
        {"edit": "merge"},
        [{"edit": "split", "at": 1e999, "start": 0, "end": 1, "speaker": "SPEAKER_00"}],
        [
            {"edit": "rename", "speaker": "SPEAKER_00", "to": text}
            for text in ("", " ", "\x1b[31m", "\0", "a" * 10**5, "<b>", "\u202e", 5)
        ],
        [{"edit": "merge", "speaker": "SPEAKER_00", "into": "SPEAKER_00"}],
        [{"edit": "delete", "start": -1e300, "end": 1e300, "speaker": []}],
    )
    for edit in edits:
        for recording in ("meeting", "", None, "\x1b[31m"):
            data = json.dumps({"knn": "corrections", "version": 1, "recording": recording, "edits": edit}).encode()
            yield Hostile("corrections", _file("x.json", data, "diarize", "kept.h5", "--json", "--corrections", "{x}"))


def options() -> Iterator[Hostile]:
    numbers = ("nan", "inf", "-inf", "-1", "0", "1e308", "1e-308", "1e-9", "99999999999999999999", "", "x", "0x10", "½")
    timeline, diarize = (
        ("timeline", "plain.wav", "--model", "head", *HEARD),
        ("diarize", "plain.wav", *TINY, "--segmentation", "silero"),
    )
    for command, names_ in (
        (timeline, ("--step", "--window", "--switch", "--batch-seconds")),
        (("classify", "plain.wav", "--model", "head", *HEARD), ("--segment", "--top")),
        (("convert", "corpus", "{d}/out.h5"), ("--segment", "--min-segment", "--rate", "--channel")),
        (
            diarize,
            (
                "--num-speakers",
                "--min-speakers",
                "--max-speakers",
                "--min-turn",
                "--max-gap",
                "--margin",
                "--batch-seconds",
            ),
        ),
        (("split", "emb.h5", "-o", "{d}/out.tsv"), ("--held-out", "--seed")),
        (("evaluate", "emb.h5", "--model", "dialects"), ("--curve", "--draws")),
        (("train", "emb.h5", "-o", "{d}/out"), ("--held-out", "--seed", "--priors", "--transforms")),
        (("verify", "trials.txt", "emb.h5", "--cohort", "other.h5"), ("--as-norm",)),
    ):
        for name in names_:
            for number in numbers:
                if name == "--draws" and number.startswith("999"):
                    continue  # so many samples are what was asked for
                yield Hostile(
                    "option",
                    lambda folder, command=command, name=name, number=number: [
                        *(part.replace("{d}", str(folder)) for part in command),
                        name,
                        number,
                    ],
                )


def special_files() -> Iterator[Hostile]:
    def fifo(path: Path) -> None:
        os.mkfifo(path)

    def listening(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as one:
            here = Path.cwd()
            os.chdir(path.parent)
            try:
                one.bind(path.name)
            finally:
                os.chdir(here)

    makers: dict[str, Callable[[Path], None]] = {
        "FIFO": fifo,
        "socket": listening,
        "loop": lambda path: path.symlink_to(path.name),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "zeros": lambda path: path.symlink_to("/dev/zero"),
        "full": lambda path: path.symlink_to("/dev/full"),
        "folder": lambda path: path.mkdir(),
        "tty": lambda path: path.symlink_to("/dev/tty"),
        "memory": lambda path: path.symlink_to("/proc/self/mem"),
    }
    reads = {
        "x.wav": ("info", "{x}"),
        "y.wav": CONVERT,
        "x.h5": ("info", "{x}"),
        "x.npz": CONVERT,
        "x.csv": CONVERT,
        "x.ark": CONVERT,
        "x.pt": CONVERT,
        "x.rttm": ("diarize", "plain.wav", *TINY, "--segmentation", "silero", "--reference", "{x}"),
        "x.safetensors": CONVERT,
        "x.tar": ("train", "{x}", "--recipe", "recipe.toml", "-o", "{d}/out"),
        "x.toml": ("train", "audio.h5", "--recipe", "{x}", "-o", "{d}/out"),
        "x.json": ("diarize", "kept.h5", "--corrections", "{x}"),
        "x.txt": ("verify", "{x}", "emb.h5"),
        "z.wav": ("embed", "{d}", *TINY),
        **{f"y.{suffix}": CONVERT for suffix in ("scp", "gz", "txt", "bin", "tsv")},
        "x.tsv": ("train", "emb.h5", "-o", "{d}/out", "--split", "{x}"),
        "y.csv": ("convert", "corpus", "{d}/out.h5", "--labels", "{x}"),
        "z.csv": ("train", "emb.h5", "-o", "{d}/out", "--groups", "{x}"),
        "x.uem": ("diarize", "plain.wav", *TINY, "--reference", "turns.rttm", "--uem", "{x}"),
        "y.rttm": ("timeline", "plain.wav", "--model", "head", *HEARD, "--turns", "{x}"),
        "y.h5": ("evaluate", "{x}", "--model", "dialects"),
        "z.h5": ("diarize", "plain.wav", *TINY, "--speakers", "{x}"),
        "x.yaml": ("convert", "checkpoints/avg_model.pt", "{d}/out", "--config", "{x}"),
        "config.json": ("embed", "plain.wav", "--no-vad", "--model", "{d}", *HEARD),
    }
    for kind, make in makers.items():
        for name, command in reads.items():

            def lay(
                folder: Path, make: Callable[[Path], None] = make, name: str = name, command: tuple[str, ...] = command
            ) -> list[str]:
                make(folder / name)
                return [part.replace("{x}", str(folder / name)).replace("{d}", str(folder)) for part in command]

            yield Hostile(f"special file {kind}", lay, refused=kind != "folder" or command[0] != "info")


def holes() -> Iterator[Hostile]:
    """Files of a terabyte that hold next to nothing: a beginning, and then a hole."""
    beginnings = {
        "x.ark": (b"", b"key ", b"key  [ 1", b"key \0BFM \4\0\0\0\x7f\4\0\1\0\0", b"key \0BCM " + b"\1" * 16),
        "x.scp": (b"", b"key x.ark:0\n"),
        "x.csv": (b"", b"name,e0\na,1\n", b'name,e0\n"'),
        "x.npz": (b"", b"PK\3\4"),
        "x.gz": (b"", b"\x1f\x8b\x08\0\0\0\0\0\0\0"),
        "x.pt": (b"", b"PK\3\4", b"\x80\x02"),
        "x.safetensors": (b"", (100).to_bytes(8, "little") + b"{}"),
        "x.h5": (b"", b"\x89HDF\r\n\x1a\n"),
    }
    commands: dict[str, tuple[str, ...]] = {
        "x.tsv": ("train", "emb.h5", "-o", "{d}/out", "--split", "{x}"),
        "y.csv": ("convert", "corpus", "{d}/out.h5", "--labels", "{x}"),
        "z.csv": ("train", "emb.h5", "-o", "{d}/out", "--groups", "{x}"),
        "x.rttm": ("diarize", "plain.wav", *TINY, "--segmentation", "silero", "--reference", "{x}"),
        "x.uem": ("diarize", "plain.wav", *TINY, "--reference", "turns.rttm", "--uem", "{x}"),
        "x.txt": ("verify", "{x}", "emb.h5"),
        "x.json": ("diarize", "kept.h5", "--corrections", "{x}"),
        "x.toml": ("train", "audio.h5", "--recipe", "{x}", "-o", "{d}/out"),
        "x.tar": ("train", "{x}", "--recipe", "recipe.toml", "-o", "{d}/out", *HEARD),
        "x.yaml": ("convert", "checkpoints/avg_model.pt", "{d}/out", "--config", "{x}"),
        "config.json": ("embed", "plain.wav", "--no-vad", "--model", "{d}", *HEARD),
    }
    for name in (*beginnings, *commands):
        for beginning in beginnings.get(name, (b"", b"a b\n")):

            def lay(folder: Path, name: str = name, beginning: bytes = beginning) -> list[str]:
                with (folder / name).open("wb") as file:
                    file.write(beginning)
                    file.truncate(1 << 40)
                command = commands.get(name, CONVERT)
                return [part.replace("{x}", str(folder / name)).replace("{d}", str(folder)) for part in command]

            yield Hostile("hole", lay, True)


def foreign_files() -> Iterator[Hostile]:
    """Files of others where ours are written: they stay as they are, with `--force` too."""
    writing = {
        "out.h5": ("convert", "corpus", "{d}/out.h5", "--force"),
        "emb.h5": ("embed", "corpus", *TINY, "-o", "{d}/emb.h5", "--force"),
        "out": ("train", "emb.h5", "-o", "{d}/out", "--force"),
        "page": ("evaluate", "emb.h5", "--model", "dialects", "--draws", "2", "--report", "{d}/page", "--force"),
        "net": ("train", "audio.h5", "--recipe", "recipe.toml", "-o", "{d}/net", *HEARD, "--force"),
    }
    for name, command in writing.items():
        for place in (
            name,
            f"{name}.parts",
            f"{name}.training",
            f"{name}.training/network",
            f".{name}.part",
            f"{name}.tmp",
            f"{name}/data",
            f"{name}/figures",
            f".{name}.lock",
            f".{name}.0.part",
        ):
            for file in ("thesis.txt", "config.json", "0.h5", "owner"):

                def lay(
                    folder: Path, place: str = place, file: str = file, command: tuple[str, ...] = command
                ) -> list[str]:
                    (folder / place).mkdir(parents=True)
                    (folder / place / file).write_text("mine")
                    return [part.replace("{d}", str(folder)) for part in command]

                yield Hostile("foreign file", lay)


def everything(seeds: Path) -> list[Hostile]:
    """All hostile inputs, in a fixed order in which kinds take turns."""
    sources = (
        playlists,
        headers,
        names,
        arrays,
        compressed,
        stores,
        checkpoints,
        tables,
        options,
        special_files,
        holes,
        foreign_files,
    )
    columns = [list(source()) for source in sources]
    columns.append(
        [Hostile(kind, lambda folder, lay=lay: lay(folder, seeds), refused) for kind, lay, refused in models()]
    )
    longest = max(map(len, columns))
    return [
        column[int(place * len(column) / longest)]
        for place in range(longest)
        for column in columns
        if int(place * len(column) / longest) != int((place - 1) * len(column) / longest) or place == 0
    ]


def hostile_case(number: int, all_of_them: list[Hostile], seeds: Path, port: int, folder: Path) -> Case:
    """Lay out one of them in a new folder."""
    one = all_of_them[number]
    folder.mkdir(parents=True)
    arguments = one.lay(folder)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 16 and path.suffix != ".h5":
            data = path.read_bytes()
            if b"{port}" in data or b"{seeds}" in data:
                path.write_bytes(data.replace(b"{port}", str(port).encode()).replace(b"{seeds}", str(seeds).encode()))
    canaries = [seeds / PLANTED, folder / PLANTED, Path("/tmp") / PLANTED]
    return Case(
        str(number), one.kind, arguments, folder, refused=one.refused, canaries=canaries, untouched=judge.state(folder)
    )
