"""Put sglang, stock and forked, onto a GPU machine, whether that machine has a package index or not.

    python -m tests.serving.support.stage prepare            where there is an index: folders .stage/part1 ...
    python -m tests.serving.support.stage install PART ...   on a GPU machine: pip install --target, no index
    python -m tests.serving.support.stage install --index    the same on a GPU machine with an index, no parts
    python -m tests.serving.support.stage check              import everything there, a line each

The folders that result are those of `flavours`. ``install`` does nothing for a wheel that is there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tests.serving.support import children, flavours, stage_parts
from tests.serving.support.stage_parts import MIB, Manifest, Staged
from tool.errors import EnvironmentFault, IntegrityError, ToolError, UsageError

HERE: Final = Path(__file__).parents[1]
PROBE: Final = f"{__package__}.stage_probe"
STATE: Final = ".installed.json"
"""In each site: file name to sha256 of what is installed; the empty string where pip chose it."""
SITES: Final = ("deps", "stock", "fork")
PIP_TIMEOUT: Final = 600.0
CHECK_TIMEOUT: Final = 240.0


def install_parts(parts: Sequence[Path], home: Path) -> list[str]:
    """Install the wheels of ``parts`` into the sites under ``home``, as far as they are not there.

    Returns lines to print; the last ones name what other parts hold and the sites lack.

    Raises:
        UsageError: a folder is no part, or the parts are of different preparations or Pythons.
        IntegrityError: a wheel is missing or not the one of the manifest.
        EnvironmentFault: pip failed.
    """
    manifests = [Manifest.load(part) for part in parts]
    for part, manifest in zip(parts, manifests, strict=True):
        if manifest != manifests[0]:
            raise UsageError(
                "the parts are of different preparations",
                where=f"{parts[0]}, {part}",
                next_step="python -m tests.serving.support.stage prepare, and send all parts again",
            )
    manifest = manifests[0]
    if manifest.python != _tag():
        raise UsageError(
            f"the parts are for {manifest.python}, this Python is {_tag()}",
            where=sys.executable,
            next_step="python -m tests.serving.support.stage prepare --python "
            f"{sys.version_info[0]}.{sys.version_info[1]}",
        )
    here = {name: part for part in parts for name in _wheels(part)}
    files = [one for one in manifest.files if one.name in here]
    _check_hashes(files, here)

    lines = []
    states = {site: _state(home / site) for site in {one.site for one in manifest.files}}
    todo: dict[str, list[Staged]] = {}
    for one in files:
        if states[one.site].get(one.name) != one.sha256:
            todo.setdefault(one.site, []).append(one)
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(_install_site, home / site, wheels, here) for site, wheels in todo.items()
        ]
    for job in jobs:
        lines.append(job.result())
    lacking: dict[int, int] = {}
    for one in manifest.files:
        if _state(home / one.site).get(one.name) != one.sha256:
            lacking[one.part] = lacking.get(one.part, 0) + 1
    lines += [f"part{part}: not installed yet, {n} wheel(s)" for part, n in lacking.items()]
    return lines or [f"{home}: nothing to do"]


def install_index(release: str, home: Path) -> list[str]:
    """Install the same from the index that pip is set up for. Returns lines to print.

    Packages of requirements-machine.txt that this Python has not are put into ``deps`` too.

    Raises:
        EnvironmentFault: torch or triton is missing, or pip or the build failed.
    """
    absent = []
    for line in (HERE / "requirements-machine.txt").read_text(encoding="utf-8").splitlines():
        if (named := line.partition("#")[0].strip()) and not _present(named):
            absent.append(named)
    for named in absent:
        if Requirement(named).name in ("torch", "triton"):
            raise EnvironmentFault(
                f"this Python has no {named}",
                where=sys.executable,
                why="a CUDA build of torch is the machine's own business",
                next_step=f"pip install {named}",
            )
    lines = []
    for site in SITES:
        folder = home / site
        if site == "fork":
            built = folder.with_name(".fork-wheel")
            shutil.rmtree(built, ignore_errors=True)
            stage_parts.build_fork(release, _tag(), built, packages=home / "deps")
            (wheel,) = built.glob("*.whl")
            key, wanted = {wheel.name: stage_parts.digest(wheel)}, [str(wheel)]
        else:
            wanted = stage_parts.requirements(site, release) + (absent if site == "deps" else [])
            key = {text: "" for text in wanted if not text.startswith("-")} | _lines(wanted)
        if _state(folder) == key:
            lines.append(f"{site}: as it is")
            continue
        shutil.rmtree(folder, ignore_errors=True)
        _pip(["--target", str(folder), *wanted])
        _write_state(folder, key)
        lines.append(f"{site}: installed into {folder}")
    return lines


def check(sites: Iterable[str]) -> tuple[list[str], bool]:
    """Import what the tests need in each of ``sites``, each in a child process, all at once.

    Returns lines to print, and whether everything imported.
    """
    wanted = list(sites)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(_probe, wanted))
    lines = [line for found, _ in results for line in found]
    return lines, all(good for _, good in results)


def _probe(site: str) -> tuple[list[str], bool]:
    environment = flavours.FLAVOURS[site].environ()
    out, err, code = children.capture(["-m", PROBE, site], environment, CHECK_TIMEOUT)
    rows, begun, ended = children.read(out)
    lines = [
        f"{site:5} {'ok  ' if row['ok'] else 'FAIL'} {row['module']} {row['says']}"
        f"  ({row['seconds']:.1f} s)"
        for row in rows
    ]
    good = all(row["ok"] for row in rows)
    if code != 0 or not ended:
        last = " | ".join(err.strip().splitlines()[-3:])
        ending = f"the process ended with {124 if code is None else code}"
        lines.append(f"{site:5} FAIL {ending} at {begun or 'start'}: {last}")
        good = False
    return lines, good


def _install_site(site: Path, wheels: Sequence[Staged], where: dict[str, Path]) -> str:
    """Install ``wheels`` into one site and record them. Returns a line to print."""
    state = _state(site)
    replaced = {one.distribution for one in wheels}
    for name in [name for name in state if name.split("-", 1)[0] in replaced]:
        stale = "-".join(name.split("-", 2)[:2]) + ".dist-info"
        shutil.rmtree(site / stale, ignore_errors=True)
        del state[name]
    paths = [where[one.name] / one.name for one in wheels]
    _pip(["--no-index", "--upgrade", "--target", str(site), *map(str, paths)])
    for path in paths:
        _check_files(path, site)
    _write_state(site, state | {one.name: one.sha256 for one in wheels})
    size = sum(one.bytes for one in wheels) / MIB
    return f"{site.name}: {len(wheels)} wheel(s), {size:.1f} MiB, into {site}"


def _check_files(wheel: Path, site: Path) -> None:
    """Each file of the wheel is in the site: pip only warns of a folder that it leaves alone."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            in_package = not name.endswith("/") and ".data/" not in name
            if in_package and not (site / name).exists():
                raise IntegrityError(
                    f"pip left {name} out",
                    where=wheel.name,
                    next_step=f"rm -r {site}, then install all parts again",
                )


def _check_hashes(files: Sequence[Staged], where: dict[str, Path]) -> None:
    for one in files:
        got = stage_parts.digest(where[one.name] / one.name)
        if got != one.sha256:
            raise IntegrityError(
                "not the file of the manifest",
                where=str(where[one.name] / one.name),
                why=f"sha256 {got}, in the manifest {one.sha256}",
                next_step="send the part again",
            )


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"]
    stage_parts.run([*command, *arguments], "pip cannot install", timeout=PIP_TIMEOUT)


def _wheels(part: Path) -> list[str]:
    """File names of a part's wheels. Raises IntegrityError when the manifest has others for it."""
    found = {path.name for path in part.glob("*.whl")}
    number = part.resolve().name.removeprefix("part")
    expected = {one.name for one in Manifest.load(part).files if str(one.part) == number}
    if lacking := sorted(expected - found):
        raise IntegrityError(
            f"{len(lacking)} wheel(s) of the part are not in its folder",
            where=str(part),
            why=", ".join(lacking[:4]),
            next_step="send the part again",
        )
    return sorted(found)


def _present(requirement: str) -> bool:
    try:
        importlib.metadata.version(Requirement(requirement).name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _lines(arguments: Sequence[str]) -> dict[str, str]:
    """What a requirements file among the arguments says, as keys of a state."""
    return {
        line: ""
        for name in arguments
        if name.endswith(".txt")
        for line in Path(name).read_text(encoding="utf-8").splitlines()
    }


def _state(site: Path) -> dict[str, str]:
    try:
        return dict(json.loads((site / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write_state(site: Path, state: dict[str, str]) -> None:
    temp = site / f"{STATE}.{os.getpid()}"
    temp.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    temp.replace(site / STATE)


def _tag() -> str:
    return f"cp{sys.version_info[0]}{sys.version_info[1]}"


def _prepare(options: argparse.Namespace) -> int:
    limit = options.limit * MIB if options.limit else stage_parts.budget()
    sites = (*SITES, "peers") if options.peers else SITES
    manifest, into = stage_parts.prepare(
        options.release, options.python, options.into, int(limit), sites
    )
    for number in sorted({one.part for one in manifest.files}):
        files = [one for one in manifest.files if one.part == number]
        size = sum(one.bytes for one in files) / MIB
        largest = ", ".join(one.name for one in sorted(files, key=lambda one: -one.bytes)[:3])
        print(f"{into / f'part{number}'}: {size:.1f} MiB, {len(files)} wheel(s): {largest} ...")
    print(
        "next: on the GPU machine, for each part: python -m tests.serving.support.stage install PART"
    )
    return 0


def _install(options: argparse.Namespace) -> int:
    if options.index == bool(options.parts):
        raise UsageError(
            "name parts, or say --index",
            next_step="python -m tests.serving.support.stage install .stage/part1, or install --index",
        )
    if options.index:
        lines = install_index(flavours.RELEASE, flavours.HOME)
    else:
        lines = install_parts(options.parts, flavours.HOME)
    print("\n".join(lines))
    return 0


def _check(options: argparse.Namespace) -> int:
    lines, good = check(("stock", "fork"))
    print("\n".join(lines))
    return 0 if good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="sglang on a GPU machine, stock and forked")
    commands = parser.add_subparsers(required=True)
    prepare = commands.add_parser("prepare", help="fetch, slim, build and split")
    prepare.add_argument("--release", default=flavours.RELEASE)
    prepare.add_argument("--python", default="3.12", help="the target's (default %(default)s)")
    prepare.add_argument("--limit", type=float, metavar="MIB", help="of a part; default: what fits")
    prepare.add_argument("--into", type=Path, default=stage_parts.ROOT / ".stage")
    prepare.add_argument("--peers", action="store_true", help="TileLang and FlashMLA too")
    prepare.set_defaults(run=_prepare)
    install = commands.add_parser("install", help="into ADA_GPU_HOME")
    install.add_argument("parts", nargs="*", type=Path, metavar="PART")
    install.add_argument("--index", action="store_true", help="from the package index")
    install.set_defaults(run=_install)
    commands.add_parser("check", help="import everything").set_defaults(run=_check)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ToolError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code


if __name__ == "__main__":
    sys.exit(main())
