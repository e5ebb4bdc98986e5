"""Configurations beside the table's: compiled ahead of time without a GPU, or timed on one.

    python bench/sweep.py --check [--arch 90] [--group WORD] [--jobs 2]
    python bench/sweep.py [--seconds 150] [--group WORD] [--jobs 14] [--json FILE]

What is tried is data: ``bench/candidates.py``. The first form compiles every candidate for its
architectures, and says which exceed registers or shared memory or spill unexpectedly; it exits with 1 if
any does. Run it under the Triton that the GPU has (``PYTHONPATH``).

The second form compiles in parallel processes first, each launching its share of the candidates once, so
that the timing process finds them in Triton's cache; what is not ready by then is left out and said. Then
it goes through the shapes, the most valuable first: every candidate is compared with the oracle, and timed
in turn with the table's configuration and with the peers, in CUDA graphs. Results are written after
each shape, so that a run that is stopped keeps what it has. Set ``TRITON_OVERRIDE_ARCH=sm89`` to sweep the
sm_89 lowering.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
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

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from candidates import GROUPS, LOWERED, NATIVE, Candidate, Group  # noqa: E402
from trials import OPS, recording, wrong  # noqa: E402

TABLE = "table"
"""Name under which the table's configuration takes part."""
PEERS = "peers"
_CHECKED_SMS = 132  # of an H200: split counts, and with them what is compiled, follow from it
_COMPILE_SHARE = 0.5  # of the time, at most
_SAMPLE_SECONDS = 0.03  # a way and shape, after capture
_SHAPE_SECONDS = 4.0  # expected at most for one shape


@dataclass(frozen=True)
class Trial:
    """One shape and one way of doing it.

    Attributes:
        group: index in ``GROUPS``.
        shape: one of the group's.
        way: a candidate's name, :data:`TABLE` or :data:`PEERS`.
    """

    group: int
    shape: str
    way: str

    def candidate(self) -> Candidate | None:
        return next((c for c in GROUPS[self.group].candidates if c.name == self.way), None)


@dataclass(frozen=True)
class Timed:
    """Times of one shape in microseconds, and what was left out and why."""

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
        mine, best = self.us[TABLE], self.us[self.best]
        text = f"{self.op} {self.shape}: table {mine:.1f}, best {self.best} {best:.1f} ({best / mine:.2f})"
        if self.peers:
            name = min(self.peers, key=lambda one: self.peers[one])
            ratio = best / self.peers[name]
            verdict = "met" if ratio <= self.bar else "missed"
            text += f", {name} {self.peers[name]:.1f}: {ratio:.2f}, bar {self.bar} {verdict}"
        return text


def lowering(arch: int) -> int:
    """Whose candidates ``arch`` tries."""
    return NATIVE if arch == 90 else LOWERED


def trials(arch: int, word: str) -> Iterator[Trial]:
    """All of them, the most valuable first: the first shapes of every group, then the second, ..."""
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
    """What each distinct kernel of a candidate uses on ``arch``, and what is wrong with it."""
    candidate = Trial(number, shapes[0], way).candidate()
    with recording() as launches:
        op = OPS[GROUPS[number].op]
        for shape in shapes:
            op.call(op.meta(shape), candidate, arch, _CHECKED_SMS)()
    from tests.support import aot

    trial = candidate or Candidate(TABLE, 0, 0, 1, {}, "")
    known = trial.spills

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
        entry: dict[str, object] = {
            "arch": arch,
            "op": op.op,
            "way": way,
            "kernel": launch.kernel.__name__,
        }
        try:
            got = launch.compile(arch)
        except Exception as err:
            found.append(entry | {"wrong": f"{type(err).__name__}: {err}".splitlines()[0][:200]})
            continue
        allocated = -(-got.registers // 8) * 8 * got.threads
        per_sm = {90: 228, 80: 164}.get(arch, 100) * 1024
        blocks = min(65_536 // allocated, per_sm // (got.shared + 1024))
        faults = []
        if got.spills and arch not in known:
            faults.append(f"{got.spills} spills")
        if got.shared > aot.SHARED_OPT_IN[arch]:
            faults.append("too much shared memory")
        if op.op != "topk" and blocks < trial.blocks:
            faults.append(f"{blocks} blocks fit, not {trial.blocks}")
        found.append(
            entry
            | {
                "registers": got.registers,
                "threads": got.threads,
                "shared": got.shared,
                "blocks": blocks,
            }
            | {"spills": got.spills, "instructions": got.instructions, "wrong": ", ".join(faults)}
        )
    return found


def check(archs: Sequence[int], word: str, jobs: int, out: Path | None) -> int:
    """Compile every candidate; exit code 1 if any cannot be used."""
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
                usage = "{registers} x {threads}, {shared:,} B, {blocks} blocks, {spills} spills".format(
                    **({"registers": 0, "threads": 0, "shared": 0, "blocks": 0, "spills": 0} | row)
                )
                head = f"sm_{row['arch']} {row['op']} {row['way']} {row['kernel']}"
                print(f"{head}: {usage}: {row['wrong'] or 'ok'}", flush=True)
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if row["wrong"]]
    print(f"{len(rows)} kernels compiled, {len(bad)} cannot be used")
    return 1 if bad else 0


# ------------------------------------------------------------------------------------------- on a GPU


def _sms() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count


def _arch() -> int:
    from ada_dsa.arch import target_arch

    return target_arch()


def compile_share(part: int, parts: int, word: str, out: Path) -> int:
    """Launch every ``parts``-th trial once; a line of JSON for each."""
    arch, sms = _arch(), _sms()
    kept: tuple[str, object] = ("", None)
    with out.open("a") as file:
        for trial in list(trials(arch, word))[part::parts]:
            op = OPS[GROUPS[trial.group].op]
            begin = time.monotonic()
            error = ""
            try:
                if kept[0] != op.op + trial.shape:
                    kept = ("", None)
                    kept = (op.op + trial.shape, op.work(trial.shape, small=True))
                work = kept[1]
                if trial.way == PEERS:
                    for peer in op.peers(work, trial.shape).values():  # type: ignore[arg-type]
                        peer()
                else:
                    op.call(work, trial.candidate(), arch, sms)()  # type: ignore[arg-type]
                torch.cuda.synchronize()
            except Exception as err:
                error = f"{type(err).__name__}: {err}".splitlines()[0][:200]
            seconds = round(time.monotonic() - begin, 1)
            file.write(json.dumps(asdict(trial) | {"error": error, "seconds": seconds}) + "\n")
            file.flush()
    return 0


def compile_all(jobs: int, word: str, deadline: float) -> dict[Trial, str]:
    """What is compiled by ``deadline``: the trial, and its error or an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{part}.jsonl" for part in range(jobs)]
        command = [sys.executable, __file__, "--group", word, "--worker"]
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
    """Compare with the oracle, then time, everything that is ready for one shape."""
    from run import measure

    group: Group = GROUPS[number]
    op, sms = OPS[group.op], _sms()
    work = op.work(shape)
    ways: dict[str, Callable[[], object]] = {}
    left_out: dict[str, str] = {}
    for way in (TABLE, *(c.name for c in group.tried(lowering(arch)))):
        trial = Trial(number, shape, way)
        if ready.get(trial, "not compiled in time"):
            left_out[way] = ready.get(trial, "not compiled in time")
            continue
        try:
            error = op.error(work, op.call(work, trial.candidate(), arch, sms)())  # type: ignore[arg-type]
        except Exception as err:
            left_out[way] = f"{type(err).__name__}: {err}".splitlines()[0][:200]
            continue
        if wrong(group.op, error):
            left_out[way] = f"wrong: differs from the oracle by {error:.1e}"
        else:
            ways[way] = op.call(work, trial.candidate(), arch, sms)  # type: ignore[arg-type]
    peers: dict[str, Callable[[], object]] = {}
    if not ready.get(Trial(number, shape, PEERS), "not compiled in time"):
        peers = dict(op.peers(work, shape))  # type: ignore[arg-type]
    times, errors = measure({**ways, **peers}, _SAMPLE_SECONDS)
    left_out |= errors
    us = {name: t for name in ways if (t := times[name])}
    others = {name: t for name in peers if (t := times[name])}
    return Timed(group.op, shape, us, others, left_out, group.bar(shape, lowering(arch)))


def sweep(seconds: float, word: str, jobs: int, out: Path | None) -> int:
    """Time what the budget allows. Returns 1 if the table's configuration failed anywhere."""
    import triton

    begin = time.monotonic()
    arch = _arch()
    ready = compile_all(jobs, word, begin + _COMPILE_SHARE * seconds)
    print(
        f"sm_{arch}: {len(ready)} ways launched once in {time.monotonic() - begin:.0f} s",
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
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
                "device": torch.cuda.get_device_name(),
                "override": os.environ.get("TRITON_OVERRIDE_ARCH", ""),
                "torch": torch.__version__,
                "triton": triton.__version__,
                "rows": [asdict(one) | {"best": one.best} for one in done],
            }
            out.write_text(json.dumps(about, indent=1) + "\n")
    print_table(done)
    if unreached:
        print(f"not reached in {seconds:.0f} s: {'; '.join(unreached)}")
    return 1 if any(TABLE in one.left_out for one in done) else 0


def print_table(done: Sequence[Timed]) -> None:
    """Every candidate's ratio to the table's configuration, a line for each shape."""
    print("\nratio to the table's time, best first")
    for one in done:
        if mine := one.us.get(TABLE):
            cells = sorted((us / mine, name) for name, us in one.us.items() if name != TABLE)
            print(
                f"{one.op} {one.shape}: {', '.join(f'{name} {ratio:.2f}' for ratio, name in cells)}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compile only; needs no GPU")
    parser.add_argument("--arch", type=int, action="append", choices=(80, 86, 89, 90, 120))
    parser.add_argument(
        "--group", default="", metavar="WORD", help="only shapes whose name contains it"
    )
    parser.add_argument("--seconds", type=float, default=150, help="for all, compilation included")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--worker", nargs=3, metavar="X", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        return check(options.arch or [NATIVE, LOWERED], options.group, options.jobs, options.json)
    if not torch.cuda.is_available():
        print(
            "bench/sweep.py: no CUDA device is visible; --check compiles without one",
            file=sys.stderr,
        )
        return 2
    if options.worker:
        part, parts, path = options.worker
        return compile_share(int(part), int(parts), options.group, Path(path))
    return sweep(options.seconds, options.group, options.jobs, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
