"""The package index, asked through the user's pip: it knows mirrors, proxies, credentials and certificates.

One question gives the names of all wheels that the index offers: pip writes into its log every link
that it finds, also those it skips for this interpreter. The log also tells an index that failed from
one that has no such file, which pip's own messages do not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from tool.errors import EnvironmentFault, IntegrityError, ToolError, UsageError

PROJECT: Final = "sglang"
MACHINES: Final = ("x86_64", "aarch64")
_OLDEST: Final = (3, 10)
"""No release that the series supports has wheels for an older Python."""
_DROPPED: Final = frozenset({"PYTHONPATH"}) | {
    f"PIP_{name}"
    for name in (
        *("QUIET", "VERBOSE"),  # its messages are read here
        *(
            "PYTHON",
            "PYTHON_VERSION",
            "IMPLEMENTATION",
            "ABI",
            "PLATFORM",
        ),  # the file is named exactly
        *("CONSTRAINT", "REQUIRE_HASHES"),  # meant for an installation; the hash is checked here
    )
}
"""Variables that pip does not get: they are not about where the index is."""
_POLL: Final = 0.2
_WHEEL: Final = re.compile(rf"/({PROJECT}-[^/\s#?]+\.whl)\b")
_FAILED: Final = re.compile(r"Could not fetch URL (\S+): (.+?)(?: - skipping)?$", re.MULTILINE)
_ABSENT: Final = re.compile(r"404 Client Error\b")
"""pip's words for this status begin so; the digits alone also occur in ports and paths."""
_IGNORED: Final = re.compile(r"located at (\S+) is (not a trusted or secure host)\b")
"""An index without TLS that nobody told pip to trust: pip does not ask it."""
_NOT_INDEX: Final = re.compile(r"Skipping page (\S+) because (.+?)\.?$", re.MULTILINE)


class Yanked(UsageError):
    """The release was withdrawn from the index."""


@dataclass(frozen=True)
class _Answer:
    """What pip ended with. ``log`` holds all it has to say, whatever its verbosity."""

    code: int
    errors: str
    log: str

    @property
    def failures(self) -> list[str]:
        """The places that could not be asked, each with the reason. A page that is not there is an answer."""
        found = _FAILED.findall(self.log)
        failed = [f"{url}: {why}" for url, why in found if not _ABSENT.match(why)]
        others = (*_NOT_INDEX.findall(self.log), *_IGNORED.findall(self.log))
        return failed + [f"{url}: {why}" for url, why in others]


def list_wheels() -> dict[str, Version]:
    """Every Linux wheel of sglang that the index offers, filename → version, sorted by both.

    Wheels with a local version (``0.5.23+ada.1``) are left out: nobody releases those upstream.

    Raises:
        EnvironmentFault: an index cannot be asked, or there is no pip.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = _ask(["index", "versions", PROJECT], Path(folder))
    if answer.failures:
        raise _index_failed(answer.failures)
    if "No module named pip" in answer.errors:
        raise _no_pip()
    names = {urllib.parse.unquote(name) for name in _WHEEL.findall(answer.log)}
    if not names and answer.code != 0 and "No matching distribution" not in answer.errors:
        raise EnvironmentFault(
            f"pip cannot list the releases of {PROJECT}",
            why=_last_error(answer.errors),
            next_step="check the network and pip's index settings (pip config list)",
        )
    found = {name: version for name in names if (version := _version_if_usable(name))}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def download(
    filename: str, folder: Path, *, new: bool, progress: Callable[[int], None] | None = None
) -> Path:
    """Download the wheel ``filename`` into ``folder``, which must be empty.

    Args:
        new: it is not locked yet, so a yanked one is refused.
        progress: called with the number of bytes that are there.

    Raises:
        UsageError: the index has no such file; ``Yanked``: it was withdrawn.
        EnvironmentFault: the index failed, or the transfer.
        IntegrityError: the index served another file.
    """
    version = parse_wheel_filename(filename)[1]
    files = folder / "files"
    files.mkdir()
    # "===" compares the text: "==0.5.23" is also met by 0.5.23+ada.1, which pip would prefer.
    arguments = ["download", f"{PROJECT}==={version}", "--dest", str(files)]
    arguments += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", *_tag_options(filename)]
    watch = (lambda: progress(_size(folder))) if progress else None
    answer = _ask(arguments, folder, watch)
    if answer.code != 0:
        raise _download_failed(answer, version)
    if new and "yanked version" in answer.errors:
        # pip takes a yanked release when it is named exactly; a series should not be built on one.
        raise _yanked(version, answer.errors)
    names = [path.name for path in files.iterdir()]
    if names != [filename]:
        raise IntegrityError(
            f"the index served {', '.join(names) or 'no file'}",
            why=f"asked for {filename}",
            next_step="check the index pip uses (pip config list); nothing was kept",
        )
    return files / filename


def unknown_release(release: Version) -> UsageError:
    return UsageError(
        f"the package index has no usable wheel of sglang {release}",
        why="the index answered; the release is unknown there, yanked, or has no wheel for Linux",
        next_step="list what there is with: pip index versions sglang",
    )


def _version_if_usable(filename: str) -> Version | None:
    """The version of a released Linux wheel; None for any other file."""
    try:
        _, version, _, tags = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        return None
    for tag in tags:
        digits = re.fullmatch(r"(?:cp|py)3(\d*)", tag.interpreter)
        platform = tag.platform == "any" or (
            tag.platform.startswith(("manylinux", "linux_")) and tag.platform.endswith(MACHINES)
        )
        if digits and platform and (not digits[1] or (3, int(digits[1])) >= _OLDEST):
            return None if version.local else version
    return None


def _tag_options(filename: str) -> list[str]:
    """The options that make pip take this file and no other one of the release."""
    tags = parse_wheel_filename(filename)[3]
    tag = min(tags, key=str)
    implementation, digits = tag.interpreter[:2], tag.interpreter[2:]
    version = f"{digits[0]}.{digits[1:]}" if digits[1:] else digits
    options = ["--implementation", implementation, "--python-version", version, "--abi", tag.abi]
    options += [part for p in sorted({t.platform for t in tags}) for part in ("--platform", p)]
    # The file is named exactly; whether this interpreter could run it does not matter.
    return [*options, "--ignore-requires-python"]


def _ask(
    arguments: Sequence[str], folder: Path, watch: Callable[[], None] | None = None
) -> _Answer:
    """Run pip with ``folder`` for its log and its temporary files.

    Modules come from the installation alone: neither the current folder (``-P``) nor PYTHONPATH can put
    another pip in the place of pip.
    """
    log = folder / "pip.log"
    env = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    env |= {"TMPDIR": str(folder), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-P", "-m", "pip", *arguments, "--log", str(log)]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    if arguments[0] == "index":
        command.remove("--progress-bar=off")
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=env,
    )
    try:
        while True:
            try:
                errors = process.communicate(timeout=_POLL)[1]
                break
            except subprocess.TimeoutExpired:
                if watch is not None:
                    watch()
    except BaseException:
        process.kill()
        process.wait()
        raise
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return _Answer(process.returncode, errors, text)


def _size(folder: Path) -> int:
    """Bytes of the largest file below ``folder``: the one that is being written."""
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size if path.is_file() else 0)
        except FileNotFoundError:
            continue  # moved meanwhile
    return max(sizes)


def _download_failed(answer: _Answer, release: Version) -> ToolError:
    if "No module named pip" in answer.errors:
        return _no_pip()
    if answer.failures:
        return _index_failed(answer.failures)
    if re.search(r"No matching distribution|Could not find a version", answer.errors):
        return unknown_release(release)
    return EnvironmentFault(
        f"pip could not download sglang {release}",
        why=_last_error(answer.errors),
        next_step="run the same command again; the download starts afresh",
    )


def _index_failed(failures: Sequence[str]) -> EnvironmentFault:
    return EnvironmentFault(
        "the package index cannot be reached",
        why="; ".join(dict.fromkeys(failures)),
        next_step="try again later, or check the network, pip's index settings and the credentials in "
        "them (pip config list); --offline uses what is cached",
    )


def _no_pip() -> EnvironmentFault:
    return EnvironmentFault(
        "pip is not installed beside this tool",
        next_step=f"{sys.executable} -m ensurepip, then try again",
    )


def _yanked(release: Version, errors: str) -> Yanked:
    reason = re.search(r"Reason for being yanked: (.+)", errors)
    return Yanked(
        f"sglang {release} was yanked from the index",
        why=reason[1].strip() if reason else None,
        next_step="take the next release; list what there is with: pip index versions sglang",
    )


def _last_error(errors: str) -> str | None:
    lines = errors.strip().splitlines()
    named = [line for line in lines if line.startswith("ERROR")]
    return next(reversed(named or lines), None)
