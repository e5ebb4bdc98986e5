"""Ways in which an index fails or lies, one by one. pip is real; the index is on the loopback interface.

Whatever it does: no traceback, no hang, no success, the project as it was, and nothing in the cache that
series.lock does not hold. A failure is told from a release that does not exist. A sample runs by default; the
whole table with ``-m exhaustive``.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Final

import pytest

from tests.support.index import Answer, Index
from tests.support.lab import NEXT, RELEASE, TREE, Lab, write_wheel
from tests.tool.wheel.test_zip_structure import FORGED

PATIENCE = 90
"""Seconds; pip gives up after two without a word."""
Handler = BaseHTTPRequestHandler


def send(code: int, headers: Mapping[str, str], body: bytes) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        if "Content-Length" not in headers:
            handler.close_connection = True

    return answer


def status(code: int) -> Answer:
    return send(code, {"Content-Length": "0", "Retry-After": "0"}, b"")


def serve_as(
    change: Callable[[bytes], bytes] = lambda body: body,
    *,
    stated: Callable[[int], int] = lambda size: size,
    **headers: str,
) -> Answer:
    """The right answer with other bytes, another stated length, or other headers."""

    def answer(handler: Handler, body: bytes) -> None:
        kind = "text/html" if handler.path.startswith("/simple/") else "application/octet-stream"
        sent = change(body)
        handler.send_response(200)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": kind, **named}.items():
            handler.send_header(name, value)
        if "Transfer-Encoding" not in named:
            handler.send_header("Content-Length", str(stated(len(sent))))
        handler.end_headers()
        handler.wfile.write(sent)
        handler.close_connection = True

    return answer


def raw(data: bytes) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def reset(handler: Handler, _: bytes) -> None:
    """The connection ends with an error, not with an end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def stall(handler: Handler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(body) + 1))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    time.sleep(6)
    handler.close_connection = True


def say_nothing(handler: Handler, _: bytes) -> None:
    time.sleep(6)
    handler.close_connection = True


def redirect(to: str, code: int = 302) -> Answer:
    return send(code, {"Location": to, "Content-Length": "0"}, b"")


def other_wheel(_: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("sglang/__init__.py", "import os\n")
        info = f"sglang-{RELEASE}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Name: sglang\nVersion: {RELEASE}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return out.getvalue()


STATUSES: Final = (
    400, 401, 402, 403, 405, 406, 407, 408, 409, 411, 413, 414, 418, 421, 429, 431, 451,
    500, 501, 502, 503, 504, 505, 507, 508, 511, 599,
)  # fmt: skip
WIRE: Final[Mapping[str, Answer]] = {
    **{f"status {code}": status(code) for code in STATUSES},
    "closed at once": raw(b""),
    "reset": reset,
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "half a status line": raw(b"HTTP/1.1 20"),
    "headers cut": raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/ht"),
    "headers without an end": raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200),
    "a header of 100 KB": raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"),
    "a length that is no number": raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
    "body cut": serve_as(lambda body: body[: len(body) // 2], stated=lambda size: size * 2),
    "body missing": serve_as(lambda body: b"", stated=lambda size: 1000),
    "chunks cut": serve_as(lambda b: b"40\r\n" + b[:20], Transfer_Encoding="chunked"),
    "chunks of no length": serve_as(lambda b: b"zz\r\n" + b[:20], Transfer_Encoding="chunked"),
    "not the gzip it says": serve_as(Content_Encoding="gzip"),
    "stalled": stall,
    "no answer": say_nothing,
    "redirected to itself": lambda handler, body: redirect(handler.path)(handler, body),
    "redirected to nobody": redirect("http://127.0.0.1:9/simple/"),
    "redirected to no host": redirect("http://nobody.invalid/simple/"),
    "redirected to a file": redirect("file:///etc/passwd"),
    "redirected nowhere": send(302, {"Content-Length": "0"}, b""),
}  # fmt: skip
"""On the page and on the file alike."""
UNSEEN: Final = ("body cut", "body missing", "an API of the future")
"""pip takes these pages for whole ones that list nothing. The release is then unknown: exit code 2."""
PAGES: Final[Mapping[str, Answer]] = {
    "a page of text": send(200, {"Content-Type": "text/plain", "Content-Length": "2"}, b"no"),
    "a page of no type": send(200, {"Content-Length": "4"}, b"<a>x"),
    "an image": send(200, {"Content-Type": "image/png", "Content-Length": "4"}, b"\x89PNG"),
    "JSON that is cut": send(
        200, {"Content-Type": "application/vnd.pypi.simple.v1+json", "Content-Length": "12"},
        b'{"files": [{'),
    "JSON of another kind": send(
        200, {"Content-Type": "application/vnd.pypi.simple.v1+json", "Content-Length": "2"},
        b"[]"),
    "an API of the future": send(
        200, {"Content-Type": "application/vnd.pypi.simple.v1+json", "Content-Length": "40"},
        b'{"meta": {"api-version": "9.0"}, "x": 1}'),
}  # fmt: skip
FILES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "other content": other_wheel,
    "nothing": lambda body: b"",
    "a page": lambda body: b"<!DOCTYPE html><title>Sign in</title>",
    "a byte changed": lambda body: body[:60] + bytes([body[60] ^ 1]) + body[61:],
    "a byte more": lambda body: body + b"\0",
    "half": lambda body: body[: len(body) // 2],
    "zeros": lambda body: bytes(len(body)),
}
"""In place of the locked wheel, with a length that fits."""


@pytest.fixture
def index(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The index has the next release too, and pip gives up soon."""
    write_wheel(index.folder, NEXT, TREE)
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "2")
    monkeypatch.chdir(tmp_path)
    return index


def sample(names: Mapping[str, object], *chosen: str) -> list[object]:
    marks = pytest.mark.exhaustive
    return [n if n in chosen else pytest.param(n, marks=marks) for n in names]


LOCK = ("lock", "--sglang-ref", f"v{NEXT}", "--quiet")
APPLY = ("apply", "--quiet", "--into", "fork")


def refuse(lab: Lab, command: tuple[str, ...], *codes: int) -> None:
    """Nothing but a refusal: no traceback, no hang, no change, nothing kept."""
    before = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}
    begin = time.monotonic()
    result = lab.tool(*command, code=None)
    assert time.monotonic() - begin < PATIENCE
    assert result.exit_code in codes and "Traceback" not in result.stderr, result.stderr
    assert "  next: " in result.stderr and "error: " in result.stderr
    assert {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()} == before
    assert list(lab.home.wheels.glob("*")) == [] and not Path("fork").exists()


@pytest.mark.parametrize("name", sample(WIRE, "status 402", "not HTTP"))
def test_the_list_of_files_fails(lab: Lab, index: Index, name: str) -> None:
    index.on_page = WIRE[name]
    refuse(lab, LOCK, 2 if name in UNSEEN else 6, 6)


@pytest.mark.parametrize("name", sample(WIRE, "body cut"))
def test_the_download_fails(lab: Lab, index: Index, name: str) -> None:
    if name == "not the gzip it says":
        pytest.skip("pip does not decode a file, so it is the right one")
    index.on_file = WIRE[name]
    refuse(lab, APPLY, 6)


@pytest.mark.parametrize("name", sample(PAGES, "JSON that is cut"))
def test_a_page_that_is_no_list(lab: Lab, index: Index, name: str) -> None:
    index.on_page = PAGES[name]
    refuse(lab, LOCK, 2 if name in UNSEEN else 6, 6)


@pytest.mark.parametrize("name", sample(FILES, "a page"))
def test_another_file_than_the_locked_one(lab: Lab, index: Index, name: str) -> None:
    index.on_file = serve_as(FILES[name])
    refuse(lab, APPLY, 5, 6)


@pytest.mark.parametrize(
    "url",
    sample(dict.fromkeys(["https", "nobody", "no TLS", "a folder", "a file", "ftp"]), "no TLS"),
)
@pytest.mark.parametrize("command", [LOCK, APPLY])
def test_the_address_is_wrong(
    lab: Lab, index: Index, monkeypatch: pytest.MonkeyPatch, url: str, command: tuple[str, ...]
) -> None:
    address = {
        "https": index.url.replace("http:", "https:"),  # TLS to a port that speaks none
        "nobody": "http://127.0.0.1:9/simple/",
        "no TLS": "http://nobody.invalid/simple/",  # pip ignores it, with a warning
        "a folder": "file:///nonexistent/simple/",
        "a file": "file:///etc/passwd",
        "ftp": "ftp://127.0.0.1/simple/",
    }[url]
    monkeypatch.setenv("PIP_INDEX_URL", address)
    # A folder that is not there is for pip one without this project.
    refuse(lab, command, 2 if url in ("a folder", "a file") else 6)


@pytest.mark.parametrize("name", sample(FORGED, "encrypted"))
def test_a_new_wheel_with_a_forged_structure(lab: Lab, index: Index, name: str) -> None:
    """Nothing is known of a wheel that is not locked yet. It is locked or refused."""
    path = index.folder / f"sglang-{NEXT}-py3-none-any.whl"
    path.write_bytes(make_forgery(name))
    result = lab.tool(*LOCK, code=None)
    assert result.exit_code in (0, 2, 5, 6) and "Traceback" not in result.stderr, result.stderr


def make_forgery(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("sglang/")
        archive.writestr("sglang/__init__.py", b"")
        archive.writestr("sglang/a.py", b"A = 1\n" * 50)
        archive.writestr("sglang/\u00e9.py", b"E = 1\n")
        archive.writestr("sglang/b/c.py", bytes(range(256)))
        for path, text in TREE.items():
            if path != "sglang/__init__.py":
                archive.writestr(path, text)
    with contextlib.suppress(ValueError, IndexError):
        return FORGED[name](out.getvalue())
    return b""
