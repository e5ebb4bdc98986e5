"""Time and peak memory of the fork wheel, against the way one would do it by hand.

    python -m bench.tool.build [--sglang-ref v0.5.23] [--rounds 3]

Three ways to the same wheel, each in a process of its own, taking turns in one run:

* ``tool build``: the whole command from a warm cache (apply, prove, overlay);
* overlay: :func:`tool.build.build_fork_wheel` alone, the part the hand-made way corresponds to;
* by hand: ``wheel unpack``, copy the files over, ``wheel pack``.

The hand-made wheel is checked to install the same package files. Needs the ``wheel`` package.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.version import Version

from bench.tool.meter import Measurement, measure, table
from tool import home, lock, provenance, series
from tool.build import KERNEL_PREFIX, build_fork_wheel
from tool.provenance import Provenance
from tool.stamp import stamp_metadata
from tool.wheelfile import Wheel, parse_record
from tool.wheelimport import PREFIX

REFERENCE = "by hand: wheel unpack + copy + wheel pack"


def overlay(source: Path, fork: Path, out: Path, root: Path) -> Path:
    """Build ``fork`` once more, its own patched files and kernels being the input."""
    loaded = series.load(root)
    with Wheel(fork) as wheel:
        facts = _facts(wheel)
        locked = lock.load(loaded.lock_path).get(facts.release)
        names = {p: p.removeprefix(PREFIX) for p in locked.net_files()}
        built = build_fork_wheel(
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
    return built.path


def by_hand(source: Path, fork: Path, changes: Path, out: Path) -> None:
    """Unpack ``source``, copy the files below ``changes`` over it, pack it under the fork's version."""
    versions = [Version(path.name.split("-")[1]) for path in (source, fork)]
    unpacked = out / f"sglang-{versions[0]}"
    _wheel("unpack", "--dest", str(out), str(source))
    shutil.copytree(changes, unpacked, dirs_exist_ok=True)
    info = unpacked / f"sglang-{versions[0]}.dist-info"
    metadata = (info / "METADATA").read_bytes()
    (info / "METADATA").write_bytes(stamp_metadata(metadata, versions[0], versions[1], ()))
    info.rename(unpacked / f"sglang-{versions[1]}.dist-info")
    _wheel("pack", "--dest-dir", str(out), str(unpacked))


def compare(ref: str, root: Path, rounds: int) -> list[tuple[str, Measurement]]:
    """Median time and largest peak of the three ways, in the order they are printed."""
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        build = [sys.executable, "-m", "tool", "build", "--sglang-ref", ref, "--series", str(root)]
        fork = Path(_json([*build, "--out", str(work / "warm")])["path"])
        with Wheel(fork) as wheel:
            source = home.locate().wheels / _facts(wheel).source
            _extract_changes(wheel, source, work / "changes")
        here = [sys.executable, "-m", "bench.tool.build"]
        ways = {
            "tool build, the whole command": [*build, "--offline", "--out", "{}"],
            "overlay alone": [*here, "--overlay", str(source), str(fork), "{}", str(root)],
            REFERENCE: [*here, "--by-hand", str(source), str(fork), str(work / "changes"), "{}"],
        }
        results: dict[str, list[Measurement]] = {way: [] for way in ways}
        for number in range(rounds):
            for index, (way, command) in enumerate(ways.items()):
                out = work / f"{number}-{index}"
                out.mkdir()
                results[way].append(measure([word.format(out) for word in command]))
                _check_same(fork, out / fork.name, exact=way != REFERENCE)
                shutil.rmtree(out)
    return [
        (way, Measurement(statistics.median(m.seconds for m in ms), max(m.peak for m in ms)))
        for way, ms in results.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sglang-ref", default="pin")
    parser.add_argument("--series", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overlay", nargs=4, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--by-hand", nargs=4, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.overlay:
        overlay(*options.overlay)
    elif options.by_hand:
        by_hand(*options.by_hand)
    else:
        rows = compare(options.sglang_ref, options.series, options.rounds)
        print(table(rows, REFERENCE))


def _facts(wheel: Wheel) -> Provenance:
    name = f"{wheel.name.dist_info}/{provenance.SBOM_NAME}"
    return provenance.parse(wheel.read(name), name)


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
        raise SystemExit(f"{made.name}: not the same wheel, so the times cannot be compared")


def _json(command: Sequence[str]) -> dict[str, str]:
    done = subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE)
    result: dict[str, str] = json.loads(done.stdout)["result"]
    return result


def _wheel(*arguments: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    command = [sys.executable, "-m", "wheel", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
