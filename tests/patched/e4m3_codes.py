"""Where Triton has no e4m3 type, the patched tree quantises with the bundled kernels. Tests of every era."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import fake_cuda
import pytest
import releases
import torch


def module(name: str) -> ModuleType:
    """The module of a kernel: ``quant_k_cache``, ``act_quant`` or ``index_k_cache``."""
    if releases.at(">=0.5.23"):
        return importlib.import_module(
            "sglang.kernels.ops."
            + {
                "quant_k_cache": "quantization.dsa_quant_k_cache",
                "act_quant": "quantization.act_quant_triton",
                "index_k_cache": "kvcache.dsa_index_k_cache",
            }[name]
        )
    package = (
        "sglang.srt.layers.attention.nsa"
        if releases.at("<0.5.13")
        else "sglang.srt.layers.attention.dsa"
        if releases.at("<0.5.16")
        else "sglang.kernels.ops.attention.dsa"
    )
    file = {"act_quant": "triton_kernel", "index_k_cache": "index_buf_accessor"}.get(name, name)
    return importlib.import_module(f"{package}.{file}")


def latent(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    both = torch.randn(rows, 576).to(torch.bfloat16)
    return both[:, :512], both[:, 512:]


@pytest.mark.parametrize("device", [(8, 0), (8, 6)])
def test_kv_rows_are_packed_by_the_bundle(device: tuple[int, int]) -> None:
    from sglang.srt.layers.attention.ada_dsa import reference
    from sglang.srt.mem_cache import memory_pool

    nope, rope = latent(5)
    want = reference.pack_rows(nope, rope)
    with fake_cuda.capability(*device):
        # The pool calls this function for a row in two parts, and that one for a whole row.
        parts = memory_pool.quantize_k_cache_separate(nope, rope)
        whole = module("quant_k_cache").quantize_k_cache(torch.cat([nope, rope], 1)[:, None, None])
    assert torch.equal(torch.cat(parts, 2)[:, 0], want)
    assert torch.equal(whole.view(torch.uint8).view(5, 656), want)
    assert (
        memory_pool.quantize_k_cache_separate is module("quant_k_cache").quantize_k_cache_separate
    )


@pytest.mark.parametrize("device", [(8, 0), (8, 6)])
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_keys_and_queries_are_quantised_by_the_bundle(
    device: tuple[int, int], scale_fmt: str | None
) -> None:
    from sglang.srt.layers.attention.ada_dsa import reference

    x = torch.randn(3, 32, 128, dtype=torch.bfloat16)
    want, want_scales = reference.quantize_blocks(x.view(-1, 128), scale_fmt is not None)
    with fake_cuda.capability(*device):
        codes, scales = module("act_quant").act_quant(x, 128, scale_fmt)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.float8_e4m3fn, x.shape, (3, 32, 1))
    assert torch.equal(codes.view(torch.uint8).view(-1, 128), want.view(torch.uint8))
    assert torch.equal(scales.view(-1), want_scales)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [((8, 0), torch.uint8), ((8, 6), torch.uint8), ((8, 9), torch.float8_e4m3fn)],
)
def test_index_keys_are_stored_as_bytes(
    monkeypatch: pytest.MonkeyPatch, device: tuple[int, int], dtype: torch.dtype
) -> None:
    launched: list[tuple[Any, ...]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **_: launched.append(args)

    storing = module("index_k_cache")
    monkeypatch.setattr(storing, "_set_k_and_s_triton_kernel", Kernel())
    pool = torch.zeros(2, 64 * 132, dtype=torch.uint8)
    keys = torch.randn(3, 128).to(torch.float8_e4m3fn)
    with fake_cuda.capability(*device):
        storing._set_k_and_s_triton(
            buf=pool,
            loc=torch.arange(3),
            index_k=keys,
            index_k_scale=torch.ones(3),
            page_size=64,
        )
    [(codes, _, _, stored, *_)] = launched
    assert codes.dtype == stored.dtype == dtype
    assert codes.data_ptr() == pool.data_ptr()
    assert stored.data_ptr() == keys.data_ptr()


@pytest.mark.parametrize("device", [(8, 9), (9, 0), (12, 0)])
def test_other_gpus_keep_sglangs_kernels(
    monkeypatch: pytest.MonkeyPatch, device: tuple[int, int]
) -> None:
    from sglang.srt.layers.attention import ada_dsa

    def bundled(*_: object) -> None:
        raise AssertionError("the bundle was called")

    for name in ("act_quant", "quantize_k_cache", "quantize_k_cache_separate"):
        monkeypatch.setattr(ada_dsa, name, bundled)
    nope, rope = latent(5)
    calls = (
        lambda: module("quant_k_cache").quantize_k_cache_separate(nope, rope),
        lambda: module("act_quant").act_quant(torch.zeros(2, 128, dtype=torch.bfloat16)),
    )
    with fake_cuda.capability(*device):
        for call in calls:
            with pytest.raises(
                Exception, match="(?i)triton|cuda|cpu|driver"
            ):  # a launch on the CPU
                call()
