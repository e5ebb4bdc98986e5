"""Commits as objects: parents and message.

GitPython reads them, through a git in the environment that every other command has. No setting of a log
takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tool.git.repository import Git, missing_object

if TYPE_CHECKING:
    import git as gitpython


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
    """The commits of ``head`` that are not in ``base``, oldest first.

    Raises:
        EnvironmentFault: a commit is missing.
    """
    import git as gitpython  # it takes longer to import than most commands take, and few read commits

    oids = git.out("rev-list", "--reverse", "--topo-order", f"{base}..{head}").split()
    with gitpython.Repo(git.git_dir) as repository:
        repository.git.update_environment(**git.environment())
        return tuple(_read(repository, oid, str(git.git_dir)) for oid in oids)


def _read(repository: gitpython.Repo, oid: str, where: str) -> Commit:
    from gitdb.exc import BadName, BadObject

    try:
        commit = repository.commit(oid)
        parents, message = commit.parents, commit.message
    except (BadName, BadObject, ValueError) as error:
        raise missing_object(oid, where) from error
    text = message if isinstance(message, str) else message.decode("utf-8", "replace")
    return Commit(oid, tuple(parent.hexsha for parent in parents), text)
