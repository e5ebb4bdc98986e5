"""Public function of sparse MLA and its Triton launch."""

from __future__ import annotations

import importlib.util
import math

import torch

from .._checks import debug_check_range, require_int, require_same_device, require_tensor
from .._launch import get_num_sms, on_device
from ..arch import target_arch
from ..configs import pick
from ..kv_cache.layout import NOPE_DIM, PACKED_BYTES, KvLayout, detect_layout
from . import reference
from .plan import LaunchPlan, plan_launch

_COMBINE_WIDTH = 128  # output values per block of the combine kernel


def _split_query(
    q: torch.Tensor, q_rope: torch.Tensor | None, rope: int
) -> tuple[torch.Tensor, torch.Tensor]:
    require_tensor(q, "q", dtype=torch.bfloat16, ndim=3)
    if q_rope is None:
        require_tensor(q, "q", shape=(None, None, NOPE_DIM + rope))
        return q[..., :NOPE_DIM], q[..., NOPE_DIM:]
    require_tensor(q, "q", shape=(None, None, NOPE_DIM))
    require_tensor(q_rope, "q_rope", dtype=torch.bfloat16, shape=(q.shape[0], q.shape[1], rope))
    return q, q_rope


def _view_rows(kv: torch.Tensor) -> tuple[torch.Tensor, KvLayout, int]:
    accepted = (torch.float8_e4m3fn, torch.uint8, torch.bfloat16)
    require_tensor(kv, "kv", dtype=accepted, contiguous=True)
    if kv.dim() < 2:
        raise ValueError(f"kv: expected [..., 1, width] rows, got shape {tuple(kv.shape)}")
    layout, rope = detect_layout(kv)
    if kv.data_ptr() % 16:
        raise ValueError("kv: expected memory aligned to 16 bytes (rows are read 16 at a time)")
    return kv.view(-1, kv.shape[-1]), layout, rope


def _check_backend(backend: str, layout: KvLayout, rope: int) -> None:
    if backend not in ("triton", "tilelang"):
        raise ValueError(f"backend: expected 'triton' or 'tilelang', got {backend!r}")
    if backend == "tilelang":
        if layout is not KvLayout.PACKED_FP8 or not rope:
            without = "" if rope else " without a rotary part"
            raise ValueError(
                f"backend: 'tilelang' reads packed fp8 rows of {PACKED_BYTES} bytes, got {layout.name} "
                f"rows{without}; use backend='triton'"
            )
        if importlib.util.find_spec("tilelang") is None:
            raise ValueError(
                "backend: 'tilelang' needs the tilelang package; pip install -r "
                "ada_dsa/requirements-tilelang.txt, or use backend='triton'"
            )


def _check_indices(indices: torch.Tensor, tokens: int) -> torch.Tensor:
    require_tensor(indices, "indices", dtype=torch.int32, ndim=(2, 3))
    if indices.dim() == 3:
        require_tensor(indices, "indices", shape=(tokens, 1, None))
        indices = indices[:, 0]
    return require_tensor(indices, "indices", shape=(tokens, None))


def _combine(
    partial: torch.Tensor, partial_lse: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None
) -> None:
    """Combine the splits' results, float32 [T, H, splits, 512] and base-2 sums, into ``out`` and ``lse``."""
    from .kernel import combine_splits_kernel

    tokens, heads, splits = partial_lse.shape
    combine_splits_kernel[(tokens * heads, NOPE_DIM // _COMBINE_WIDTH)](
        partial,
        partial_lse,
        out,
        lse if lse is not None else partial_lse,
        splits,
        BLOCK_S=1 << (splits - 1).bit_length(),
        BLOCK_D=_COMBINE_WIDTH,
        WRITE_LSE=lse is not None,
        num_warps=4,
    )


def launch(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    rows: torch.Tensor,
    layout: KvLayout,
    indices: torch.Tensor,
    sm_scale: float,
    plan: LaunchPlan,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the Triton kernels on checked CUDA arguments according to ``plan``.

    Outputs and workspaces are ordinary allocations. During graph capture they come from the graph's own
    memory pool, which keeps them for its replays. Calls share no memory, so that no call overwrites a
    result that a later layer still reads.
    """
    from .kernel import sparse_mla_kernel

    tokens, heads, _ = q_nope.shape
    device = q_nope.device
    out = torch.empty(tokens, heads, NOPE_DIM, dtype=torch.bfloat16, device=device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=device) if return_lse else None
    split = plan.num_splits > 1
    if split:
        shape = (tokens, heads, plan.num_splits)
        target = torch.empty(*shape, NOPE_DIM, dtype=torch.float32, device=device)
        target_lse = torch.empty(shape, dtype=torch.float32, device=device)
    else:
        target, target_lse = out, out if lse is None else lse
    config, params = plan.config, plan.config.params
    options = {"maxnreg": params["MAXNREG"]} if params.get("MAXNREG") else {}
    with on_device(rows.device):
        sparse_mla_kernel[(tokens * plan.head_blocks, plan.num_splits)](
            q_nope,
            q_rope,
            rows if layout is KvLayout.BF16 else rows.view(torch.int32),
            indices,
            target,
            target_lse,
            q_nope.stride(0),
            q_nope.stride(1),
            q_rope.stride(0),
            q_rope.stride(1),
            indices.stride(0),
            heads,
            indices.shape[1],
            plan.split_len,
            plan.num_splits,
            sm_scale * math.log2(math.e),
            LAYOUT=int(layout),
            ROPE=q_rope.shape[2],
            BYTES=plan.bytes_only,
            BLOCK_H=params["BLOCK_H"],
            BLOCK_N=params["BLOCK_N"],
            SWAP=bool(params["SWAP"]),
            SPLIT=split,
            WRITE_LSE=return_lse,
            SPAN=plan.span,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **options,
        )
        if split:
            _combine(target, target_lse, out, lse)
    return out, lse


def launch_tilelang(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    rows: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    plan: LaunchPlan,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do what :func:`launch` does, for packed rows with the TileLang kernel; copy strided queries first."""
    from .tilelang_kernel import LOG2_E, compile_kernel

    tokens, heads, _ = q_nope.shape
    device = q_nope.device
    split = plan.num_splits > 1
    shape = (tokens, heads, plan.num_splits) if split else (tokens, heads)
    dtype = torch.float32 if split else torch.bfloat16
    target = torch.empty(*shape, NOPE_DIM, dtype=dtype, device=device)
    target_lse = torch.empty(shape, dtype=torch.float32, device=device)
    kernel = compile_kernel(
        torch.cuda.get_device_capability(device),
        heads=heads,
        block_h=plan.config.params["BLOCK_H"],
        block_n=plan.config.params["BLOCK_N"],
        warps=plan.config.num_warps,
        split=split,
    )
    with on_device(rows.device):
        kernel(
            q_nope.contiguous(),
            q_rope.contiguous(),
            rows.view(torch.float8_e4m3fn),
            rows.view(torch.float32),
            rows.view(torch.bfloat16),
            indices.contiguous(),
            target,
            target_lse,
            plan.split_len,
            sm_scale * LOG2_E,
        )
        if not split:
            return target, target_lse if return_lse else None
        out = torch.empty(tokens, heads, NOPE_DIM, dtype=torch.bfloat16, device=device)
        lse = torch.empty(tokens, heads, dtype=torch.float32, device=device) if return_lse else None
        _combine(target, target_lse, out, lse)
    return out, lse


def sparse_mla_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = NOPE_DIM,
    q_rope: torch.Tensor | None = None,
    return_lse: bool = False,
    backend: str = "triton",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Compute the latent attention (MLA) of each token over the pool rows that its index list names.

    The function serves decode and prefill (``T`` is the number of tokens). Only rows that are named are
    read, directly from the pool. fp8 rows and their weights enter both products as float16, and the row's
    largest scale is applied separately. bfloat16 rows and their weights enter as bfloat16. Scores and sums
    are float32.

    Args:
        q: bfloat16 [T, H, 576], or its first 512 values [T, H, 512] if ``q_rope`` is given or rows have no
            rotary part. Strides are arbitrary except for a last stride of 1, so that views of a larger
            projection need no copy.
        kv: the pool, contiguous [..., 1, width], in one of three formats: packed fp8, 656 x float8_e4m3fn
            (or uint8) with scales that are not negative; raw fp8, 576 x float8_e4m3fn (or uint8);
            576 x bfloat16. Without a rotary part 528 x float8_e4m3fn (or uint8), packed, and
            512 x bfloat16. See ``kv_cache/layout.py``.
        indices: int32 [T, topk] or [T, 1, topk], row numbers in the pool. A negative entry at any
            position is absent. A repeated entry counts each time.
        sm_scale: factor of the scores.
        d_v: width of the value part; 512.
        q_rope: bfloat16 [T, H, 64], or [T, H, 0] if rows have no rotary part.
        return_lse: also return the log-sum-exp.
        backend: ``"triton"``, or ``"tilelang"`` for packed rows. The latter needs tilelang and a CUDA
            compiler, compiles the kernel on its first call, and is not tuned.

    Returns:
        bfloat16 [T, H, 512]; with ``return_lse`` also float32 [T, H], the natural logarithm of the
        sum of ``exp(score * sm_scale)``. A token without a present entry gives zeros and -inf. Two calls
        with equal arguments on the same device give equal bits.

    Raises:
        TypeError, ValueError: dtype, shape, stride, layout or device is not accepted. With
            ``ADA_DSA_DEBUG=1`` also if an index is beyond the end of the pool.

    Source of the contract: sglang ``nsa/tilelang_kernel.py`` (0.5.9), ``dsa_backend.py`` (0.5.23).
    """
    rows, layout, rope = _view_rows(kv)
    q_nope, q_rope = _split_query(q, q_rope, rope)
    tokens, heads, _ = q_nope.shape
    lists = _check_indices(indices, tokens)
    require_int(d_v, "d_v", low=NOPE_DIM, high=NOPE_DIM)
    _check_backend(backend, layout, rope)
    device = require_same_device(q=q_nope, q_rope=q_rope, kv=rows, indices=lists)
    debug_check_range(lists, "indices", -(2**31), rows.shape[0] - 1)
    lse: torch.Tensor | None
    if device.type != "cuda":
        exact, exact_lse = reference.sparse_mla(
            torch.cat([q_nope, q_rope], dim=2), rows, layout, lists, sm_scale
        )
        out, lse = exact.to(torch.bfloat16), exact_lse
    elif tokens == 0 or heads == 0:
        out = torch.empty(tokens, heads, NOPE_DIM, dtype=torch.bfloat16, device=device)
        lse = torch.empty(tokens, heads, dtype=torch.float32, device=device)
    else:
        arch = target_arch(device)
        tilelang = backend == "tilelang"
        plan = plan_launch(
            arch=arch,
            num_sms=get_num_sms(device),
            layout=layout,
            num_tokens=tokens,
            num_heads=heads,
            topk=lists.shape[1],
            config=pick("sparse_mla_tilelang", arch, heads=heads) if tilelang else None,
        )
        if tilelang:
            out, lse = launch_tilelang(q_nope, q_rope, rows, lists, sm_scale, plan, return_lse)
        else:
            out, lse = launch(q_nope, q_rope, rows, layout, lists, sm_scale, plan, return_lse)
    return (out, lse) if return_lse and lse is not None else out
