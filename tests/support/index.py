"""A package index on the loopback interface, which can be told to fail."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import pytest

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]
"""Answers a request in place of the index, which would have sent these bytes."""


class Index:
    """Serves the wheels in ``folder``. ``status`` other than 200 is the answer to everything.

    ``on_page`` and ``on_file`` answer instead where the list of files, or a wheel, is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 200
        self.content_type = "text/html"
        self.on_page: Answer | None = None
        self.on_file: Answer | None = None
        self.requests: list[str] = []
        self.url = ""

    @property
    def pages(self) -> int:
        """How often the list of files was asked for."""
        return sum(path == "/simple/sglang/" for path in self.requests)

    @property
    def downloads(self) -> list[str]:
        """The wheels that were asked for whole, once each."""
        return sorted({unquote(p.rpartition("/")[2]) for p in self.requests if p.endswith(".whl")})


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Index]:
    folder.mkdir(exist_ok=True)
    index = Index(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            index.requests.append(self.path)
            body = self.body() if index.status == 200 else b""
            instead = index.on_page if self.path.startswith("/simple/") else index.on_file
            if instead is not None:
                with contextlib.suppress(OSError):  # whoever asked has had enough
                    instead(self, body or b"")
                return
            self.send_response(404 if body is None else index.status)
            self.send_header("Content-Type", index.content_type)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def body(self) -> bytes | None:
            if self.path == "/simple/sglang/":
                names = sorted(path.name for path in folder.glob("*.whl"))
                rows = (f'<a href="/files/{quote(name)}">{name}</a>' for name in names)
                return ("<!DOCTYPE html><html><body>" + "\n".join(rows)).encode()
            path = folder / unquote(self.path.rpartition("/")[2])
            return path.read_bytes() if self.path.startswith("/files/") and path.is_file() else None

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()


JSON: Final = "application/vnd.pypi.simple.v1+json"


@contextlib.contextmanager
def serve_files(folder: Path, *, negotiates: bool = False) -> Iterator[str]:
    """Serve the files of ``folder`` as they are; the address of its ``simple/``.

    ``negotiates``: who accepts PEP 691's type gets ``index.v1_json`` where a folder has one.
    """

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def send_head(self) -> Any:
            page = Path(self.translate_path(self.path)) / "index.v1_json"
            if negotiates and JSON in self.headers.get("Accept", "") and page.is_file():
                self.path += page.name
            return super().send_head()

        def guess_type(self, path: Any) -> str:
            return JSON if str(path).endswith(".v1_json") else super().guess_type(path)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        server.server_close()


def use(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it pip's only index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
