"""Time every kernel and the same work by other libraries, on one GPU.

    python -m bench.kernels.run [--group WORD] [--list] [--json FILE] [--seconds 0.3]

A time is the median over replays of a CUDA graph of many calls, divided by the number of calls. Each
case rotates through inputs that together exceed the L2 cache. The roofline is the larger of two times:
bytes over the copy bandwidth, and operations over the bfloat16 matmul rate. Both rates are measured in
this run.

Set TRITON_OVERRIDE_ARCH=sm89 to time the sm_89 lowering of our kernels on another GPU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from bench.kernels import indexer, layer, peers, quantize, sparse_mla, timing, topk
from bench.kernels.case import FOR_SCALE, Case


class Cases(Protocol):
    """What a module of cases has."""

    def cases(self, device: torch.device) -> Iterator[Case]: ...

    def missing(self) -> dict[str, str]: ...


MODULES: tuple[Cases, ...] = (indexer, topk, sparse_mla, quantize, layer)


@dataclass(frozen=True)
class Limits:
    """The rates that the GPU reaches in this run.

    Attributes:
        copy: bytes per second, read plus written, of a large device copy.
        mma: bfloat16 floating-point operations per second of a large matmul.
    """

    copy: float
    mma: float


@dataclass(frozen=True)
class Row:
    """The result of one case.

    Attributes:
        group, name: as in :class:`Case`.
        ours: microseconds per call; None where the call failed.
        peers: microseconds per call of each other library; None where the call failed.
        roofline: least microseconds at the measured rates.
        errors: what failed and why.
    """

    group: str
    name: str
    ours: float | None
    peers: dict[str, float | None]
    roofline: float
    errors: dict[str, str]

    @property
    def ratio(self) -> float | None:
        """Our time over the fastest peer's."""
        times = [t for name, t in self.peers.items() if t and name not in FOR_SCALE]
        return self.ours / min(times) if self.ours and times else None

    @property
    def share(self) -> float | None:
        """The roofline's time over ours."""
        return self.roofline / self.ours if self.ours and self.roofline else None


def device_limits() -> Limits:
    """Measure the rates.

    Raises:
        RuntimeError: the copy or the matmul failed.
    """
    source = torch.ones(1 << 28, device="cuda")  # 1 GiB
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    c = torch.empty_like(a)
    # A kernel copies, not copy_: a graph replays copy_ as a memcpy node, which reaches 2.7 TB/s on an
    # H200, less than kernels do.
    calls = {
        "copy": lambda: torch.mul(source, 1.0, out=target),
        "mma": lambda: torch.mm(a, b, out=c),
    }
    times, errors = timing.measure(calls, 0.3)
    copy, mma = times["copy"], times["mma"]
    if copy is None or mma is None:
        raise RuntimeError(f"cannot measure the GPU's rates: {errors}")
    return Limits(copy=2 * source.nbytes / copy * 1e6, mma=2 * 8192**3 / mma * 1e6)


def all_cases(word: str) -> Iterator[Case]:
    """The cases of the groups whose name contains ``word``."""
    for module in MODULES:
        for case in module.cases(torch.device("cuda")):
            if word.lower() in case.group.lower():
                yield case


def missing_peers() -> dict[str, str]:
    """The peers that cannot take part in this environment, and why."""
    return {name: why for module in MODULES for name, why in module.missing().items()}


def run_case(case: Case, limits: Limits, seconds: float) -> Row:
    times, errors = timing.measure({"ours": case.ours, **case.peers}, seconds)
    ours = times.pop("ours")
    roofline = max(case.bytes / limits.copy, case.flops / limits.mma) * 1e6
    return Row(case.group, case.name, ours, times, roofline, errors)


def environment(limits: Limits) -> dict[str, object]:
    return {
        **timing.conditions(),
        "versions": peers.versions(),
        "missing_peers": missing_peers(),
        "copy_GB_s": round(limits.copy / 1e9),
        "bf16_TFLOP_s": round(limits.mma / 1e12),
        "command": shlex.join(["python", "-m", "bench.kernels.run", *sys.argv[1:]]),
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_rows(rows: Sequence[Row]) -> None:
    """Print a Markdown table for each group."""
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        names = list(dict.fromkeys(name for row in members for name in row.peers))
        header = ["case", "ours us", *(f"{p} us" for p in names), "ratio", "roofline us", "share"]
        print(f"\n### {group}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for row in members:
            cells = [
                row.name,
                _number(row.ours, ".1f"),
                *(_number(row.peers.get(p), ".1f") for p in names),
                _number(row.ratio, ".2f"),
                f"{row.roofline:.1f}",
                _number(row.share, ".0%"),
            ]
            print(f"| {' | '.join(cells)} |")
        for row in members:
            for call, error in row.errors.items():
                print(f"\n{row.name}, {call}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--group", default="", metavar="WORD", help="only groups that contain WORD")
    parser.add_argument("--list", action="store_true", help="list the cases and time nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="time to spend on each call of a case, about"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.kernels.run: no CUDA GPU is visible, and this needs one", file=sys.stderr)
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
        if options.json:  # after each case, so that a run that is stopped keeps what it has
            results = [asdict(row) | {"ratio": row.ratio, "share": row.share} for row in rows]
            options.json.write_text(json.dumps(about | {"rows": results}, indent=1) + "\n")
    print_rows(rows)
    return 1 if any("ours" in row.errors for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
