"""One patch as a mail to upstream, which knows nothing of this project.

The patch is merged into the released sglang alone, without the patches before it, and the result is checked
as any other. The mail has the form of ``git format-patch``: the description of the patch's header is the
message, and none of its other fields are in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from packaging.version import Version

from tool import atomic
from tool.apply import apply_series, check_applied, prepare_base
from tool.errors import ConflictError, UsageError
from tool.git import COMMIT_ENV, Git, commit_tree
from tool.project import Session
from tool.series import Patch, PatchFile, patchfile
from tool.upstream import Base, Request

_OURS: Final = re.compile(rb"ada[_-]dsa", re.IGNORECASE)
_AUTHOR: Final = re.compile(r"([^<>\n]*[^<>\s]) <([^<>\s]+)>")
_SUBJECT_LENGTH: Final = 52
"""Characters of the subject in a file name, as in git format-patch."""


@dataclass(frozen=True)
class UpstreamMail:
    """``release`` is the newest one that the patch stands for; ``git am`` takes the mail there."""

    path: Path
    patch: str
    release: Version
    subject: str
    files: tuple[str, ...]


def write_upstream_mail(
    session: Session, name: str, *, out: Path | None, author: str | None
) -> UpstreamMail:
    """Write the mail of the patch ``name``.

    Args:
        out: the file; None is the name that git format-patch gives, in the current folder.
        author: ``NAME <ADDRESS>``; None is the Author field of the patch's header.

    Raises:
        UsageError: there is no such patch, it needs the bundled kernels, no author is known, or the file is
            there with another content.
        ConflictError: it needs a patch before it.
    """
    with session.exclusive():
        patch, release = _find(session, name)
        parsed = patchfile.parse(patch.name, patch.content)
        _refuse_kernels(patch, parsed)
        sender = _read_author(author or parsed.header.get("Author"), patch)
        base = prepare_base(session, Request(f"v{release}"))
        content = _render(session.git, base, patch, parsed, sender)
    subject = parsed.header.subject
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", subject).strip("-.")[:_SUBJECT_LENGTH]
    path = out or Path.cwd() / f"0001-{slug}.patch"
    if path.exists() and (not path.is_file() or path.read_bytes() != content):
        raise UsageError(
            "is there with another content", where=str(path), next_step="name a file with --out"
        )
    atomic.write(path, content)
    return UpstreamMail(path, patch.name, release, subject, tuple(f.path for f in parsed.files))


def _find(session: Session, name: str) -> tuple[Patch, Version]:
    """The patch that ``name`` means, of a change the newest, and the newest release it was checked on."""
    for release in sorted(session.lock.releases, reverse=True):
        patches = session.series.for_release(release)
        if any(patch.change == name for patch in patches):
            return session.series.find_patch(name, release), release
    patch = session.series.find_patch(name)
    if releases := session.lock.checked_on(patch.name):
        return patch, max(releases)
    raise UsageError(
        "was checked on no release", where=f"patches/{patch.name}", next_step="tool lock"
    )


def _refuse_kernels(patch: Patch, parsed: PatchFile) -> None:
    for file in parsed.files:
        for number, line in file.added_lines():
            if _OURS.search(line):
                text = line.strip().decode("utf-8", "replace")
                raise UsageError(
                    "cannot stand alone: it depends on the bundled kernels",
                    where=f"patches/{patch.name}: {file.path}:{number}",
                    why=f"it adds: {text:.200}",
                    next_step="propose the kernels first, or write a patch without them",
                )


def _read_author(text: str | None, patch: Patch) -> tuple[str, str]:
    match = _AUTHOR.fullmatch(text or "")
    if match is None:
        raise UsageError(
            f"{text!r} is not an author" if text else "the patch's header names no author",
            where=f"patches/{patch.name}",
            next_step='name one: --author "NAME <ADDRESS>"',
        )
    return match[1], match[2]


def _render(
    git: Git, base: Base, patch: Patch, parsed: PatchFile, sender: tuple[str, str]
) -> bytes:
    try:
        (applied,) = apply_series(git, base, [patch])
        check_applied(git, [applied])
    except ConflictError as error:
        raise ConflictError(
            f"does not stand alone on sglang {base.release}",
            where=f"patches/{patch.name}",
            why=f"{error.message}; it may need a patch before it",
            next_step=f"see which patches touch the same files: tool explain {patch.name}",
        ) from error
    identity = {"GIT_AUTHOR_NAME": sender[0], "GIT_AUTHOR_EMAIL": sender[1]}
    committer = replace(git, env={**git.env, **COMMIT_ENV, **identity})
    message = "\n\n".join(part for part in (parsed.header.subject, parsed.header.body) if part)
    commit = commit_tree(committer, applied.tree, base.commit, message + "\n")
    mail = git.run(
        "format-patch", "--stdout", "-1", "--zero-commit", "--no-signature", "--full-index",
        "--no-renames", "--diff-algorithm=histogram", commit,
    ).stdout  # fmt: skip
    # The commit's date is a constant, which would look odd upstream. Without one, git am takes the time.
    head, blank, rest = mail.partition(b"\n\n")
    lines = [line for line in head.split(b"\n") if not line.startswith(b"Date: ")]
    return b"\n".join(lines) + blank + rest
