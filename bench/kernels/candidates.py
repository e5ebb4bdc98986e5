"""The configurations that ``sweep.py`` tries beside those of the table, as data.

Each states what it is predicted to do on an H200, and why. A prediction is no measurement: a candidate
enters ``ada_dsa/configs`` only after it was timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NATIVE, LOWERED = 90, 89
BOTH = (NATIVE, LOWERED)


@dataclass(frozen=True)
class Candidate:
    """One configuration to compare with the table's.

    Attributes:
        name: a short name, unique within its group.
        warps, stages, blocks, params: as in ``configs.Config``; for top-k, of the selection kernel.
        predicted: the time to expect over the table's, and why.
        archs: the lowerings that it is for.
        knobs: settings that are no part of a configuration. Ragged logits: ``chunk`` and ``target``. Top-k:
            ``splits``, ``samples``, ``compact``, and ``thin``, the registers of the thinning kernel. Sparse
            MLA: ``backend``, 1 for TileLang.
        spills: the lowerings where Triton 3.6.0 spills registers in some variant. The candidate is worth
            timing, but must not enter the table before that is mended.
    """

    name: str
    warps: int
    stages: int
    blocks: int
    params: Mapping[str, int]
    predicted: str
    archs: tuple[int, ...] = BOTH
    knobs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    spills: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """Some shapes of one operation, and the candidates that are tried on all of them.

    Attributes:
        op: ``paged``, ``ragged``, ``topk`` or ``mla``.
        shapes: names as ``bench/kernels/run.py`` gives them, the most valuable first.
        bars: the greatest ratio to the fastest peer that is aimed at, by lowering. Some shapes have a bar
            of their own: see :meth:`bar`.
        candidates: the most promising first.
    """

    op: str
    shapes: tuple[str, ...]
    bars: Mapping[int, float]
    candidates: tuple[Candidate, ...]

    def tried(self, arch: int) -> list[Candidate]:
        """The candidates for a lowering."""
        return [one for one in self.candidates if arch in one.archs]

    def bar(self, shape: str, arch: int) -> float:
        """The greatest ratio to the fastest peer that is aimed at."""
        return _OTHER_BARS.get((self.op, shape), self.bars)[arch]


_OTHER_BARS: dict[tuple[str, str], Mapping[int, float]] = {
    ("mla", "S=2048 H=8"): {NATIVE: 1.2, LOWERED: 2.0},
    ("mla", "S=2048 H=64"): {NATIVE: 1.2, LOWERED: 2.0},
    ("topk", "1x131072"): {NATIVE: 0.3, LOWERED: 0.3},
    ("paged", "B=32 ctx=8192"): {NATIVE: 1.0, LOWERED: 1.5},
}


def _mla(
    name: str, predicted: str, *, h: int, n: int, warps: int = 8, blocks: int = 1,
    registers: int = 0, swap: int = 0, archs: tuple[int, ...] = BOTH,
    spills: tuple[int, ...] = (),
) -> Candidate:  # fmt: skip
    params = {"BLOCK_H": h, "BLOCK_N": n, "MAXNREG": registers, "SWAP": swap}
    return Candidate(name, warps, 1, blocks, params, predicted, archs, spills=spills)


_TILELANG = Candidate(
    "tilelang", 0, 0, 0, {}, "rows converted once for 64 heads, no prefetch: wins at 64 heads at most",
    knobs={"backend": 1},
)  # fmt: skip

_MLA_8 = (
    _mla(
        "swap 8x16 w4 b3", "0.9 at one token, 1.3 elsewhere: Q is read twice as often a row",
        h=8, n=16, warps=4, blocks=3, swap=1, registers=168, spills=BOTH,
    ),
    _mla("swap 8x64 w8", "1.15-1.2: one block", h=8, n=64, swap=1),
)  # fmt: skip

_MLA_16 = (
    _mla("16x32 w8", "0.9 at one token, 1.2-1.4 elsewhere: more barriers a row", h=16, n=32),
    _mla("16x64 w8", "1.0-1.2 natively: one block", h=16, n=64, archs=(NATIVE,)),
)  # fmt: skip

_MLA_64 = (
    _mla("heads 16x64 w8", "0.85 at one token, 0.96-1.0 else: rows converted four times", h=16, n=64),
    _mla(
        "heads 16x32 w4 b2", "0.7 natively at one token, 1.3 else", h=16, n=32, warps=4, blocks=2,
        archs=(NATIVE,),
    ),
)  # fmt: skip


def _ragged(
    name: str, predicted: str, *, n: int, warps: int, blocks: int, queries: int = 0, stages: int = 3,
    archs: tuple[int, ...] = BOTH, **knobs: int,
) -> Candidate:  # fmt: skip
    params = {"BLOCK_KV": n} | ({"QUERIES": queries} if queries else {})
    return Candidate(name, warps, stages, blocks, params, predicted, archs, knobs)


_RAGGED_64 = (
    _ragged("q2 128 w8 b1", "1.15 natively: one block of eight warps", n=128, warps=8, blocks=1, queries=2,
            archs=(NATIVE,)),
    _ragged("256 w8 b2", "1.15 natively: one query a dot", n=256, warps=8, blocks=2, archs=(NATIVE,)),
)  # fmt: skip

_RAGGED_32 = (
    _ragged("q2 128 w4 b4", "1.03 natively: n64, four blocks overlap", n=128, warps=4, blocks=4,
            queries=2, archs=(NATIVE,)),
    _ragged("256 w4 b4", "1.05-1.5 natively: one query a dot", n=256, warps=4, blocks=4, archs=(NATIVE,)),
    _ragged("q4 128 w4 b2 chunk64", "1.0-1.3: fewer starts", n=128, warps=4, blocks=2, queries=4,
            archs=(NATIVE,), chunk=64),
    _ragged("128 w4 chunk32", "0.9 at 2Kx2K, where it was best before", n=128, warps=4, blocks=3, chunk=32),
    _ragged("q2 128 w4 b2", "0.9-1.1 under sm_89: keys converted once for two queries, the sum of heads "
            "through shared memory", n=128, warps=4, blocks=2, queries=2, archs=(LOWERED,)),
    _ragged("256 w8 b1", "1.0: as the table's with half the accumulators", n=256, warps=8, blocks=1,
            archs=(LOWERED,)),
    _ragged(
        "fp16 128 w4 b2",
        "0.6-0.7 of sm_89's on a Hopper, which has no fp8 mma.sync and converts for each. To know what "
        "that costs: never for the table, an RTX 4090 does fp8 at twice the rate",
        n=128, warps=4, blocks=2, archs=(LOWERED,), target=86,
    ),
)  # fmt: skip


def _paged(
    name: str, predicted: str, *, pages: int, warps: int = 4, stages: int = 4, blocks: int = 3,
    archs: tuple[int, ...] = BOTH,
) -> Candidate:  # fmt: skip
    return Candidate(name, warps, stages, blocks, {"PAGES": pages}, predicted, archs)


_PAGED_32 = (
    _paged("p1 s4 b2", "0.86-1.0 natively up to 128 MB of keys, 1.07 beyond; 1.1-1.2 under sm_89", pages=1,
           blocks=2),
    _paged("p1 s3 b3", "1.06 under sm_89", pages=1, stages=3, archs=(LOWERED,)),
)  # fmt: skip

_PAGED_64 = (
    _paged("p1 s4 b2", "1.0: half the accumulators, more barriers", pages=1, blocks=2),
    _paged("p2 s3 w8 b1", "0.9-1.0: eight warps convert", pages=2, stages=3, warps=8, blocks=1,
           archs=(LOWERED,)),
    _paged("p1 s3 b2", "1.0", pages=1, stages=3, blocks=2, archs=(LOWERED,)),
)  # fmt: skip


def _topk(
    name: str, predicted: str, *, warps: int, small: int, large: int, registers: int,
    spills: tuple[int, ...] = (), **knobs: int,
) -> Candidate:  # fmt: skip
    params = {"SMALL": small, "LARGE": large, "maxnreg": registers}
    return Candidate(name, warps, 1, 1, params, predicted, BOTH, knobs, spills)


_DIRECT = (
    _topk("direct w16", "0.6-0.75: one launch, no sample; seven steps on 16 keys a thread", warps=16,
          small=8192, large=8192, registers=128, splits=0, spills=(LOWERED,)),
    _topk("direct w32", "0.65-0.8: eight keys a thread, dearer barriers", warps=32, small=8192, large=8192,
          registers=64, splits=0),
    _topk("direct w8", "0.7-0.9: cheap barriers, 32 keys a thread, one block", warps=8, small=8192,
          large=8192, registers=255, splits=0),
)  # fmt: skip

_THINNED = (
    _topk("thin 255", "1.0: what sm_89 takes since Triton 3.8.0 spilled with 168", warps=8, small=4096,
          large=4096, registers=128, thin=255),
    _topk("thin 168", "1.0: what sm_90 takes", warps=8, small=4096, large=4096, registers=128, thin=168),
    _topk("select w16", "0.95-1.1", warps=16, small=4096, large=4096, registers=128),
    _topk("splits 4", "0.9-1.0 for 32 rows and more: fewer searches of the sample", warps=8, small=4096,
          large=4096, registers=128, splits=4),
    _topk("splits 2", "0.9-1.1: as splits 4", warps=8, small=4096, large=4096, registers=128, splits=2),
    _topk("splits 64", "0.8-1.0 for one row of 128K and more", warps=8, small=4096, large=4096,
          registers=128, splits=64),
    _topk("splits 32", "0.85-1.0 for one row", warps=8, small=4096, large=4096, registers=128, splits=32),
)  # fmt: skip

GROUPS: tuple[Group, ...] = (
    Group("mla", ("B=64 H=8", "S=2048 H=8", "B=1 H=8", "B=128 H=8", "B=16 H=8", "B=4 H=8"),
          {NATIVE: 0.8, LOWERED: 1.0}, _MLA_8),
    Group("mla", ("S=2048 H=64", "B=64 H=64", "B=1 H=64", "B=8 H=64"),
          {NATIVE: 1.2, LOWERED: 2.5}, (*_MLA_64, _TILELANG)),
    Group("ragged", ("4096x32768 H=64",), {NATIVE: 1.2, LOWERED: 2.0}, _RAGGED_64),
    Group("ragged", ("4096x32768 H=32", "2048x2048 H=32", "2048x131072 H=32"),
          {NATIVE: 1.2, LOWERED: 2.0}, _RAGGED_32),
    Group("topk", ("1x8192", "2048x8192"), {NATIVE: 1.0, LOWERED: 1.0}, _DIRECT),
    Group("mla", ("B=64 H=16", "B=1 H=16", "B=128 H=16", "B=16 H=16"),
          {NATIVE: 0.8, LOWERED: 1.0}, _MLA_16),
    Group("topk", ("32x32768", "64x131072", "2048x32768", "1x131072", "64x32768"),
          {NATIVE: 1.0, LOWERED: 1.0}, _THINNED),
    Group("paged", ("B=1 ctx=131072", "B=8 ctx=8192", "B=32 ctx=8192", "B=1 ctx=8192", "B=8 ctx=32768"),
          {NATIVE: 1.0, LOWERED: 1.2}, _PAGED_32),
    Group("paged", ("B=8 ctx=32768 H=64",), {NATIVE: 1.0, LOWERED: 1.5}, _PAGED_64),
)  # fmt: skip
