"""Bring sglang of one release, stock and forked, to a GPU machine.

    stage prepare [--release R]   where there is an index: the folders .stage/part1 ...
    stage install PART ...        on a GPU machine without an index, in any order and any number of calls
    stage install [--release R]   on a GPU machine with an index: by pip
    stage check                   import all of it, a line each

where ``stage`` is ``python -m tests.serving.support.stage``. `flavours` says which folders result.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tests.serving.support import children, flavours, stage_parts
from tests.serving.support.stage_parts import BLOCKS, MIB, PREPARE, Manifest
from tool.errors import IntegrityError, ToolError, UsageError

PROBE: Final = f"{__package__}.stage_probe"
STATE: Final = ".staged.json"
"""In the home folder: the key of a manifest, and the numbers of the parts that were unpacked."""
STREAM: Final = ".tree.tar"
PIP_TIMEOUT: Final = 3600.0
CHECK_TIMEOUT: Final = 240.0
TESTING: Final = ("pytest", "pytest-xdist", "hypothesis", "click", "GitPython", "rich", "unidiff")
"""What the tests and `tool` import beside sglang's own dependencies."""


def install_parts(parts: Sequence[Path], home: Path) -> list[str]:
    """Unpack ``parts``; with the last missing one, make the folders ``stack`` and ``fork`` in ``home``.

    Returns lines to print; the last one names the parts that are still missing, or the folders.

    Raises:
        UsageError: a folder is no part, or the parts are of different preparations or Pythons.
        IntegrityError: a block is missing or not the one of the manifest.
    """
    manifests = [Manifest.load(part) for part in parts]
    manifest = manifests[0]
    for part, other in zip(parts, manifests, strict=True):
        if other != manifest:
            raise UsageError(
                "the parts are of different preparations",
                where=f"{parts[0]}, {part}",
                next_step=f"{PREPARE}, and send all parts again",
            )
    if manifest.python != _tag():
        raise UsageError(
            f"the parts are for {manifest.python}, this Python is {_tag()}",
            where=sys.executable,
            next_step=f"{PREPARE} --python {sys.version_info[0]}.{sys.version_info[1]}",
        )
    home.mkdir(parents=True, exist_ok=True)
    state = _state(home)
    if state.get("key") != manifest.key:
        (home / STREAM).unlink(missing_ok=True)
        state = {"key": manifest.key, "parts": []}
    wanted = set(range(1, len(manifest.parts) + 1))
    for part in parts:
        number = _number(part, manifest)
        if number not in state["parts"]:
            stage_parts.unpack(part, manifest.parts[number - 1], home / STREAM)
            state["parts"].append(number)
            (home / STATE).write_text(json.dumps(state), encoding="utf-8")
    if missing := sorted(wanted - set(state["parts"])):
        return [f"{home}: still missing: {', '.join(f'part{number}' for number in missing)}"]
    if not (home / STREAM).exists():
        return [f"{home}: nothing to do"]
    for site in stage_parts.SITES:
        shutil.rmtree(home / site, ignore_errors=True)
    command = ["tar", "--extract", "--file", str(home / STREAM), "--directory", str(home)]
    stage_parts.run(command, "tar cannot unpack the stack", timeout=600)
    (home / STREAM).unlink()
    lines = [f"{home / 'stack'}: {name} is the machine's" for name in link_cuda(home / "stack")]
    return [*lines, f"{home}: sglang {manifest.release}, stack and fork"]


def _number(part: Path, manifest: Manifest) -> int:
    """Which part it is, by the hash of its first block. Raises IntegrityError if it is none of them."""
    for number, blocks in enumerate(manifest.parts, 1):
        try:
            with (part / BLOCKS).open("rb") as stream:
                packed = stream.read(blocks[0].size)
        except OSError as err:
            raise IntegrityError(
                f"{BLOCKS} cannot be read", where=str(part), why=str(err), next_step="send it again"
            ) from err
        if stage_parts.sha256(packed) == blocks[0].sha256:
            return number
    raise IntegrityError(
        "its first block is that of no part in the manifest",
        where=str(part / BLOCKS),
        next_step="send the part again",
    )


def link_cuda(stack: Path) -> list[str]:
    """Let the stack use the CUDA libraries of this machine's torch. Returns the names of the links.

    Libraries that the parts brought stay; torch looks for all of them in ``nvidia/`` beside itself.
    """
    linked = []
    spec = importlib.util.find_spec("nvidia")
    for root in map(Path, spec.submodule_search_locations or () if spec else ()):
        for folder in sorted(root.iterdir()):
            link = stack / "nvidia" / folder.name
            if (folder / "lib").is_dir() and not link.exists() and stack not in folder.parents:
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(folder)
                linked.append(f"nvidia/{folder.name}")
    return linked


def install_index(release: str, home: Path) -> list[str]:
    """Install the same from the index that pip is set up for. Returns lines to print.

    Raises:
        EnvironmentFault: pip or ``tool build`` failed.
    """
    stack, fork = (home / site for site in stage_parts.SITES)
    command = [word for word in stage_parts.pip_install(stack) if word != "--no-deps"]
    stage_parts.run(
        [*command, "--upgrade", f"sglang=={release}", *TESTING],
        "pip cannot install the release",
        timeout=PIP_TIMEOUT,
    )
    wheel = stage_parts.build_fork(release, _tag(), home / ".wheel", packages=stack)
    shutil.rmtree(fork, ignore_errors=True)
    stage_parts.run(
        [*stage_parts.pip_install(fork), str(wheel)], "pip cannot install the fork", timeout=600
    )
    return [f"{home}: sglang {release}, stack and fork"]


def check(names: Iterable[str]) -> tuple[list[str], bool]:
    """Import what the tests need as each of the flavours ``names``, each in a child, all at once.

    Returns lines to print, and whether everything imported.
    """
    wanted = list(names)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(_probe, wanted))
    lines = [line for found, _ in results for line in found]
    return lines, all(good for _, good in results)


def _probe(name: str) -> tuple[list[str], bool]:
    environment = flavours.FLAVOURS[name].environ()
    out, err, code = children.capture(["-m", PROBE, name], environment, CHECK_TIMEOUT)
    rows, begun, ended = children.read(out)
    lines = [
        f"{name:5} {'ok  ' if row['ok'] else 'FAIL'} {row['module']} {row['says']}"
        f"  ({row['seconds']:.1f} s)"
        for row in rows
    ]
    good = all(row["ok"] for row in rows)
    if code != 0 or not ended:
        last = " | ".join(err.strip().splitlines()[-3:])
        ending = f"the process ended with {124 if code is None else code}"
        lines.append(f"{name:5} FAIL {ending} at {begun or 'start'}: {last}")
        good = False
    return lines, good


def _state(home: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((home / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _tag() -> str:
    return f"cp{sys.version_info[0]}{sys.version_info[1]}"


def _prepare(options: argparse.Namespace) -> int:
    limit = int(options.limit * MIB)
    manifest = stage_parts.prepare(options.release, options.python, options.into, limit)
    for number, blocks in enumerate(manifest.parts, 1):
        size, raw = (sum(getattr(block, name) for block in blocks) for name in ("size", "raw"))
        print(f"{options.into}/part{number}: {size / MIB:.1f} MiB, unpacked {raw / MIB:.0f} MiB")
    print(f"next: on the GPU machine, with each part: {PREPARE.replace('prepare', 'install')} PART")
    return 0


def _install(options: argparse.Namespace) -> int:
    if options.parts:
        lines = install_parts(options.parts, flavours.HOME)
    else:
        lines = install_index(options.release, flavours.HOME)
    print("\n".join(lines))
    return 0


def _check(options: argparse.Namespace) -> int:
    lines, good = check(("stock", "fork"))
    print("\n".join(lines))
    return 0 if good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="sglang on a GPU machine, stock and forked")
    commands = parser.add_subparsers(required=True)
    prepare = commands.add_parser("prepare", help="fetch, build, slim and cut into parts")
    prepare.add_argument("--python", default="3.12", help="the target's (default %(default)s)")
    prepare.add_argument("--limit", type=float, default=54, metavar="MIB", help="of a part")
    prepare.add_argument("--into", type=Path, default=stage_parts.ROOT / ".stage")
    prepare.set_defaults(run=_prepare)
    install = commands.add_parser(
        "install", help="into ADA_GPU_HOME; by pip where no part is named"
    )
    install.add_argument("parts", nargs="*", type=Path, metavar="PART")
    install.set_defaults(run=_install)
    for command in (prepare, install):
        command.add_argument("--release", default=flavours.RELEASE, help="default %(default)s")
    commands.add_parser("check", help="import everything").set_defaults(run=_check)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ToolError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code


if __name__ == "__main__":
    sys.exit(main())
