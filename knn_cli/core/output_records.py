"""Which outputs may be replaced, and which are finished: those that a command wrote and nobody changed since.

In the folder of outputs lies `.knn-outputs.jsonl`, with a line for each file that was written there:

    {"name", "size", "mtime_ns", "sha256", "command": "diarize", "task": digest, "source": [path, size, mtime_ns]}

where the digest covers all that the content follows from: sources, options, models, version. `source` is the recording
of an output that has one, by its path from the folder: an output of another recording is not replaced. The line is
added before the file takes its name, so that a process that is killed leaves no output of ours that is unknown. Of
several lines of one name, any may be that of the file that is there. A record that is damaged, or cannot be written,
costs nothing but this knowledge: the files count as those of others.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from knn_cli.core.errors import KnnError
from knn_cli.core.file_digests import file_sha256
from knn_cli.core.folders import is_regular
from knn_cli.core.locks import NO_FOLLOW
from knn_cli.core.output_paths import is_stream, resolved
from knn_cli.core.urls import UrlPath

RECORD = ".knn-outputs.jsonl"

State = Literal["missing", "unchanged", "changed", "another", "others", "unknown"]
_HASHED_BYTES = 64 << 20  # of larger files an unchanged time of change is believed
_MAX_RECORD_BYTES = 256 << 20
_TEXTS = ("name", "sha256", "command", "task")  # fields of a line that are texts
_HINT = (
    "Replace it with `force=True`, or keep the old one under another name with `backup=True`, or name another output."
)


@dataclass(frozen=True)
class OutputTask:
    """What makes an output.

    Attributes
    ----------
    command : str
        Name of the command, such as "diarize".
    digest : str
        Of all that the output follows from; "" where it is not known, so that the output never counts as finished.
    backup : bool
        Whether a file that the command did not write, or that was changed since, is kept under another name.
    source : Path, optional
        The recording of an output that has one of its own.
    """

    command: str
    digest: str = ""
    backup: bool = False
    source: Path | None = None


class OutputRecords:
    """The records of folders, each read once: what is known of the files in them."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[dict[str, Any]]]] = {}

    def state(self, path: Path, task: OutputTask) -> State:
        """What is known of a file.

        Returns
        -------
        str
            "missing": there is none, or an empty one of others, or what is never replaced, such as a pipe;
            "unchanged": the task's command wrote it as it is; "another": so it did, but of another recording than the
            task's; "changed": the command wrote it, and it is another one now; "others": another command wrote it;
            "unknown": nothing says who did.
        """
        target = resolved(path)
        if is_stream(target) or not target.is_file():
            return "missing"
        lines = self._lines(target)
        line = next((line for line in reversed(lines) if _is_file_of(line, target)), None)
        if line is None:
            return ("changed" if lines else "unknown") if target.stat().st_size else "missing"
        if line["command"] != task.command:
            return "others"
        return "another" if _is_of_another(line.get("source"), task.source, target) else "unchanged"

    def is_finished(self, path: Path, task: OutputTask, *, changed: bool = False) -> bool:
        """Whether the file is there and this very task wrote it; with `changed`, also where it was changed since."""
        fine = ("unchanged", "changed") if changed else ("unchanged",)
        if not task.digest or self.state(path, task) not in fine:
            return False
        target = resolved(path)
        lines = [line for line in self._lines(target) if changed or _is_file_of(line, target)]
        return bool(lines) and (lines[-1]["command"], lines[-1]["task"]) == (task.command, task.digest)

    def _lines(self, target: Path) -> list[dict[str, Any]]:
        if target.parent not in self._folders:
            self._folders[target.parent] = _read(target.parent / RECORD)
        return self._folders[target.parent].get(target.name, [])


def check_replaceable(
    tasks: Mapping[Path, OutputTask], *, force: bool = False, records: OutputRecords | None = None
) -> None:
    """Refuse to replace files that the command did not write, that were changed since, or that are of other recordings.

    Parameters
    ----------
    tasks : mapping of Path to OutputTask
        What makes each output, all by one command; with its `backup`, nothing is refused.
    force : bool
        Replace whatever is there.
    records : OutputRecords, optional

    Raises
    ------
    KnnError
        For the first of such files, with their number.
    """
    records = records or OutputRecords()
    states = {path: records.state(path, task) for path, task in tasks.items() if not (force or task.backup)}
    kept = {path: state for path, state in states.items() if state not in ("missing", "unchanged")}
    if not kept:
        return
    path, state = next(iter(kept.items()))
    task = tasks[path]
    why = {
        "another": f"and is of another recording than {task.source}",
        "changed": f"and was changed since `knn {task.command}` wrote it",
        "others": f"and was not written by `knn {task.command}`",
        "unknown": f"and nothing says that `knn {task.command}` wrote it",
    }[state]
    more = f" So it is with {len(kept)} of {len(tasks)} outputs." if len(kept) > 1 else ""
    raise KnnError(f"{path} exists already, {why}.{more}", _HINT)


def add_line(part: Path, target: Path, task: OutputTask) -> None:
    """Note a complete file that is about to take its name; nothing happens where the record cannot be written."""
    status = part.stat()
    line = {
        "name": target.name,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": file_sha256(part),
        "command": task.command,
        "task": task.digest,
    }
    if task.source is not None and (made_of := _source_stamp(task.source, target)) is not None:
        line["source"] = made_of
    with suppress(OSError):
        file = os.open(target.parent / RECORD, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)
        try:
            if not stat.S_ISREG((found := os.fstat(file)).st_mode):
                return
            text = json.dumps(line).encode() + b"\n"  # ASCII: names may be no text
            is_torn = found.st_size and os.pread(file, 1, found.st_size - 1) != b"\n"
            os.write(file, b"\n" + text if is_torn else text)
        finally:
            os.close(file)


def note_incomplete(path: Path, task: OutputTask) -> None:
    """Note that a file which a task has written lacks something, so that the task is not finished."""
    if not is_stream(target := resolved(path)):
        add_line(target, target, replace(task, digest=""))


def keep_old(target: Path, task: OutputTask) -> Path | None:
    """Keep a file that is about to be replaced as NAME.bak, NAME.1.bak, ...; None for one that need not be kept.

    The file keeps its own name until the new one takes it. Older such files stay, and one of the same content is
    enough.

    Raises
    ------
    OSError
        Where the copy cannot be made; nothing is then replaced.
    """
    if not task.backup or OutputRecords().state(target, task) in ("missing", "unchanged"):
        return None
    digest, number = file_sha256(target), 0
    while True:
        backup = target.with_name(f"{target.name}.{number}.bak" if number else f"{target.name}.bak")
        number += 1
        if os.path.lexists(backup):
            if is_regular(backup) and not backup.is_symlink() and file_sha256(backup) == digest:
                return backup
            continue
        try:
            os.link(target, backup, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links
            with target.open("rb") as old, backup.open("xb") as new:
                shutil.copyfileobj(old, new)
            shutil.copystat(target, backup)
        return backup


def stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of files, and of all files in folders: what tells whether a source changed.

    Bytes and time are -1 for what cannot be looked at.
    """
    found = []
    for path in paths:
        if isinstance(path, UrlPath):
            found.append(_url_stamp(path))
            continue
        inside = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in inside:
            name = file.relative_to(path).as_posix() if file != path else file.name
            try:
                status = file.stat()
            except OSError:
                found.append((name, -1, -1))
            else:
                found.append((name, status.st_size, status.st_mtime_ns))
    return found


def _url_stamp(path: UrlPath) -> tuple[str, int, int]:
    from knn_cli.core import url_reading

    return url_reading.stamp(path)


def _source_stamp(source: Path, target: Path) -> list[Any] | None:
    """Path of a source from the folder of an output, bytes and time of change; None where there is no such file."""
    if isinstance(source, UrlPath):
        return [*_url_stamp(source)]
    try:
        status = source.stat()
    except OSError:
        return None
    place = str(source.resolve())
    with suppress(ValueError):  # on another drive
        place = os.path.relpath(place, target.parent)
    return [place, status.st_size, status.st_mtime_ns]


def _is_of_another(noted: Any, source: Path | None, target: Path) -> bool:
    """Whether an output was made of a recording that neither lies in the place of this one nor is the same file."""
    if not isinstance(noted, list) or source is None or (own := _source_stamp(source, target)) is None:
        return False
    return noted[:1] != own[:1] and noted[1:] != own[1:]


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Name -> lines of a record, in their order; lines that are none are passed over."""
    found: dict[str, list[dict[str, Any]]] = {}
    if path.is_symlink() or not is_regular(path):
        return found
    with suppress(OSError), path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size > _MAX_RECORD_BYTES:
            return found
        for text in stream:
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and all(isinstance(line.get(key), str) for key in _TEXTS):
                    found.setdefault(line["name"], []).append(line)
    return found


def _is_file_of(line: dict[str, Any], target: Path) -> bool:
    """Whether a line of the record is about the file that is there now."""
    status = target.stat()
    if line.get("size") != status.st_size:
        return False
    if status.st_size > _HASHED_BYTES and line.get("mtime_ns") == status.st_mtime_ns:
        return True
    return bool(line["sha256"] == file_sha256(target))
