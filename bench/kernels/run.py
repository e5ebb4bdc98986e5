"""Kernel benchmarks: every case against its peers, in one run, on one GPU.

    python -m bench.kernels.run [--group WORD] [--list] [--json FILE] [--seconds 0.3]

Each way of doing the work is captured into a CUDA graph of many calls and replayed; the figure is
the median time of a replay over its calls. Cases rotate through inputs that together exceed the L2
cache. Ours and the peers of one case are timed in turn, so that a clock that drifts moves all of
them. The roofline is the larger of bytes over the copy bandwidth and flops over the bfloat16
matmul rate, both measured in this run.

Set ``TRITON_OVERRIDE_ARCH=sm89`` to time the sm_89 lowering of our kernels on another GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.kernels.case import FOR_SCALE, Case

# Modules of this folder with a ``cases(device) -> Iterator[Case]`` and ``missing() -> dict[str, str]``.
MODULES = ("indexer", "topk", "sparse_mla", "layer")
PEERS = ("deep_gemm", "flash_mla", "sgl_kernel", "flashinfer", "tilelang", "sglang")
_MAX_CALLS = 128  # calls in one graph
_REPLAYS = 15


@dataclass(frozen=True)
class Limits:
    """What the device reaches in this run.

    Attributes:
        copy: bytes per second read plus written by a large device copy.
        mma: bfloat16 floating-point operations per second of a large matmul.
    """

    copy: float
    mma: float


@dataclass(frozen=True)
class Row:
    """Result of one case; times in microseconds, ``None`` where a way failed (see ``errors``)."""

    group: str
    name: str
    ours: float | None
    peers: dict[str, float | None]
    roofline: float
    errors: dict[str, str]

    @property
    def ratio(self) -> float | None:
        """Ours over the fastest peer."""
        times = [t for name, t in self.peers.items() if t and name not in FOR_SCALE]
        return self.ours / min(times) if self.ours and times else None

    @property
    def share(self) -> float | None:
        """Roofline time over ours."""
        return self.roofline / self.ours if self.ours and self.roofline else None


class Timer:
    """One way of doing the work, captured; ``sample`` replays it once."""

    def __init__(self, work: Callable[[], object], seconds: float) -> None:
        for _ in range(3):  # compiles, fills caches of the allocator
            work()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(5):
            work()
        end.record()
        torch.cuda.synchronize()
        once = max(begin.elapsed_time(end) / 5e3, 1e-6)
        self._calls = max(2, min(_MAX_CALLS, int(seconds / _REPLAYS / once)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(self._calls):
                work()
        self._graph.replay()
        torch.cuda.synchronize()

    def sample(self) -> float:
        """Microseconds per call in one replay."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._graph.replay()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e3 / self._calls


def measure(
    ways: dict[str, Callable[[], object]], seconds: float
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Median microseconds per call of each way, sampled in turn; and the errors by way."""
    timers: dict[str, Timer] = {}
    errors: dict[str, str] = {}
    for name, work in ways.items():
        try:
            timers[name] = Timer(work, seconds)
        except Exception as err:  # a peer may refuse a shape; the others still count
            errors[name] = f"{type(err).__name__}: {err}".splitlines()[0][:200]
            torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(_REPLAYS):
        for name, timer in timers.items():
            samples[name].append(timer.sample())
    times = {name: statistics.median(s) for name, s in samples.items()}
    return {name: times.get(name) for name in ways}, errors


def device_limits() -> Limits:
    source = torch.ones(1 << 28, device="cuda")  # 1 GiB
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    c = torch.empty_like(a)
    # A kernel, not copy_: captured, that becomes a memcpy node, 2.7 TB/s on an H200 whose kernels
    # read and write more.
    ways = {
        "copy": lambda: torch.mul(source, 1.0, out=target),
        "mma": lambda: torch.mm(a, b, out=c),
    }
    times, errors = measure(ways, 0.3)
    copy, mma = times["copy"], times["mma"]
    if copy is None or mma is None:
        raise RuntimeError(f"cannot measure the device: {errors}")
    return Limits(copy=2 * source.nbytes / copy * 1e6, mma=2 * 8192**3 / mma * 1e6)


def all_cases(word: str) -> Iterator[Case]:
    for name in MODULES:
        for case in importlib.import_module(f"bench.kernels.{name}").cases(torch.device("cuda")):
            if word.lower() in case.group.lower():
                yield case


def missing_peers() -> dict[str, str]:
    """Peers that this environment lacks, and why, as the modules of cases say."""
    found: dict[str, str] = {}
    for name in MODULES:
        found |= importlib.import_module(f"bench.kernels.{name}").missing()
    return found


def run_case(case: Case, limits: Limits, seconds: float) -> Row:
    times, errors = measure({"ours": case.ours, **case.peers}, seconds)
    ours = times.pop("ours")
    roofline = max(case.bytes / limits.copy, case.flops / limits.mma) * 1e6
    return Row(case.group, case.name, ours, times, roofline, errors)


def environment(limits: Limits) -> dict[str, object]:
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    for module in PEERS:
        if importlib.util.find_spec(module):
            try:
                found = importlib.import_module(module)
            except (
                ImportError,
                OSError,
                RuntimeError,
            ) as err:  # installed for another torch or CUDA
                versions[module] = f"not importable: {err}".splitlines()[0][:120]
            else:
                versions[module] = str(getattr(found, "__version__", "present"))
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(),
        "override": os.environ.get("TRITON_OVERRIDE_ARCH", ""),
        "versions": versions,
        "missing_peers": missing_peers(),
        "copy_GB_s": round(limits.copy / 1e9),
        "bf16_TFLOP_s": round(limits.mma / 1e12),
        "command": shlex.join(["python", "-m", "bench.kernels.run", *sys.argv[1:]]),
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_rows(rows: Sequence[Row]) -> None:
    """One Markdown table per group."""
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        peers = list(dict.fromkeys(name for row in members for name in row.peers))
        header = ["case", "ours us", *(f"{p} us" for p in peers), "ratio", "roofline us", "share"]
        print(f"\n### {group}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for row in members:
            cells = [
                row.name,
                _number(row.ours, ".1f"),
                *(_number(row.peers.get(p), ".1f") for p in peers),
                _number(row.ratio, ".2f"),
                f"{row.roofline:.1f}",
                _number(row.share, ".0%"),
            ]
            print(f"| {' | '.join(cells)} |")
        for row in members:
            for way, error in row.errors.items():
                print(f"\n{row.name}, {way}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--group", default="", metavar="WORD", help="only groups that contain WORD")
    parser.add_argument("--list", action="store_true", help="name the cases, time nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--seconds", type=float, default=0.3, help="aimed at per way of a case")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "bench.kernels.run: no CUDA device is visible; these benchmarks need one",
            file=sys.stderr,
        )
        return 2
    if options.list:
        for case in all_cases(options.group):
            print(f"{case.group}: {case.name} (peers: {', '.join(case.peers) or 'none'})")
        return 0
    limits = device_limits()
    about = environment(limits)
    for key, value in about.items():
        print(f"{key}: {value}")
    rows: list[Row] = []
    for case in all_cases(options.group):
        rows.append(run_case(case, limits, options.seconds))
        print(f"{case.group}: {case.name}: {_number(rows[-1].ours, '.1f')} us", file=sys.stderr)
        if options.json:  # after each case: a run that is stopped keeps what it has
            results = [asdict(row) | {"ratio": row.ratio, "share": row.share} for row in rows]
            options.json.write_text(json.dumps(about | {"rows": results}, indent=1) + "\n")
    print_rows(rows)
    return 1 if any("ours" in row.errors for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
