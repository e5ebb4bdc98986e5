"""Which GPUs take the kernels, and the architecture configurations are chosen for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ada_dsa import arch, configs


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 90, 100, 103, 120, 121])
def test_ampere_and_ada_prefer_these_kernels(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(arch.OVERRIDE_VARIABLE, raising=False)
    assert arch.prefers_ada_dsa(sm) is (80 <= sm < 90)
    monkeypatch.setenv(arch.OVERRIDE_VARIABLE, "")
    assert arch.prefers_ada_dsa(sm) is (80 <= sm < 90)
    monkeypatch.setenv(arch.OVERRIDE_VARIABLE, "sm89")
    assert arch.prefers_ada_dsa(sm) is True


@pytest.mark.parametrize("value", ["sm90", "89", "SM89", "1", "true"])
def test_other_override_values_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(arch.OVERRIDE_VARIABLE, value)
    with pytest.raises(ValueError, match="only accepted value is 'sm89'"):
        arch.prefers_ada_dsa(89)


def test_module_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys, ada_dsa.arch\n"
        "assert not {'torch', 'triton'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_target_arch_follows_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.delenv(arch.TRITON_OVERRIDE_VARIABLE, raising=False)
    assert arch.target_arch() == 90
    for value, want in (("sm89", 89), ("sm86", 86), ("sm80", 80), ("sm120", 120)):
        monkeypatch.setenv(arch.TRITON_OVERRIDE_VARIABLE, value)
        assert arch.target_arch() == want
    monkeypatch.setenv(arch.TRITON_OVERRIDE_VARIABLE, "ada")
    with pytest.raises(ValueError, match="expected the form 'sm89'"):
        arch.target_arch()


def test_native_fp8_begins_at_sm89() -> None:
    assert [a for a in arch.GATED_ARCHS if not arch.has_native_fp8(a)] == [80, 86]


def test_every_row_of_the_table_is_reachable_and_justified() -> None:
    keys = [(row.op, row.arch, row.bucket) for row in configs.ROWS]
    assert len(keys) == len(set(keys)), "two rows for one key"
    for row in configs.ROWS:
        assert len(row.evidence) > 10, row
        assert row.num_warps in (1, 2, 4, 8, 16, 32), row


def test_an_architecture_without_a_row_takes_the_next_lower_one() -> None:
    assert configs.pick("paged_logits", 86, heads=32, next_n=1).arch == 80
    assert configs.pick("paged_logits", 103, heads=32, next_n=1).arch == 90
    assert configs.pick("paged_logits", 121, heads=32, next_n=1).arch == 120
    assert configs.pick("paged_logits", 89, heads=64, next_n=2).bucket == "columns<=128"
    with pytest.raises(ValueError, match="no configuration for sm_75.*supported from sm_80"):
        configs.pick("paged_logits", 75, heads=32, next_n=1)
