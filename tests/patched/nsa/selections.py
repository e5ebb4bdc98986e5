"""Print, as JSON, everything a sglang tree of this era selects: `python selections.py TREE`.

Run once on the stock tree and once on the patched one; the two must agree wherever the patches
choose nothing new. TREE is the tree's `python` folder; the model folders are written to the current
one.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

gc.set_threshold(100_000, 50, 100)  # before the imports, as tests/conftest.py does after them

overlay = [os.environ["ADA_OVERLAY"]] if "ADA_OVERLAY" in os.environ else []
sys.path[:0] = [sys.argv[1], *overlay, str(Path(__file__).parents[1])]

import boundaries  # noqa: E402
import fake_cuda  # noqa: E402
import tiny_models  # noqa: E402

CAPABILITIES = ((8, 0), (9, 0), (10, 0), (12, 0))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"kv_cache_dtype": "fp8_e4m3"},
    {"kv_cache_dtype": "bfloat16"},
    {"nsa_prefill_backend": "tilelang", "nsa_decode_backend": "tilelang"},
    {"kv_cache_dtype": "fp8_e4m3", "nsa_decode_backend": "flashmla_kv"},
    {"kv_cache_dtype": "fp8_e4m3", "nsa_prefill_backend": "flashmla_sparse"},
    {"nsa_prefill_backend": "trtllm", "nsa_decode_backend": "trtllm"},
    {"disable_cuda_graph": False},
    {"tp_size": 8, "pp_size": 2, "disable_overlap_schedule": True},
    tiny_models.SPECULATIVE,
)
OTHER_BACKENDS: tuple[dict[str, Any], ...] = (
    {"attention_backend": "flashinfer"},
    {"attention_backend": "triton"},
    {"prefill_attention_backend": "flashinfer", "decode_attention_backend": "triton"},
)
"""Attention that is not DSA's: its backends read neither packed rows nor selected keys."""


def attempt(function: Callable[[], Any]) -> Any:
    """The result, or the type of the error. The text is left out: it may list more choices on the patched
    tree.
    """
    try:
        return function()
    except Exception as err:
        return f"raises {type(err).__name__}"


def arguments(path: str, options: dict[str, Any]) -> dict[str, str]:
    args = nsa_tree.server_args(path, **options)
    return {
        name: repr(value)
        for name, value in sorted(vars(args).items())
        if isinstance(value, (bool, int, float, str, list, type(None)))
    }


def constructed(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a backend, its choices for each batch, and the kernels that batches reach."""
    args = nsa_tree.server_args(path, **options)
    face = nsa_tree.runner(args, slots=1024)
    built = nsa_tree.backend(args, face)
    plain = (bool, int, str, type(None))
    found: dict[str, Any] = {
        name: value for name, value in sorted(vars(built).items()) if isinstance(value, plain)
    }
    found["workspace"] = built.workspace_buffer is not None
    found["kv"] = [list(face.token_to_kv_pool.kv_buffer[0].shape), str(face.kv_cache_dtype)]
    found["index K"] = len({id(b) for b in face.token_to_kv_pool.index_k_with_scale_buffer})
    for mode, extends in (("EXTEND", [70, 30]), ("DECODE", None)):
        fake_cuda.forget()
        batch = nsa_tree.batch(face, mode, [70, 30], extends)
        found[f"{mode} metadata"] = attempt(lambda b=batch: built.init_forward_metadata(b))
        found[f"{mode} metadata calls"] = fake_cuda.calls()
        found[f"{mode} mha"] = built.use_mha
        found[f"{mode} prefill impl"] = built.nsa_prefill_impl
        found[f"{mode} method"] = built.get_topk_transform_method().name
        fake_cuda.forget()
        rows = sum(extends) if extends else 2
        attempt(
            lambda b=batch, n=rows: built.get_indexer_metadata(0, b).topk_transform(
                torch.zeros(n, 2048), 2048
            )
        )
        found[f"{mode} topk calls"] = fake_cuda.calls()
        fake_cuda.forget()
        found[f"{mode} attention"] = attempt(lambda b=batch, n=rows, m=mode: attend(built, b, n, m))
        found[f"{mode} attention calls"] = fake_cuda.calls()
    return found


def attend(built: Any, batch: Any, rows: int, mode: str) -> str:
    layer = SimpleNamespace(
        is_cross_attention=False,
        layer_id=0,
        tp_q_head_num=16,
        tp_k_head_num=16 if built.use_mha else 1,
        tp_v_head_num=16 if built.use_mha else 1,
        v_head_dim=128 if built.use_mha else 512,
        head_dim=192 if built.use_mha else 576,
        scaling=0.1,
        logit_cap=0.0,
    )

    def zeros(width: int) -> Any:
        return torch.zeros(rows, 16, width, dtype=torch.bfloat16)

    if built.use_mha:
        out = built.forward_extend(
            zeros(192), zeros(192), zeros(128), layer, batch, save_kv_cache=False
        )
    else:
        forward = built.forward_extend if mode == "EXTEND" else built.forward_decode
        indices = torch.zeros(rows, 2048, dtype=torch.int32)
        out = forward(
            zeros(512),
            zeros(512)[:, :1],
            zeros(512)[:, :1],
            layer,
            batch,
            save_kv_cache=False,
            q_rope=zeros(64),
            k_rope=zeros(64)[:, :1],
            topk_indices=indices,
        )
    return out._extract_mock_name() if isinstance(out, MagicMock) else type(out).__name__


def answer_with_tensors() -> None:
    """Give the stand-ins results with the shapes that sglang unpacks, and disable torch.compile."""
    import sgl_kernel.flash_mla as flash_mla
    from sglang.srt.layers.attention import nsa_backend

    with contextlib.suppress(ImportError):  # the stock tree has none
        from sglang.srt.layers.attention import ada_dsa

        ada_dsa.sparse_mla_fwd = MagicMock(name="ada_dsa.sparse_mla_fwd")
    from sglang.srt.layers.attention.nsa import tilelang_kernel

    tilelang_kernel.tilelang_sparse_fwd = MagicMock(name="tilelang_sparse_fwd")
    nsa_backend.concat_mla_absorb_q_general = lambda *parts: torch.cat(parts, dim=-1)
    nsa_backend._cat = torch.cat
    rows = torch.zeros(4096, dtype=torch.int32)
    flash_mla.get_mla_metadata = MagicMock(return_value=(rows, rows))
    flash_mla.flash_mla_with_kvcache = MagicMock(return_value=(MagicMock(), None))
    flash_mla.flash_mla_sparse_fwd = MagicMock(return_value=(MagicMock(), None, None))


def indexing(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """The kernels that an indexer reaches when it is built and when it scores a decode batch."""
    args = nsa_tree.server_args(path, **options)
    face = nsa_tree.runner(args, slots=1024)
    built = nsa_tree.backend(args, face)
    fake_cuda.forget()
    indexer = nsa_tree.indexer(args)
    found: dict[str, Any] = {"built": fake_cuda.calls(), "class": type(indexer).__mro__[0].__name__}
    batch = nsa_tree.batch(face, "DECODE", [70, 30])
    attempt(lambda: built.init_forward_metadata(batch))
    fake_cuda.forget()
    attempt(
        lambda: indexer._get_topk_paged(
            batch,
            0,
            torch.zeros(2, 32, 128, dtype=torch.float8_e4m3fn),
            torch.zeros(2, 32, 1),
            built.get_indexer_metadata(0, batch),
        )
    )
    found["paged"] = fake_cuda.calls()
    return found


def fusion(path: str, options: dict[str, Any], experts: int) -> Any:
    return nsa_tree.fused_shared_experts(nsa_tree.server_args(path, **options), experts)


def selections(configs: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for capability in CAPABILITIES:
        with fake_cuda.capability(*capability):
            sm = "sm_{}{}".format(*capability)
            for name, options in itertools.product(("glm", "deepseek_v32", "deepseek_v3"), OPTIONS):
                key = f"{sm} {name} {json.dumps(options)}"
                path = configs[name]
                os.environ.pop("SGLANG_NSA_FORCE_MLA", None)
                found[f"{key} arguments"] = attempt(lambda p=path, o=options: arguments(p, o))
                if name != "deepseek_v3" and options.get("pp_size", 1) == 1:
                    found[f"{key} backend"] = attempt(lambda p=path, o=options: constructed(p, o))
            for options in ({}, {"kv_cache_dtype": "fp8_e4m3"}):
                found[f"{sm} indexer {json.dumps(options)}"] = attempt(
                    lambda o=options: indexing(configs["glm"], o)
                )
            for flag, experts in itertools.product((False, True), (8, 256)):
                found[f"{sm} fusion {flag} {experts}"] = attempt(
                    lambda f=flag, e=experts: fusion(
                        configs["glm"], {"disable_shared_experts_fusion": f}, e
                    )
                )
    # Last: other backends leave settings of theirs in the process.
    for capability in ((8, 9), *CAPABILITIES):
        with fake_cuda.capability(*capability):
            models = ("glm", "deepseek_v32", "deepseek_v3")
            for name, options in itertools.product(models, OTHER_BACKENDS):
                key = "sm_{}{} {} {}".format(*capability, name, json.dumps(options))
                path = configs[name]
                found[f"{key} arguments"] = attempt(lambda p=path, o=options: arguments(p, o))
    return found


def main() -> None:
    configs = nsa_tree.write_configs(Path())
    answer_with_tensors()
    nsa_tree.start_one_rank(nsa_tree.server_args(configs["glm"]), Path.cwd())
    found = selections(configs)
    found |= boundaries.cells(
        nsa_tree.CONFIGS,
        lambda path, **options: vars(nsa_tree.server_args(path, **options)),
        tiny_models.write,
        fake_cuda.capability,
        "nsa",
    )
    print(json.dumps(found))


if __name__ == "__main__":
    fake_cuda.install((9, 0))
    import nsa_tree
    import torch

    main()
