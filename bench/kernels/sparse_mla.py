"""Sparse MLA cases: decode and prefill against FlashMLA.

python -m bench.kernels.run --group "sparse MLA"
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ada_dsa import dequantize_k_cache_paged, sparse_mla_fwd
from ada_dsa.kv_cache.layout import PACKED_BYTES, ROW_DIM, KvLayout
from bench.kernels.case import Case, nvcc

TOPK = 2048
SM_SCALE = 256**-0.5
_ROW_BYTES = {
    KvLayout.PACKED_FP8: PACKED_BYTES,
    KvLayout.RAW_FP8: ROW_DIM,
    KvLayout.BF16: 2 * ROW_DIM,
}
_FLASH_MLA_HEADS = (64, 128)
# Tokens and heads that the TileLang version is timed at: few, because nvcc compiles each number of
# heads twice (with and without splits), half a minute each time.
TILELANG = {(1, 8), (64, 8), (1, 64), (64, 64), (2048, 8), (2048, 64)}


@dataclass(frozen=True)
class Work:
    """One shape with the inputs its calls rotate through."""

    q: torch.Tensor  # bfloat16 [T, H, 576]
    pool: torch.Tensor  # [slots, 1, width]
    layout: KvLayout
    lists: list[torch.Tensor]  # int32 [T, TOPK] each

    @property
    def bytes(self) -> int:
        tokens, heads, _ = self.q.shape
        rows = tokens * TOPK * _ROW_BYTES[self.layout]
        # Tokens of one prefill share rows: the pool is read once at least, not once a token.
        rows = min(rows, self.pool.numel() * self.pool.element_size())
        return rows + tokens * heads * (ROW_DIM + 512) * 2 + tokens * TOPK * 4

    @property
    def flops(self) -> int:
        tokens, heads, _ = self.q.shape
        return 2 * tokens * heads * TOPK * (ROW_DIM + 512)


@functools.cache
def make_pool(slots: int, layout: KvLayout, device: str = "cuda") -> torch.Tensor:
    from ada_dsa.kv_cache.api import quantize_k_cache

    generator = torch.Generator(device).manual_seed(0)
    width = PACKED_BYTES if layout is KvLayout.PACKED_FP8 else ROW_DIM
    dtype = torch.bfloat16 if layout is KvLayout.BF16 else torch.float8_e4m3fn
    pool = torch.empty(slots, 1, width, dtype=dtype, device=device)
    for part in pool.split(1 << 16):
        rows = torch.randn(len(part), 1, ROW_DIM, device=device, generator=generator).bfloat16()
        part.copy_(quantize_k_cache(rows) if layout is KvLayout.PACKED_FP8 else rows.to(dtype))
    return pool


def make_work(tokens: int, heads: int, slots: int, layout: KvLayout, device: str = "cuda") -> Work:
    """Inputs whose rows together exceed the L2 cache (at most 64 lists)."""
    generator = torch.Generator(device).manual_seed(tokens)
    pool = make_pool(slots, layout, device)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(2, min(64, 2 * cache // (tokens * TOPK * _ROW_BYTES[layout]) + 1))
    lists = [
        torch.randint(1, slots, (tokens, TOPK), device=device, generator=generator).int()
        for _ in range(count)
    ]
    q = torch.randn(tokens, heads, ROW_DIM, device=device, generator=generator).bfloat16()
    return Work(q, pool, layout, lists)


def rotating(
    work: Work, call: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    lists = itertools.cycle(work.lists)
    return lambda: call(next(lists))


def ours(work: Work) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda index: sparse_mla_fwd(work.q, work.pool, index, SM_SCALE)  # type: ignore[return-value]


def tilelang(work: Work) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda index: sparse_mla_fwd(work.q, work.pool, index, SM_SCALE, backend="tilelang")  # type: ignore[return-value]


def has_flash_mla() -> bool:
    try:
        import flash_mla  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def missing() -> dict[str, str]:
    """Peers that this environment lacks, and why."""
    lacks: dict[str, str] = {}
    if not has_flash_mla():
        lacks["FlashMLA"] = "flash_mla cannot be imported"
    if importlib.util.find_spec("tilelang") is None:
        lacks["TileLang"] = "tilelang is not installed"
    elif not nvcc():
        lacks["TileLang"] = "TileLang compiles its kernel when first called: needs nvcc"
    return lacks


def _padded_query(q: torch.Tensor) -> torch.Tensor:
    """FlashMLA takes 64 or 128 heads; padding is done beforehand and not timed."""
    heads = next(h for h in _FLASH_MLA_HEADS if h >= q.shape[1])
    out = q.new_zeros(q.shape[0], heads, ROW_DIM)
    out[:, : q.shape[1]] = q
    return out


def flash_mla_decode(work: Work) -> Callable[[torch.Tensor], torch.Tensor]:
    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    q = _padded_query(work.q)[:, None]
    blocks = work.pool.view(-1, 64, 1, PACKED_BYTES)
    plan, _ = get_mla_metadata()
    heads = work.q.shape[1]

    def call(index: torch.Tensor) -> torch.Tensor:
        out, _ = flash_mla_with_kvcache(
            q,
            blocks,
            None,
            None,
            512,
            plan,
            None,
            SM_SCALE,
            False,
            True,
            index[:, None],
            use_legacy=True,
        )
        return out[:, 0, :heads]

    return call


def flash_mla_prefill(work: Work, slots: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Their bfloat16 kernel after unpacking the context's rows, as sglang calls it for fp8 pools."""
    from flash_mla import flash_mla_sparse_fwd

    q = _padded_query(work.q)
    heads = work.q.shape[1]

    def call(index: torch.Tensor) -> torch.Tensor:
        rows = work.pool
        if work.layout is KvLayout.PACKED_FP8:
            rows = dequantize_k_cache_paged(rows, slots)
        return flash_mla_sparse_fwd(q, rows, index[:, None], SM_SCALE, use_legacy=True)[0][
            :, :heads
        ]

    return call


def _agrees(work: Work, peer: Callable[[torch.Tensor], torch.Tensor], name: str) -> None:
    want = ours(work)(work.lists[0]).float()
    try:
        got = peer(work.lists[0]).float()
    except Exception:  # it will fail again when it is timed, where the error is recorded
        return
    error = float((got - want).norm() / want.norm())
    if not error < 2e-2:
        raise RuntimeError(f"{name}: ours and the peer differ by {error:.2e}; nothing to compare")


def _case(group: str, name: str, work: Work, peers: dict[str, Callable]) -> Case:
    tokens, heads, _ = work.q.shape
    if (
        work.layout is KvLayout.PACKED_FP8
        and (tokens, heads) in TILELANG
        and ("TileLang" not in missing())
    ):
        peers = peers | {"TileLang": tilelang(work)}
    for label, peer in peers.items():
        _agrees(work, peer, f"{group}, {name}, {label}")
    return Case(
        group=group,
        name=name,
        ours=rotating(work, ours(work)),
        peers={label: rotating(work, peer) for label, peer in peers.items()},
        bytes=work.bytes,
        flops=work.flops,
    )


def cases(device: torch.device) -> Iterator[Case]:
    native = has_flash_mla() and torch.cuda.get_device_capability(device)[0] == 9
    slots = 1 << 20
    for heads in (8, 16, 64, 128):
        for tokens in (1, 2, 4, 8, 16, 32, 64, 128):
            work = make_work(tokens, heads, slots, KvLayout.PACKED_FP8)
            peers = {"FlashMLA": flash_mla_decode(work)} if native else {}
            yield _case("sparse MLA decode, packed fp8", f"B={tokens} H={heads}", work, peers)
    for layout in (KvLayout.RAW_FP8, KvLayout.BF16):
        for heads, tokens in itertools.product((8, 64), (1, 64)):
            work = make_work(tokens, heads, slots, layout)
            name = "raw fp8" if layout is KvLayout.RAW_FP8 else "bf16"
            yield _case(f"sparse MLA decode, {name}", f"B={tokens} H={heads}", work, {})
    context = 1 << 16
    every = torch.arange(context, device=device)
    for tokens, heads in itertools.product((2048, 8192), (8, 64)):
        work = make_work(tokens, heads, context, KvLayout.PACKED_FP8)
        peers = {"FlashMLA + dequant": flash_mla_prefill(work, every)} if native else {}
        yield _case("sparse MLA prefill, packed fp8", f"S={tokens} H={heads}", work, peers)
