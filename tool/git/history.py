"""Commits as objects: parents and message, read without any setting of a log."""

from __future__ import annotations

from dataclasses import dataclass

from tool.git.repository import Git


@dataclass(frozen=True)
class Commit:
    """``message`` is decoded as the commit's ``encoding`` header says (UTF-8 without one)."""

    oid: str
    parents: tuple[str, ...]
    message: str

    @property
    def summary(self) -> str:
        return self.message.partition("\n")[0]


def list_commits(git: Git, base: str, head: str) -> tuple[Commit, ...]:
    """The commits of ``head`` that are not in ``base``, oldest first."""
    oids = git.out("rev-list", "--reverse", "--topo-order", f"{base}..{head}").split()
    return tuple(_parse(oid, content) for oid, content in git.read_objects(oids).items())


def _parse(oid: str, content: bytes) -> Commit:
    head, _, message = content.partition(b"\n\n")
    lines = [line.partition(b" ") for line in head.split(b"\n")]
    parents = tuple(value.decode() for key, _, value in lines if key == b"parent")
    encodings = [value.decode("ascii", "replace") for key, _, value in lines if key == b"encoding"]
    try:
        return Commit(oid, parents, message.decode(encodings[0] if encodings else "utf-8"))
    except (LookupError, UnicodeDecodeError):
        return Commit(oid, parents, message.decode("utf-8", "replace"))
