"""Compile gate: every sparse MLA and KV cache kernel, for every architecture, without a GPU.

A kernel that needs too much shared memory or spills registers compiles without complaint, so the
machine code is read back. Registers differ by a third between Triton versions; what is asserted is
what residency needs.
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from ada_dsa.arch import has_native_fp8
from ada_dsa.configs import ROWS, Config, pick
from ada_dsa.kv_cache.layout import KvLayout
from tests.ada_dsa.compile_gate import EACH
from tests.support.aot import ARCHS, BORROWED, Compiled, check_limits, compile_kernel

# Bytes per multiprocessor (CUDA C++ programming guide, technical specifications).
SHARED_PER_SM = {
    80: 167_936, 86: 102_400, 89: 102_400, 90: 233_472, 110: 233_472, 120: 102_400, 121: 102_400,
}  # fmt: skip
HEADS = (8, 16, 64)
WORK = {
    "fp8, heads<=8": {80: 1.53},
    "fp8, heads<=16": {80: 1.0, 90: 1.0, 120: 1.0},
    "fp8, heads>16": {80: 1.53, 86: 1.0, 90: 1.0, 120: 1.0},
    "bf16": {80: 1.0},
}
"""Products that the tensor cores compute, over those that a tile needs, by bucket and architecture of a row.

More than 1 means that several warps compute the same scores: a tile of N keys gives N / 16 warps scores of
their own, or half as many if keys are N of the MMA. A layout that pads the heads exceeds the figure.
"""
MMA_SHAPE = re.compile(r"HMMA\.(16)(8)(8|16)")


def mla_arguments(
    arch: int, layout: KvLayout, heads: int, split: bool, rope: int = 64
) -> dict[str, object]:
    """What the main kernel takes from ``api.launch`` at topk 2048, but for its form.

    Lists of a model without rope have up to kpool - 1 keys more.
    """
    topk, stride = (2048, 576) if rope else (2051, 512)
    return {
        "q_nope": torch.bfloat16,
        "q_rope": torch.bfloat16,
        "kv": torch.bfloat16 if layout is KvLayout.BF16 else torch.int32,
        "indices": torch.int32,
        "out": torch.float32 if split else torch.bfloat16,
        "lse": torch.float32,
        "q_nope_stride_t": heads * stride,
        "q_nope_stride_h": stride,
        "q_rope_stride_t": heads * stride,
        "q_rope_stride_h": stride,
        "indices_stride_t": topk,
        "num_heads": heads,
        "topk": topk,
        "split_len": 64 if split else -(-topk // 64) * 64,
        "num_splits": 32 if split else 1,
        "scale_log2": 0.1,
        "LAYOUT": int(layout),
        "ROPE": rope,
        "BYTES": layout is not KvLayout.BF16 and not has_native_fp8(arch),
        "SPLIT": split,
        "WRITE_LSE": True,
        "SPAN": 256 if split else 2048 if rope else 4096,
    }


def compile_main(
    config: Config, arch: int, layout: KvLayout, heads: int, split: bool, rope: int = 64
) -> Compiled:
    """The main kernel of a configuration as ``api.launch`` launches it."""
    from ada_dsa.sparse_mla.kernel import sparse_mla_kernel

    params = config.params
    form = {
        "BLOCK_H": params["BLOCK_H"],
        "BLOCK_N": params["BLOCK_N"],
        "SWAP": bool(params["SWAP"]),
    }
    limit = params.get("MAXNREG")
    return compile_kernel(
        sparse_mla_kernel,
        mla_arguments(arch, layout, heads, split, rope) | form,
        arch,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **({"maxnreg": limit} if limit else {}),
    )


def assert_main_kernel(compiled: Compiled, config: Config, rope: int = 64) -> None:
    """Limits, tensor cores, and rows requested before the tensor cores start on those before."""
    assert_fits(compiled, config.blocks_per_sm, config.arch)
    loop = main_loop(compiled.sass)
    before = loop.split("MMA")[0].count("LDG.E.128")
    expected = 40 if rope else 36
    assert sum(compiled.mma.values()) >= expected, f"no tensor cores: {compiled.summary()}"
    if compiled.arch not in BORROWED:
        tile = config.params["BLOCK_H"] * config.params["BLOCK_N"]
        work = count_products(loop) * config.num_warps / (tile * (512 + rope + 512))
        limit = WORK[config.bucket][config.arch]
        assert work <= limit, f"{work:.2f} times the products of a tile: {compiled.summary()}"
    if config.bucket.startswith("fp8"):
        assert before >= 3, f"rows are not prefetched: {compiled.summary()}"
    else:
        assert "LDGSTS" in loop, f"not pipelined: {compiled.summary()}"


def assert_fits(compiled: Compiled, blocks_per_sm: int, row_arch: int = 80) -> None:
    check_limits(compiled, blocks_per_sm=blocks_per_sm, row_arch=row_arch)
    if compiled.arch in BORROWED:
        blocks_per_sm = 1
    used = (compiled.shared + 1024) * blocks_per_sm  # each block reserves 1 KB for the system
    report = f"{blocks_per_sm} blocks do not fit: {compiled.summary()}"
    assert used <= SHARED_PER_SM[compiled.arch], report


def main_loop(sass: str) -> str:
    """The backward branch's body with the most tensor-core instructions."""
    lines = sass.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*(\.L_x_\d+):", line))}
    bodies = [
        lines[labels[m[1]] : i]
        for i, line in enumerate(lines)
        if (m := re.search(r"BRA[^`]*`\((\.L_x_\d+)\)", line)) and labels.get(m[1], i) < i
    ]
    return "\n".join(max(bodies, key=lambda body: sum("MMA" in line for line in body)))


def count_products(sass: str) -> int:
    """Multiplications of one warp's tensor-core instructions, each of which has its shape in its name."""
    products = 0
    for name in re.findall(r"\b\w*MMA\.\w+", sass):
        shape = MMA_SHAPE.fullmatch(name)
        assert shape, f"unknown instruction {name}"
        products += math.prod(map(int, shape.groups()))
    return products


def test_products_of_instructions() -> None:
    assert count_products("HMMA.16816.F32 R0;\n HMMA.1688.F32.BF16 R4; LDSM.16") == 2048 + 1024
    with pytest.raises(AssertionError, match=r"unknown instruction HGMMA\.64x8x16"):
        count_products("HGMMA.64x8x16.F32 R0;")


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("layout", list(KvLayout), ids=lambda layout: layout.name)
@pytest.mark.parametrize("arch", EACH)
def test_sparse_mla_fits(arch: int, layout: KvLayout, heads: int, split: bool) -> None:
    config = pick("sparse_mla", arch, heads=heads, layout=int(layout))
    assert_main_kernel(compile_main(config, arch, layout, heads, split), config)


@pytest.mark.parametrize(
    "split", [True, pytest.param(False, marks=pytest.mark.exhaustive)], ids=["split", "whole"]
)
@pytest.mark.parametrize(
    "heads", [8, pytest.param(16, marks=pytest.mark.exhaustive), 64], ids="heads={}".format
)
@pytest.mark.parametrize("layout", [KvLayout.PACKED_FP8, KvLayout.BF16], ids=lambda one: one.name)
@pytest.mark.parametrize("arch", EACH)
def test_rows_without_rope_fit(arch: int, layout: KvLayout, heads: int, split: bool) -> None:
    config = pick("sparse_mla", arch, heads=heads, layout=int(layout))
    compiled = compile_main(config, arch, layout, heads, split, rope=0)
    assert_main_kernel(compiled, config, rope=0)


def test_the_gate_covers_every_table_row() -> None:
    compiled = {
        (row.arch, row.bucket)
        for arch in ARCHS
        for heads in HEADS
        for layout in KvLayout
        if (row := pick("sparse_mla", arch, heads=heads, layout=int(layout)))
    }
    assert compiled == {(row.arch, row.bucket) for row in ROWS if row.op == "sparse_mla"}


@pytest.mark.parametrize("block_s", [2, 8, 64])
@pytest.mark.parametrize("arch", EACH)
def test_combine_fits(arch: int, block_s: int) -> None:
    from ada_dsa.sparse_mla.kernel import combine_splits_kernel

    arguments = {
        "partial": torch.float32,
        "partial_lse": torch.float32,
        "out": torch.bfloat16,
        "lse": torch.float32,
        "num_splits": 3,
        "BLOCK_S": block_s,
        "BLOCK_D": 128,
        "WRITE_LSE": True,
    }
    assert_fits(compile_kernel(combine_splits_kernel, arguments, arch, num_warps=4), 4)


@pytest.mark.parametrize("indexed", [False, True], ids=["dense", "indexed"])
@pytest.mark.parametrize("arch", EACH)
def test_kv_cache_kernels_fit(arch: int, indexed: bool) -> None:
    from ada_dsa.kv_cache.kernel import pack_rows_kernel, unpack_rows_kernel

    codes = torch.float8_e4m3fn if has_native_fp8(arch) else torch.uint8
    rows = {
        "codes": codes,
        "scales": torch.float32,
        "rope": torch.bfloat16,
        "slots": torch.int64 if indexed else codes,
        "num_rows": 1000,
        "codes_stride": 656,
        "scales_stride": 164,
        "rope_stride": 328,
        "BYTES": codes is torch.uint8,
        "TOKENS": 4,
    }
    source = {"k_nope": torch.bfloat16, "k_rope": torch.bfloat16}
    strides = {"k_nope_stride": 576, "k_rope_stride": 576}
    pack = compile_kernel(
        pack_rows_kernel, {**rows, **source, **strides, "SCATTER": indexed}, arch, num_warps=4
    )
    unpack = compile_kernel(
        unpack_rows_kernel, {**rows, "out": torch.bfloat16, "GATHER": indexed}, arch, num_warps=4
    )
    for compiled in (pack, unpack):
        assert_fits(compiled, 8)
        assert "STG.E.128" in compiled.sass or "STG.E.64" in compiled.sass, "stores are narrow"
