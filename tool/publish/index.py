"""A package index as files: HTML (PEP 503) and JSON (PEP 691, with the sizes and versions of PEP 700).

Every link is relative, so the folder can be served from any address. A server of plain files answers with
the HTML pages. One that looks at the Accept header can answer with ``index.v1_json``, whose name is the one
that mirrors of PyPI use.

https://packaging.python.org/en/latest/specifications/simple-repository-api/
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from packaging.version import Version

PROJECT: Final = "sglang"
_TO_FILES: Final = "../../"
"""From a project's page, ``simple/sglang/``, to the folder that holds the wheels."""


@dataclass(frozen=True)
class IndexFile:
    """One wheel: its name, sha256 in hex, size in bytes, and the Requires-Python of its METADATA."""

    filename: str
    version: Version
    sha256: str
    size: int
    requires_python: str | None


def render_index(files: Sequence[IndexFile]) -> dict[str, bytes]:
    """Path → content of every page."""
    ordered = sorted(files, key=lambda file: (file.version, file.filename))
    projects = f'<a href="{PROJECT}/">{PROJECT}</a><br>'
    return {
        "simple/index.html": _render_page("Simple index", [projects]),
        "simple/index.v1_json": _render_json({"projects": [{"name": PROJECT}]}),
        f"simple/{PROJECT}/index.html": _render_page(
            f"Links for {PROJECT}", [_render_link(file) for file in ordered]
        ),
        f"simple/{PROJECT}/index.v1_json": _render_json(
            {
                "name": PROJECT,
                "versions": list(dict.fromkeys(str(file.version) for file in ordered)),
                "files": [_describe(file) for file in ordered],
            }
        ),
    }


def _render_link(file: IndexFile) -> str:
    attribute = ""
    if file.requires_python is not None:
        attribute = f' data-requires-python="{html.escape(file.requires_python)}"'
    name = html.escape(file.filename)
    return f'<a href="{_link(file)}#sha256={file.sha256}"{attribute}>{name}</a><br>'


def _render_page(title: str, rows: Sequence[str]) -> bytes:
    lines = [
        "<!DOCTYPE html>",
        "<html>",
        f'<head><meta name="pypi:repository-version" content="1.0"><title>{title}</title></head>',
        "<body>",
        *rows,
        "</body>",
        "</html>",
    ]
    return ("\n".join(lines) + "\n").encode()


def _render_json(body: dict[str, Any]) -> bytes:
    page = {"meta": {"api-version": "1.1"}, **body}
    return (json.dumps(page, indent=2, sort_keys=True) + "\n").encode()


def _describe(file: IndexFile) -> dict[str, Any]:
    described: dict[str, Any] = {
        "filename": file.filename,
        "url": _link(file),
        "hashes": {"sha256": file.sha256},
        "size": file.size,
    }
    if file.requires_python is not None:
        described["requires-python"] = file.requires_python
    return described


def _link(file: IndexFile) -> str:
    return _TO_FILES + quote(file.filename)
