"""Which kernels serve on which GPU: the tool's rules are those of the series and of the kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.version import Version

from ada_dsa import arch, requirements_check
from tool import plan
from tool.series import model as series

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("sm", "release", "kind"),
    [
        (75, "0.5.23", "refused"),
        (80, "0.5.23", "default"),
        (86, "0.5.9", "default"),
        (87, "0.5.23", "default"),
        (89, "0.5.9", "default"),
        (89, "0.5.23", "default"),
        (90, "0.5.23", "request"),
        (100, "0.5.23", "request"),
        (120, "0.5.16", "default"),
        (120, "0.5.17", "request"),
        (120, "0.5.23", "request"),
        (121, "0.5.16", "default"),
        (121, "0.5.23", "request"),
    ],
)
def test_route(sm: int, release: str, kind: str) -> None:
    found = plan.route(sm, Version(release), fork=True)
    assert found.kind == kind
    assert bool(found.options) == (kind == "request")
    assert ("checked for" in found.text) == (kind != "refused" and sm not in arch.GATED_ARCHS)


def test_route_of_the_released_sglang_and_of_none() -> None:
    assert plan.route(89, Version("0.5.23"), fork=False).kind == "stock"
    assert plan.route(89, None, fork=False).kind == "default"
    assert "up to sglang 0.5.16" in plan.route(120, None, fork=False).text


def test_the_rules_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(arch.OVERRIDE_VARIABLE, raising=False)
    assert (plan.GATED, plan.OLDEST_SM) == (
        arch.GATED_ARCHS,
        requirements_check.OLDEST_SM,
    )
    assert plan.OVERRIDE == arch.OVERRIDE_VARIABLE
    for sm in (80, 86, 87, 89, 90, 100, 103, 121):
        kind = plan.route(sm, Version("0.5.23"), fork=True).kind
        assert (kind == "default") == arch.prefers_ada_dsa(sm)


def releases() -> list[str]:
    return sorted({str(v) for v in json.loads((ROOT / "series.lock").read_text())["releases"]})


@pytest.mark.parametrize("release", releases())
def test_the_rules_are_those_of_the_series(release: str) -> None:
    """The lines that this release's patches add agree with what doctor says about sm_120 and the options."""
    version = Version(release)
    added = {
        patch.name: "\n".join(
            line[1:] for line in patch.content.decode().splitlines() if line[:1] == "+"
        )
        for patch in series.load_series(ROOT).for_release(version)
    }
    guards = next(text for name, text in added.items() if "capability-guards" in name)
    swap = next(text for name, text in added.items() if "kernel-swap" in name)
    by_default = plan.route(120, version, fork=True).kind == "default"
    assert by_default == ("deep_gemm_on_sm120=True" not in guards)
    options = plan.options(version)
    logits = '["auto", "ada_dsa"' in swap
    assert ("--dsa-paged-mqa-logits-backend ada_dsa" in options) == logits
    prefix = "nsa" if "nsa_prefill_backend" in swap + guards else "dsa"
    assert f"--{prefix}-prefill-backend ada_dsa --{prefix}-decode-backend ada_dsa" in options
    assert ("nsa" in options) == (prefix == "nsa")
