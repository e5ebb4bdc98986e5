"""The indexer's cases: paged and ragged logits against DeepGEMM.

python -m bench.kernels.run --group logits
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ada_dsa import fp8_mqa_logits, fp8_paged_mqa_logits
from bench.kernels import peers
from bench.kernels.case import Case

FP8 = torch.float8_e4m3fn
PAGE, ROW_BYTES, DIM = 64, 132, 128


@dataclass(frozen=True)
class PagedWork:
    """The inputs of one decode batch.

    Attributes:
        q: float8_e4m3fn [B, next_n, H, 128].
        pool: uint8 [pages, 64, 1, 132], keys and scales.
        weights: float32 [B * next_n, H].
        lens: int32 [B, next_n], keys that each query sees.
        tables: int32 [B, width / 64] page tables; calls rotate through them.
        width: columns of the logits.
    """

    q: torch.Tensor
    pool: torch.Tensor
    weights: torch.Tensor
    lens: torch.Tensor
    tables: list[torch.Tensor]
    width: int

    @property
    def keys(self) -> int:
        """Keys that are read: each once for all queries of its request."""
        return int(self.lens.amax(dim=1).sum())

    @property
    def bytes(self) -> int:
        queries = int(self.lens.sum())
        return self.keys * ROW_BYTES + queries * 4 + self.q.numel()

    @property
    def flops(self) -> int:
        return 2 * int(self.lens.sum()) * self.q.shape[2] * DIM


def index_pool(pages: int, device: torch.device) -> torch.Tensor:
    """uint8 [pages, 64, 1, 132]: random keys with scales in [0.5, 1.5)."""
    g = torch.Generator(device).manual_seed(0)
    pool = torch.empty((pages, PAGE * ROW_BYTES), dtype=torch.uint8, device=device)
    for part in pool.split(4096):
        keys = torch.randn((len(part), PAGE * DIM), generator=g, device=device).to(FP8)
        part[:, : PAGE * DIM] = keys.view(torch.uint8)
        scale = torch.rand((len(part), PAGE), generator=g, device=device) + 0.5
        part[:, PAGE * DIM :] = scale.view(torch.uint8)
    return pool.view(pages, PAGE, 1, ROW_BYTES)


def page_table(lens: list[int], pages: torch.Tensor, width: int) -> torch.Tensor:
    """int32 ``[len(lens), width]``: the next of ``pages`` for each sequence, then page 0."""
    table = pages.new_zeros((len(lens), width))
    at = 0
    for row, tokens in zip(table, lens, strict=True):
        count = -(-tokens // PAGE)
        row[:count] = pages[at : at + count]
        at += count
    return table


def paged_work(
    lens: list[int],
    device: torch.device,
    *,
    heads: int = 32,
    next_n: int = 1,
    most: int = 64,
    longest: int = 0,
) -> PagedWork:
    """A decode batch of requests that hold ``lens`` tokens.

    Args:
        heads: index heads.
        next_n: queries of each request.
        most: page tables at most. Each names other pages; up to this number, the pages of all tables
            together take more than twice the L2 cache.
        longest: the page tables have columns for at least this many tokens.
    """
    g = torch.Generator(device).manual_seed(1)
    batch = len(lens)
    width = -(-max(*lens, longest) // PAGE)
    needed = sum(-(-n // PAGE) for n in lens)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    rotations = min(most, max(2, 2 * cache // (needed * PAGE * ROW_BYTES) + 1))
    pool = index_pool(needed * rotations + 1, device)
    order = torch.randperm(needed * rotations, generator=g, device=device).int() + 1
    tables = [page_table(lens, pages, width) for pages in order.split(needed)]
    q = torch.randn((batch, next_n, heads, DIM), generator=g, device=device).to(FP8)
    weights = torch.randn((batch * next_n, heads), generator=g, device=device)
    back = torch.arange(next_n - 1, -1, -1, device=device)
    context = (torch.tensor(lens, device=device)[:, None] - back).int()
    return PagedWork(q, pool, weights, context, tables, width * PAGE)


def ours_paged(work: PagedWork) -> Callable[[], torch.Tensor]:
    tables = itertools.cycle(work.tables)
    return lambda: fp8_paged_mqa_logits(
        work.q, work.pool, work.weights, work.lens, next(tables), None, work.width
    )


def deep_gemm_paged(work: PagedWork) -> Callable[[], object]:
    """DeepGEMM with one query per row: the queries of a request become rows, as sglang did it."""
    import deep_gemm

    batch, next_n, heads, _ = work.q.shape
    q = work.q.view(batch * next_n, 1, heads, DIM)
    lens = work.lens.reshape(-1, 1).contiguous()
    tables = itertools.cycle([t.repeat_interleave(next_n, dim=0) for t in work.tables])
    plan = deep_gemm.get_paged_mqa_logits_metadata(lens, PAGE, deep_gemm.get_num_sms())
    return lambda: deep_gemm.fp8_paged_mqa_logits(
        q, work.pool, work.weights, lens, next(tables), plan, work.width, clean_logits=False
    )


@dataclass(frozen=True)
class RaggedWork:
    """The inputs of one prefill chunk, whose last query sees all keys.

    Attributes:
        q: float8_e4m3fn [S, H, 128].
        kv: float8_e4m3fn [N, 128] keys, float32 [N] scales.
        weights: float32 [S, H].
        ks, ke: int32 [S], first key of each query and the key after its last.
    """

    q: torch.Tensor
    kv: tuple[torch.Tensor, torch.Tensor]
    weights: torch.Tensor
    ks: torch.Tensor
    ke: torch.Tensor

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees."""
        return int((self.ke - self.ks).sum())


def ragged_work(num_q: int, num_kv: int, device: torch.device, heads: int = 32) -> RaggedWork:
    g = torch.Generator(device).manual_seed(2)
    k = torch.randn((num_kv, DIM), generator=g, device=device).to(FP8)
    scale = torch.rand(num_kv, generator=g, device=device) + 0.5
    ke = (torch.arange(num_q, device=device) + (num_kv - num_q + 1)).int()
    return RaggedWork(
        torch.randn((num_q, heads, DIM), generator=g, device=device).to(FP8), (k, scale),
        torch.randn((num_q, heads), generator=g, device=device), torch.zeros_like(ke), ke,
    )  # fmt: skip


def ours_ragged(work: RaggedWork) -> Callable[[], torch.Tensor]:
    return lambda: fp8_mqa_logits(work.q, work.kv, work.weights, work.ks, work.ke)


def deep_gemm_ragged(work: RaggedWork) -> Callable[[], object]:
    import deep_gemm

    return lambda: deep_gemm.fp8_mqa_logits(
        work.q, work.kv, work.weights, work.ks, work.ke, clean_logits=False
    )


def paged_shapes() -> Iterator[tuple[str, list[int], int, int]]:
    """Name, lengths, index heads and queries of each request."""
    for batch in (1, 8, 32, 64):
        for context in (8192, 32_768, 131_072):
            yield f"B={batch} ctx={context}", [context] * batch, 32, 1
    for next_n in (2, 3):
        for batch in (1, 8, 32):
            yield f"B={batch} ctx=32768 n={next_n}", [32_768] * batch, 32, next_n
    yield "B=8 ctx=32768 H=64", [32_768] * 8, 64, 1
    yield "B=32 ctx=131072+31x4096", [131_072] + [4096] * 31, 32, 1


def missing() -> dict[str, str]:
    """The peers that cannot take part in this environment, and why."""
    failure = peers.import_failure("deep_gemm")
    return {"DeepGEMM": failure} if failure else {}


RAGGED_SHAPES = ((2048, 2048, 32), (4096, 32_768, 32), (2048, 131_072, 32), (4096, 32_768, 64))


def cases(device: torch.device) -> Iterator[Case]:
    """Paged logits, then ragged ones."""
    compared = not missing()
    for name, lens, heads, next_n in paged_shapes():
        paged = paged_work(lens, device, heads=heads, next_n=next_n)
        others = {"DeepGEMM": deep_gemm_paged(paged)} if compared else {}
        yield Case("paged logits", name, ours_paged(paged), others, paged.bytes, paged.flops)
    for num_q, num_kv, heads in RAGGED_SHAPES:
        work = ragged_work(num_q, num_kv, device, heads)
        others = {"DeepGEMM": deep_gemm_ragged(work)} if compared else {}
        yield Case(
            "ragged logits", f"{num_q}x{num_kv} H={heads}", ours_ragged(work), others,
            num_q * heads * DIM + num_kv * ROW_BYTES + work.pairs * 4,
            2 * work.pairs * heads * DIM,
        )  # fmt: skip
