"""The TileLang kernel of sparse MLA: compile gate and choice on the CPU, numbers on a GPU.

One configuration is lowered here, because each takes seconds; ``bench/compile_gate/tilelang.py`` lowers
them all.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from ada_dsa import sparse_mla_fwd
from ada_dsa.kv_cache.layout import KvLayout
from ada_dsa.sparse_mla import reference
from tests.support.aot import SHARED_LIMIT
from tests.support.mla_data import SM_SCALE, Problem, assert_close, make_problem

LIMIT = 4e-3  # bfloat16 results and probabilities: 2^-9 relative rounding each


def run(problem: Problem, backend: str = "tilelang") -> tuple[torch.Tensor, torch.Tensor]:
    return sparse_mla_fwd(  # type: ignore[return-value]
        problem.q, problem.kv, problem.indices, SM_SCALE, return_lse=True, backend=backend
    )


@pytest.fixture(scope="module")
def lowered() -> Any:
    """The kernel for eight heads and several splits, as it would be compiled for an RTX 4090."""
    pytest.importorskip("tilelang")
    from tests.support.aot_tilelang import lower

    return lower(89, 8, split=True)


def test_the_kernel_fits_sm_89(lowered: Any) -> None:
    assert lowered.shared <= SHARED_LIMIT[89]
    assert "mma_sync" in lowered.source and "wgmma" not in lowered.source
    assert "(fp8_e4_8_t*)(codes +" in lowered.source, "rows are not read in vectors"
    if lowered.registers is not None:
        assert lowered.spills == 0
        assert lowered.registers * 128 <= 65_536


def test_tilelang_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, torch, ada_dsa\n"
        "from ada_dsa.sparse_mla import api, plan\n"
        "q = torch.zeros(1, 1, 576, dtype=torch.bfloat16)\n"
        "ada_dsa.sparse_mla_fwd(q, q, torch.zeros(1, 1, dtype=torch.int32), 1.0)\n"
        "assert 'tilelang' not in sys.modules and 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_backend_is_named_and_has_to_read_the_layout() -> None:
    packed = make_problem(1, 2, 4, KvLayout.PACKED_FP8)
    with pytest.raises(ValueError, match="backend: expected 'triton' or 'tilelang', got 'cuda'"):
        run(packed, "cuda")
    for layout in (KvLayout.RAW_FP8, KvLayout.BF16):
        with pytest.raises(ValueError, match=f"packed fp8 rows of 656 bytes, got {layout.name}"):
            run(make_problem(1, 2, 4, layout))


def test_without_tilelang_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install -r ada_dsa/requirements-tilelang.txt"):
        run(make_problem(1, 2, 4, KvLayout.PACKED_FP8))


def test_cpu_tensors_run_the_oracle_whatever_the_backend() -> None:
    pytest.importorskip("tilelang")
    problem = make_problem(2, 3, 9, KvLayout.PACKED_FP8)
    for got, want in zip(run(problem), run(problem, "triton"), strict=True):
        assert torch.equal(got, want)


# --------------------------------------------------------------------------------------- on the GPU

gpu = pytest.mark.gpu
CUDA = "cuda"


def check(problem: Problem, what: str) -> None:
    pytest.importorskip("tilelang")
    want, want_lse = reference.sparse_mla(
        problem.q, problem.kv[:, 0], problem.layout, problem.indices, SM_SCALE, torch.float64
    )
    out, lse = run(problem)
    empty = (problem.indices < 0).all(dim=1)
    assert torch.equal(out[empty], torch.zeros_like(out[empty])), f"{what}: empty rows not zero"
    assert torch.equal(lse[empty], want_lse[empty].float()), f"{what}: lse of empty rows not -inf"
    if (~empty).any():
        assert_close(out[~empty], want[~empty], LIMIT, f"{what}: output")
        difference = (lse[~empty] - want_lse[~empty]).abs().max()
        assert difference < 5e-3, f"{what}: lse differs by {float(difference):.2e}"


@gpu
@pytest.mark.parametrize("heads", [1, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 7, 300])  # split and whole
def test_kernel_equals_the_oracle(heads: int, tokens: int) -> None:
    problem = make_problem(tokens, heads, 2048, KvLayout.PACKED_FP8, slots=20_000, device=CUDA)
    check(problem, f"H={heads} T={tokens}")


@gpu
@pytest.mark.parametrize("topk", [1, 31, 32, 33, 100, 2047, 2112])
def test_kernel_any_list_length(topk: int) -> None:
    check(make_problem(3, 8, topk, KvLayout.PACKED_FP8, device=CUDA), f"topk={topk}")


@gpu
@pytest.mark.parametrize("heads", [8, 64])
def test_kernel_absent_entries(heads: int) -> None:
    """Nothing, every other, only the first, only the last, a tail; slot 0 is NaN throughout."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randint(1, 4000, (6, 512), generator=generator, dtype=torch.int32)
    base[0] = -1
    base[1, ::2] = -1
    base[2, 1:] = -1
    base[3, :-1] = -(2**31)
    base[4, 37:] = -1
    problem = make_problem(
        6, heads, 512, KvLayout.PACKED_FP8, slots=4000, device=CUDA, indices=base.to(CUDA)
    )
    assert problem.kv[0].view(torch.uint8).eq(0xFF).all()
    check(problem, f"absent entries H={heads}")


@gpu
def test_kernel_strided_query() -> None:
    pytest.importorskip("tilelang")
    problem = make_problem(5, 8, 256, KvLayout.PACKED_FP8, device=CUDA)
    nope = torch.empty(8, 5, 700, dtype=torch.bfloat16, device=CUDA).transpose(0, 1)[..., :512]
    nope.copy_(problem.q[..., :512])
    rope = problem.q[..., 512:]
    got = sparse_mla_fwd(
        nope, problem.kv, problem.indices, SM_SCALE, q_rope=rope, backend="tilelang"
    )
    assert torch.equal(got, run(problem)[0])


@gpu
def test_kernel_in_a_graph_follows_its_inputs() -> None:
    pytest.importorskip("tilelang")
    problem = make_problem(4, 8, 512, KvLayout.PACKED_FP8, slots=900, absent=0.0, device=CUDA)
    run(problem)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = run(problem)
    problem.indices[:, 100:] = -1
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, run(problem)[0])
