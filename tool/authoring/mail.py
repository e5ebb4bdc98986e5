"""A diff from elsewhere, plain or as one mail of ``git format-patch``, read strictly.

Foreign diffs often name no whole blobs, so there may be no pre-image to merge from. Such a diff must
apply exactly where its line numbers say: a place found by searching is refused.
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tool.errors import ConflictError, UsageError
from tool.git import NULL_OID, Git, canonical_diff, find_blobs, private_index
from tool.series import patchfile

_DIFF: Final = re.compile(rb"^diff --git ", re.MULTILINE)
_HUNK: Final = re.compile(rb"^@@ -(\d+)", re.MULTILINE)
_SIGNATURE: Final = re.compile(rb"\n-- \n[^\n]*\n*\Z")
_TAG: Final = re.compile(r"^(\[[^\]]*\]\s*)+")


@dataclass(frozen=True)
class Mail:
    """``diff`` begins at its first ``diff --git``; subject and body are empty for a plain diff."""

    subject: str
    body: str
    diff: bytes


def read_mail(name: str, content: bytes) -> Mail:
    """Split ``content`` into words and diff.

    Raises:
        UsageError: there is no git diff, there are several mails, or the words hold a diff of their own,
            which ``git am`` would apply.
    """
    found = _DIFF.search(content)
    if found is None:
        raise UsageError(
            "holds no git diff", where=name, next_step="make one: git format-patch -1 --full-index"
        )
    head, diff = content[: found.start()], content[found.start() :]
    if re.search(rb"^From [0-9a-f]{40} ", diff, re.MULTILINE):
        raise UsageError("holds several mails", where=name, next_step="import them one by one")
    if re.search(rb"^\s*(--- a/|\+\+\+ b/|@@ -\d)", head, re.MULTILINE):
        raise UsageError(
            "its message holds something git would apply as a diff",
            where=name,
            next_step="take it out of the message",
        )
    diff = _SIGNATURE.sub(b"\n", diff)
    if b"\nSubject: " not in b"\n" + head:
        return Mail("", "", diff)
    _, _, rest = head.partition(b"\n") if head.startswith(b"From ") else (b"", b"", head)
    message = email.message_from_bytes(rest, policy=email.policy.default)
    subject = _TAG.sub("", " ".join(str(message["Subject"]).split()))
    payload = message.get_payload(decode=True)
    text = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
    body = re.split(r"^---$", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return Mail(subject, body, diff)


def apply_mail(git: Git, tree: str, mail: Mail, name: str) -> str:
    """``tree`` with the mail's diff, in the places it names.

    Raises:
        ConflictError: it does not apply, or would land on other lines than it says.
        UsageError: it holds what a patch of this series may not.
    """
    _check_places(git, tree, mail.diff, name)
    with private_index(git, tree) as index:
        done = index.run(
            "apply", "--cached", "--whitespace=nowarn", "-p1", "-", stdin=mail.diff, check=False
        )
        if done.returncode != 0:
            raise ConflictError(
                "does not apply to the series as it is",
                where=name,
                why=read_reason(done.stderr),
                next_step="apply it by hand in a worktree (tool apply), then: tool new",
            )
        after = index.out("write-tree")
    diff = canonical_diff(git, tree, after)
    if diff:
        patchfile.parse(name, b"Description: an import\n---\n" + diff)
    return after


def read_reason(stderr: bytes) -> str | None:
    """What git said, without its prefixes."""
    words = stderr.decode("utf-8", "replace").splitlines()
    return "; ".join(w.removeprefix("error: ") for w in words if w.startswith("error:")) or None


def _check_places(git: Git, tree: str, diff: bytes, name: str) -> None:
    """Every hunk's old lines stand where the hunk says: then git has nothing to search for."""
    for section in _DIFF.split(diff)[1:]:
        path = section.split(b"\n", 1)[0].decode("utf-8", "replace").rpartition(" b/")[2]
        blob = find_blobs(git, tree, [path])[path] if path else NULL_OID
        lines = git.blobs([blob])[blob].split(b"\n") if blob != NULL_OID else []
        for start, old in _hunks(section):
            at = start - 1 if old else start
            if lines[at : at + len(old)] != old:
                raise ConflictError(
                    f"{path} line {start} is not what the diff says",
                    where=name,
                    why="it was made on another state of that file; git would search for a place",
                    next_step="apply it by hand in a worktree (tool apply), then: tool new",
                )


def _hunks(section: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """(first old line, old lines) of every hunk of one file's section."""
    start = 0
    old: list[bytes] | None = None
    for line in section.split(b"\n"):
        if match := _HUNK.match(line):
            if old is not None:
                yield start, old
            start, old = int(match[1]), []
        elif old is not None and line[:1] in (b"-", b" "):
            old.append(line[1:])
    if old is not None:
        yield start, old
