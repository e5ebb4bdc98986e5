"""Try configurations beside those of the table: compile them without a GPU, or time them on one.

    python -m bench.kernels.sweep --check [--arch 90] [--group WORD] [--jobs 2] [--json FILE]
    python -m bench.kernels.sweep [--seconds 150] [--group WORD] [--jobs 14] [--json FILE]

``candidates.py`` lists the configurations. The first command compiles every candidate for its
architectures. It names those that use too many registers or too much shared memory, or spill registers,
and exits with 1 if there are any. Put the Triton version that the GPU machine has on PYTHONPATH.

The second command first compiles in parallel: each process launches a share of the candidates once, so
that the timing process finds the kernels in Triton's cache. A candidate that is not compiled when half of
the time is over is left out and named. Then it goes through the shapes, the most valuable first. Each
candidate is compared with the oracle and timed in turn with the table's configuration and the peers, in
CUDA graphs. Results are written after each shape, so that a run that is stopped keeps what it has. Set
TRITON_OVERRIDE_ARCH=sm89 to sweep the sm_89 lowering.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from ada_dsa.arch import target_arch
from bench.kernels import timing
from bench.kernels.candidates import GROUPS, LOWERED, NATIVE, Candidate, Group
from bench.kernels.operations import OPS, recording, wrong
from tests.support import aot

TABLE = "table"
"""The name of the table's configuration among those that are tried."""
PEERS = "peers"
_CHECKED_SMS = (
    132  # an H200 has as many; the number of splits, and so what is compiled, depends on it
)
_COMPILE_SHARE = 0.5  # of the time, at most, goes into compiling
_SAMPLE_SECONDS = 0.03  # for timing one candidate on one shape, after capture
_SHAPE_SECONDS = 4.0  # that one shape takes at most, as expected
_NOT_COMPILED = "not compiled in time"


@dataclass(frozen=True)
class Trial:
    """One shape and what runs it.

    Attributes:
        group: an index in ``GROUPS``.
        shape: a shape of that group.
        way: the name of a candidate, :data:`TABLE` or :data:`PEERS`.
    """

    group: int
    shape: str
    way: str

    def candidate(self) -> Candidate | None:
        return next((c for c in GROUPS[self.group].candidates if c.name == self.way), None)


@dataclass(frozen=True)
class Timed:
    """The results of one shape.

    Attributes:
        op, shape: as in :class:`Group`.
        us: microseconds of the table's configuration and of candidates.
        peers: microseconds of other libraries.
        left_out: what has no time, and why.
        bar: the greatest ratio to the fastest peer that is aimed at.
    """

    op: str
    shape: str
    us: dict[str, float]
    peers: dict[str, float]
    left_out: dict[str, str]
    bar: float

    @property
    def best(self) -> str:
        return min(self.us, key=lambda name: self.us[name], default="")

    def line(self) -> str:
        if TABLE not in self.us:
            return f"{self.op} {self.shape}: the table's configuration failed: {self.left_out.get(TABLE)}"
        table, best = self.us[TABLE], self.us[self.best]
        text = f"{self.op} {self.shape}: table {table:.1f}, best {self.best} {best:.1f} ({best / table:.2f})"
        if self.peers:
            name = min(self.peers, key=lambda one: self.peers[one])
            ratio = best / self.peers[name]
            outcome = "met" if ratio <= self.bar else "missed"
            text += f", {name} {self.peers[name]:.1f}: {ratio:.2f}, bar {self.bar} {outcome}"
        return text


def lowering(arch: int) -> int:
    """The architecture whose candidates are tried on ``arch``."""
    return NATIVE if arch == 90 else LOWERED


def trials(arch: int, word: str) -> Iterator[Trial]:
    """Every trial whose operation and shape contain ``word``, the most valuable shapes first.

    Those are the first shape of every group; then come the second ones, and so on.
    """
    depth = max(len(group.shapes) for group in GROUPS)
    for place in range(depth):
        for number, group in enumerate(GROUPS):
            if place < len(group.shapes) and word in f"{group.op} {group.shapes[place]}":
                for way in (TABLE, PEERS, *(c.name for c in group.tried(lowering(arch)))):
                    yield Trial(number, group.shapes[place], way)


# ---------------------------------------------------------------------------------------- without a GPU


def check_candidate(
    arch: int, number: int, way: str, shapes: Sequence[str]
) -> list[dict[str, object]]:
    """Compile every distinct kernel that the shapes need.

    Args:
        number: the index of the group in ``GROUPS``.
        way: the name of one of its candidates, or :data:`TABLE`.

    Returns:
        For each kernel what it uses, and under ``wrong`` why it cannot be used, or an empty string.
    """
    candidate = Trial(number, shapes[0], way).candidate()
    operation = OPS[GROUPS[number].op]
    with recording() as launches:
        for shape in shapes:
            operation.call(operation.meta(shape), candidate, arch, _CHECKED_SMS)()
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    for launch in launches:
        source = aot._source(launch.kernel, launch.args)
        key = repr(
            (source.fn.__name__, source.signature, source.constants, source.attrs, launch.options)
        )
        if key in seen or "combine" in launch.kernel.__name__:
            continue
        seen.add(key)
        kernel = launch.kernel.__name__
        row: dict[str, object] = {"arch": arch, "op": operation.op, "way": way, "kernel": kernel}
        try:
            compiled = launch.compile(arch)
        except Exception as err:
            found.append(row | {"wrong": timing.summary(err)})
        else:
            found.append(row | _usage(compiled, operation.op, candidate))
    return found


def _usage(compiled: aot.Compiled, op: str, candidate: Candidate | None) -> dict[str, object]:
    """What a kernel uses, how many blocks fit a multiprocessor, and what is wrong with that."""
    arch = compiled.arch
    allocated = -(-compiled.registers // 8) * 8 * compiled.threads
    shared = {90: 228, 80: 164}.get(arch, 100) * 1024  # bytes of a multiprocessor
    blocks = min(65_536 // allocated, shared // (compiled.shared + 1024))
    wanted = candidate.blocks if candidate else 1
    faults = []
    if compiled.spills and not (candidate and arch in candidate.spills):
        faults.append(f"{compiled.spills} spills")
    if compiled.shared > aot.SHARED_OPT_IN[arch]:
        faults.append("too much shared memory")
    if op != "topk" and blocks < wanted:
        faults.append(f"{blocks} blocks fit, not {wanted}")
    return {
        "registers": compiled.registers,
        "threads": compiled.threads,
        "shared": compiled.shared,
        "blocks": blocks,
        "spills": compiled.spills,
        "instructions": compiled.instructions,
        "wrong": ", ".join(faults),
    }


def check(archs: Sequence[int], word: str, jobs: int, out: Path | None) -> int:
    """Compile every candidate. Returns the exit code: 1 if one cannot be used."""
    asked = []
    for arch in archs:
        for number, group in enumerate(GROUPS):
            shapes = [s for s in group.shapes if word in f"{group.op} {s}"]
            ways = [c.name for c in group.tried(lowering(arch)) if "backend" not in c.knobs]
            asked += [(arch, number, way, shapes) for way in (TABLE, *ways) if shapes]
    rows: list[dict[str, object]] = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for future in [pool.submit(check_candidate, *one) for one in asked]:
            for row in future.result(timeout=600):
                rows.append(row)
                head = f"sm_{row['arch']} {row['op']} {row['way']} {row['kernel']}"
                if "registers" in row:
                    head += f": {row['registers']} x {row['threads']}, {row['shared']:,} B, "
                    head += f"{row['blocks']} blocks, {row['spills']} spills"
                print(f"{head}: {row['wrong'] or 'ok'}", flush=True)
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if row["wrong"]]
    print(f"{len(rows)} kernels compiled, {len(bad)} cannot be used")
    return 1 if bad else 0


# ------------------------------------------------------------------------------------------- on a GPU


def _sms() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count


def compile_share(part: int, parts: int, word: str, out: Path) -> int:
    """Launch every ``parts``-th trial once and write a line of JSON for each."""
    arch, sms = target_arch(), _sms()
    kept: tuple[str, Any] = ("", None)  # the inputs of the last shape
    with out.open("a") as file:
        for trial in list(trials(arch, word))[part::parts]:
            op = OPS[GROUPS[trial.group].op]
            begin = time.monotonic()
            error = ""
            try:
                if kept[0] != op.op + trial.shape:
                    kept = ("", None)  # frees the last inputs before the next are made
                    kept = (op.op + trial.shape, op.work(trial.shape, small=True))
                work = kept[1]
                if trial.way == PEERS:
                    for peer in op.peers(work, trial.shape).values():
                        peer()
                else:
                    op.call(work, trial.candidate(), arch, sms)()
                torch.cuda.synchronize()
            except Exception as err:
                error = timing.summary(err)
            seconds = round(time.monotonic() - begin, 1)
            file.write(json.dumps(asdict(trial) | {"error": error, "seconds": seconds}) + "\n")
            file.flush()
    return 0


def compile_all(jobs: int, word: str, deadline: float) -> dict[Trial, str]:
    """Every trial that was launched by ``deadline``, with its error or an empty string.

    Args:
        deadline: as ``time.monotonic`` counts, in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{part}.jsonl" for part in range(jobs)]
        command = [sys.executable, "-m", "bench.kernels.sweep", "--group", word, "--worker"]
        workers = [
            subprocess.Popen([*command, str(part), str(jobs), str(path)], stdout=subprocess.DEVNULL)
            for part, path in enumerate(parts)
        ]
        try:
            while time.monotonic() < deadline and any(w.poll() is None for w in workers):
                time.sleep(0.2)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                worker.wait()
        ready: dict[Trial, str] = {}
        for path in parts:
            for line in path.read_text().splitlines() if path.exists() else []:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a worker that was stopped
                ready[Trial(row["group"], row["shape"], row["way"])] = row["error"]
    return ready


def time_shape(number: int, shape: str, ready: dict[Trial, str], arch: int) -> Timed:
    """Compare with the oracle what is compiled for one shape, then time what is right."""
    group: Group = GROUPS[number]
    op, sms = OPS[group.op], _sms()
    work = op.work(shape)
    ways: dict[str, Callable[[], object]] = {}
    left_out: dict[str, str] = {}
    for way in (TABLE, *(c.name for c in group.tried(lowering(arch)))):
        trial = Trial(number, shape, way)
        if failure := ready.get(trial, _NOT_COMPILED):
            left_out[way] = failure
            continue
        try:
            error = op.error(work, op.call(work, trial.candidate(), arch, sms)())
        except Exception as err:
            left_out[way] = timing.summary(err)
            continue
        if wrong(group.op, error):
            left_out[way] = f"wrong: differs from the oracle by {error:.1e}"
        else:
            ways[way] = op.call(work, trial.candidate(), arch, sms)
    peers: dict[str, Callable[[], object]] = {}
    if not ready.get(Trial(number, shape, PEERS), _NOT_COMPILED):
        peers = op.peers(work, shape)
    times, errors = timing.measure({**ways, **peers}, _SAMPLE_SECONDS)
    left_out |= errors
    us = {name: t for name in ways if (t := times[name])}
    others = {name: t for name in peers if (t := times[name])}
    return Timed(group.op, shape, us, others, left_out, group.bar(shape, lowering(arch)))


def sweep(seconds: float, word: str, jobs: int, out: Path | None) -> int:
    """Time as many shapes as ``seconds`` allow.

    Returns:
        The exit code: 1 if the table's configuration failed on a shape.
    """
    begin = time.monotonic()
    arch = target_arch()
    ready = compile_all(jobs, word, begin + _COMPILE_SHARE * seconds)
    print(
        f"sm_{arch}: {len(ready)} trials launched once in {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    shapes = list(dict.fromkeys((trial.group, trial.shape) for trial in trials(arch, word)))
    done: list[Timed] = []
    unreached: list[str] = []
    for number, shape in shapes:
        if time.monotonic() - begin > seconds - _SHAPE_SECONDS:
            unreached.append(f"{GROUPS[number].op} {shape}")
            continue
        done.append(time_shape(number, shape, ready, arch))
        torch.cuda.empty_cache()
        print(done[-1].line(), flush=True)
        for name, why in done[-1].left_out.items():
            print(f"  {name}: {why}", flush=True)
        if out:
            about = {
                **timing.conditions(),
                "torch": torch.__version__,
                "triton": triton.__version__,
            }
            rows = [asdict(one) | {"best": one.best} for one in done]
            out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    print_table(done)
    if unreached:
        print(f"not reached in {seconds:.0f} s: {'; '.join(unreached)}")
    return 1 if any(TABLE in one.left_out for one in done) else 0


def print_table(done: Sequence[Timed]) -> None:
    """Print every candidate's time over the table's, a line for each shape."""
    print("\nratio to the table's time, best first")
    for one in done:
        if table := one.us.get(TABLE):
            cells = sorted((us / table, name) for name, us in one.us.items() if name != TABLE)
            print(
                f"{one.op} {one.shape}: {', '.join(f'{name} {ratio:.2f}' for ratio, name in cells)}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compile, which needs no GPU")
    parser.add_argument(
        "--arch", type=int, action="append", choices=aot.ARCHS, help="with --check; default: 90, 89"
    )
    parser.add_argument(
        "--group",
        default="",
        metavar="WORD",
        help="only shapes whose operation and name contain WORD",
    )
    parser.add_argument(
        "--seconds", type=float, default=150, help="for all shapes, compilation included"
    )
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that compile"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--worker", nargs=3, metavar="X", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        return check(options.arch or [NATIVE, LOWERED], options.group, options.jobs, options.json)
    if not torch.cuda.is_available():
        print(
            "bench.kernels.sweep: no CUDA GPU is visible; --check compiles without one",
            file=sys.stderr,
        )
        return 2
    if options.worker:
        part, parts, path = options.worker
        return compile_share(int(part), int(parts), options.group, Path(path))
    return sweep(options.seconds, options.group, options.jobs, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
