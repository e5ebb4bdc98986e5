"""What stands beside the package in a ``site-packages`` folder and can change what Python executes.

That is: files that Python runs when it starts, modules that stand for ``sglang`` itself, other
distributions of it, scripts, and modules that belong to no distribution. Modules of other distributions
are not examined: sglang imports many of them, and the lock holds none.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from tool.errors import EnvironmentFault
from tool.verify.files import INSTALLER_FILES, Difference, Unproven
from tool.wheel import NotRegularError, RecordRow, open_regular

PACKAGE: Final = "sglang"

_METADATA: Final = (".dist-info", ".egg-info", ".egg-link", ".egg")
_MODULES: Final = (".py", ".pyc", ".so", ".pyd")
_STARTUP: Final = ("sitecustomize", "usercustomize")
_KNOWN_PATH_FILES: Final = {
    # setuptools: imports _distutils_hack, which belongs to setuptools
    "distutils-precedence.pth": "2638ce9e2500e572a5e0de7faed6661eb569d1b696fcba07b0dd223da5f5d224",
}
_MAX_RECORD: Final = 64 << 20
_MAX_SCRIPT: Final = 1 << 16
_SCRIPT: Final = re.compile(r"(?:\.\./){1,4}(?:bin|Scripts)/([\w.-]+)")
_ENTRY: Final = re.compile(r"([^=\s\[#;]+) *= *([\w.]+) *: *([\w.]+)")
_GUARD: Final = "if __name__ == {0}__main__{0}:\n"
_ENDINGS: Final = (
    "import re\nimport sys\n{imports}"
    + _GUARD.format("'")
    + "    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])\n    sys.exit({call}())\n",
    "import sys\n{imports}"
    + _GUARD.format("'")
    + "    sys.argv[0] = sys.argv[0].removesuffix('.exe')\n    sys.exit({call}())\n",
    "import sys\n{imports}"
    + _GUARD.format('"')
    + '    if sys.argv[0].endswith("-script.pyw"):\n        sys.argv[0] = sys.argv[0][:-11]\n'
    + '    elif sys.argv[0].endswith(".exe"):\n        sys.argv[0] = sys.argv[0][:-4]\n'
    + "    sys.exit({call}())\n",
)
"""Scripts as older pip, pip 26 and uv write them, below their first lines."""


def inspect_site(site: Path, info: str) -> tuple[list[Difference], list[Unproven]]:
    """What is beside the package and the dist-info folder ``info`` in ``site``."""
    names = sorted(_list(site))
    differences: list[Difference] = []
    unproven: list[Unproven] = []
    owned = {PACKAGE, *_owned(site, [n for n in names if n != info])}
    for name in names:
        stem = name.partition(".")[0]
        if name.endswith(_METADATA):
            if name != info and _project(name) == PACKAGE:
                differences.append(Difference(name, "a second distribution of sglang"))
        elif re.match(rf"__editable__.*\b{PACKAGE}\b|__editable___{PACKAGE}_", name.lower()):
            differences.append(Difference(name, "an editable installation of sglang"))
        elif name.endswith(".pth"):
            if _sha256(site / name) != _KNOWN_PATH_FILES.get(name, ""):
                unproven.append(Unproven(name, "a path file, which Python follows when it starts"))
        elif stem in _STARTUP and _is_importable(site / name):
            unproven.append(Unproven(name, "Python runs it when it starts"))
        elif stem == PACKAGE and name != PACKAGE and name.endswith(_MODULES):
            differences.append(Difference(name, "stands for the package sglang"))
        elif name not in owned and _is_importable(site / name):
            unproven.append(Unproven(name, "a module that belongs to no distribution"))
    return differences, unproven


def inspect_start_folder(folder: Path) -> list[Unproven]:
    """Modules in a worktree's root: Python imports them when it is started there."""
    return [
        Unproven(name, "Python imports it when it is started in this folder")
        for name in sorted(_list(folder))
        if name.endswith((*_MODULES, ".pth"))
    ]


def inspect_scripts(
    site: Path, rows: Mapping[str, RecordRow], entry_points: str
) -> tuple[list[Difference], list[Unproven]]:
    """Compare the scripts that RECORD lists with what installers write for these entry points.

    A script that is not there is no difference: nobody can run it.
    """
    wanted = dict(_read_entry_points(entry_points))
    differences: list[Difference] = []
    unproven: list[Unproven] = []
    for path, row in sorted(rows.items()):
        if not path.startswith("../") or path.endswith(".pyc"):
            continue
        match = _SCRIPT.fullmatch(path)
        name = match[1].removesuffix(".exe") if match else ""
        if name not in wanted:
            differences.append(Difference(path, "no entry point has this script"))
            continue
        try:
            with open_regular(site / path, links=True) as stream:
                data = stream.read(_MAX_SCRIPT)
        except FileNotFoundError:
            continue
        except (OSError, NotRegularError) as err:
            differences.append(Difference(path, str(err)))
            continue
        if row.sha256 is not None and hashlib.sha256(data).hexdigest() != row.sha256:
            differences.append(Difference(path, "not the file RECORD has"))
        elif not _is_generated(data, *wanted[name], (site / path).parent):
            unproven.append(Unproven(path, "a script in a form that pip and uv do not write"))
    return differences, unproven


def _is_generated(data: bytes, module: str, call: str, folder: Path) -> bool:
    """Is this the script that pip or uv writes, for an interpreter in its own folder?"""
    head, _, rest = data.decode("utf-8", "replace").partition("\n")
    rest = rest.removeprefix("# -*- coding: utf-8 -*-\n")
    interpreter = Path(head.removeprefix("#!"))
    imports = f"from {module} import {call.partition('.')[0]}\n"
    return (
        head.startswith("#!/")
        and re.fullmatch(r"python[0-9.]*", interpreter.name) is not None
        and os.path.realpath(interpreter.parent) == os.path.realpath(folder)
        and rest in {ending.format(imports=imports, call=call) for ending in _ENDINGS}
    )


def _read_entry_points(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section in ("[console_scripts]", "[gui_scripts]") and (
            match := _ENTRY.fullmatch(line.strip())
        ):
            yield match[1], (match[2], match[3])


def _owned(site: Path, names: Iterable[str]) -> Iterator[str]:
    """The top-level names that the metadata of distributions claims."""
    for name in names:
        if name.endswith(".dist-info"):
            for line in _lines(site / name / "RECORD"):
                yield line.lstrip('"').partition("/")[0].partition(",")[0]
        elif name.endswith(".egg-info"):
            for line in _lines(site / name / "top_level.txt"):
                yield from (line, f"{line}.py")


def _lines(path: Path) -> list[str]:
    try:
        with open_regular(path, links=True) as stream:
            return stream.read(_MAX_RECORD).decode("utf-8", "replace").splitlines()
    except (OSError, NotRegularError):
        return []


def _sha256(path: Path) -> str | None:
    try:
        with open_regular(path) as stream:
            return hashlib.sha256(stream.read(_MAX_SCRIPT)).hexdigest()
    except (OSError, NotRegularError):
        return None


def _project(name: str) -> str:
    """The project of a metadata folder: ``SGLang-0.5.9.dist-info`` → ``sglang``."""
    stem = name.rpartition(".")[0]
    return canonicalize_name(re.split(r"-(?=[0-9])", stem, maxsplit=1)[0])


def _is_importable(path: Path) -> bool:
    if path.is_dir():
        return path.name.isidentifier() and path.name != "__pycache__"
    return path.name.endswith(_MODULES)


def _list(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError as err:
        raise EnvironmentFault(f"cannot read: {err.strerror}", where=str(folder)) from err


def is_kept(name: str, info: str) -> bool:
    """Does an installer keep this RECORD row's file in site-packages as it was in the wheel?"""
    if name.endswith(".pyc") or name.startswith(("../", "bin/", "Scripts/")):
        return False
    return name not in {f"{info}/{n}" for n in INSTALLER_FILES}
