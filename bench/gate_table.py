"""The compile gate over several Triton versions, as a table.

    python bench/gate_table.py --triton 3.5.1 --triton 3.6.0 --triton FOLDER > docs/compile-gate.md
    python bench/gate_table.py --triton 3.7.1 --json after.json --against before.json

Runs ``tests/ada_dsa/compile_gate/`` once for each Triton, in a process of its own, and tables
what every compiled kernel uses and whether the gate's assertions held. No GPU takes part. ``--triton``
names a version, which pip installs into a cache folder, or a folder that holds an unpacked ``triton``
package; without it the installed Triton is gated.

``--against`` proves that a change left generated code alone: it compares the sha256 of PTX and of the
machine code of every kernel with those of an earlier ``--json`` (line information is switched off, so
that only code counts), and exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import datetime
import enum
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "ada_dsa" / "compile_gate"
GATES = ("test_indexer_topk.py", "test_sparse_mla_kv_cache.py")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ada_dsa"

HEAD = """# Compile gate over Triton versions

What every kernel uses when compiled for each architecture, without a GPU: registers a thread x threads
a block, shared memory in bytes, local loads and stores (spills). **FAILED**: an assertion of the gate
does not hold (the reasons are below); the assertions are those of `tests/ada_dsa/compile_gate/`
(shared memory, spills, residency, tensor-core instruction, asynchronous copies or prefetch). Compiled,
not executed.
"""


@dataclass(frozen=True)
class Record:
    """One kernel compiled by one test of the gate."""

    test: str
    case: str
    kernel: str
    arch: int
    registers: int
    threads: int
    shared: int
    spills: int
    instructions: int
    ptx: str
    cubin: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.test, self.case, self.kernel, self.arch

    @property
    def where(self) -> str:
        """Key of the test's outcome in ``failures``."""
        return json.dumps([self.test, self.case, self.arch])

    @property
    def cell(self) -> str:
        return f"{self.registers} x {self.threads}, {self.shared:,}, {self.spills}"


# --------------------------------------------------------------------------------- one Triton (child)


def _label(name: str, value: object) -> str:
    if isinstance(value, enum.Enum):
        return value.name.lower().replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return value if isinstance(value, str) else f"{name}={value}"


class Recorder:
    """pytest plugin: what was compiled during each test that names an architecture."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.failures: dict[str, str] = {}
        self._item: Any = None
        self._parameters: dict[str, object] = {}

    def pytest_collection_finish(self) -> None:
        from tests.support import aot

        aot.listeners.append(self._compiled)

    def pytest_runtest_setup(self, item: Any) -> None:
        self._item = item
        callspec = getattr(item, "callspec", None)
        self._parameters = dict(callspec.params) if callspec else {}

    def _compiled(self, what: Any) -> None:
        if "arch" not in self._parameters:
            return  # a test of the gate itself
        case = ", ".join(_label(k, v) for k, v in self._parameters.items() if k != "arch")
        record = Record(
            self._item.originalname.removeprefix("test_"), case, what.kernel, what.arch,
            what.registers, what.threads, what.shared, what.spills, what.instructions,
            hashlib.sha256(what.ptx.encode()).hexdigest(), hashlib.sha256(what.cubin).hexdigest(),
        )  # fmt: skip
        self.records.append(record)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self._item is not None and report.nodeid == self._item.nodeid:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else str(report.longrepr)
            case = ", ".join(_label(k, v) for k, v in self._parameters.items() if k != "arch")
            arch = self._parameters.get("arch", 0)
            name = self._item.originalname.removeprefix("test_")
            reason = " ".join(text.split()).split(" assert ")[0]
            self.failures[json.dumps([name, case, arch])] = reason.removeprefix("AssertionError: ")[
                :300
            ]


def record(out: Path) -> int:
    """Gate the Triton that this process imports; results as JSON to ``out``."""
    import pytest
    import triton

    recorder = Recorder()
    arguments = [str(TESTS / name) for name in GATES]
    options = ["-q", "-p", "no:cacheprovider", "--tb=no", "--rootdir", str(ROOT)]
    code = pytest.main([*options, *arguments], plugins=[recorder])
    rows = [asdict(entry) for entry in recorder.records]
    about = {"triton": triton.__version__, "failures": recorder.failures, "rows": rows}
    out.write_text(json.dumps(about))
    return 0 if code in (0, 1) else int(code)


# ------------------------------------------------------------------------------------------- all of them


def locate(wanted: str) -> Path | None:
    """Folder to put on the path for ``wanted``; None stands for the installed Triton."""
    if not wanted:
        return None
    given = Path(wanted)
    if (given / "triton" / "__init__.py").exists():
        return given.absolute()
    folder = CACHE / f"triton-{wanted}"
    if not (folder / "triton" / "__init__.py").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), f"triton=={wanted}"], check=True)
    return folder


def gate(wanted: str) -> dict[str, Any]:
    """Run the gate under one Triton in a child process."""
    folder = locate(wanted)
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / "gate.json"
        path = [str(folder)] if folder else []
        path += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*path, str(ROOT)]),
            "TRITON_CACHE_DIR": f"{temp}/cache",
            "TRITON_DISABLE_LINE_INFO": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--record", str(out)]
        done = subprocess.run(command, env=environment, stdout=sys.stderr)
        if done.returncode or not out.exists():
            raise SystemExit(
                f"gate_table: the gate did not run under Triton {wanted or '(installed)'}"
            )
        return json.loads(out.read_text())


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Kernels whose PTX or machine code differs, or that only one side compiled."""
    sides = [
        {Record(**row).key + (n,): Record(**row) for row, n in _numbered(side["rows"])}
        for side in (before, after)
    ]
    lines = []
    for key in sorted(set(sides[0]) | set(sides[1])):
        old, new = (side.get(key) for side in sides)
        if old is None or new is None:
            lines.append(f"{key}: only {'after' if old is None else 'before'}")
        elif (old.ptx, old.cubin) != (new.ptx, new.cubin):
            parts = [n for n in ("ptx", "cubin") if getattr(old, n) != getattr(new, n)]
            lines.append(f"{key}: other {' and '.join(parts)}")
    return lines


def _numbered(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Rows with their place among those of the same key (a test may compile a kernel twice)."""
    seen: dict[tuple[object, ...], int] = {}
    out = []
    for row in rows:
        key = Record(**row).key
        seen[key] = seen.get(key, -1) + 1
        out.append((row, seen[key]))
    return out


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """All runs as one document: a table per test, a row per kernel, case and architecture."""
    versions = [run["triton"] for run in runs]
    lines = [HEAD]
    cells: dict[tuple[object, ...], dict[str, str]] = {}
    for run in runs:
        rows = [Record(**row) for row in run["rows"]]
        # A failing test stops at the kernel that fails, the last it compiled.
        last = {entry.where: n for n, entry in enumerate(rows)}
        failed = {last[where] for where in run["failures"] if where in last}
        spilled = sum(entry.spills > 0 for entry in rows)
        lines.append(
            f"- Triton {run['triton']}: {len(rows)} kernels compiled, {len(rows) - len(failed)} ok, "
            f"{len(failed)} failed, {spilled} with spills"
        )
        for n, (row, count) in enumerate(_numbered(run["rows"])):
            entry = Record(**row)
            text = f"**FAILED** {entry.cell}" if n in failed else entry.cell
            cells.setdefault((*entry.key, count), {})[run["triton"]] = text
    test = ""
    for key, by_version in cells.items():
        if key[0] != test:
            test = str(key[0])
            lines += ["", f"## {test.replace('_', ' ')}", ""]
            lines.append(f"| kernel | case | arch | {' | '.join(versions)} |")
            lines.append(f"|---|---|---|{'---|' * len(versions)}")
        values = " | ".join(by_version.get(version, "–") for version in versions)
        name = str(key[2]).removesuffix("_kernel")
        lines.append(f"| {name} | {key[1]} | sm_{key[3]} | {values} |")
    why = [(run["triton"], *json.loads(k), v) for run in runs for k, v in run["failures"].items()]
    if why:
        lines += ["", "## What failed", "", "| Triton | test | case | arch | why |"]
        lines.append("|---|---|---|---|---|")
        lines += [f"| {t} | {n} | {c} | sm_{a} | {w.replace('|', '/')} |" for t, n, c, a, w in why]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--triton", action="append", metavar="VERSION|FOLDER", help="may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with an earlier --json"
    )
    parser.add_argument(
        "--render", type=Path, nargs="+", metavar="FILE", help="table earlier --json"
    )
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        return record(options.record)
    if options.render:
        runs = [run for path in options.render for run in json.loads(path.read_text())]
    else:
        runs = [gate(wanted) for wanted in options.triton or [""]]
    if options.json:
        options.json.write_text(json.dumps(runs))
    if options.against:
        earlier = {run["triton"]: run for run in json.loads(options.against.read_text())}
        differ = [line for run in runs for line in compare(earlier[run["triton"]], run)]
        print("\n".join(differ) or "PTX and machine code are the same in every kernel")
        return 1 if differ else 0
    today = datetime.datetime.now(datetime.UTC).date()
    names = [part for run in runs for part in ("--triton", run["triton"])]
    command = shlex.join(["python", "bench/gate_table.py", *names])
    print(
        markdown(runs).replace("\n- Triton", f"\nMade {today} by `{command}`.\n\n- Triton", 1),
        end="",
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
