"""Every way the tool can refuse, each with the exit code the README documents.

An error says what is wrong (``message``), where (a file, patch or hunk), why, and the next command
to type. The command line prints those four parts; ``--json`` puts them in the envelope.
"""

from __future__ import annotations

from typing import ClassVar


class ToolError(Exception):
    """Base of all expected failures. ``exit_code`` and ``kind`` are fixed per subclass."""

    exit_code: ClassVar[int] = 70
    kind: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        why: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.why = why
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.message}" if self.where else self.message]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str | int | None]:
        return {
            "kind": self.kind,
            "exit_code": self.exit_code,
            "message": self.message,
            "where": self.where,
            "why": self.why,
            "next": self.next_step,
        }


class UsageError(ToolError):
    """Bad arguments, or a series file that does not parse."""

    exit_code = 2
    kind = "usage"


class ConflictError(ToolError):
    """A patch does not apply."""

    exit_code = 3
    kind = "conflict"


class UpstreamedError(ToolError):
    """The release has the patch already, or a part of it: a person decides."""

    exit_code = 4
    kind = "upstreamed"


class IntegrityError(ToolError):
    """A hash, tree or lock entry is not what was recorded."""

    exit_code = 5
    kind = "integrity"


class EnvironmentFault(ToolError):
    """The machine lacks something: git too old, no network, objects missing, no space."""

    exit_code = 6
    kind = "environment"


class Interrupted(ToolError):
    """A person pressed Ctrl-C. The exit code is the shell's for SIGINT."""

    exit_code = 130
    kind = "interrupted"
