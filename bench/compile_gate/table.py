"""Run the compile gate under several versions of Triton and table what every kernel uses.

    python -m bench.compile_gate.table --triton 3.5.1 --triton 3.6.0 --triton FOLDER > docs/compile-gate.md
    python -m bench.compile_gate.table --triton 3.7.1 --json after.json --against before.json

The gate is the tests in ``test_compile_gate_*.py``. They run once for each Triton, in a process of their
own, without a GPU. The tables have what every compiled kernel uses and say whether the gate's assertions
held. ``--triton`` takes a version, which pip installs into a cache folder, or a folder with an unpacked
``triton`` package. Without it, the installed Triton is used.

``--against`` shows that a change left the generated code as it was. It compares the sha256 of each kernel's
PTX and machine code with those in an earlier ``--json`` file, and exits with 1 if any differs. Line
information is switched off, so that only code counts.
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
from typing import TYPE_CHECKING, Any, TypedDict

import pytest

if TYPE_CHECKING:
    from tests.support.aot import Compiled

ROOT = Path(__file__).resolve().parents[2]
GATES = sorted((ROOT / "tests" / "ada_dsa" / "compile_gate").glob("test_*.py"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ada_dsa"

HEAD = """# Compile gate over Triton versions

The tables show what every kernel uses when Triton compiles it for an architecture. No GPU is needed: the
kernels were compiled, not run. A cell has registers of a thread x threads of a block, then shared memory
in bytes, then spills (local loads and stores).

The tests in `tests/ada_dsa/compile_gate/` assert limits on shared memory and spills. They also ask for a
number of resident blocks, tensor-core instructions, and asynchronous copies or prefetch. **FAILED** means
that an assertion does not hold; the last table has the reasons. A dash means that the tools which this
Triton bundles do not know the architecture.
"""


@dataclass(frozen=True)
class Record:
    """A kernel that a test of the gate compiled for one architecture.

    Attributes:
        test, case: the test's function and its parameters but the architecture.
        arch: major * 10 + minor.
        registers: of a thread.
        threads: of a block.
        shared: bytes of shared memory of a block.
        spills: local loads and stores in the machine code.
        instructions: all instructions of the machine code.
        ptx, cubin: sha256 of the PTX text and of the machine code.
    """

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
        """The key of the test's failure in :class:`Run`."""
        return json.dumps([self.test, self.case, self.arch])

    @property
    def cell(self) -> str:
        return f"{self.registers} x {self.threads}, {self.shared:,}, {self.spills}"


class Run(TypedDict):
    """The gate under one Triton.

    ``failures`` are reasons, by test, case and architecture as a JSON list; ``rows`` are records.
    """

    triton: str
    failures: dict[str, str]
    rows: list[dict[str, Any]]


# ------------------------------------------------------------------------- in the process of one Triton


def _label(name: str, value: object) -> str:
    if isinstance(value, enum.Enum):
        return value.name.lower().replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return value if isinstance(value, str) else f"{name}={value}"


class Recorder:
    """A pytest plugin that records what each test with an architecture compiles."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.failures: dict[str, str] = {}
        self._item: pytest.Item | None = None

    def pytest_collection_finish(self) -> None:
        from tests.support import aot

        aot.listeners.append(self._compiled)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._item = item

    def _compiled(self, compiled: Compiled) -> None:
        test, case, arch = self._where()
        if arch is None:  # a test of the gate itself
            return
        record = Record(
            test, case, compiled.kernel, compiled.arch, compiled.registers, compiled.threads,
            compiled.shared, compiled.spills, compiled.instructions,
            hashlib.sha256(compiled.ptx.encode()).hexdigest(),
            hashlib.sha256(compiled.cubin).hexdigest(),
        )  # fmt: skip
        self.records.append(record)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self._item is not None and report.nodeid == self._item.nodeid:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else str(report.longrepr)
            test, case, arch = self._where()
            reason = " ".join(text.split()).split(" assert ")[0].removeprefix("AssertionError: ")
            self.failures[json.dumps([test, case, arch or 0])] = reason[:300]

    def _where(self) -> tuple[str, str, object]:
        """The running test, its parameters but the architecture, and the architecture if it has one."""
        assert isinstance(self._item, pytest.Function)
        callspec = getattr(self._item, "callspec", None)
        parameters: dict[str, object] = dict(callspec.params) if callspec else {}
        arch = parameters.pop("arch", None)
        case = ", ".join(_label(name, value) for name, value in parameters.items())
        return self._item.originalname.removeprefix("test_"), case, arch


def record(out: Path) -> int:
    """Run the gate under the Triton that this process imports and write a :class:`Run` to ``out``."""
    import triton

    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", "--tb=no", "--rootdir", str(ROOT)]
    options += ["-m", ""]  # every architecture, not the sample alone
    code = pytest.main([*options, *map(str, GATES)], plugins=[recorder])
    rows = [asdict(entry) for entry in recorder.records]
    about = {"triton": triton.__version__, "failures": recorder.failures, "rows": rows}
    out.write_text(json.dumps(about))
    return 0 if code in (0, 1) else int(code)


# ----------------------------------------------------------------------------------- in the parent process


def locate(wanted: str) -> Path | None:
    """The folder to put on the path for a version or a folder; None for the installed Triton."""
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


def gate(wanted: str) -> Run:
    """Run the gate under one Triton in a child process.

    Raises:
        SystemExit: the tests did not run.
    """
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
        command = [sys.executable, "-m", "bench.compile_gate.table", "--record", str(out)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr)
        if done.returncode or not out.exists():
            raise SystemExit(
                f"bench.compile_gate.table: the gate did not run under Triton {wanted or '(installed)'}; "
                "pytest's output above says why"
            )
        run: Run = json.loads(out.read_text())
        return run


def compare(before: Run, after: Run) -> list[str]:
    """The kernels whose PTX or machine code differs, or that only one side compiled."""
    sides = [{(*one.key, n): one for one, n in _numbered(side)} for side in (before, after)]
    lines = []
    for key in sorted(set(sides[0]) | set(sides[1])):
        old, new = (side.get(key) for side in sides)
        if old is None or new is None:
            lines.append(f"{key}: only {'after' if old is None else 'before'}")
        elif (old.ptx, old.cubin) != (new.ptx, new.cubin):
            parts = [n for n in ("ptx", "cubin") if getattr(old, n) != getattr(new, n)]
            lines.append(f"{key}: other {' and '.join(parts)}")
    return lines


def _numbered(run: Run) -> list[tuple[Record, int]]:
    """The records, each with its number among those of the same key: a test may compile a kernel twice."""
    seen: dict[tuple[object, ...], int] = {}
    numbered = []
    for row in run["rows"]:
        record = Record(**row)
        seen[record.key] = seen.get(record.key, -1) + 1
        numbered.append((record, seen[record.key]))
    return numbered


def markdown(runs: Sequence[Run]) -> str:
    """The document: a table for each test, a row for each kernel, case and architecture."""
    versions = [run["triton"] for run in runs]
    lines = [HEAD]
    cells: dict[tuple[object, ...], dict[str, str]] = {}
    for run in runs:
        records = _numbered(run)
        # A test that fails stops at the kernel that failed, which is the last it compiled.
        last = {record.where: n for n, (record, _) in enumerate(records)}
        failed = {last[where] for where in run["failures"] if where in last}
        spilled = sum(record.spills > 0 for record, _ in records)
        lines.append(
            f"- Triton {run['triton']}: {len(records)} kernels compiled, {len(records) - len(failed)} ok, "
            f"{len(failed)} failed, {spilled} with spills"
        )
        for n, (record, number) in enumerate(records):
            text = f"**FAILED** {record.cell}" if n in failed else record.cell
            cells.setdefault((*record.key, number), {})[run["triton"]] = text
    # What only some versions compile comes last in its own table.
    order = {name: n for n, name in enumerate(dict.fromkeys(key[0] for key in cells))}
    test = ""
    for key, by_version in sorted(cells.items(), key=lambda cell: order[cell[0][0]]):
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
        "--triton", action="append", metavar="VERSION|FOLDER", help="the Triton to use; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with an earlier --json file"
    )
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        return record(options.record)
    runs = [gate(wanted) for wanted in options.triton or [""]]
    if options.json:
        options.json.write_text(json.dumps(runs))
    if options.against:
        earlier = {run["triton"]: run for run in json.loads(options.against.read_text())}
        differ = [line for run in runs for line in compare(earlier[run["triton"]], run)]
        print("\n".join(differ) or "every kernel has the same PTX and machine code as before")
        return 1 if differ else 0
    today = datetime.datetime.now(datetime.UTC).date()
    names = [part for run in runs for part in ("--triton", run["triton"])]
    command = shlex.join(["python", "-m", "bench.compile_gate.table", *names])
    print(
        markdown(runs).replace("\n- Triton", f"\nMade {today} by `{command}`.\n\n- Triton", 1),
        end="",
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
