"""Every indexer and top-k launch, compiled for every architecture, within the architecture's limits."""

from __future__ import annotations

import re

import pytest
import torch

from ada_dsa import configs
from ada_dsa.indexer import api as indexer
from ada_dsa.indexer import kernel as indexer_kernel
from ada_dsa.indexer import ragged_batched_kernel
from ada_dsa.topk import api as topk
from ada_dsa.topk import kernel as topk_kernel
from ada_dsa.topk.plan import LaunchPlan, plan_launch
from tests.ada_dsa.compile_gate import EACH, sample
from tests.support.aot import (
    BORROWED,
    SHARED_LIMIT,
    SHARED_OPT_IN,
    Compiled,
    Launch,
    check_limits,
    compile_kernel,
    recorded,
)

FP8, I32, F32 = torch.float8_e4m3fn, torch.int32, torch.float32


def meta(*shape: int, dtype: torch.dtype = I32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def paged_launch(arch: int, batch: int, next_n: int, heads: int, *, two_d: bool = True) -> Launch:
    config = configs.pick("paged_logits", arch, heads=heads, next_n=next_n)
    lens = meta(batch, next_n) if two_d else meta(batch)
    with recorded(indexer_kernel) as launches:
        indexer.launch_paged(
            meta(batch, next_n, heads, 128, dtype=FP8),
            meta(1000, 64, 1, 132, dtype=torch.uint8), meta(batch * next_n, heads, dtype=F32),
            lens, meta(batch, 512), meta(batch * next_n, 32768, dtype=F32), 32768,
            target=arch, config=config, programs=528,
        )  # fmt: skip
    return launches[0]


def ragged_launch(
    arch: int, heads: int, chunk: int, max_seqlen_k: int = 0, config: configs.Config | None = None
) -> Launch:
    config = config or configs.pick("ragged_logits", arch, heads=heads)
    module = ragged_batched_kernel if "QUERIES" in config.params else indexer_kernel
    with recorded(module) as launches:
        indexer.launch_ragged(
            meta(2000, heads, 128, dtype=FP8), meta(30_000, 128, dtype=FP8),
            meta(30_000, dtype=F32), meta(2000, heads, dtype=F32), meta(2000), meta(2000),
            meta(2000, 30_016, dtype=F32), max_seqlen_k,
            target=arch, config=config, chunk=chunk,
        )  # fmt: skip
    return launches[0]


def residency(compiled: Compiled, wanted: int) -> None:
    """Shared memory of ``wanted`` blocks fits a multiprocessor (1 KB a block is reserved)."""
    if compiled.arch in BORROWED:
        wanted = 1
    per_sm = {80: 164, 90: 228, 110: 228}.get(compiled.arch, 100) * 1024
    assert wanted * (compiled.shared + 1024) <= per_sm, (wanted, compiled.summary())


# Triton 3.7 converts e4m3 to fp16 on sm_121, which is exact, and knows the e4m3 product of sm_120 alone.
OPERANDS = {
    80: {"HMMA"}, 86: {"HMMA"}, 89: {"QMMA"}, 90: {"QGMMA"}, 110: {"UTCQMMA"}, 120: {"QMMA"},
    121: {"HMMA", "QMMA"},
}  # fmt: skip


def check_indexer(compiled: Compiled) -> None:
    check_limits(compiled)
    assert compiled.ldgsts > 0, f"main loop not pipelined: {compiled.summary()}"
    expected = OPERANDS[compiled.arch]
    assert len(compiled.mma) == 1, f"none or mixed operand types: {compiled.summary()}"
    assert set(compiled.mma) <= expected, f"not {expected}: {compiled.summary()}"


PAGED = {
    "B=8 n=1 H=32": (8, 1, 32, True),
    "B=8 n=1 H=32, 1-D lengths": (8, 1, 32, False),
    "B=500 n=1 H=32": (500, 1, 32, True),
    "B=3000 n=1 H=32": (3000, 1, 32, True),
    "B=8 n=2 H=32": (8, 2, 32, True),
    "B=8 n=3 H=32": (8, 3, 32, True),
    "B=8 n=4 H=32": (8, 4, 32, True),
    "B=8 n=1 H=64": (8, 1, 64, True),
    "B=8 n=2 H=64": (8, 2, 64, True),
    "B=8 n=4 H=64": (8, 4, 64, True),
    "B=8 n=1 H=24": (8, 1, 24, True),
    "B=8 n=1 H=128": (8, 1, 128, True),
}
# The search in 500 lengths is the one in 8 with more steps.
PAGED_MORE = ("B=500 n=1 H=32",)


@pytest.mark.parametrize("arch", EACH)
@pytest.mark.parametrize("shape", sample(PAGED, PAGED_MORE))
def test_paged_logits(shape: str, arch: int) -> None:
    batch, next_n, heads, two_d = PAGED[shape]
    config = configs.pick("paged_logits", arch, heads=heads, next_n=next_n)
    compiled = paged_launch(arch, batch, next_n, heads, two_d=two_d).compile(arch)
    check_indexer(compiled)
    # A loop that waits for every copy in flight has buffers but no overlap.
    assert re.search(r"DEPBAR\.LE SB0, 0x[1-9]", compiled.sass), "key loads do not overlap"
    check_limits(compiled, blocks_per_sm=config.blocks_per_sm)
    residency(compiled, config.blocks_per_sm)


@pytest.mark.parametrize("arch", EACH)
@pytest.mark.parametrize(
    ("heads", "chunk", "compressed"),
    [(32, 32, 0), (32, 256, 4096), (64, 128, 0), (20, 32, 0), (128, 64, 0)],
)
def test_ragged_logits(heads: int, chunk: int, compressed: int, arch: int) -> None:
    compiled = ragged_launch(arch, heads, chunk, compressed).compile(arch)
    check_indexer(compiled)
    if heads == 32:
        wanted = configs.pick("ragged_logits", arch, heads=heads).blocks_per_sm
        check_limits(compiled, blocks_per_sm=wanted)
        residency(compiled, wanted)


@pytest.mark.parametrize("heads", [32, 64])
def test_ragged_logits_of_several_queries_are_one_product(heads: int) -> None:
    assert "64x128x32" in ragged_launch(90, heads, 64).compile(90).sass


@pytest.mark.parametrize("arch", EACH)
@pytest.mark.parametrize("next_n", sample([1, 2, 3, 4], [2, 3]))
def test_schedule(next_n: int, arch: int) -> None:
    compiled = compile_kernel(
        indexer_kernel.paged_schedule_kernel,
        {"lens_ptr": I32, "out_ptr": I32, "batch": 8, "stride_len_b": next_n, "stride_len_n": 1,
         "NEXT_N": next_n, "PAGE": 64, "BLOCK": 1024},
        arch,
    )  # fmt: skip
    check_limits(compiled, blocks_per_sm=2)


def topk_plan(arch: int, rows: int, width: int, k: int) -> LaunchPlan:
    return plan_launch(
        arch=arch, num_sms=128, num_rows=rows, width=width, topk=k, padded=width % 16 == 0
    )


def topk_launches(
    arch: int, rows: int, width: int, k: int, *, mode: int = 0, starts: bool = False
) -> list[Launch]:
    """What a call launches on a GPU with 128 multiprocessors (RTX 4090)."""
    transform = {
        0: topk.Transform(),
        1: topk.Transform(topk.PAGED, table=meta(rows, width), cu_seqlens=meta(rows + 1)),
        2: topk.Transform(topk.RAGGED, offset=meta(rows)),
    }[mode]
    if starts and mode == 1:
        transform = topk.Transform(topk.PAGED, table=meta(2, width), cu_seqlens=meta(3))
    with recorded(topk_kernel) as launches:
        topk.launch(
            meta(rows, width, dtype=F32), meta(rows), meta(rows) if starts else None, transform, k,
            target=arch, plan=topk_plan(arch, rows, width, k),
        )  # fmt: skip
    return launches


TOPK = {
    "1x8K": (1, 8192, 2048, 0, False),
    "1x64K paged": (1, 65_536, 2048, 1, False),
    "1x128K paged": (1, 131_072, 2048, 1, False),
    "300x8K ragged, starts": (300, 8192, 2048, 2, True),
    "8x32K paged": (8, 32_768, 2048, 1, False),
    "1x1M ragged": (1, 1_048_576, 2048, 2, True),
    "2048x32K paged, starts": (2048, 32_768, 2048, 1, True),
    "4x20001 unaligned": (4, 20_001, 2048, 0, True),
    "4x20001 unaligned k=1024": (4, 20_001, 1024, 1, False),
    "4x20001 unaligned k=4096": (4, 20_001, 4096, 2, True),
    "32x32K k=512": (32, 32_768, 512, 1, False),
    "32x32K k=4096": (32, 32_768, 4096, 1, True),
}
# 16 and 32 splits are between the 4 and 64 of "1x8K" and "1x128K paged", which take the same rows. Ragged
# rows of one split take those of "2048x32K paged, starts", and "1x1M ragged" has their transform.
TOPK_MORE = ("1x64K paged", "8x32K paged", "300x8K ragged, starts")


@pytest.mark.parametrize("arch", EACH)
@pytest.mark.parametrize("shape", sample(TOPK, TOPK_MORE))
def test_topk(shape: str, arch: int) -> None:
    rows, width, k, mode, starts = TOPK[shape]
    launches = topk_launches(arch, rows, width, k, mode=mode, starts=starts)
    assert launches
    for launch in {str((x.kernel.__name__, x.args)): x for x in launches}.values():
        if launch.kernel is topk_kernel.prefilter_rows_kernel:
            config = configs.pick("topk_prefilter", arch, topk=k)
        else:
            compact = topk_plan(arch, rows, width, k).compact
            config = configs.pick("topk_select", arch, topk=k, compact=int(compact))
        compiled = launch.compile(arch)
        check_limits(compiled, blocks_per_sm=config.blocks_per_sm)
        residency(compiled, config.blocks_per_sm)


def test_the_gate_sees_a_spill() -> None:
    """A register limit far too low must show up as local loads and stores."""
    launch = paged_launch(89, 8, 4, 64)
    squeezed = compile_kernel(launch.kernel, launch.args, 89, **{**launch.options, "maxnreg": 40})
    assert squeezed.spills > 0
    with pytest.raises(AssertionError, match="LDL/STL"):
        check_limits(squeezed)


def test_the_gate_sees_too_much_shared_memory() -> None:
    launch = paged_launch(89, 8, 1, 32)
    deep = compile_kernel(launch.kernel, {**launch.args, "STAGES": 14}, 89, **launch.options)
    assert deep.shared > SHARED_LIMIT[89]
    with pytest.raises(AssertionError, match="shared"):
        check_limits(deep)


def test_only_a_row_for_sm_90_may_take_what_sm_90_has() -> None:
    launch = paged_launch(90, 8, 1, 32)
    deep = compile_kernel(launch.kernel, {**launch.args, "STAGES": 14}, 90, **launch.options)
    assert SHARED_LIMIT[90] < deep.shared <= SHARED_OPT_IN[90]
    check_limits(deep, row_arch=90)
    with pytest.raises(AssertionError, match="shared"):
        check_limits(deep, row_arch=89)


@pytest.mark.parametrize("arch", EACH)
@pytest.mark.parametrize("rounded", [False, True], ids=["scales", "powers of two"])
def test_quantisation_of_keys_and_queries(rounded: bool, arch: int) -> None:
    from ada_dsa.indexer.quantize_kernel import quantize_blocks_kernel

    codes = FP8 if arch >= 89 else torch.uint8
    arguments = {"x": torch.bfloat16, "codes": codes, "scales": F32, "num_blocks": 1000}
    form = {"ROUND": rounded, "BYTES": codes is torch.uint8, "BLOCKS": 4}
    check_limits(compile_kernel(quantize_blocks_kernel, {**arguments, **form}, arch, num_warps=4))


@pytest.mark.parametrize("arch", [80, 86])
def test_the_e4m3_type_does_not_compile_below_sm89(arch: int) -> None:
    """What the series avoids there: this is how a start of the released sglang fails."""
    from ada_dsa.indexer.quantize_kernel import quantize_blocks_kernel

    arguments = {"x": torch.bfloat16, "codes": FP8, "scales": F32, "num_blocks": 1000}
    form = {"ROUND": False, "BYTES": False, "BLOCKS": 4}
    with pytest.raises(Exception, match="fp8e4nv not supported"):
        compile_kernel(quantize_blocks_kernel, {**arguments, **form}, arch, num_warps=4)
