"""Self-test: compare every kernel with its oracle on one small case, on this machine's GPU.

``python -m ada_dsa.selftest`` prints one line per kernel. Its exit status is 0 if all results are right, 1 if
one is wrong, and 6 if there is no CUDA GPU. It takes about a second once Triton has compiled the kernels. It
tests whether the kernels work on this GPU with this driver and this Triton. The test suite covers shapes and
corner cases. Bytes that no kernel may read are NaN, so that a wrong address is found as well as a wrong sum.

Inside a fork of sglang the module is ``sglang.srt.layers.attention.ada_dsa.selftest``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from . import reference
from .arch import has_native_fp8, target_arch
from .kv_cache.layout import FP8_MAX, NOPE_BYTES, NOPE_DIM, NUM_TILES, ROW_DIM, TILE, KvLayout
from .requirements_check import check_gpu, check_triton

NO_GPU = 6
"""Exit status without a CUDA GPU, or where the GPU or Triton is not supported."""

HEADS = 8  # of 64, with --tp-size 8
INDEX_HEADS = 32
PAGE, INDEX_DIM, INDEX_ROW = 64, 128, 132
SM_SCALE = 1 / math.sqrt(192 + 64)
_FP8 = torch.float8_e4m3fn

# Results and softmax weights are rounded to bfloat16, each with a relative error of up to 2^-9.
MLA_BOUND = 4e-3
# fp16 operands are exact. The e4m3 tensor cores before Blackwell sum with about 13 bits of mantissa.
LOGITS_BOUND, LOGITS_BOUND_FP8 = 1e-5, 5e-4
# The last bit of a scale may differ, and with it a code at a boundary.
QUANTISE_BOUND = 1e-4
EXACT = 0.0


@dataclass(frozen=True)
class Sizes:
    """Sizes of the checks.

    Attributes:
        context: keys of the longest request. A wrong page layout of the indexer is visible only beyond
            2048 keys.
        topk: selected keys.
        short: scores of a row that top-k selects from directly.
        long: scores of a row that top-k prefilters.
        prefill: query tokens of a prefill, so many that no GPU divides their index lists into splits.
    """

    context: int = 5000
    topk: int = 2048
    short: int = 3001
    long: int = 20_001
    prefill: int = 4100


Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Check:
    """One check: ``run(functions, device, sizes)`` yields pairs of a kernel's and its oracle's result."""

    name: str
    run: Callable[[Any, torch.device, Sizes], Pairs]
    bound: float | None = EXACT
    """Largest accepted error; None for indexer logits, whose bound depends on the architecture."""


@dataclass(frozen=True)
class Outcome:
    """Result of one check.

    ``error`` is that of :func:`measure_error`. It is None if there is no error to report, and then
    ``problem`` says why.
    """

    name: str
    error: float | None
    bound: float
    ok: bool
    seconds: float
    problem: str | None = None

    def __str__(self) -> str:
        status = "ok" if self.ok else "FAIL"
        if self.problem is not None:
            return f"{self.name:38} {status}  {self.problem}"
        wanted = f"<= {self.bound:.0e}" if self.bound else "exact"
        return f"{self.name:38} {status:4}  error {self.error:.2e}  {wanted}"


def measure_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Measure the relative norm of ``got - want``, or for integers the share of values that differ.

    The error is infinite if the shapes differ, and NaN if a value is not finite.
    """
    if got.shape != want.shape:
        return math.inf
    if not want.is_floating_point():
        return float((got != want).double().mean()) if want.numel() else 0.0
    difference, norm = (got.double() - want.double()).norm(), want.double().norm()
    return float(difference) if norm == 0 else float(difference / norm)


def run_checks(
    functions: Any, device: torch.device, sizes: Sizes, logits_bound: float
) -> Iterator[Outcome]:
    """Run all checks in order; a kernel that raises an exception fails its own check only.

    Args:
        functions: an object with the public functions of the package ``ada_dsa``.
        device: device of the tensors.
        sizes: sizes of the checks.
        logits_bound: bound of the checks without a bound of their own.
    """
    for check in CHECKS:
        bound = logits_bound if check.bound is None else check.bound
        begin = time.perf_counter()
        error, problem = None, None
        try:
            error = _find_worst(
                measure_error(got, want) for got, want in check.run(functions, device, sizes)
            )
        except Exception as err:  # Triton, its compiler and the driver raise many types
            problem = " ".join(f"{type(err).__name__}: {err}".split())[:300]
        if error is not None and not math.isfinite(error):
            error, problem = None, "a result is not finite, or not of the oracle's shape"
        seconds = time.perf_counter() - begin
        yield Outcome(
            check.name, error, bound, error is not None and error <= bound, seconds, problem
        )


def _find_worst(errors: Iterator[float]) -> float:
    """Return the largest error, or NaN if one error is NaN, which ``max`` would ignore."""
    found = list(errors)
    return math.nan if any(map(math.isnan, found)) else max(found)


# -- inputs -----------------------------------------------------------------------------------------


def _make_generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _make_ints(
    values: Sequence[int] | Sequence[Sequence[int]], device: torch.device
) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _draw_normal(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=g, device=g.device)


def make_index_pool(lens: Sequence[int], g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Make index keys of requests on scattered pages; all other bytes are 0xFF (NaN as e4m3 and float32).

    Returns:
        uint8 [pages, 64, 1, 132] and the block table, int32 [len(lens), pages of the longest request].
    """
    device = g.device
    pages = [-(-n // PAGE) for n in lens]
    order = torch.randperm(sum(pages), generator=g, device=device).tolist()
    pool = torch.full((sum(pages) + 1, PAGE * INDEX_ROW), 0xFF, dtype=torch.uint8, device=device)
    table = torch.full((len(lens), max(1, *pages)), sum(pages), dtype=torch.int32)
    for request, length in enumerate(lens):
        for at in range(pages[request]):
            page, used = order.pop(), min(PAGE, length - at * PAGE)
            table[request, at] = page
            keys = _draw_normal(g, used, INDEX_DIM).to(_FP8).view(torch.uint8)
            scales = torch.rand(used, generator=g, device=device) + 0.5
            pool[page, : used * INDEX_DIM] = keys.flatten()
            first = PAGE * INDEX_DIM
            pool[page, first : first + 4 * used] = scales.view(torch.uint8)
    return pool.view(-1, PAGE, 1, INDEX_ROW), table.to(device)


def make_latent_rows(count: int, g: torch.Generator) -> torch.Tensor:
    """Make rows bfloat16 [count, 576] whose packed codes do not change by a rounding error of a scale.

    A value is a quarter of a step above an e4m3 number, times a power of two per tile. The largest value of
    a tile makes this power its scale. Every third row has a tile of zeros.
    """
    device = g.device
    code = torch.randint(0x08, 0x7E, (count, NUM_TILES, TILE), generator=g, device=device)
    code[:, :, 0] = 0x7E  # 448
    lower, upper = (
        c.to(torch.uint8).view(_FP8).float() for c in (code, (code + 1).clamp(max=0x7E))
    )
    values = lower + (upper - lower) / 4
    sign = torch.randint(0, 2, values.shape, generator=g, device=device) * 2 - 1
    power = torch.randint(-12, 5, (count, NUM_TILES, 1), generator=g, device=device)
    values = values * sign * torch.exp2(power.float())
    values[::3, 1] = 0
    rope = _draw_normal(g, count, ROW_DIM - NOPE_DIM)
    return torch.cat([values.flatten(1), rope], dim=1).to(torch.bfloat16)


def make_latent_pool(
    layout: KvLayout, indices: torch.Tensor, slots: int, g: torch.Generator, rope: bool = True
) -> torch.Tensor:
    """Make a latent pool [slots, 1, width] of random rows; bytes of rows that no index names are 0xFF.

    ``rope``: whether the rows have a rotary part; raw fp8 rows always have it.
    """
    rows = _draw_normal(g, slots, ROW_DIM).to(torch.bfloat16)
    if layout is KvLayout.PACKED_FP8:
        rows = reference.pack_rows(rows[:, :NOPE_DIM], rows[:, NOPE_DIM:]).view(_FP8)
        rows = rows if rope else rows[:, :NOPE_BYTES].contiguous()
    elif not rope:
        rows = rows[:, :NOPE_DIM].contiguous()
    elif layout is KvLayout.RAW_FP8:
        rows = rows.to(_FP8)
    poisoned = torch.full_like(rows.view(torch.uint8), 0xFF)
    used = indices[indices >= 0].long().unique()
    poisoned[used] = rows.view(torch.uint8)[used]
    return poisoned.view(rows.dtype).unsqueeze(1)


# -- checks -----------------------------------------------------------------------------------------


def _check_schedule(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    lens = _make_ints([[sizes.context], [0], [PAGE], [1]], device)
    got = functions.get_paged_mqa_logits_metadata(lens, PAGE, 7)
    yield got, reference.get_paged_mqa_logits_metadata(lens, PAGE, 7)


def _check_paged(next_n: int, functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    g = _make_generator(device)
    lens = [sizes.context, 0, PAGE, next_n]
    pool, table = make_index_pool(lens, g)
    q = _draw_normal(g, len(lens), next_n, INDEX_HEADS, INDEX_DIM).to(_FP8)
    weights = _draw_normal(g, len(lens) * next_n, INDEX_HEADS)
    seen = _make_ints(
        [[max(0, n - back) for back in reversed(range(next_n))] for n in lens], device
    )
    width = table.shape[1] * PAGE
    schedule = reference.get_paged_mqa_logits_metadata(seen, PAGE, 7)
    got = functions.fp8_paged_mqa_logits(q, pool, weights, seen, table, schedule, width)
    want = reference.fp8_paged_mqa_logits(q, pool, weights, seen, table, width)
    visible = torch.arange(width, device=device) < seen.flatten()[:, None]
    yield got[visible], want[visible]


def _check_ragged(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    """Check two requests whose keys are concatenated; the second has a long prefix."""
    g = _make_generator(device)
    first, new = 40, 24
    keys = first + sizes.context + new
    ends = [*range(1, first + 1), *range(keys - new + 1, keys + 1)]
    ks, ke = _make_ints([0] * first + [first] * new, device), _make_ints(ends, device)
    k, scale = (
        _draw_normal(g, keys, INDEX_DIM).to(_FP8),
        torch.rand(keys, generator=g, device=device),
    )
    q = _draw_normal(g, len(ends), INDEX_HEADS, INDEX_DIM).to(_FP8)
    weights = _draw_normal(g, len(ends), INDEX_HEADS)
    got = functions.fp8_mqa_logits(q, (k, scale), weights, ks, ke)
    want = reference.fp8_mqa_logits(q, (k, scale), weights, ks, ke, clean_logits=True)
    visible = want != -math.inf
    yield got[visible], want[visible]


def _check_act_quant(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    """Check values that stay away from the boundaries where the last bit of a division decides."""
    g = _make_generator(device)
    rows = make_latent_rows(37, g)[:, :NOPE_DIM].contiguous()
    for scale_fmt in (None, "ue8m0"):
        codes, scales = functions.act_quant(rows, INDEX_DIM, scale_fmt)
        blocks = rows.view(-1, INDEX_DIM)
        want, want_scales = reference.quantize_blocks(blocks, scale_fmt is not None)
        yield codes.view(-1, INDEX_DIM).float(), want.float()
        yield scales.flatten(), want_scales


def _make_scores(
    width: int, sizes: Sizes, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make scores float32 [5, width] with ties, NaN beyond each row's length, and the lengths int32 [5]."""
    lens = [width, width - 1, sizes.topk + 1, sizes.topk, 3]
    score = (_draw_normal(_make_generator(device), len(lens), width) * 512).round() / 512
    lengths = _make_ints(lens, device)
    past = torch.arange(width, device=device) >= lengths[:, None]
    return score.masked_fill_(past, math.nan), lengths


def _check_topk(rows: str, functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    score, lengths = _make_scores(getattr(sizes, rows), sizes, device)
    want = reference.fast_topk_v2(score, lengths, sizes.topk)
    yield functions.fast_topk_v2(score, lengths, sizes.topk), want
    aligned = torch.full((5, -(-score.shape[1] // 64) * 64), math.nan, device=device)
    aligned[:, : score.shape[1]] = score
    yield functions.fast_topk_v2(aligned[:, : score.shape[1]], lengths, sizes.topk), want


def _check_topk_paged(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    """Check one table per row, as in decode, and then rows of two requests, as in prefill."""
    score, lengths = _make_scores(sizes.long, sizes, device)
    g = _make_generator(device)
    table = torch.randint(0, 1 << 30, score.shape, generator=g, device=device, dtype=torch.int32)
    for sums in (range(6), (0, 2, 5)):
        arguments = (score, lengths, table, _make_ints(list(sums), device), sizes.topk)
        got = functions.fast_topk_transform_fused(*arguments)
        yield got, reference.fast_topk_transform_fused(*arguments)


def _check_topk_ragged(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    score, lengths = _make_scores(sizes.long, sizes, device)
    arguments = (score, lengths, _make_ints([0, 7, 1000, 1 << 20, 5], device), sizes.topk)
    got = functions.fast_topk_transform_ragged_fused(*arguments)
    yield got, reference.fast_topk_transform_ragged_fused(*arguments)


def _check_mla(
    layout: KvLayout,
    prefill: bool,
    functions: Any,
    device: torch.device,
    sizes: Sizes,
    rope: bool = True,
) -> Pairs:
    """Check a list for each token; rows without a rotary part get three keys more, as a pooled index adds."""
    g = _make_generator(device)
    tokens, slots = sizes.prefill if prefill else 2, 2 * sizes.topk
    every = max(1, tokens // 64)  # the oracle gathers the rows of each token, so it takes a sample
    shape = (tokens, sizes.topk + (0 if rope else 3))
    indices = torch.randint(1, slots, shape, generator=g, device=device, dtype=torch.int32)
    indices[0, sizes.topk // 3 :] = -1  # as top-k fills the list of a short request
    indices[every, ::5] = -1
    q = _draw_normal(g, tokens, HEADS, ROW_DIM if rope else NOPE_DIM).to(torch.bfloat16)
    pool = make_latent_pool(layout, indices, slots, g, rope)
    got, lse = functions.sparse_mla_fwd(
        q[..., :NOPE_DIM], pool, indices, SM_SCALE, q_rope=q[..., NOPE_DIM:], return_lse=True
    )
    some = slice(None, None, every)
    want, want_lse = reference.sparse_mla(q[some], pool[:, 0], layout, indices[some], SM_SCALE)
    yield got[some], want
    yield lse[some], want_lse


def _read_packed(packed: torch.Tensor) -> torch.Tensor:
    """Unpack rows with the oracle, so that the last bit of a scale may differ and a code may not."""
    return reference.unpack_rows(packed.view(torch.uint8).reshape(-1, packed.shape[-1]))


def _check_pack(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    rows = make_latent_rows(37, _make_generator(device))
    want = _read_packed(reference.pack_rows(rows[:, :NOPE_DIM], rows[:, NOPE_DIM:]))
    yield _read_packed(functions.quantize_k_cache(rows[:, None])), want


def _check_pack_apart(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    rows = make_latent_rows(37, _make_generator(device))
    nope, rope = rows[:, :NOPE_DIM], rows[:, NOPE_DIM:]
    got = torch.cat(functions.quantize_k_cache_separate(nope, rope), dim=2)
    yield _read_packed(got), _read_packed(reference.pack_rows(nope, rope))


def _check_scatter(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    g = _make_generator(device)
    rows = make_latent_rows(37, g)
    loc = torch.randperm(64, generator=g, device=device)[:37]
    loc[::7] = -1
    got, want = (torch.full((64, 1, 656), 0xFF, dtype=torch.uint8, device=device) for _ in "ab")
    functions.quantize_and_scatter(rows[:, :NOPE_DIM], rows[:, NOPE_DIM:], got, loc)
    reference.scatter_rows(rows[:, :NOPE_DIM], rows[:, NOPE_DIM:], want[:, 0], loc)
    named = loc[loc >= 0]
    yield _read_packed(got[named]), _read_packed(want[named])
    left = torch.ones(64, dtype=torch.bool, device=device)
    left[named] = False
    yield got[left], want[left]


def _make_packed_rows(device: torch.device) -> torch.Tensor:
    """Make rows uint8 [40, 1, 656] with every finite code and scales that are not powers of two."""
    rows = torch.arange(40 * NOPE_DIM, device=device).view(40, NOPE_DIM) % 0x7F
    rows[::2] |= 0x80
    packed = torch.zeros(40, 656, dtype=torch.uint8, device=device)
    packed[:, :NOPE_DIM] = rows.to(torch.uint8)
    g = _make_generator(device)
    scales = _draw_normal(g, 40, NUM_TILES).abs() * FP8_MAX
    packed[:, NOPE_DIM:NOPE_BYTES] = scales.view(torch.uint8)
    packed[:, NOPE_BYTES:] = (
        _draw_normal(g, 40, ROW_DIM - NOPE_DIM).to(torch.bfloat16).view(torch.uint8)
    )
    return packed.unsqueeze(1)


def _check_unpack(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    packed = _make_packed_rows(device)
    yield functions.dequantize_k_cache(packed)[:, 0], reference.unpack_rows(packed[:, 0])


def _check_unpack_paged(functions: Any, device: torch.device, sizes: Sizes) -> Pairs:
    packed, slots = _make_packed_rows(device), _make_ints([39, -1, 4, 4, 2, -(2**31), 0], device)
    got = functions.dequantize_k_cache_paged(packed, slots)
    yield got[:, 0], reference.unpack_rows_at(packed[:, 0], slots)


CHECKS: tuple[Check, ...] = (
    Check("indexer schedule", _check_schedule),
    Check("indexer logits, paged", partial(_check_paged, 1), None),
    Check("indexer logits, paged, 2 queries", partial(_check_paged, 2), None),
    Check("indexer logits, ragged", _check_ragged, None),
    Check("indexer keys and queries", _check_act_quant, QUANTISE_BOUND),
    Check("top-k, short rows", partial(_check_topk, "short")),
    Check("top-k, long rows", partial(_check_topk, "long")),
    Check("top-k to page table", _check_topk_paged),
    Check("top-k with offsets", _check_topk_ragged),
    *(
        Check(f"sparse MLA, {rows} rows, {phase}", partial(_check_mla, layout, prefill), MLA_BOUND)
        for layout, rows in (
            (KvLayout.PACKED_FP8, "packed fp8"),
            (KvLayout.RAW_FP8, "raw fp8"),
            (KvLayout.BF16, "bf16"),
        )
        for phase, prefill in (("decode", False), ("prefill", True))
    ),
    *(
        Check(
            f"sparse MLA, {rows} without rope",
            partial(_check_mla, layout, False, rope=False),
            MLA_BOUND,
        )
        for layout, rows in ((KvLayout.PACKED_FP8, "packed fp8"), (KvLayout.BF16, "bf16"))
    ),
    Check("KV pack", _check_pack),
    Check("KV pack, two parts", _check_pack_apart),
    Check("KV pack into the pool", _check_scatter),
    Check("KV unpack", _check_unpack),
    Check("KV unpack by page table", _check_unpack_paged),
)


def _find_obstacle() -> str | None:
    """Return why the kernels cannot be checked on this machine, or None if they can."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"torch {torch.__version__} was built for CUDA {built}" if built else "torch is for CPU"
        )
        return f"no CUDA GPU that torch can use ({why}): on a CPU the oracles themselves would run"
    try:
        check_triton()
        check_gpu()
    except ValueError as err:
        return str(err)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. With ``--json`` it prints one JSON object per line, each as soon as it is known.

    The first line says what is tested (``device``, ``sm``, ``torch``, ``triton``), or in ``unfit`` why
    nothing is tested. One :class:`Outcome` per line follows. The last line has the ``seconds`` of all checks.
    """
    parser = argparse.ArgumentParser(prog="selftest", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    as_json = parser.parse_args(arguments).json

    def print_record(text: str, record: dict[str, Any]) -> None:
        print(json.dumps(record) if as_json else text, flush=True)

    if unfit := _find_obstacle():
        print_record(f"not tested: {unfit}", {"unfit": unfit})
        return NO_GPU
    device = torch.device("cuda", torch.cuda.current_device())
    sm = target_arch(device)
    versions = {"torch": torch.__version__, "triton": importlib.metadata.version("triton")}
    name = torch.cuda.get_device_name(device)
    print_record(
        f"{name}, kernels for sm_{sm}, torch {versions['torch']}, Triton {versions['triton']}",
        {"device": name, "sm": sm, **versions},
    )
    bound = LOGITS_BOUND_FP8 if has_native_fp8(sm) else LOGITS_BOUND
    package = importlib.import_module(__package__ or "ada_dsa")
    begin, failed, count = time.perf_counter(), 0, 0
    for outcome in run_checks(package, device, Sizes(), bound):
        print_record(str(outcome), asdict(outcome))
        count, failed = count + 1, failed + (not outcome.ok)
    seconds = time.perf_counter() - begin
    print_record(
        f"{count - failed} of {count} kernels ok, {seconds:.1f} s with compilation",
        {"seconds": seconds},
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
