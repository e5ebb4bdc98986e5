"""What a run says of the environment."""

from __future__ import annotations

from bench.kernels import layer, run


def test_absent_peers_are_named() -> None:
    missing = run.missing_peers()
    assert set(missing) <= {
        "DeepGEMM",
        "sgl-kernel",
        "flashinfer",
        "FlashMLA",
        "TileLang",
        "sglang's quantisation",
        layer.PEER,
    }
    assert all(missing.values())
