"""The sparse MLA cases: decode and prefill against FlashMLA.

python -m bench.kernels.run --group "sparse MLA"
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ada_dsa import dequantize_k_cache_paged, sparse_mla_fwd
from ada_dsa.kv_cache.api import quantize_k_cache
from ada_dsa.kv_cache.layout import NOPE_BYTES, NOPE_DIM, PACKED_BYTES, ROW_DIM, KvLayout
from bench.kernels import peers
from bench.kernels.case import Case

Attend = Callable[[torch.Tensor], torch.Tensor]
"""Attention over a list of slots: int32 [T, TOPK] to bfloat16 [T, H, 512]."""
TOPK = 2048
SM_SCALE = 256**-0.5
_FLASH_MLA_HEADS = (64, 128)
# Tokens and heads that the TileLang kernel is timed at. They are few, because nvcc compiles the kernel
# twice for each number of heads, with and without splits, and takes half a minute each time.
TILELANG_POINTS = {(1, 8), (64, 8), (1, 64), (64, 64), (2048, 8), (2048, 64)}


@dataclass(frozen=True)
class Work:
    """The inputs of one shape.

    Attributes:
        q: bfloat16 [T, H, 576], or [T, H, 512] for rows without a rotary part.
        pool: the KV pool, [slots, 1, width].
        layout: of the pool's rows.
        lists: int32 [T, TOPK] lists of slots, [T, TOPK + 3] for rows without a rotary part; calls rotate
            through them.
    """

    q: torch.Tensor
    pool: torch.Tensor
    layout: KvLayout
    lists: list[torch.Tensor]

    @property
    def bytes(self) -> int:
        tokens, heads, width = self.q.shape
        keys = tokens * self.lists[0].shape[1]
        rows = keys * self.pool.shape[2] * self.pool.element_size()
        # The tokens of one prefill share rows, so the whole pool may be read only once.
        rows = min(rows, self.pool.numel() * self.pool.element_size())
        return rows + tokens * heads * (width + 512) * 2 + keys * 4

    @property
    def flops(self) -> int:
        tokens, heads, width = self.q.shape
        return 2 * tokens * heads * self.lists[0].shape[1] * (width + 512)


@functools.cache
def make_pool(slots: int, layout: KvLayout, device: str = "cuda") -> torch.Tensor:
    """A KV pool ``[slots, 1, width]`` of normal values."""
    generator = torch.Generator(device).manual_seed(0)
    width = PACKED_BYTES if layout is KvLayout.PACKED_FP8 else ROW_DIM
    dtype = torch.bfloat16 if layout is KvLayout.BF16 else torch.float8_e4m3fn
    pool = torch.empty(slots, 1, width, dtype=dtype, device=device)
    for part in pool.split(1 << 16):
        rows = torch.randn(len(part), 1, ROW_DIM, device=device, generator=generator).bfloat16()
        part.copy_(quantize_k_cache(rows) if layout is KvLayout.PACKED_FP8 else rows.to(dtype))
    return pool


def make_work(
    tokens: int,
    heads: int,
    slots: int,
    layout: KvLayout,
    device: str = "cuda",
    rope: bool = True,
) -> Work:
    """Inputs whose lists, at most 64, name rows of more than twice the L2 cache."""
    generator = torch.Generator(device).manual_seed(tokens)
    pool = make_pool(slots, layout, device)
    keys, width = TOPK, ROW_DIM
    if not rope:  # GLM-5.3-Flash; its lists have up to three keys of the open pool
        keys, width = TOPK + 3, NOPE_DIM
        stored = NOPE_BYTES if layout is KvLayout.PACKED_FP8 else NOPE_DIM
        pool = pool[..., :stored].contiguous()
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    row = pool.shape[2] * pool.element_size()
    count = max(2, min(64, 2 * cache // (tokens * keys * row) + 1))
    lists = [
        torch.randint(1, slots, (tokens, keys), device=device, generator=generator).int()
        for _ in range(count)
    ]
    q = torch.randn(tokens, heads, width, device=device, generator=generator).bfloat16()
    return Work(q, pool, layout, lists)


def rotating(work: Work, attend: Attend) -> Callable[[], torch.Tensor]:
    """Call ``attend`` with the next list each time."""
    lists = itertools.cycle(work.lists)
    return lambda: attend(next(lists))


def ours(work: Work, backend: str = "triton") -> Attend:
    def attend(index: torch.Tensor) -> torch.Tensor:
        out = sparse_mla_fwd(work.q, work.pool, index, SM_SCALE, backend=backend)
        assert isinstance(out, torch.Tensor)  # without the log-sum-exp
        return out

    return attend


def missing() -> dict[str, str]:
    """The peers that cannot take part in this environment, and why."""
    failures = {
        "FlashMLA": peers.import_failure("flash_mla"),
        "TileLang": peers.tilelang_failure(),
    }
    return {name: why for name, why in failures.items() if why}


def flash_mla_runs() -> bool:
    """Whether FlashMLA can be imported and the GPU is a Hopper, which its kernels need."""
    return "FlashMLA" not in missing() and torch.cuda.get_device_capability()[0] == 9


def _padded_query(q: torch.Tensor) -> torch.Tensor:
    """FlashMLA takes 64 or 128 heads. The padding is made before, and is not timed."""
    heads = next(h for h in _FLASH_MLA_HEADS if h >= q.shape[1])
    out = q.new_zeros(q.shape[0], heads, ROW_DIM)
    out[:, : q.shape[1]] = q
    return out


def flash_mla_decode(work: Work) -> Attend:
    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    q = _padded_query(work.q)[:, None]
    blocks = work.pool.view(-1, 64, 1, PACKED_BYTES)
    plan, _ = get_mla_metadata()
    heads = work.q.shape[1]

    def attend(index: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor
        out, _ = flash_mla_with_kvcache(
            q, blocks, None, None, 512, plan, None, SM_SCALE, False, True, index[:, None],
            use_legacy=True,
        )  # fmt: skip
        return out[:, 0, :heads]

    return attend


def flash_mla_prefill(work: Work) -> Attend:
    """FlashMLA's bfloat16 kernel, for fp8 pools after unpacking all rows, as sglang calls it."""
    from flash_mla import flash_mla_sparse_fwd

    q = _padded_query(work.q)
    heads = work.q.shape[1]
    slots = torch.arange(work.pool.shape[0], device=work.pool.device)

    def attend(index: torch.Tensor) -> torch.Tensor:
        rows = work.pool
        if work.layout is KvLayout.PACKED_FP8:
            rows = dequantize_k_cache_paged(rows, slots)
        out: torch.Tensor
        out, *_ = flash_mla_sparse_fwd(q, rows, index[:, None], SM_SCALE, use_legacy=True)
        return out[:, :heads]

    return attend


def check_agreement(got: torch.Tensor, want: torch.Tensor, name: str) -> None:
    """Attention of a peer against ours.

    Raises:
        RuntimeError: they differ by 2% of the norm or more, so their times cannot be compared.
    """
    error = float((got.float() - want.float()).norm() / want.float().norm())
    if not error < 2e-2:
        raise RuntimeError(f"{name}: the results differ by {error:.2e} of our result's norm")


def _case(group: str, name: str, work: Work, compared: dict[str, Attend]) -> Case:
    tokens, heads, _ = work.q.shape
    packed = work.layout is KvLayout.PACKED_FP8 and work.q.shape[2] == ROW_DIM
    if packed and (tokens, heads) in TILELANG_POINTS and "TileLang" not in missing():
        compared = compared | {"TileLang": ours(work, backend="tilelang")}
    for label, peer in compared.items():
        try:
            got = peer(work.lists[0])
        except Exception:  # it fails again when it is timed, and the error is recorded there
            continue
        check_agreement(got, ours(work)(work.lists[0]), f"{group}, {name}, {label}")
    return Case(
        group=group,
        name=name,
        ours=rotating(work, ours(work)),
        peers={label: rotating(work, peer) for label, peer in compared.items()},
        bytes=work.bytes,
        flops=work.flops,
    )


def cases(device: torch.device) -> Iterator[Case]:
    flash_mla = flash_mla_runs()
    slots = 1 << 20
    for heads in (8, 16, 64, 128):
        for tokens in (1, 2, 4, 8, 16, 32, 64, 128):
            work = make_work(tokens, heads, slots, KvLayout.PACKED_FP8)
            compared = {"FlashMLA": flash_mla_decode(work)} if flash_mla else {}
            yield _case("sparse MLA decode, packed fp8", f"B={tokens} H={heads}", work, compared)
    for layout in (KvLayout.RAW_FP8, KvLayout.BF16):
        for heads, tokens in itertools.product((8, 64), (1, 64)):
            work = make_work(tokens, heads, slots, layout)
            name = "raw fp8" if layout is KvLayout.RAW_FP8 else "bf16"
            yield _case(f"sparse MLA decode, {name}", f"B={tokens} H={heads}", work, {})
    for layout, rows in ((KvLayout.PACKED_FP8, "packed fp8"), (KvLayout.BF16, "bf16")):
        for heads, tokens in itertools.product((8, 64), (1, 64)):
            work = make_work(tokens, heads, slots, layout, rope=False)
            group = f"sparse MLA decode, {rows} without rope"
            yield _case(group, f"B={tokens} H={heads}", work, {})
    context = 1 << 16
    for tokens, heads in itertools.product((2048, 8192), (8, 64)):
        work = make_work(tokens, heads, context, KvLayout.PACKED_FP8)
        compared = {"FlashMLA + dequant": flash_mla_prefill(work)} if flash_mla else {}
        yield _case("sparse MLA prefill, packed fp8", f"S={tokens} H={heads}", work, compared)
