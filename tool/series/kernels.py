"""The kernels as they stand in the project: the files of ``ada_dsa`` and what they require at run time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tool.errors import UsageError

REQUIREMENTS: Final = "requirements.txt"


_SUFFIXES: Final = (".py", ".typed")


def find_kernels(folder: Path) -> dict[str, Path]:
    """Bundled files by path relative to ``folder``: Python sources and the requirements.

    Raises:
        UsageError: the folder has no kernels, or holds a link (a bundle must not reach outside
        itself), a pipe or a device.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if "__pycache__" in relative.parts or path.is_dir():
            continue
        if path.is_symlink():
            raise UsageError(f"{path} is a link", next_step="replace it by the file it points to")
        if not path.is_file():
            raise UsageError(f"{path} is not a regular file", next_step="remove it")
        if path.suffix in _SUFFIXES or str(relative) == REQUIREMENTS:
            files[relative.as_posix()] = path
    if "__init__.py" not in files:
        raise UsageError(
            f"no kernels in {folder}", next_step="run from a full checkout, or pass --series DIR"
        )
    return files


def read_kernels(folder: Path) -> dict[str, bytes]:
    """Content of the bundled files, by path relative to ``folder``. Raises UsageError as ``find_kernels``."""
    return {name: path.read_bytes() for name, path in find_kernels(folder).items()}


def read_requirements(folder: Path) -> list[str]:
    """What the kernels need at run time: the lines of ``ada_dsa/requirements.txt`` that are not comments."""
    return parse_requirements((folder / REQUIREMENTS).read_text(encoding="utf-8"))


def parse_requirements(text: str) -> list[str]:
    """The lines of a requirements file without comments."""
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
