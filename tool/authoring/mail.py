"""A diff from elsewhere, plain or as one mail of ``git format-patch``.

``git mailinfo`` takes a mail apart: encodings, the author, and where the message ends. The diff is read
strictly and written anew (see ``tool.series.foreign_diff``), and git applies what was written.

Foreign diffs often name no whole blobs, so there may be no pre-image to merge from. Such a diff must
apply exactly where its line numbers say: a place found by searching is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tool.errors import ConflictError, UsageError
from tool.git import (
    NULL_OID,
    Git,
    GitFailed,
    canonical_diff,
    find_blobs,
    make_tempdir,
    private_index,
)
from tool.series import ForeignFile, patchfile, read_foreign_diff, render_foreign_diff

_FROM_LINE: Final = re.compile(rb"^From \S+ (?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) ", re.MULTILINE)
_HEADER_LINE: Final = re.compile(rb"([!-9;-~]+):|[ \t]")


@dataclass(frozen=True)
class Mail:
    """Subject, body and author (``NAME <ADDRESS>``) are empty for a plain diff."""

    subject: str
    body: str
    author: str
    files: tuple[ForeignFile, ...]


def read_mail(git: Git, name: str, content: bytes) -> Mail:
    """Take ``content`` apart.

    Raises:
        UsageError: there is no git diff, there are several mails, or the message holds a diff of its own,
            which ``git am`` would apply.
    """
    if content.partition(b"\n")[0].endswith(b"\r"):
        content = content.replace(b"\r\n", b"\n")  # as git mailsplit does
    if len(_FROM_LINE.findall(content)) > 1:
        raise UsageError("holds several mails", where=name, next_step="import them one by one")
    if not _is_mail(content):
        return Mail("", "", "", _read_files(name, content))
    with make_tempdir(git) as folder:
        message, patch = Path(folder) / "message", Path(folder) / "patch"
        # -b keeps tags such as [Bugfix]; a setting of the user's decides nothing.
        words = ("-b", "--no-scissors", "--encoding=UTF-8", str(message), str(patch))
        try:
            told = git.run("mailinfo", *words, stdin=content).stdout
        except GitFailed as err:
            raise UsageError("git cannot read the mail", where=name, why=err.why) from err
        text = message.read_bytes().decode("utf-8", "replace")
        files = _read_files(name, patch.read_bytes())
    fields = dict(
        line.split(": ", 1) for line in told.decode("utf-8", "replace").split("\n") if line
    )
    _refuse_diff_lines(name, text)
    sender, address = fields.get("Author", ""), fields.get("Email", "")
    author = f"{sender} <{address}>" if address else sender
    return Mail(fields.get("Subject", "").strip(), text.strip(), author.strip(), files)


def _is_mail(content: bytes) -> bool:
    """Does it begin with the header of a mail?"""
    names = set()
    for at, line in enumerate(content.split(b"\n")):
        if at == 0 and line.startswith(b"From "):
            continue
        match = _HEADER_LINE.match(line)
        if not match:
            break
        names.add((match[1] or b"").lower())
    return b"subject" in names or b"from" in names


def _read_files(name: str, content: bytes) -> tuple[ForeignFile, ...]:
    """The files of the diff in ``content``, whose lines before it are words."""
    start = 0 if content.startswith(b"diff --git ") else content.find(b"\ndiff --git ") + 1
    if not content.startswith(b"diff --git ", start):
        raise UsageError(
            "holds no git diff", where=name, next_step="make one: git format-patch -1 --full-index"
        )
    head = content[:start].decode("utf-8", "replace")
    _refuse_diff_lines(name, head)
    return read_foreign_diff(name, content[start:], head.count("\n") + 1)


def _refuse_diff_lines(name: str, text: str) -> None:
    if any(patchfile.is_diff_like(line) for line in text.split("\n")):
        raise UsageError(
            "its message holds something git would apply as a diff",
            where=name,
            next_step="take it out of the message",
        )


def apply_mail(git: Git, tree: str, mail: Mail, name: str) -> str:
    """``tree`` with the mail's diff, in the places it names.

    Raises:
        ConflictError: it does not apply, or would land on other lines than it says.
        UsageError: it holds what a patch of this series may not.
    """
    _check_places(git, tree, mail.files, name)
    with private_index(git, tree) as index:
        done = index.run(
            "apply", "--cached", "--whitespace=nowarn", "-p1", "-",
            stdin=render_foreign_diff(mail.files), check=False,
        )  # fmt: skip
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


def _check_places(git: Git, tree: str, files: Sequence[ForeignFile], name: str) -> None:
    """Every hunk's old lines stand where the hunk says: then git has nothing to search for."""
    for file in files:
        blob = find_blobs(git, tree, [file.source])[file.source]
        lines = git.blobs([blob])[blob].split(b"\n") if blob != NULL_OID else []
        for hunk in file.hunks:
            old = [line[1:] for line in hunk.lines if line[:1] in (b"-", b" ")]
            at = hunk.old_start - 1 if old else hunk.old_start
            if lines[max(at, 0) : at + len(old)] != old:
                raise ConflictError(
                    f"{file.source} line {hunk.old_start} is not what the diff says",
                    where=name,
                    why="it was made on another state of that file; git would search for a place",
                    next_step="apply it by hand in a worktree (tool apply), then: tool new",
                )
