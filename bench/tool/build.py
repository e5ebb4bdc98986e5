"""Time and peak memory of making the fork's wheel, against making it by hand.

    python -m bench.tool.build [--sglang-ref v0.5.23] [--rounds 3]

Three commands make the same wheel and take turns:

* ``tool build``, from a warm cache: it applies and checks the patches and makes the wheel;
* the function ``build_fork_wheel`` alone, which does what is done by hand below;
* by hand: ``wheel unpack``, copy the changed files, ``wheel pack``.

The wheel made by hand must install the same package files. This needs the ``wheel`` package.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from packaging.version import Version

from bench.tool.meter import ROOT, TOOL, Measurement, measure, output, table
from tool.project import locate_workspace
from tool.series import load_series, lockfile
from tool.upstream import PREFIX
from tool.wheel import KERNEL_PREFIX, SBOM_NAME, Wheel, parse_record, parse_sbom, replace_metadata
from tool.wheel.overlay import build_fork_wheel
from tool.wheel.sbom import Provenance

REFERENCE = "by hand: wheel unpack + copy + wheel pack"


def overlay(source: Path, fork: Path, out: Path) -> None:
    """Make the wheel ``fork`` again in ``out`` from the release's wheel and from the fork's own files."""
    loaded = load_series(ROOT)
    with Wheel(fork) as wheel:
        facts = _facts(wheel)
        locked = lockfile.load(loaded.lock_path).get(facts.release)
        names = {p: p.removeprefix(PREFIX) for p in locked.net_files()}
        build_fork_wheel(
            source,
            out,
            locked=locked,
            revision=loaded.revision,
            patched={p: wheel.read(n) if n in wheel.members else None for p, n in names.items()},
            kernels={
                n.removeprefix(KERNEL_PREFIX): wheel.read(n)
                for n in wheel.members
                if n.startswith(KERNEL_PREFIX)
            },
            requires=facts.requirements,
            patches=facts.patches,
        )


def by_hand(source: Path, fork: Path, changes: Path, out: Path) -> None:
    """Unpack ``source``, copy the files below ``changes`` over it, and pack it as the fork's version."""
    versions = [Version(path.name.split("-")[1]) for path in (source, fork)]
    unpacked = out / f"sglang-{versions[0]}"
    _wheel("unpack", "--dest", str(out), str(source))
    shutil.copytree(changes, unpacked, dirs_exist_ok=True)
    info = unpacked / f"sglang-{versions[0]}.dist-info"
    metadata = (info / "METADATA").read_bytes()
    (info / "METADATA").write_bytes(replace_metadata(metadata, versions[0], versions[1], ()))
    info.rename(unpacked / f"sglang-{versions[1]}.dist-info")
    _wheel("pack", "--dest-dir", str(out), str(unpacked))


def compare(ref: str, rounds: int) -> dict[str, list[Measurement]]:
    """Measure the three commands, ``rounds`` times."""
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        build = [*TOOL, "build", "--sglang-ref", ref, "--series", str(ROOT)]
        made = json.loads(output([*build, "--json", "--out", str(work / "warm")]))["result"]
        fork = Path(made["path"])
        with Wheel(fork) as wheel:
            source = locate_workspace().wheels / _facts(wheel).source
            _extract_changes(wheel, source, work / "changes")
        here = [sys.executable, "-m", "bench.tool.build"]
        commands = {
            "tool build": [*build, "--offline", "--out", "{}"],
            "build_fork_wheel alone": [*here, "--overlay", str(source), str(fork), "{}"],
            REFERENCE: [*here, "--by-hand", str(source), str(fork), str(work / "changes"), "{}"],
        }
        results: dict[str, list[Measurement]] = {name: [] for name in commands}
        for number in range(rounds):
            for index, (name, command) in enumerate(commands.items()):
                out = work / f"{number}-{index}"
                out.mkdir()
                results[name].append(measure([word.format(out) for word in command]))
                _check_same(fork, out / fork.name, exact=name != REFERENCE)
                shutil.rmtree(out)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sglang-ref", default="pin", help="the release (default: the pin)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overlay", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--by-hand", nargs=4, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.overlay:
        overlay(*options.overlay)
    elif options.by_hand:
        by_hand(*options.by_hand)
    else:
        print(table(compare(options.sglang_ref, options.rounds), REFERENCE))


def _facts(wheel: Wheel) -> Provenance:
    name = f"{wheel.name.dist_info}/{SBOM_NAME}"
    return parse_sbom(wheel.read(name), name)


def _extract_changes(fork: Wheel, source: Path, folder: Path) -> None:
    """The package files in which the fork differs from the release, below ``folder``."""
    with Wheel(source) as released:
        before = _package(released)
    for name, digest in _package(fork).items():
        if before.get(name) != digest:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fork.read(name))


def _package(wheel: Wheel) -> Mapping[str, str | None]:
    """RECORD's sha256 of every file outside dist-info."""
    rows = parse_record(wheel.read(f"{wheel.name.dist_info}/RECORD"), str(wheel.path))
    return {n: row.sha256 for n, row in rows.items() if ".dist-info/" not in n}


def _check_same(wanted: Path, made: Path, *, exact: bool) -> None:
    if exact:
        same = filecmp.cmp(wanted, made, shallow=False)
    else:
        with Wheel(wanted) as one, Wheel(made) as two:
            same = _package(one) == _package(two)
    if not same:
        raise SystemExit(
            f"bench.tool.build: {made} differs from the wheel of tool build, "
            "so the times cannot be compared"
        )


def _wheel(*arguments: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    command = [sys.executable, "-m", "wheel", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
