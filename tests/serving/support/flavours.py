"""The ways one model is served here, and where their packages lie.

``ADA_GPU_HOME`` (default ``~/.cache/ada-dsa/gpu``) holds folders for ``PYTHONPATH``, each filled with
``pip install --target``: ``deps`` (what sglang needs and the machine lacks), ``stock`` (the released
wheel), ``fork`` (the wheel of ``tool build``). Stock and fork own the same import name, so a process
sees one of them only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HOME: Final = Path(os.environ.get("ADA_GPU_HOME") or Path.home() / ".cache" / "ada-dsa" / "gpu")
RELEASE: Final = "0.5.17"
"""The newest release whose torch is 2.11."""

SM89: Final = {"SGLANG_ADA_DSA_OVERRIDE_ARCH": "sm89", "TRITON_OVERRIDE_ARCH": "sm89"}
"""Take the path of an sm_89 card, and let Triton lower for it, on another GPU."""

ADA_DSA: Final = {"dsa_prefill_backend": "ada_dsa", "dsa_decode_backend": "ada_dsa"}
FLASHMLA: Final = {"dsa_prefill_backend": "flashmla_kv", "dsa_decode_backend": "flashmla_kv"}


@dataclass(frozen=True)
class Flavour:
    """``site`` is ``stock`` or ``fork``; ``arguments`` are ServerArgs beyond what all share."""

    name: str
    site: str
    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        """The environment of a process that serves this flavour."""
        path = [str(HOME / self.site), str(HOME / "deps")]
        if known := os.environ.get("PYTHONPATH"):
            path.append(known)
        return {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "SGLANG_ENABLE_JIT_DEEPGEMM": "0",  # dense products in Triton, alike in all flavours
            **self.environment,
            "PYTHONPATH": os.pathsep.join(path),
        }


FLAVOURS: Final = {
    one.name: one
    for one in (
        Flavour("stock", "stock", FLASHMLA),
        Flavour("fork", "fork", ADA_DSA),
        Flavour("fork-sm89", "fork", {}, SM89),  # nothing asked for: the fork's own defaults
    )
}
