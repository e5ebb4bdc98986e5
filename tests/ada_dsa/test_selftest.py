"""The kernels' self-test: that it passes what is right, fails what is wrong, and covers every function."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ada_dsa
from ada_dsa import selftest
from ada_dsa.kv_cache.layout import KvLayout
from ada_dsa.sparse_mla.plan import plan_launch
from ada_dsa.topk.plan import plan_launch as plan_topk

CPU = torch.device("cpu")
SIZES = selftest.Sizes(context=300, topk=64, short=201, long=500, prefill=20)
NO_KERNEL = ("prefers_ada_dsa", "check_config", "get_num_sms")
PUBLIC = [name for name in ada_dsa.__all__ if name not in NO_KERNEL]


def functions(**changed: Any) -> SimpleNamespace:
    """The public functions, which on CPU tensors are the oracles, with some of them changed."""
    return SimpleNamespace(**{name: getattr(ada_dsa, name) for name in PUBLIC} | changed)


def failed(**changed: Any) -> dict[str, selftest.Outcome]:
    outcomes = selftest.run_checks(functions(**changed), CPU, SIZES, selftest.LOGITS_BOUND)
    return {one.name: one for one in outcomes if not one.ok}


def test_the_oracles_pass() -> None:
    outcomes = list(selftest.run_checks(functions(), CPU, SIZES, selftest.LOGITS_BOUND))
    assert len(outcomes) == len(selftest.CHECKS) == 22
    assert all(one.ok and one.problem is None for one in outcomes), [str(one) for one in outcomes]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_is_checked(name: str) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of resource:\nshared memory")

    found = failed(**{name: broken})
    assert found
    for one in found.values():
        assert one.error is None and one.problem == "RuntimeError: out of resource: shared memory"
        assert "FAIL  RuntimeError" in str(one)


def off(function: Any, change: Any) -> Any:
    return lambda *args, **kwargs: change(function(*args, **kwargs))


def first_bit(packed: torch.Tensor) -> torch.Tensor:
    packed.view(torch.uint8).view(-1, packed.shape[-1])[5, 3] ^= 1
    return packed


@pytest.mark.parametrize(
    ("name", "change", "checks"),
    [
        ("fp8_paged_mqa_logits", lambda out: out * (1 + 2e-5), 2),
        ("fp8_mqa_logits", lambda out: out * (1 + 2e-5), 1),
        ("get_paged_mqa_logits_metadata", lambda out: out + 1, 1),
        ("fast_topk_v2", lambda out: out.flip(1), 2),
        ("fast_topk_transform_fused", lambda out: out.clamp(min=0), 1),
        ("fast_topk_transform_ragged_fused", lambda out: out + 1, 1),
        ("sparse_mla_fwd", lambda out: (out[0] * 1.005, out[1]), 8),
        ("sparse_mla_fwd", lambda out: (out[0], out[1] * math.log2(math.e)), 8),
        ("quantize_k_cache", first_bit, 1),
        ("quantize_k_cache_separate", lambda out: (first_bit(out[0]), out[1]), 1),
        ("dequantize_k_cache", lambda out: out.nextafter(out + 1), 1),
        ("dequantize_k_cache_paged", lambda out: out.abs(), 1),
    ],
)
def test_a_wrong_result_fails(name: str, change: Any, checks: int) -> None:
    found = failed(**{name: off(getattr(ada_dsa, name), change)})
    assert len(found) == checks, sorted(found)
    for one in found.values():
        assert one.problem is None and one.error is not None and one.error > one.bound
        assert "FAIL" in str(one)


def test_a_write_to_a_slot_that_is_not_named_fails() -> None:
    def careless(nope: torch.Tensor, rope: torch.Tensor, pool: torch.Tensor, loc: Any) -> None:
        ada_dsa.quantize_and_scatter(nope, rope, pool, loc)
        pool[[slot for slot in range(64) if slot not in loc][0]] = 0

    assert list(failed(quantize_and_scatter=careless)) == ["KV pack into the pool"]


def test_what_is_not_finite_fails_and_is_valid_json() -> None:
    found = failed(fp8_mqa_logits=off(ada_dsa.fp8_mqa_logits, lambda out: out * math.nan))
    (one,) = found.values()
    assert one.error is None and "not finite" in str(one)


def test_a_page_read_as_rows_of_132_bytes_fails() -> None:
    """The mistake that stays unseen while every key is selected: scales beside each key."""

    def interleaved(q: Any, pool: torch.Tensor, *rest: Any) -> torch.Tensor:
        flat = pool.view(torch.uint8).view(pool.shape[0], 64, 132)
        keys, scales = flat[..., :128], flat[..., 128:]
        as_read = torch.cat([keys.flatten(1), scales.flatten(1)], dim=1)
        return ada_dsa.fp8_paged_mqa_logits(q, as_read.view(pool.shape), *rest)

    assert len(failed(fp8_paged_mqa_logits=interleaved)) == 2


def test_packing_is_exact_whatever_the_last_bit_of_a_scale() -> None:
    """A GPU divides approximately; the rows are such that neither code nor value changes by that."""
    rows = selftest.make_latent_rows(37, torch.Generator().manual_seed(1))
    tiles = rows[:, :512].float().unflatten(1, (4, 128))
    scale = tiles.abs().amax(2, keepdim=True) / 448
    assert (scale == 0).any() and (scale[scale > 0].log2() % 1 == 0).all()
    exact = (tiles / scale.clamp(min=1e-30)).to(torch.float8_e4m3fn).view(torch.uint8)
    for ulps in (-3, 3):
        moved = scale * (1 + ulps * 2**-23)
        codes = (tiles * (1 / moved.clamp(min=1e-30))).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(codes.view(torch.uint8), exact)
        assert torch.equal((codes.float() * moved).bfloat16(), (codes.float() * scale).bfloat16())


@pytest.mark.parametrize("layout", list(KvLayout))
def test_rows_that_no_index_names_are_nan(layout: KvLayout) -> None:
    indices = torch.tensor([[3, -1, 5]], dtype=torch.int32)
    pool = selftest.make_latent_pool(layout, indices, 9, torch.Generator().manual_seed(0))
    whole = [slot for slot in range(9) if (pool[slot].view(torch.uint8) == 0xFF).all()]
    assert whole == [0, 1, 2, 4, 6, 7, 8]


@pytest.mark.parametrize(
    ("target", "sms"), [(80, 108), (86, 84), (89, 128), (90, 132), (120, 170), (120, 188)]
)
def test_the_sizes_take_every_path(target: int, sms: int) -> None:
    """On cards of each architecture: attention with splits and without, top-k with and without prefilter."""
    sizes = selftest.Sizes()
    for layout in KvLayout:
        splits = {
            tokens: plan_launch(
                arch=target,
                num_sms=sms,
                layout=layout,
                num_tokens=tokens,
                num_heads=selftest.HEADS,
                topk=sizes.topk,
            ).num_splits
            for tokens in (2, sizes.prefill)
        }
        assert splits[2] > 1 and splits[sizes.prefill] == 1
    for padded in (False, True):
        plans = [
            plan_topk(
                arch=target,
                num_sms=sms,
                num_rows=5,
                width=width,
                topk=sizes.topk,
                padded=padded,
            )
            for width in (sizes.short, sizes.long)
        ]
        assert plans[0].splits == 0 and plans[1].splits > 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ada_dsa.selftest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    done = run()
    assert done.returncode == selftest.NO_GPU == 6, done.stderr
    assert done.stdout.startswith("not tested: no CUDA GPU")
    assert selftest.main(["--json"]) == selftest.NO_GPU
    assert "no CUDA GPU" in json.loads(capsys.readouterr().out)["unfit"]


@pytest.mark.parametrize(
    ("bound", "status", "last"),
    [(selftest.LOGITS_BOUND, 0, "22 of 22"), (-1.0, 1, "19 of 22")],
)
def test_exit_status_and_report(
    bound: float,
    status: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``main`` from end to end, the CPU in the GPU's place."""
    monkeypatch.setattr(selftest, "_find_obstacle", lambda: None)
    monkeypatch.setattr(selftest, "target_arch", lambda device: 80)
    monkeypatch.setattr(selftest, "LOGITS_BOUND", bound)
    monkeypatch.setattr(selftest, "Sizes", lambda: SIZES)
    monkeypatch.setattr(torch, "device", lambda *_: CPU)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert selftest.main([]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a card, kernels for sm_80") and lines[-1].startswith(last)
    assert selftest.main(["--json"]) == status
    first, *outcomes, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["sm"] == 80 and end["seconds"] > 0
    assert [one["name"] for one in outcomes] == [check.name for check in selftest.CHECKS]
    assert sum(not one["ok"] for one in outcomes) == 3 * status


@pytest.mark.gpu
def test_gpu_every_kernel_passes() -> None:
    done = run("--json")
    assert done.returncode == 0, done.stdout + done.stderr
