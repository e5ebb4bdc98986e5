"""sglang's own DSA attention kit against ``ada_dsa``: every case passes, or its skip is explained here."""

from __future__ import annotations

import os
import re
import sys
import unittest
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import torch

from tests.serving.support import children, kit_runner
from tests.serving.support.flavours import FLAVOURS

TIMEOUT: Final = 420.0

EXPLAINED: Final = {
    # These entry points look the backend up in the kit's own list of kernels first. The functions that
    # they would call run as kit/ and keys/ cases of the same name.
    r"gated/(prefill|decode|graph)": r"unknown DSA impl `ada_dsa`",
    r"gated/fp8_prefill": r"`ada_dsa` does not support FP8 KV cache \(only `aiter`, `flashmla",
    r"gated/fp8_decode": r"`ada_dsa` does not support FP8 KV cache \(only `flashmla",
    # sm_90 and sm_100 alone, for prompts up to 2048; the fixture's rows are 128 wide, not 576.
    r"dense/.+": r"FlashAttention 3, whatever the DSA backend",
}
"""Patterns of a skipped case's whole name, and of a part of what it must say."""

MODES: Final = frozenset(
    f"{way}/{mode}/{kv}"
    for way, modes in {
        "kit": ("prefill", "decode", "graph_metadata"),
        "keys": (
            "prefill",
            "decode",
            "target_verify",
            "draft_extend_v2",
            "graph_metadata",
            "graph",
        ),
    }.items()
    for mode in modes
    for kv in ("bf16", "fp8")
) | {"kit/target_verify/bf16", "kit/draft_extend_v2/bf16", "kit/eagle_draft_graph/bf16"}
"""What must have passed, in at least one case each."""


def unexplained(rows: tuple[dict[str, Any], ...]) -> list[str]:
    """Skipped cases that EXPLAINED does not cover."""
    return [
        f"{row['case']}: {row['says']}"
        for row in rows
        if row["outcome"] == "skipped"
        and not any(
            re.fullmatch(name, row["case"]) and re.search(reason, row["says"])
            for name, reason in EXPLAINED.items()
        )
    ]


def _run(flavour: str, *arguments: str) -> children.Lines:
    one = FLAVOURS[flavour]
    if reason := children.needs(one):
        pytest.skip(reason)
    lines = children.run(kit_runner.__name__, arguments, one.environ(), TIMEOUT)
    lines.keep(f"kit-{flavour}{'-'.join(arguments).replace('/', '')}")
    return lines


@pytest.fixture(scope="module", params=["fork", "fork-sm89"])
def kit(request: pytest.FixtureRequest) -> children.Lines:
    return _run(request.param)


@pytest.mark.gpu
def test_every_case_runs_to_its_end(kit: children.Lines) -> None:
    assert not kit.fault, kit.fault


@pytest.mark.gpu
def test_no_case_fails(kit: children.Lines) -> None:
    failed = [f"{row['case']}: {row['says']}" for row in kit.rows if row["outcome"] == "failed"]
    assert not failed, "\n".join(failed)


@pytest.mark.gpu
def test_every_skip_is_explained(kit: children.Lines) -> None:
    assert not unexplained(kit.rows)


@pytest.mark.gpu
def test_every_mode_passes(kit: children.Lines) -> None:
    passed = {
        "/".join(row["case"].split("/")[:3]) for row in kit.rows if row["outcome"] == "passed"
    }
    assert passed >= MODES, sorted(MODES - passed)


@pytest.mark.gpu
def test_the_released_kernels_meet_the_same_bounds() -> None:
    """FlashMLA meets the same bounds in the same cases, with the stock wheel."""
    lines = _run("stock", "--backend", "flashmla_kv", "--only", "keys/decode")
    assert not lines.fault, lines.fault
    failed = [f"{row['case']}: {row['says']}" for row in lines.rows if row["outcome"] != "passed"]
    assert lines.rows
    assert not failed, "\n".join(failed)


# -- without a GPU ----------------------------------------------------------------------------------


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What SGLANG_DSA_FUSE_TOPK was set to; stands for the one name of sglang that judging a case needs."""
    seen: list[bool] = []

    def override(value: bool) -> AbstractContextManager[None]:
        seen.append(value)
        return nullcontext()

    flag = SimpleNamespace(override=override)
    module = SimpleNamespace(envs=SimpleNamespace(SGLANG_DSA_FUSE_TOPK=flag))
    monkeypatch.setitem(sys.modules, "sglang.srt.environ", module)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return seen


def _comparing(off: float) -> kit_runner.Body:
    """As the kit compares: far within its tolerance, ``off`` from the right result."""
    right = torch.full((4, 8), 0.03)
    return lambda test: torch.testing.assert_close(
        right * (1 + off), right, atol=1.6e-1, rtol=1.6e-1
    )


def test_a_case_with_a_bound_fails_where_the_kit_would_pass(fused: list[bool]) -> None:
    kept = kit_runner._outcome(kit_runner.Case("kit/a", _comparing(1.0)))
    assert kept["outcome"] == "passed" and kept["error"] == pytest.approx(1.0)
    bound = kit_runner._outcome(kit_runner.Case("keys/a", _comparing(1.0), 0.02))
    assert bound["outcome"] == "failed" and "at most 0.02" in bound["says"]
    good = kit_runner._outcome(kit_runner.Case("keys/a", _comparing(0.01), 0.02))
    assert good["outcome"] == "passed" and good["error"] == pytest.approx(0.01, rel=1e-3)
    assert fused == [True, False, False]


def test_what_is_no_tensor_is_compared_and_not_measured(fused: list[bool]) -> None:
    """The kit compares a step's outputs whole, and some of them are None."""
    same = kit_runner.Case("kit/a", lambda test: torch.testing.assert_close(None, None))
    assert kit_runner._outcome(same) == {"outcome": "passed", "says": "", "error": None}
    other = kit_runner.Case("kit/a", lambda test: torch.testing.assert_close(None, torch.ones(1)))
    assert kit_runner._outcome(other)["outcome"] == "failed"


def test_nan_and_a_case_that_compares_nothing_fail(fused: list[bool]) -> None:
    nan = kit_runner._outcome(kit_runner.Case("keys/a", _comparing(float("nan")), 0.02))
    assert nan["outcome"] == "failed" and nan["error"] is None
    nothing = kit_runner._outcome(kit_runner.Case("keys/a", lambda test: None, 0.02))
    assert nothing["outcome"] == "failed" and "relative error None" in nothing["says"]


def test_a_skip_and_an_error_say_why_and_where(fused: list[bool]) -> None:
    skipped = kit_runner._outcome(kit_runner.Case("gated/a", lambda test: test.skipTest("no such")))
    assert (skipped["outcome"], skipped["says"]) == ("skipped", "no such")

    def broken(test: unittest.TestCase) -> None:
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    failed = kit_runner._outcome(kit_runner.Case("keys/a", broken, 0.02))
    assert failed["outcome"] == "failed"
    assert failed["says"].startswith("RuntimeError: CUDA error: an illegal memory access (")
    assert "test_kit.py:" in failed["says"]


def test_a_module_gets_a_fixture_with_the_arguments_it_does_not_hand_on() -> None:
    def build(*positional: object, **named: object) -> tuple[object, ...]:
        return (*positional, *sorted(named.items()))

    module = SimpleNamespace(build_dsa_sparse_attention_fixture=build)
    got: list[object] = []

    def run(test: object, case: object, **more: object) -> None:
        got.append(module.build_dsa_sparse_attention_fixture(test, case, **more))

    kit_runner._fixed(module, {"index_topk": 2048}, run, "case", "test", fp8=True)  # type: ignore[arg-type]
    assert got == [("test", "case", ("fp8", True), ("index_topk", 2048))]
    assert module.build_dsa_sparse_attention_fixture is build


def test_skips_are_explained_by_name_and_reason() -> None:
    def skipped(case: str, says: str) -> dict[str, Any]:
        return {"case": case, "outcome": "skipped", "says": says}

    known = skipped(
        "gated/decode", "DSA decode impl `ada_dsa` not supported: unknown DSA impl `ada_dsa`"
    )
    other_reason = skipped("gated/decode", "sgl_kernel.flash_mla unavailable: no such file")
    other_case = skipped("keys/decode/bf16/deep", known["says"])
    passed = {"case": "keys/decode/bf16/deep", "outcome": "passed", "says": ""}
    assert unexplained((known, passed)) == []
    assert unexplained((other_reason, other_case)) == [
        f"gated/decode: {other_reason['says']}",
        f"keys/decode/bf16/deep: {known['says']}",
    ]


def test_a_child_that_dies_keeps_what_it_said_and_names_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "dies.py").write_text(
        "import os, sys\n"
        'print(\'{"begin": "one"}\')\nprint(\'{"case": "one"}\')\nprint("[W] a warning")\nprint(7)\n'
        'print(\'{"begin": "two"}\', flush=True)\n'
        'print("the reason", file=sys.stderr, flush=True)\nos.abort()\n'
    )
    lines = children.run("dies", [], os.environ, 30)
    assert lines.rows == ({"case": "one"},)
    assert "exit code -6, last begun: two" in lines.fault
    assert "the reason" in lines.fault


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "hangs.py").write_text(
        'import time\nprint(\'{"begin": "slow"}\', flush=True)\ntime.sleep(60)\n'
    )
    lines = children.run("hangs", [], os.environ, 3)
    assert lines.fault.startswith("no end after 3 s, last begun: slow")


def test_a_child_that_ends_has_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "ends.py").write_text(
        "import sys\nprint('{\"case\": 1}')\nprint('{\"end\": 1}')\nsys.exit(int(sys.argv[1]))\n"
    )
    assert children.run("ends", ["0"], os.environ, 30) == children.Lines(({"case": 1},), "")
    assert children.run("ends", ["3"], os.environ, 30).fault.startswith("exit code 3")


def test_a_flavour_without_its_folders_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "HOME", tmp_path)
    (tmp_path / "fork").mkdir()
    assert "tests.serving.support.stage install" in (children.needs(FLAVOURS["fork"]) or "")
    assert str(tmp_path / "stack") in (children.needs(FLAVOURS["stock"]) or "")
    (tmp_path / "stack").mkdir()
    assert children.needs(FLAVOURS["fork"]) is None
    (tmp_path / "fork").rmdir()
    assert str(tmp_path / "fork") in (children.needs(FLAVOURS["fork"]) or "")
    assert children.needs(FLAVOURS["stock"]) is None
