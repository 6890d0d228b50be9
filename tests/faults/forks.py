"""Commands in forked children of a process that has imported `knn` once, so that a run costs what its work costs.

`python -m tests.faults.forks` is that process: it reads one request a line on its standard input, forks a child that
runs the commands, watches it (time, memory, a signal at a moment), and answers in one line. `Server` is its other end.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

TOP = Path(__file__).resolve().parents[2]
# What no command may exceed: seconds of a processor, or without using one (so that a busy machine changes nothing), and
# bytes.
SECONDS, MEMORY = 30.0, 2 << 30
POLL = 0.002
GRACE = 1.0  # for helper processes to notice that their parent is gone


@dataclass
class Outcome:
    """What became of one command."""

    code: int  # exit code, or minus the signal that ended the process
    out: bytes
    err: bytes
    seconds: float
    memory: int  # largest resident size in bytes
    cut: str = ""  # "hang" or "memory", where it was ended for that
    orphans: tuple[str, ...] = ()  # processes that it left behind
    struck: bool = False  # whether the signal that was asked for found it running
    events: int = 0  # where a strike was asked for at one of them: how many there were

    @property
    def text(self) -> str:
        return self.err.decode("utf-8", "replace")


@dataclass
class Request:
    """Commands to run one after the other in one child.

    `alone` runs one command, and lets the child end as a process does, with all that happens at exit; `swift` spares
    that.
    """

    commands: list[list[str]]
    logs: str
    cwd: str
    alone: bool = True
    swift: bool = False
    strike: tuple[int, float] | None = None  # a signal, and seconds after the start
    strike_at: tuple[int, int] | None = None  # a signal, and an event, as `tests.helpers.struck` counts them
    seconds: float = SECONDS
    memory: int = MEMORY
    file_size: int | None = None
    user: int | None = None
    closed: tuple[int, ...] = ()  # descriptors that are closed beforehand
    environment: dict[str, str] = field(default_factory=dict)


# ---- in the process that has imported everything ----


def import_everything() -> None:
    import importlib

    for path in sorted((TOP / "knn_cli").rglob("*.py")):
        parts = path.relative_to(TOP).with_suffix("").parts
        if parts[-1] != "__main__":
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    for name in (
        "h5py",
        "soundfile",
        "soxr",
        "safetensors.torch",
        "rich.progress",
        "yaml",
        "silero_vad",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
        "matplotlib.pyplot",
        "pandas",
        "pyannote.core",
        "av",
    ):
        try:
            importlib.import_module(name)
        except (ImportError, OSError):
            continue
    import torch

    torch.set_num_threads(1)
    file = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, file)
    file.seek(0)
    torch.load(file, weights_only=True)  # imports more when it is first used
    torch.optim.AdamW([torch.zeros(2, requires_grad=True)])


def prepare(request: dict[str, Any]) -> None:
    """Make the child what a fresh process would be."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + 3 * request["memory"]  # protects the machine: the limit itself is watched from outside
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["file_size"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself has it
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])


def redirect(request: dict[str, Any], number: int) -> None:
    """Point the standard streams, of Python and of C, to the files of a command."""
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123
    os.dup2(sys.stdin.fileno(), 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{request['logs']}.{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    for descriptor in request["closed"]:
        os.close(descriptor)
        setattr(sys, {1: "stdout", 2: "stderr"}[descriptor], None)


def command(arguments: list[str]) -> int:
    """Run `knn` as its script does, in a child that goes on."""
    from knn_cli.__main__ import main

    sys.argv = ["knn", *arguments]
    try:
        main()
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1


def batch(request: dict[str, Any], progress: int) -> None:
    """Run all commands of a request in this child, and leave at once."""
    import random

    import numpy as np
    import torch

    for number, arguments in enumerate(request["commands"]):
        redirect(request, number)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        os.write(progress, b"%d " % number)  # begun
        started = time.monotonic()
        code = command(arguments)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os.write(progress, b"%d %d\n" % (code, int(1000 * (time.monotonic() - started))))
    os._exit(0)


def members(session: int) -> dict[int, str]:
    """Living processes of a session: number -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                )
        except (OSError, IndexError):
            continue
    return found


def resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def processor(process: int) -> float:
    """Seconds of a processor that a process has used."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def watch(child: int, request: dict[str, Any], ready: int, progress: int) -> dict[str, Any]:
    """Wait for a child; end it where it takes too long or too much, strike it where that is asked for."""
    with os.fdopen(ready, "rb") as pipe:
        pipe.read(1)  # it is about to run its first command
    os.set_blocking(progress, False)
    told, started = b"", time.monotonic()
    begun = spent = 0.0  # processor seconds when the present command began, and when some were last used
    active, cut, struck, peak, step = started, "", False, 0, 0
    while True:
        process, status, _ = os.wait4(child, os.WNOHANG)
        if process:
            break
        now = time.monotonic() - started
        if request["strike"] is not None and not struck and now >= request["strike"][1]:
            os.kill(child, request["strike"][0])
            struck = True
        if step % 4 == 0:
            peak = max(peak, resident(child))
            used = processor(child)
            if used > spent:
                spent, active = used, time.monotonic()
            with suppress(BlockingIOError):
                if piece := os.read(progress, 1 << 16):
                    told, begun, active = told + piece, used, time.monotonic()
        slow = spent - begun > request["seconds"] or time.monotonic() - active > request["seconds"]
        if not cut and (peak > request["memory"] or slow):
            cut = "memory" if peak > request["memory"] else "hang"
            os.kill(child, signal.SIGKILL)
        step += 1
        time.sleep(POLL)
    seconds = time.monotonic() - started
    left, patience = members(child), time.monotonic() + GRACE
    while left and time.monotonic() < patience:
        time.sleep(0.02)
        left = members(child)
    for other in left:
        os.kill(other, signal.SIGKILL)
    with suppress(BlockingIOError):
        while piece := os.read(progress, 1 << 16):
            told += piece
    os.close(progress)
    return {
        "status": status,
        "cut": cut,
        "struck": struck,
        "memory": peak,
        "seconds": seconds,
        "orphans": list(left.values()),
        "progress": told.decode(),
    }


def serve() -> tuple[dict[str, Any], int, int] | None:
    """Answer requests until the input ends; in a child: the request, where to tell its beginning and its progress."""
    import gc

    import_everything()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        ready, begun = os.pipe()
        progress, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ready)
            os.close(progress)
            return request, begun, told
        os.close(begun)
        os.close(told)
        answer = watch(child, request, ready, progress)
        print(json.dumps(answer), file=answers)
    return None


# ---- in the process that asks ----


class Server:
    """The other end: starts such a process and asks it."""

    def __init__(self, environment: dict[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KNN_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TOP,
            env={
                **inherited,
                "PYTHONPATH": str(TOP),
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "PYTHONHASHSEED": "0",
                **environment,
            },
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process that runs the commands has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: Request) -> list[Outcome]:
        """Run the commands of a request; fewer outcomes than commands where one of them ended the child."""
        assert self.process.stdin is not None
        print(json.dumps(vars(request)), file=self.process.stdin, flush=True)
        answer = self._answer()
        status = answer["status"]
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        outcomes = []
        if request.alone:
            ends = [(code, answer["seconds"])]
        else:
            words = [line.split() for line in answer["progress"].splitlines()]
            ends = [(int(one[1]), int(one[2]) / 1000) if len(one) == 3 else (code, answer["seconds"]) for one in words]
        for number, (ended, seconds) in enumerate(ends):
            streams = [Path(f"{request.logs}.{number}.{name}") for name in ("out", "err")]
            out, err = (path.read_bytes() if path.exists() else b"" for path in streams)
            outcome = Outcome(ended, out, err, seconds, answer["memory"], struck=answer["struck"])
            if request.strike_at is not None:
                outcome.events = int(answer["progress"] or 0)
                outcome.struck = not 0 < outcome.events < request.strike_at[1]
            outcomes.append(outcome)
        outcomes[-1].cut, outcomes[-1].orphans = answer["cut"], tuple(answer["orphans"])
        return outcomes

    def run(self, arguments: list[str], logs: Path, cwd: Path, **more: Any) -> Outcome:
        """Run one command as a process of its own would run."""
        return self.ask(Request([arguments], str(logs), str(cwd), **more))[0]

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def work_off(
    items: list[Item],
    servers: Sequence[Server],
    place: Path,
    work: Callable[[Server, Item, Path], None],
    until: Callable[[], bool],
) -> None:
    """Take items from the end of a list until none is left or the time is up; each server has a folder `place-N`."""
    lock = threading.Lock()

    def worker(server: Server, folder: Path) -> None:
        while not until():
            with lock:
                if not items:
                    return
                item = items.pop()
            work(server, item, folder)

    threads = [
        threading.Thread(target=worker, args=(server, place.with_name(f"{place.name}-{index}")))
        for index, server in enumerate(servers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def no_network() -> None:
    """Refuse every connection that Python code makes, and let it be seen."""

    def refuse(self: socket.socket, address: object, *_: object) -> None:
        raise AssertionError(f"a connection to {address!r} was tried")

    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]
    socket.socket.connect_ex = refuse  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    asked = serve()
    if asked is not None:
        request, begun, told = asked
        prepare(request)
        if not request["alone"]:
            os.write(begun, b"x")
            os.close(begun)
            no_network()
            batch(request, told)
        redirect(request, 0)
        sys.argv = ["knn", *request["commands"][0]]
        from tests.helpers import struck

        number, moment = request["strike_at"] or (0, 0)
        strike = struck.Strike(moment, number)

        def begin() -> None:
            os.write(begun, b"x")
            os.close(begun)
            if request["strike_at"] is not None:
                strike.begin()

        struck.when_it_begins(begin)
        if not request["swift"]:
            struck.program.main()
        code = command(request["commands"][0])
        strike.end()
        if strike.count:
            os.write(told, b"%d" % strike.count)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
