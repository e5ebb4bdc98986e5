"""The operations that ``sweep.py`` tries configurations of: inputs, launch, error and peers of each.

Inputs may be meta tensors. Then nothing is launched, and :func:`recording` gives the launches to compile.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch

from ada_dsa import configs
from ada_dsa.indexer import api as indexer_api
from ada_dsa.indexer import kernel as indexer_kernel
from ada_dsa.indexer import ragged_batched_kernel
from ada_dsa.indexer import reference as indexer_reference
from ada_dsa.kv_cache.layout import ROW_DIM, KvLayout
from ada_dsa.sparse_mla import api as mla_api
from ada_dsa.sparse_mla import kernel as mla_kernel
from ada_dsa.sparse_mla import reference as mla_reference
from ada_dsa.sparse_mla.plan import plan_launch
from ada_dsa.topk import api as topk_api
from ada_dsa.topk import kernel as topk_kernel
from ada_dsa.topk import plan as topk_plan
from ada_dsa.topk import reference as topk_reference
from bench.kernels import indexer, sparse_mla, topk
from bench.kernels.candidates import Candidate
from tests.support.aot import Launch, recorded

Call = Callable[[], torch.Tensor]
W = TypeVar("W")
"""The inputs of one shape of an operation."""
FP8, I32, F32, BF16 = torch.float8_e4m3fn, torch.int32, torch.float32, torch.bfloat16
# Largest relative errors that rounding explains: of bfloat16 results, and of sums of fp8 products, for
# which some tensor cores have an accumulator of fewer bits than float32.
_LIMITS = {"mla": 1e-2, "paged": 2e-3, "ragged": 2e-3}
PREFILL_SLOTS = 1 << 16
DEVICE = "cuda"


def numbers(shape: str) -> dict[str, int]:
    """The numbers in ``B=8 ctx=8192 H=64`` by name; of ``2048x32768`` they are R and C."""
    found = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", shape)}
    if size := re.match(r"(\d+)x(\d+)", shape):
        found |= {"R": int(size[1]), "C": int(size[2])}
    return found


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _config(base: configs.Config, candidate: Candidate | None) -> configs.Config:
    """The table's configuration ``base``, or that of the candidate."""
    if candidate is None:
        return base
    return configs.Config(
        base.op, base.arch, base.bucket, candidate.warps, candidate.stages, candidate.blocks, candidate.name,
        MappingProxyType(dict(candidate.params)),
    )  # fmt: skip


class Operation(ABC, Generic[W]):
    """One operation. A shape is named as ``bench/kernels/run.py`` names it."""

    op: str

    @abstractmethod
    def work(self, shape: str, *, small: bool = False) -> W:
        """The inputs of a shape; ``small`` ones serve to compile, not to time."""

    @abstractmethod
    def meta(self, shape: str) -> W:
        """The inputs of a shape as meta tensors."""

    @abstractmethod
    def call(self, work: W, candidate: Candidate | None, arch: int, sms: int) -> Call:
        """What launches the candidate, or the table's configuration for None.

        Args:
            arch: architecture to compile for, major * 10 + minor.
            sms: multiprocessors of the GPU.
        """

    @abstractmethod
    def error(self, work: W, out: torch.Tensor) -> float:
        """How far the result of the first call on ``work`` is from the oracle, on a part of it."""

    @abstractmethod
    def peers(self, work: W, shape: str) -> dict[str, Callable[[], object]]:
        """The same work by other libraries."""


class Mla(Operation[sparse_mla.Work]):
    """Sparse MLA over packed rows: decode (B tokens) and prefill (S tokens)."""

    op = "mla"

    def work(self, shape: str, *, small: bool = False) -> sparse_mla.Work:
        n = numbers(shape)
        slots = 1 << 20 if "B" in n and not small else PREFILL_SLOTS
        tokens = n.get("B") or n["S"]
        return sparse_mla.make_work(tokens, n["H"], slots, KvLayout.PACKED_FP8, DEVICE)

    def meta(self, shape: str) -> sparse_mla.Work:
        n = numbers(shape)
        tokens = n.get("B") or n["S"]
        return sparse_mla.Work(
            _meta(tokens, n["H"], ROW_DIM, dtype=BF16), _meta(PREFILL_SLOTS, 1, 656, dtype=FP8),
            KvLayout.PACKED_FP8, [_meta(tokens, sparse_mla.TOPK, dtype=I32)],
        )  # fmt: skip

    def call(self, work: sparse_mla.Work, candidate: Candidate | None, arch: int, sms: int) -> Call:
        tokens, heads, _ = work.q.shape
        tilelang = candidate is not None and "backend" in candidate.knobs
        op = "sparse_mla_tilelang" if tilelang else "sparse_mla"
        shape = {} if tilelang else {"layout": int(work.layout)}
        config = configs.pick(op, arch, heads=heads, **shape)
        plan = plan_launch(
            arch=arch, num_sms=sms, layout=work.layout, num_tokens=tokens, num_heads=heads,
            topk=sparse_mla.TOPK, config=config if tilelang else _config(config, candidate),
        )  # fmt: skip
        lists = itertools.cycle(work.lists)
        q, rope, rows = work.q[..., :512], work.q[..., 512:], work.pool[:, 0]
        if tilelang:
            return lambda: mla_api.launch_tilelang(
                q, rope, rows, next(lists), sparse_mla.SM_SCALE, plan, False
            )[0]
        return lambda: mla_api.launch(
            q, rope, rows, work.layout, next(lists), sparse_mla.SM_SCALE, plan, False
        )[0]

    def error(self, work: sparse_mla.Work, out: torch.Tensor) -> float:
        """The relative error of the first and the last token."""
        some = torch.tensor([0, work.q.shape[0] - 1], device=out.device)
        want, _ = mla_reference.sparse_mla(
            work.q[some], work.pool[:, 0], work.layout, work.lists[0][some], sparse_mla.SM_SCALE
        )
        return _relative(out[some].float(), want)

    def peers(self, work: sparse_mla.Work, shape: str) -> dict[str, Callable[[], object]]:
        if not sparse_mla.flash_mla_runs():
            return {}
        if "S=" in shape:
            peer = sparse_mla.flash_mla_prefill(work)
            return {"FlashMLA + dequant": sparse_mla.rotating(work, peer)}
        return {"FlashMLA": sparse_mla.rotating(work, sparse_mla.flash_mla_decode(work))}


class Paged(Operation[indexer.PagedWork]):
    """Decode logits."""

    op = "paged"

    def _lens(self, shape: str) -> tuple[list[int], int]:
        n = numbers(shape)
        return [n["ctx"]] * n["B"], n.get("H", 32)

    def work(self, shape: str, *, small: bool = False) -> indexer.PagedWork:
        lens, heads = self._lens(shape)
        return indexer.paged_work(lens, torch.device(DEVICE), heads=heads, most=1 if small else 64)

    def meta(self, shape: str) -> indexer.PagedWork:
        lens, heads = self._lens(shape)
        batch, width = len(lens), lens[0]
        return indexer.PagedWork(
            _meta(batch, 1, heads, 128, dtype=FP8), _meta(1000, 64, 1, 132, dtype=torch.uint8),
            _meta(batch, heads, dtype=F32), _meta(batch, 1, dtype=I32),
            [_meta(batch, width // 64, dtype=I32)], width,
        )  # fmt: skip

    def call(
        self, work: indexer.PagedWork, candidate: Candidate | None, arch: int, sms: int
    ) -> Call:
        batch, next_n, heads, _ = work.q.shape
        base = configs.pick("paged_logits", arch, heads=heads, next_n=next_n)
        config = _config(base, candidate)
        tables = itertools.cycle(work.tables)
        out = torch.empty(batch, work.width, dtype=F32, device=work.q.device)

        def run() -> torch.Tensor:
            indexer_api.launch_paged(
                work.q, work.pool, work.weights, work.lens, next(tables), out, work.width,
                target=arch, config=config, programs=config.blocks_per_sm * sms,
            )  # fmt: skip
            return out

        return run

    def error(self, work: indexer.PagedWork, out: torch.Tensor) -> float:
        """The relative error of the last request."""
        pages = work.tables[0][-1].long()
        table = torch.arange(len(pages), device=out.device, dtype=I32)[None]
        want = indexer_reference.fp8_paged_mqa_logits(
            work.q[-1:], work.pool[pages], work.weights[-1:], work.lens[-1:], table, work.width
        )
        return _relative(out[-1:], want)

    def peers(self, work: indexer.PagedWork, shape: str) -> dict[str, Callable[[], object]]:
        return {} if indexer.missing() else {"DeepGEMM": indexer.deep_gemm_paged(work)}


class Ragged(Operation[indexer.RaggedWork]):
    """Prefill logits."""

    op = "ragged"

    def work(self, shape: str, *, small: bool = False) -> indexer.RaggedWork:
        n = numbers(shape)
        return indexer.ragged_work(n["R"], n["C"], torch.device(DEVICE), n["H"])

    def meta(self, shape: str) -> indexer.RaggedWork:
        n = numbers(shape)
        return indexer.RaggedWork(
            _meta(n["R"], n["H"], 128, dtype=FP8),
            (_meta(n["C"], 128, dtype=FP8), _meta(n["C"], dtype=F32)),
            _meta(n["R"], n["H"], dtype=F32), _meta(n["R"], dtype=I32), _meta(n["R"], dtype=I32),
        )  # fmt: skip

    def call(
        self, work: indexer.RaggedWork, candidate: Candidate | None, arch: int, sms: int
    ) -> Call:
        rows, heads, _ = work.q.shape
        config = _config(configs.pick("ragged_logits", arch, heads=heads), candidate)
        knobs = candidate.knobs if candidate else {}
        tiles = -(-work.kv[0].shape[0] // config.params["BLOCK_KV"])
        chunk = knobs.get("chunk") or indexer_api.choose_ragged_chunk(
            rows, tiles, config.blocks_per_sm * sms
        )
        out = torch.empty(rows, work.kv[0].shape[0], dtype=F32, device=work.q.device)

        def run() -> torch.Tensor:
            indexer_api.launch_ragged(
                work.q, *work.kv, work.weights, work.ks, work.ke, out, 0,
                target=knobs.get("target", arch), config=config, chunk=chunk,
            )  # fmt: skip
            return out

        return run

    def error(self, work: indexer.RaggedWork, out: torch.Tensor) -> float:
        """The relative error of the first and the last eight queries, where they see a key."""
        some = torch.cat([torch.arange(8), torch.arange(-8, 0)]).to(out.device)
        want = indexer_reference.fp8_mqa_logits(
            work.q[some], work.kv, work.weights[some], work.ks[some], work.ke[some],
            clean_logits=True,
        )  # fmt: skip
        seen = want > float("-inf")
        return _relative(out[some][seen], want[seen])

    def peers(self, work: indexer.RaggedWork, shape: str) -> dict[str, Callable[[], object]]:
        return {} if indexer.missing() else {"DeepGEMM": indexer.deep_gemm_ragged(work)}


class TopK(Operation[topk.Work]):
    """Selection of 2048 with the page-table transform."""

    op = "topk"

    def work(self, shape: str, *, small: bool = False) -> topk.Work:
        n = numbers(shape)
        return topk.make_work(n["R"], n["C"], torch.device(DEVICE))

    def meta(self, shape: str) -> topk.Work:
        n = numbers(shape)
        tables = n["R"] if n["R"] <= 64 else 1
        return topk.Work(
            _meta(n["R"], n["C"], dtype=F32), _meta(n["R"], dtype=I32),
            _meta(tables, n["C"], dtype=I32), _meta(tables + 1, dtype=I32),
        )  # fmt: skip

    def call(self, work: topk.Work, candidate: Candidate | None, arch: int, sms: int) -> Call:
        rows, width = work.score.shape
        plan = topk_plan.plan_launch(
            arch=arch, num_sms=sms, num_rows=rows, width=width, topk=topk.TOPK, padded=True
        )
        select = prefilter = None
        if candidate is not None:
            knobs = candidate.knobs
            plan = topk_plan.LaunchPlan(
                knobs.get("splits", plan.splits), knobs.get("samples", plan.samples),
                bool(knobs.get("compact", plan.compact)),
            )  # fmt: skip
            base = configs.pick("topk_select", arch, topk=topk.TOPK, compact=int(plan.compact))
            select = _config(base, candidate)
            if "thin" in knobs:
                base = configs.pick("topk_prefilter", arch, topk=topk.TOPK)
                params = MappingProxyType({**base.params, "maxnreg": knobs["thin"]})
                prefilter = configs.Config(
                    base.op, base.arch, base.bucket, base.num_warps, base.num_stages,
                    base.blocks_per_sm, candidate.name, params,
                )  # fmt: skip
        transform = topk_api.Transform(topk_api.PAGED, table=work.table, cu_seqlens=work.cu_seqlens)
        return lambda: topk_api.launch(
            work.score, work.lengths, None, transform, topk.TOPK, target=arch, plan=plan,
            select=select, prefilter=prefilter,
        )  # fmt: skip

    def error(self, work: topk.Work, out: torch.Tensor) -> float:
        """0 if the first and the last row are exactly right, else 1."""
        rows, tables = work.score.shape[0], work.table.shape[0]
        for row in {0, rows - 1}:
            table = work.table[row if tables == rows else 0][None]
            cu = torch.tensor([0, 1], dtype=I32, device=out.device)
            want = topk_reference.fast_topk_transform_fused(
                work.score[row : row + 1], work.lengths[row : row + 1], table, cu, topk.TOPK
            )
            if not torch.equal(want[0], out[row]):
                return 1.0
        return 0.0

    def peers(self, work: topk.Work, shape: str) -> dict[str, Callable[[], object]]:
        return topk.peer_calls(work)


_ALL: tuple[Operation[Any], ...] = (Mla(), Paged(), Ragged(), TopK())
OPS = {operation.op: operation for operation in _ALL}


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    error = float((got - want).norm() / want.norm())
    return error if math.isfinite(error) else float("inf")


def wrong(op: str, error: float) -> bool:
    """Whether rounding does not explain the error."""
    return error > _LIMITS.get(op, 0.0)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record the launches of every kernel of :data:`OPS` instead of running them.

    The list is filled at the end of the context.
    """
    modules = (indexer_kernel, ragged_batched_kernel, mla_kernel, topk_kernel)
    with ExitStack() as stack:
        found = [stack.enter_context(recorded(module)) for module in modules]
        launches: list[Launch] = []
        yield launches
        launches += [launch for each in found for launch in each]
