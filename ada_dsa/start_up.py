"""What a server's start settles for GPUs that sglang's own DSA kernels do not cover.

Where sglang has a kernel for the GPU, its choice stands. Where it has none, ada_dsa is chosen. Where neither
has one, the start is refused, and the message names the option to change. The functions read sglang's
arguments by attribute, because the same files are bundled with releases of different layout; ``--nsa-*`` are
the options' names up to sglang 0.5.12.post1.

Nothing here imports torch or triton at module level, because server start-up code imports this module
on every platform.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .arch import forces_sm89_path, nvidia_sm, prefers_ada_dsa, selects_dsa

_logger = logging.getLogger(__name__)

ADA_DSA = "ada_dsa"
FLASHINFER_HEADS = (8, 16, 32, 64, 128)
"""Attention heads of a rank that FlashInfer's sparse MLA kernel for sm_120 accepts."""


@dataclass(frozen=True)
class Release:
    """What differs between the releases of sglang that a patch is for.

    Attributes:
        deep_gemm_on_sm120: whether its DeepGEMM computes the indexer's logits on sm_120 (from 0.5.17).
        tilelang_fp8_rows: whether its TileLang kernels read fp8 rows on NVIDIA GPUs (from 0.5.22).
        pooled_index: whether its pooled indexer (GLM-5.3-Flash) calls ada_dsa (from 0.5.21).
    """

    deep_gemm_on_sm120: bool = False
    tilelang_fp8_rows: bool = False
    pooled_index: bool = False


def serves_dsa(args: object, device_sm: int) -> bool:
    """Whether ada_dsa serves DSA on this GPU by default, whatever the model: sglang has no kernel there.

    Then ``--kv-cache-dtype auto`` means fp8_e4m3, which is packed rows.

    Args:
        args: sglang's arguments.
        device_sm: compute capability as ``major * 10 + minor``.
    """
    return prefers_ada_dsa(device_sm) and selects_dsa(args)


def keeps_shared_expert_apart(args: object, hf_config: object, device_sm: int) -> bool:
    """Whether the shared expert stays out of the fused MoE by default.

    It does for a DSA model that the dsa attention backend serves on sm_89: incoherent output was reported
    from an RTX 4090 with the fused form. The separate form is the checkpoint's own, so it is right for
    every weight format.
    """
    on_ada = device_sm == 89 or forces_sm89_path()
    return on_ada and _read(hf_config, "index_topk", None) is not None and selects_dsa(args)


def settle_backends(
    args: Any, chosen: Mapping[str, str | None], hf_config: Any, release: Release
) -> dict[str, str]:
    """Replace what sglang chose for a DSA model and has no kernel for, or refuse the start.

    Args:
        args: sglang's arguments as they were before its backends were resolved, with the resolved
            ``kv_cache_dtype``. A backend that is not None there was asked for.
        chosen: sglang's choice, with the keys ``dsa_prefill_backend`` and ``dsa_decode_backend``
            (``nsa_*`` up to 0.5.12.post1). A missing key means the value of ``args``.
        hf_config: the configuration of a DSA model.
        release: what the release can do.

    Returns:
        The backends to set instead; empty where sglang's choice stands, which is always so on GPUs other
        than sm_8x and sm_12x.

    Raises:
        ValueError: neither sglang nor ada_dsa has a kernel for these options on this GPU.
    """
    device_sm = nvidia_sm()
    if device_sm is None or not selects_dsa(args):
        return {}
    names = backend_fields(args)
    given = {name: getattr(args, name) for name in names}
    chosen = {name: chosen.get(name) or given[name] for name in names}
    if not any(chosen.values()):
        return {}
    obstacle = _find_obstacle(args, hf_config, device_sm, release)
    if forces_sm89_path():
        return {} if obstacle else {n: ADA_DSA for n in names if given[n] is None}
    if not (80 <= device_sm < 90 or device_sm // 10 == 12):
        return {}

    _check_weights(args, hf_config, device_sm)
    _check_logits(args, device_sm, release)
    server = _Server(
        device_sm,
        args.kv_cache_dtype,
        hf_config.architectures[0],
        _heads_of_a_rank(args, hf_config),
        release,
    )
    settled: dict[str, str] = {}
    for name, backend in chosen.items():
        if backend is None or (backend != ADA_DSA and server.has_kernel(backend)):
            continue
        if obstacle:
            raise ValueError(obstacle.explain(device_sm))
        if backend == ADA_DSA:
            continue
        if given[name] is not None:
            raise ValueError(server.explain(name, backend))
        settled[name] = ADA_DSA
    if settled:
        weights = " FP8 experts do not run there; 4-bit and bf16 ones do." if device_sm < 89 else ""
        _logger.warning(
            f"sglang has no DSA kernel for sm_{device_sm}: using ada_dsa "
            f"({args.kv_cache_dtype} KV cache).{weights}"
        )
    return settled


def backend_fields(args: object) -> tuple[str, str]:
    """The names of the two options' fields in sglang's arguments."""
    kind = "dsa" if hasattr(args, "dsa_prefill_backend") else "nsa"
    return f"{kind}_prefill_backend", f"{kind}_decode_backend"


@dataclass(frozen=True)
class _Server:
    """What decides whether a DSA backend of sglang has a kernel on sm_8x or sm_12x.

    Attributes:
        device_sm: compute capability as ``major * 10 + minor``.
        kv_cache_dtype: ``fp8_e4m3`` or ``bfloat16``.
        architecture: the model's class.
        heads: attention heads of a rank.
    """

    device_sm: int
    kv_cache_dtype: str
    architecture: str
    heads: int
    release: Release

    def has_kernel(self, backend: str) -> bool:
        fp8 = self.kv_cache_dtype == "fp8_e4m3"
        if backend == "tilelang":
            # The kernel for bf16 rows needs barriers of sm_90 and 170 KB of shared memory.
            return fp8 and self.device_sm >= 89 and self.release.tilelang_fp8_rows
        if self.device_sm < 90:
            return False
        if backend == "flashinfer_sparse_mla":
            glm = self.architecture == "GlmMoeDsaForCausalLM"
            return glm and fp8 and self.heads in FLASHINFER_HEADS
        return backend == "triton_sparse_mla"

    def explain(self, name: str, backend: str) -> str:
        option = "--" + name.replace("_", "-")
        return (
            f"{option} {backend} has no kernel for sm_{self.device_sm} with a "
            f"{self.kv_cache_dtype} KV cache, this model and {self.heads} attention heads on a rank. "
            f"Use {option} {ADA_DSA}, or drop the option."
        )


@dataclass(frozen=True)
class _Obstacle:
    """Why ada_dsa cannot serve.

    Attributes:
        what: the option or the property of the model, as the start of a sentence.
        advice: what to change.
    """

    what: str
    advice: str

    def explain(self, device_sm: int) -> str:
        return (
            f"{self.what} has no DSA kernel on sm_{device_sm}: sglang's own kernels for it need another "
            f"GPU, and ada_dsa does not support it. {self.advice}"
        )


_NO_OPTION = "No option changes this: serve this model on a GPU of compute capability {}."


def _find_obstacle(args: Any, hf_config: Any, device_sm: int, release: Release) -> _Obstacle | None:
    if getattr(args, "enable_hisparse", False):
        return _Obstacle("HiSparse (--enable-hisparse)", "Drop --enable-hisparse.")
    if (dcp_size := getattr(args, "dcp_size", None) or 1) > 1:
        return _Obstacle(f"--dcp-size {dcp_size}", "Drop --dcp-size.")
    architecture = hf_config.architectures[0]
    if (pool := _read(hf_config, "index_kpool", 1)) > 1:
        what = f"{architecture} with a pooled indexer (index_kpool {pool})"
        if device_sm < 89:
            # sglang writes the pooled keys with a Triton kernel of its own.
            what += ", whose keys are written in Triton's e4m3 type,"
            return _Obstacle(what, _NO_OPTION.format("8.9 or later"))
        if not release.pooled_index:
            return _Obstacle(what, "Use the fork of sglang 0.5.21 or later.")
    if _read(hf_config, "learnable_sink", False):
        what = f"{architecture} with learnable attention sinks"
        return _Obstacle(what, _NO_OPTION.format("9.0 or 10.x"))
    return None


def _check_weights(args: Any, hf_config: Any, device_sm: int) -> None:
    """Refuse FP8 experts below sm_89: sglang's only MoE kernel for them there needs the e4m3 type."""
    config = getattr(hf_config, "quantization_config", None) or {}
    method = getattr(args, "quantization", None) or config.get("quant_method")
    experts_on_gpu = not getattr(args, "kt_weight_path", None)
    if device_sm < 89 and method == "fp8" and experts_on_gpu:
        raise ValueError(
            f"sglang has no MoE kernel for FP8 weights on sm_{device_sm}: Triton has the e4m3 type from "
            "sm_89 on. Serve a 4-bit checkpoint (AWQ, GPTQ, compressed-tensors W4A16) or a bf16 one."
        )


def _check_logits(args: Any, device_sm: int, release: Release) -> None:
    backend = getattr(args, "dsa_paged_mqa_logits_backend", None)
    served = device_sm >= 120 and release.deep_gemm_on_sm120
    if backend == "cutedsl" or (backend == "deepgemm" and not served):
        raise ValueError(
            f"--dsa-paged-mqa-logits-backend {backend} has no kernel for sm_{device_sm}. Drop the option: "
            "the indexer's logits then follow the attention."
        )


def _heads_of_a_rank(args: Any, hf_config: Any) -> int:
    groups = getattr(args, "attn_dp_size", None) or 1
    if groups == 1 and getattr(args, "enable_dp_attention", False):
        groups = args.dp_size
    groups *= getattr(args, "attn_cp_size", None) or 1
    return int(_read(hf_config, "num_attention_heads", 1)) // max(1, (args.tp_size or 1) // groups)


def _read(hf_config: Any, name: str, default: Any) -> Any:
    """A value of the configuration, or of the text model's where the model has several parts."""
    for config in (hf_config, getattr(hf_config, "text_config", None)):
        if (value := getattr(config, name, None)) is not None:
            return value
    return default
