"""A Hugging Face hub on this machine: a few repositories, and what can go wrong with a download."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class FakeHub:
    """Repositories by name, each with its files by path; and what is to go wrong, and what was asked for.

    `large` files have a SHA-256, as with Git LFS, the others git's SHA-1. Of a file in `drops` the connection ends
    after so many bytes, each time once; `altered` files have another last byte; `gated` repositories and `failing`
    paths answer with an error. `ignores_ranges` sends everything again.
    """

    repositories: dict[str, dict[str, bytes]]
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    drops: dict[str, list[int]] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    failing: dict[str, int] = field(default_factory=dict)
    ignores_ranges: bool = False
    large: tuple[str, ...] = (".safetensors", ".bin", ".pt", ".ckpt", ".nemo")
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def info(self, name: str) -> dict[str, Any]:
        """The hub's description of a repository."""
        files = [{"rfilename": path, **self.hashes(path, data)} for path, data in self.repositories[name].items()]
        return {"id": name, "sha": COMMIT, "siblings": files, "cardData": self.cards.get(name), "tags": []}

    def hashes(self, path: str, data: bytes) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        if path.endswith(self.large):
            facts["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return facts


@contextmanager
def served(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub at a port of this machine, which `hub.url` names."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self.describe(name, revision)
                return
            name, _, rest = path.lstrip("/").partition("/resolve/")
            self.send_file(name, rest.partition("/")[2])

        def describe(self, name: str, revision: str) -> None:
            if name not in hub.repositories:
                self.refuse(401, "RepoNotFound")
            elif revision not in ("", "main", "v1", COMMIT):
                self.refuse(404, "RevisionNotFound")
            else:
                self.answer(200, json.dumps(hub.info(name)).encode(), {"Content-Type": "application/json"})

        def send_file(self, name: str, path: str) -> None:
            asked = self.headers["Range"]
            hub.asked.append((path, asked))
            if name in hub.gated:
                self.refuse(403, "GatedRepo")
                return
            if path in hub.failing:
                self.refuse(hub.failing[path], "")
                return
            data = hub.repositories[name][path]
            if path in hub.altered:
                data = data[:-1] + bytes([data[-1] ^ 1])
            start = 0 if asked is None or hub.ignores_ranges else int(asked.removeprefix("bytes=").rstrip("-"))
            end = start + hub.drops[path].pop(0) if hub.drops.get(path) else None
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:end])
            if end is not None:
                self.close_connection = True
                self.wfile.flush()

        def refuse(self, status: int, code: str) -> None:
            self.answer(status, b"", {"X-Error-Code": code} if code else {})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
