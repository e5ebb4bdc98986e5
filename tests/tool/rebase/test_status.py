"""``tool status``."""

from __future__ import annotations

from pathlib import Path

from tests.support.lab import Lab


def test_status_tells_what_each_patch_does(lab: Lab, fork: Path) -> None:
    with (lab.root / "series.txt").open("a") as handle:
        handle.write(
            "change guard ==0.5.9 upstream 0.5.10: configurer\nguard/guard.patch ==0.5.9\n"
        )
    result = lab.json("status")["result"]
    states = {p["patch"]: p["state"] for p in result["patches"]}
    assert states == {
        "demo/first.patch": "applies",
        "demo/second.patch": "applies",
        "guard/guard.patch": "upstream",
    }
    assert result["imported"] and str(fork) in result["worktrees"].values()
    elsewhere = lab.json("status", "--sglang-ref", "v0.5.9")["result"]
    assert {p["patch"]: p["state"] for p in elsewhere["patches"]}["guard/guard.patch"] == "applies"
