"""A web server on this machine: a few files, and what can go wrong when they are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FakeSite:
    """Files by path, such as "/a.wav".

    Of a file in `broken` half is sent, so many times; a path in `failing` is answered with each of these codes once;
    `moved` leads from a path to another URL. `asked` has path, query, range and credentials of each request.
    """

    files: dict[str, bytes]
    broken: dict[str, int] = field(default_factory=dict)
    failing: dict[str, list[int]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    ignores_ranges: bool = False
    asked: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def served(site: FakeSite) -> Iterator[FakeSite]:
    """The site at a port of this machine, which `site.url` names."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path, span = unquote(parts.path), self.headers["Range"]
            site.asked.append((path, parts.query, span, self.headers["Authorization"]))
            if codes := site.failing.get(path):
                self.answer(codes.pop(0), b"")
            elif path in site.moved:
                self.answer(302, b"", Location=site.moved[path])
            elif path not in site.files:
                self.answer(404, b"")
            else:
                self.send(site.files[path], path, None if site.ignores_ranges else span)

        def send(self, data: bytes, path: str, span: str | None) -> None:
            tag = {"ETag": f'"{hash(data)}"'}
            if span is not None:
                first, last = span.removeprefix("bytes=").split("-")
                part = data[int(first) : int(last) + 1 if last else None]
                self.answer(206, part, **{"Content-Range": f"bytes {first}-{last}/{len(data)}"}, **tag)
                return
            if site.broken.get(path):
                site.broken[path] -= 1
                self.answer(200, data, sent=len(data) // 2, **tag)
                return
            self.answer(200, data, **tag)

        def answer(self, code: int, data: bytes, sent: int | None = None, **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data[:sent])
            self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
