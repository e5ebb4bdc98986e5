"""Public functions of the indexer: validation, output allocation, launch."""

from __future__ import annotations

import torch

from .. import _checks, arch, configs
from .._launch import get_num_sms, next_power_of_2, on_device
from . import reference
from .reference import DIM, PAGE, ROW_BYTES

FP8 = torch.float8_e4m3fn
MAX_HEADS = 128
MAX_NEXT_N = 4

# The row stride of logits is a multiple of this many elements. DeepGEMM aligns rows to 256 elements, and
# sglang's top-k requires 4. With 64 every row is aligned to 256 bytes, and narrow outputs stay small.
ROW_ALIGNMENT = 64

# Numbers of requests whose pages the paged kernel can divide as one list; every program reads all their
# lengths. There are few values because each is one compilation. With more requests than the last value,
# each request is divided on its own.
BALANCED_BATCHES = (16, 128, 1024)


def _allocate(rows: int, columns: int, device: torch.device, clean: bool) -> torch.Tensor:
    """Allocate float32 [rows, columns] with an aligned row stride; all values are -inf if ``clean``."""
    stride = -(-max(columns, 1) // ROW_ALIGNMENT) * ROW_ALIGNMENT
    if clean:
        storage = torch.full((rows, stride), float("-inf"), dtype=torch.float32, device=device)
    else:
        storage = torch.empty((rows, stride), dtype=torch.float32, device=device)
    return storage[:, :columns]


def _view_operand(tensor: torch.Tensor, native: bool) -> torch.Tensor:
    return tensor.view(FP8) if native else tensor.view(torch.uint8)


def _check_heads(heads: int, dim: int, name: str) -> None:
    if not 1 <= heads <= MAX_HEADS:
        raise ValueError(f"{name}: expected 1 to {MAX_HEADS} index heads, got {heads}")
    if dim != DIM:
        raise ValueError(f"{name}: expected index head dimension {DIM}, got {dim}")


def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_sms: int
) -> torch.Tensor:
    """Compute a schedule that divides all pages of a batch into ``num_sms`` equal shares.

    The paged kernel does not read the schedule. It divides its work by ``context_lens`` on the device, so
    that a schedule made from other lengths cannot make its result wrong. This function exists because
    engines compute, store and copy such a schedule (DeepGEMM, ``get_paged_mqa_logits_metadata``). The
    schedule's shape depends on ``num_sms`` alone, so ``copy_`` can refresh the tensor of a captured
    graph.

    Args:
        context_lens: int32 [B] or [B, next_n], keys per request or per query.
        block_kv: keys per page; 64.
        num_sms: number of shares, at least 1.

    Returns:
        int32 [num_sms + 1, 2]: (request, page within it) where each share begins; the last row is
        (B, 0).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    _checks.require_tensor(
        context_lens, "context_lens", dtype=torch.int32, ndim=(1, 2), unit_last_stride=False
    )
    _checks.require_choice(block_kv, "block_kv", (PAGE,))
    _checks.require_int(num_sms, "num_sms", low=1, high=65_535)
    if not context_lens.is_cuda:
        return reference.get_paged_mqa_logits_metadata(context_lens, block_kv, num_sms)
    from .kernel import paged_schedule_kernel

    out = torch.empty((num_sms + 1, 2), dtype=torch.int32, device=context_lens.device)
    two_d = context_lens if context_lens.dim() == 2 else context_lens[:, None]
    if two_d.shape[1] == 0 or two_d.shape[0] == 0:
        return out.zero_()
    with on_device(out.device):
        paged_schedule_kernel[(num_sms + 1,)](
            two_d, out, two_d.shape[0], two_d.stride(0), two_d.stride(1),
            NEXT_N=two_d.shape[1], PAGE=PAGE, BLOCK=1024, num_warps=4,
        )  # fmt: skip
    return out


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    schedule_metadata: torch.Tensor | None,
    max_context_len: int,
    clean_logits: bool = False,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute indexer logits of a few queries per request against the request's paged keys.

    This is the form for decode and for the verification of speculative tokens.

    ``out[b * next_n + n, j] = k_scale[j] * sum_h weights[b * next_n + n, h] * relu(q[b, n, h] . k[j])``
    for ``j < context_lens[b, n]``; other columns are undefined unless ``clean_logits``. The signature
    and the layouts are those of DeepGEMM's function of this name.

    Args:
        q: float8_e4m3fn [B, next_n, H, 128], next_n 1 to 4, H 1 to 128, last stride 1.
        kv_cache: uint8 (or e4m3) [pages, 64, 1, 132], contiguous within a page. A page is 64 x 128
            e4m3 keys followed by 64 float32 scales.
        weights: float32 [B * next_n, H], the query scale folded in.
        context_lens: int32 [B, next_n]; or [B], where query n sees ``len - (next_n - 1 - n)`` keys.
        block_tables: int32 [B, width], any row stride. Entries beyond a request's length are not
            used. An id outside the pool is clamped into it; ``ADA_DSA_DEBUG=1`` raises instead.
        schedule_metadata: not read, see :func:`get_paged_mqa_logits_metadata`; may be None.
        max_context_len: columns of the result.
        clean_logits: write -inf in the columns that a query does not see.
        indices: must be None.

    Returns:
        float32 [B * next_n, max_context_len], row stride a multiple of 64.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any launch.
    """
    _checks.require_tensor(q, "q", dtype=FP8, ndim=4)
    batch, next_n, heads, dim = q.shape
    _check_heads(heads, dim, "q")
    if not 1 <= next_n <= MAX_NEXT_N:
        raise ValueError(f"q: expected 1 to {MAX_NEXT_N} queries per request, got {next_n}")
    _checks.require_tensor(
        kv_cache, "kv_cache", dtype=(torch.uint8, FP8), shape=(None, PAGE, 1, ROW_BYTES)
    )
    if kv_cache.stride(1) != ROW_BYTES or kv_cache.stride(0) % 16 or kv_cache.data_ptr() % 16:
        raise ValueError(
            f"kv_cache: expected pages of {PAGE * ROW_BYTES} contiguous bytes at 16-byte aligned "
            f"addresses, got strides {tuple(kv_cache.stride())}"
        )
    _checks.require_tensor(weights, "weights", dtype=torch.float32, shape=(batch * next_n, heads))
    _checks.require_tensor(
        context_lens, "context_lens", dtype=torch.int32, ndim=(1, 2), unit_last_stride=False
    )
    lens_2d = context_lens.dim() == 2
    if tuple(context_lens.shape) != ((batch, next_n) if lens_2d else (batch,)):
        raise ValueError(
            f"context_lens: expected shape ({batch},) or ({batch}, {next_n}) to match q, "
            f"got {tuple(context_lens.shape)}"
        )
    _checks.require_tensor(block_tables, "block_tables", dtype=torch.int32, shape=(batch, None))
    _checks.require_int(max_context_len, "max_context_len", low=0, high=2**31 - 1)
    if schedule_metadata is not None:
        _checks.require_tensor(schedule_metadata, "schedule_metadata", unit_last_stride=False)
    if indices is not None:
        raise ValueError("indices: expected None; variable-length index lists are not supported")
    device = _checks.require_same_device(
        q=q, kv_cache=kv_cache, weights=weights, context_lens=context_lens,
        block_tables=block_tables,
    )  # fmt: skip
    limit = min(max_context_len, block_tables.shape[1] * PAGE)
    _checks.debug_check_range(context_lens, "context_lens", 0, limit)
    if _checks.is_debug_enabled():
        _debug_page_ids(block_tables, context_lens, kv_cache.shape[0])
    if not q.is_cuda:
        return reference.fp8_paged_mqa_logits(
            q, kv_cache, weights, context_lens, block_tables, max_context_len, clean_logits
        )
    out = _allocate(batch * next_n, max_context_len, device, clean_logits)
    if batch == 0 or limit == 0 or kv_cache.shape[0] == 0:
        return out

    target = arch.target_arch(device)
    config = configs.pick("paged_logits", target, heads=heads, next_n=next_n)
    launch_paged(
        q, kv_cache, weights, context_lens, block_tables, out, limit,
        target=target, config=config, programs=config.blocks_per_sm * get_num_sms(device),
    )  # fmt: skip
    return out


def launch_paged(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    limit: int,
    *,
    target: int,
    config: configs.Config,
    programs: int,
) -> None:
    """Launch the paged kernel on validated arguments with a grid of about ``programs`` programs."""
    from .kernel import paged_mqa_logits_kernel

    batch, next_n, heads, _ = q.shape
    native = arch.has_native_fp8(target)
    pages = -(-limit // PAGE)
    lens_2d = context_lens.dim() == 2
    batch_pad = next((n for n in BALANCED_BATCHES if batch <= n), 0)
    one_list = (min(programs, batch * pages), 1)
    grid = one_list if batch_pad else (batch, max(1, min(programs // batch, pages)))
    with on_device(q.device):
        paged_mqa_logits_kernel[grid](
            _view_operand(q, native), _view_operand(kv_cache, native), kv_cache.view(torch.float32),
            weights, context_lens, block_tables, out,
            batch, kv_cache.shape[0], limit,
            q.stride(0), q.stride(1), q.stride(2),
            kv_cache.stride(0), kv_cache.stride(0) // 4, weights.stride(0),
            context_lens.stride(0), context_lens.stride(1) if lens_2d else 0,
            block_tables.stride(0), out.stride(0),
            NEXT_N=next_n, LENS_2D=lens_2d, HEADS=heads,
            HEADS_PAD=max(16, next_power_of_2(heads)), DIM=DIM, PAGE=PAGE,
            BATCH_PAD=batch_pad, FP8=native, PAGES=config.params["PAGES"],
            STAGES=config.num_stages,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


def _debug_page_ids(block_tables: torch.Tensor, context_lens: torch.Tensor, num_pages: int) -> None:
    """Raise ValueError if a page id within a request's length is outside the pool."""
    longest = context_lens.amax(dim=1) if context_lens.dim() == 2 else context_lens
    used = torch.arange(block_tables.shape[1], device=block_tables.device) * PAGE
    reachable = torch.where(used < longest[:, None], block_tables, 0)
    _checks.debug_check_range(reachable, "block_tables", 0, max(0, num_pages - 1))


def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    ks: torch.Tensor,
    ke: torch.Tensor,
    clean_logits: bool = False,
    max_seqlen_k: int = 0,
) -> torch.Tensor:
    """Compute indexer logits of many queries against concatenated keys, the form for prefill.

    ``out[i, j] = k_scale[j] * sum_h weights[i, h] * relu(q[i, h] . k[j])`` for
    ``ks[i] <= j < ke[i]``; other columns are undefined unless ``clean_logits``. Key tiles that no
    query of a chunk sees are skipped. The signature and the layouts are those of DeepGEMM's function of
    this name.

    Args:
        q: float8_e4m3fn [S, H, 128], H 1 to 128, last stride 1.
        kv: keys float8_e4m3fn [Skv, 128] and their scales float32 [Skv] or [Skv, 1].
        weights: float32 [S, H], the query scale folded in.
        ks: int32 [S], first key of each query's window.
        ke: int32 [S], one beyond the last key of each window. A window may be empty, and windows need
            not be monotone.
        clean_logits: write -inf outside the windows.
        max_seqlen_k: if positive, the result is compressed, and column 0 of row i is key ``ks[i]``.

    Returns:
        float32 [S, Skv], or [S, max_seqlen_k] if that is positive; row stride a multiple of 64.
        Rows do not overlap and may be written to.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any launch.
    """
    _checks.require_tensor(q, "q", dtype=FP8, ndim=3)
    num_q, heads, dim = q.shape
    _check_heads(heads, dim, "q")
    if not isinstance(kv, (tuple, list)) or len(kv) != 2:
        raise TypeError(f"kv: expected a pair (keys, scales), got {type(kv).__name__}")
    k, k_scale = kv
    _checks.require_tensor(k, "kv[0]", dtype=FP8, shape=(None, DIM))
    num_kv = k.shape[0]
    _checks.require_tensor(k_scale, "kv[1]", dtype=torch.float32, ndim=(1, 2))
    if tuple(k_scale.shape) not in ((num_kv,), (num_kv, 1)) or not k_scale.is_contiguous():
        raise ValueError(
            f"kv[1]: expected contiguous scales of shape ({num_kv},) or ({num_kv}, 1), "
            f"got shape {tuple(k_scale.shape)}, strides {tuple(k_scale.stride())}"
        )
    _checks.require_tensor(weights, "weights", dtype=torch.float32, shape=(num_q, heads))
    _checks.require_tensor(ks, "ks", dtype=torch.int32, shape=(num_q,))
    _checks.require_tensor(ke, "ke", dtype=torch.int32, shape=(num_q,))
    _checks.require_int(max_seqlen_k, "max_seqlen_k", low=0, high=2**31 - 1)
    device = _checks.require_same_device(q=q, k=k, k_scale=k_scale, weights=weights, ks=ks, ke=ke)
    _checks.debug_check_range(ks, "ks", 0, num_kv)
    _checks.debug_check_range(ke, "ke", 0, num_kv)
    if not q.is_cuda:
        return reference.fp8_mqa_logits(
            q, (k, k_scale), weights, ks, ke, clean_logits, max_seqlen_k
        )
    out = _allocate(num_q, max_seqlen_k or num_kv, device, clean_logits)
    if num_q == 0 or num_kv == 0:
        return out

    target = arch.target_arch(device)
    config = configs.pick("ragged_logits", target, heads=heads)
    tiles = -(-num_kv // config.params["BLOCK_KV"])
    chunk = choose_ragged_chunk(num_q, tiles, config.blocks_per_sm * get_num_sms(device))
    launch_ragged(
        q, k, k_scale, weights, ks, ke, out, max_seqlen_k,
        target=target, config=config, chunk=chunk,
    )  # fmt: skip
    return out


def launch_ragged(
    q: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    ks: torch.Tensor,
    ke: torch.Tensor,
    out: torch.Tensor,
    max_seqlen_k: int,
    *,
    target: int,
    config: configs.Config,
    chunk: int,
) -> None:
    """Launch a ragged kernel on validated arguments with ``chunk`` queries per program."""
    from .kernel import ragged_mqa_logits_kernel
    from .ragged_batched_kernel import ragged_mqa_logits_batched_kernel

    num_q, heads, _ = q.shape
    native = arch.has_native_fp8(target)
    block = config.params["BLOCK_KV"]
    kernel, form = ragged_mqa_logits_kernel, {}
    if "QUERIES" in config.params:
        kernel, form = ragged_mqa_logits_batched_kernel, {"QUERIES": config.params["QUERIES"]}
    with on_device(q.device):
        kernel[(-(-k.shape[0] // block), -(-num_q // chunk))](
            _view_operand(q, native), _view_operand(k, native), k_scale, weights, ks, ke, out,
            num_q, k.shape[0], max_seqlen_k,
            q.stride(0), q.stride(1), k.stride(0), weights.stride(0), out.stride(0),
            HEADS=heads, HEADS_PAD=max(16, next_power_of_2(heads)), DIM=DIM, BLOCK_KV=block,
            CHUNK=chunk, COMPRESSED=max_seqlen_k > 0, FP8=native, STAGES=config.num_stages,
            **form, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


RAGGED_CHUNKS = (256, 128, 64, 32)


def choose_ragged_chunk(num_q: int, tiles: int, resident: int) -> int:
    """Choose the queries per program: the longest chunk that still gives four waves of blocks.

    A longer chunk reads each key tile less often and starts the pipeline less often. A shorter chunk
    gives more programs of more equal work, which matters for causal windows.

    Args:
        num_q: queries of the call.
        tiles: key tiles of the call.
        resident: blocks that the device holds at once.
    """
    for chunk in RAGGED_CHUNKS:
        if tiles * -(-num_q // chunk) >= 4 * resident:
            return chunk
    return RAGGED_CHUNKS[-1]
