"""Child process of ``stage.py check``: import the modules that one site's tests need.

Prints JSON lines: ``begin`` before each module (an abort then names its module), then ``module``,
``ok``, ``says`` (a version, or the error) and ``seconds``; ``end`` at last.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
from typing import Final

PACKAGES: Final = {
    "torch": "torch",
    "triton": "triton",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "tvm_ffi": "apache-tvm-ffi",
    "sgl_kernel": "sglang-kernel",
    "deep_gemm": "sgl-deep-gemm",
    "flashinfer": "flashinfer-python",
    "tilelang": "tilelang",
    "xgrammar": "xgrammar",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "click": "click",
    "git": "GitPython",
    "unidiff": "unidiff",
}
"""Module to distribution."""

SGLANG: Final = (
    "sglang",
    "sgl_kernel.flash_mla",
    "sglang.srt.server_args",
    "sglang.srt.layers.attention.dsa_backend",
    "sglang.srt.layers.attention.dsa.dsa_indexer",
    "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe",
    "sglang.srt.layers.quantization.fp8",
    "sglang.srt.models.deepseek_v2",
    "sglang.srt.models.deepseek_nextn",
    "sglang.srt.models.glm5_next",
    "sglang.srt.models.glm5_next_nextn",
    "sglang.srt.model_executor.model_runner",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.tokenizer_manager",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.entrypoints.http_server",
    "sglang.launch_server",
    "sglang.benchmark.one_batch",
    "sglang.test.kits.attention_unittest.attention_methods.dsa_attention",
    "sglang.test.kits.attention_unittest.runner_modes.cuda_graph_decode_runner",
    "sglang.test.kits.attention_unittest.runner_modes.speculative_draft_runner",
)
FORK: Final = ("sglang.srt.layers.attention.ada_dsa.sparse_mla",)


_seen: dict[str, str] = {}
"""Error to the first module that raised it."""


def main(site: str) -> None:
    for module, distribution in PACKAGES.items():
        _try(module, distribution)
    for module in SGLANG + (FORK if site == "fork" else ()):
        _try(module, "sglang")
    _say({"end": site})


def _try(module: str, distribution: str) -> None:
    _say({"begin": module})
    start = time.monotonic()
    try:
        importlib.import_module(module)
        ok, says = True, importlib.metadata.version(distribution)
    except BaseException as err:  # noqa: BLE001 - whatever it is, it is this module's verdict
        text = " ".join(f"{type(err).__name__}: {err}".split())
        if len(text) > 600:
            text = f"{text[:150]} ... {text[-440:]}"
        first = _seen.setdefault(text, module)
        ok, says = False, text if first == module else f"as {first}"
    _say({"module": module, "ok": ok, "says": says, "seconds": time.monotonic() - start})


def _say(row: dict[str, object]) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
