"""check_config: what it accepts, and that each refusal says what to change."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ada_dsa import check_config, requirements_check

GOOD = {
    "kv_cache_dtype": "fp8_e4m3",
    "page_size": 64,
    "num_heads": 8,
    "index_heads": 32,
    "index_head_dim": 128,
    "index_topk": 2048,
    "kv_lora_rank": 512,
    "rope_dim": 64,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kv_cache_dtype": "bfloat16"},
        {"kv_cache_dtype": torch.float8_e4m3fn},
        {"kv_cache_dtype": torch.bfloat16},
        {"num_heads": 128, "index_heads": 64},  # DeepSeek-V3.2 without tensor parallelism
        {"rope_dim": 0, "index_kpool": 4},  # GLM-5.3-Flash
        {"rope_dim": 0, "index_kpool": 16},
    ],
)
def test_accepted(change: dict[str, object]) -> None:
    check_config(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kv_cache_dtype": "fp8_e5m2"}, "'fp8_e5m2'.*--kv-cache-dtype fp8_e4m3"),
        ({"kv_cache_dtype": "auto"}, "--kv-cache-dtype"),
        ({"page_size": 1}, "page size 1 .*--page-size 64"),
        ({"num_heads": 0}, "0 attention heads.*--tp-size"),
        ({"num_heads": 129}, "129 attention heads"),
        ({"index_heads": 200}, "200 index heads"),
        ({"index_head_dim": 64}, "index_head_dim 64.*only 128"),
        ({"index_topk": 8192}, "index_topk 8192.*4096"),
        ({"kv_lora_rank": 256}, "kv_lora_rank 256.*only 512"),
        ({"rope_dim": 32}, "qk_rope_head_dim 32.*only 64 or 0"),
        ({"index_kpool": 3}, "index_kpool 3 .*only 1 or 2 or 4"),
        ({"index_kpool": 128}, "index_kpool 128"),
    ],
)
def test_refused_with_the_flag_to_change(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_config(**{**GOOD, **change})


@pytest.mark.parametrize("version", ["3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0", "3.8.0+git12"])
def test_triton_versions_accepted(version: str) -> None:
    requirements_check.check_triton(version)


@pytest.mark.parametrize("version", ["2.3.1", "3.4.0", "3.5.0", "3.10.0", "4.0.0"])
def test_triton_versions_refused(version: str) -> None:
    with pytest.raises(ValueError, match=rf">=3\.5\.1,<3\.10.*got {version}"):
        requirements_check.check_triton(version)


def test_old_gpu_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_OVERRIDE_ARCH", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(ValueError, match=r"capability 8\.0 or later, got sm_75"):
        check_config(**GOOD)


def test_importing_the_package_loads_no_triton() -> None:
    code = (
        "import sys, ada_dsa\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('triton', 'torch')]\n"
        "assert set(ada_dsa.__all__) <= set(dir(ada_dsa))\n"
        "for name in ada_dsa.__all__: assert callable(getattr(ada_dsa, name)), name\n"
        "assert 'triton' not in sys.modules\n"
        "import ada_dsa.reference as r\n"
        "for name in r.__all__: assert callable(getattr(r, name)), name\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute() -> None:
    import ada_dsa

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ada_dsa.nothing  # noqa: B018
