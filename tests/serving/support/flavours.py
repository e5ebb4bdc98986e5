"""The flavours in which one model is served here, and the folders of their packages.

``ADA_GPU_HOME`` (default ``~/.cache/ada-dsa/gpu``) holds two folders for ``PYTHONPATH``: ``stack`` (the
released sglang and what it needs) and ``fork`` (the wheel of ``tool build``). Both have a package
``sglang``; a process imports the one that comes first on its path.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HOME: Final = Path(os.environ.get("ADA_GPU_HOME") or Path.home() / ".cache" / "ada-dsa" / "gpu")
RELEASE: Final = "0.5.23"
"""The release that is served, unless a command names another."""

SM89: Final = {"SGLANG_ADA_DSA_OVERRIDE_ARCH": "sm89", "TRITON_OVERRIDE_ARCH": "sm89"}
"""Take the path of an sm_89 card on another GPU, and let Triton compile for sm_89."""

TOOLKIT: Final = {
    # What compiles at run time includes CUDA's headers; torch asks for a newer cuDNN than a machine may have.
    "CPATH": str(HOME / "stack" / "nvidia" / "cu13" / "include"),
    "PYTORCH_SKIP_CUDNN_COMPATIBILITY_CHECK": "1",
}

ADA_DSA: Final = {
    "dsa_prefill_backend": "ada_dsa",
    "dsa_decode_backend": "ada_dsa",
    "dsa_paged_mqa_logits_backend": "ada_dsa",
}
BF16: Final = {"kv_cache_dtype": "bfloat16"}
FP8: Final = {"kv_cache_dtype": "fp8_e4m3"}
SM86: Final = {"TRITON_OVERRIDE_ARCH": "sm86"}
ONE_PTXAS: Final = {
    "TRITON_PTXAS_BLACKWELL_PATH": str(HOME / "stack/triton/backends/nvidia/bin/ptxas")
}
"""Triton takes the PTX version from the ptxas for sm_120, and assembles with the ptxas of the GPU at hand.
Both have to be the same program."""
FLASHMLA: Final = {"dsa_prefill_backend": "flashmla_kv", "dsa_decode_backend": "flashmla_kv"}
TILELANG: Final = {"dsa_prefill_backend": "tilelang", "dsa_decode_backend": "tilelang"}


@dataclass(frozen=True)
class Flavour:
    """``site`` is ``stack`` for stock, or ``fork``; ``arguments`` are ServerArgs beyond what all share."""

    name: str
    site: str
    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    bf16: bool = False
    """Serves the model with the same weights in bf16: Triton has no e4m3 below sm_89."""

    def environ(self) -> dict[str, str]:
        """The environment of a process that serves this flavour."""
        path = [str(HOME / site) for site in dict.fromkeys((self.site, "stack"))]
        if known := os.environ.get("PYTHONPATH"):
            path.append(known)
        return {
            **os.environ,
            **TOOLKIT,
            "HF_HUB_OFFLINE": "1",
            "SGLANG_ENABLE_JIT_DEEPGEMM": "0",  # dense products in Triton, the same in all flavours
            **self.environment,
            "PYTHONPATH": os.pathsep.join(path),
        }


FLAVOURS: Final = {
    one.name: one
    for one in (
        Flavour("stock", "stack", FLASHMLA),
        Flavour("fork", "fork", ADA_DSA),
        Flavour("fork-sm89", "fork", {}, SM89),  # no option: the fork's own defaults
        Flavour("fork-sm86", "fork", ADA_DSA, SM86, bf16=True),
        Flavour("fork-sm86-bf16", "fork", {**ADA_DSA, **BF16}, SM86, bf16=True),
        Flavour("fork-sm120", "fork", ADA_DSA, {"TRITON_OVERRIDE_ARCH": "sm120", **ONE_PTXAS}),
    )
}
MAIN: Final = ("stock", "fork", "fork-sm89")
"""The flavours of every scenario. The others are only there to show that a lowering serves."""

FLASH: Final = {
    one.name: one
    for one in (
        Flavour("stock", "stack", {**TILELANG, **BF16}),
        Flavour("stock-fp8", "stack", {**TILELANG, **FP8}),
        Flavour("fork", "fork", ADA_DSA),
        Flavour("fork-bf16", "fork", {**ADA_DSA, **BF16}),
        Flavour("fork-sm89", "fork", {}, SM89),  # no option: the fork's own defaults
    )
}
"""Of GLM-5.3-Flash. On Hopper stock serves a pooled index with TileLang or FlashAttention 3. TileLang reads
fp8 rows too, so that stock and fork are compared with rows of the same kind."""
