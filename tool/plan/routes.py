"""Which kernels serve DSA on a GPU in a release, and the options that ask for ada_dsa.

The series (``capability-guards``) and ``ada_dsa.arch`` decide at start-up which GPU takes which kernels.
The tool imports neither, so the rules are repeated here. ``tests/tool/plan/test_routes.py`` compares them
for every release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from packaging.version import Version

GATED: Final = (80, 86, 89, 90, 110, 120, 121)
"""Capabilities that the kernels are compiled and checked for (``ada_dsa.arch``)."""
OLDEST_SM: Final = 80
OVERRIDE: Final = "SGLANG_ADA_DSA_OVERRIDE_ARCH"
NATIVE_SM120: Final = Version("0.5.17")
"""The first release with a DSA kernel of its own for sm_12x; it serves GLM over an FP8 KV cache."""

_KV: Final = "--kv-cache-dtype fp8_e4m3"
_DSA: Final = "--dsa-prefill-backend ada_dsa --dsa-decode-backend ada_dsa"
OPTIONS: Final = (
    (Version("0.5.22"), f"{_DSA} --dsa-paged-mqa-logits-backend ada_dsa {_KV}"),
    (Version("0.5.13"), f"{_DSA} {_KV}"),
    (Version("0.5.9"), f"--nsa-prefill-backend ada_dsa --nsa-decode-backend ada_dsa {_KV}"),
)
"""First release → the options that ask for ada_dsa from there on."""


@dataclass(frozen=True)
class Route:
    """What serves DSA on a capability. ``kind``: ``default`` (ada_dsa without being asked), ``request``
    (ada_dsa with ``options``), ``stock`` (this sglang has no ada_dsa) or ``refused``."""

    sm: int
    kind: str
    text: str
    options: str = ""


def route(sm: int, release: Version | None, *, fork: bool, override: bool = False) -> Route:
    """What serves DSA on capability ``sm`` (``major * 10 + minor``) in ``release``.

    Args:
        release: None when no sglang is there to tell.
        fork: whether it has ada_dsa.
        override: ``SGLANG_ADA_DSA_OVERRIDE_ARCH`` is set.
    """
    if sm < OLDEST_SM:
        text = (
            "refused: ada_dsa needs capability 8.0 or later, and no DSA kernel of sglang is older"
        )
        return Route(sm, "refused", text)
    if release is not None and not fork:
        return Route(sm, "stock", "sglang's own kernels; the released sglang has no ada_dsa")
    everything = "packed fp8 KV cache, ada_dsa for prefill, decode and indexer logits"
    if sm == 89 or override:
        text = f"ada_dsa by default: {everything}, shared-expert fusion off"
        if sm != 89:
            text += f" ({OVERRIDE} is set, for testing)"
        return Route(sm, "default", text)
    kind, asked = "request", options(release)
    text = "sglang's own kernels; ada_dsa on request"
    if sm < 89:
        kind, asked = "default", ""
        text = f"ada_dsa by default: {everything}; 4-bit and bf16 checkpoints, FP8 ones have no MoE kernel"
    elif sm // 10 == 12 and release is not None and release < NATIVE_SM120:
        kind, asked = "default", ""
        text = f"ada_dsa by default: {everything}"
    elif sm // 10 == 12:
        text = (
            "sglang's own kernel for GLM over an FP8 KV cache, there ada_dsa on request; ada_dsa by default "
            "for DeepSeek-V3.2, GLM-5.3-Flash and a bf16 KV cache"
        )
        if release is None:
            text += "; up to sglang 0.5.16 ada_dsa by default for every model"
    if sm not in GATED:
        checked = ", ".join(f"sm_{one}" for one in GATED)
        text += f"; the kernels are compiled and checked for {checked} only"
    return Route(sm, kind, text, asked)


def options(release: Version | None) -> str:
    """The options of ``release`` that ask for ada_dsa, of the newest one when it is None."""
    if release is None:
        return OPTIONS[0][1]
    return next((text for first, text in OPTIONS if release >= first), "")
