"""Start-up check of whether these kernels can serve a model on this installation."""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING

from .arch import target_arch

if TYPE_CHECKING:
    import torch

PAGE_SIZE = 64
INDEX_HEAD_DIM = 128
KV_LORA_RANK = 512
ROPE_DIM = 64
KPOOLS = (1, 2, 4, 8, 16, 32, 64)
MAX_HEADS = 128
MAX_TOPK = 4096

# sglang 0.5.9 pins Triton 3.5.1. Triton 3.10 is announced to disable fused multiply-add by default, which
# would change results, so it is not accepted before it has been examined.
TRITON_FROM = (3, 5, 1)
TRITON_BEFORE = (3, 10)

# Oldest compute capability with bf16 tensor cores and asynchronous copies.
OLDEST_SM = 80

_KV_DTYPES = {
    "fp8_e4m3": "fp8_e4m3",
    "float8_e4m3fn": "fp8_e4m3",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}


def _format_version(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_triton(version: str | None = None) -> None:
    """Check ``version``, or the version of the installed Triton if it is None.

    Raises:
        ValueError: Triton is missing, or its version is outside the supported range.
    """
    wanted = f">={_format_version(TRITON_FROM)},<{_format_version(TRITON_BEFORE)}"
    if version is None:
        try:
            version = importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"ada_dsa needs Triton {wanted}, and none is installed; "
                f"run: pip install 'triton{wanted}'"
            ) from None
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    if not TRITON_FROM <= numbers < TRITON_BEFORE:
        raise ValueError(
            f"ada_dsa supports Triton {wanted}, got {version}; install the Triton that this "
            "sglang release's torch asks for, or choose another backend with "
            "--dsa-prefill-backend and --dsa-decode-backend (--nsa-* before sglang 0.5.13)"
        )


def check_gpu() -> None:
    """Check the current GPU. Without a GPU the torch oracles run, and nothing is checked.

    Raises:
        ValueError: the GPU, or the architecture in ``TRITON_OVERRIDE_ARCH``, is older than sm_80.
    """
    import torch

    if not torch.cuda.is_available():
        return
    arch = target_arch()
    if arch < OLDEST_SM:
        raise ValueError(
            f"ada_dsa needs a GPU of compute capability {OLDEST_SM // 10}.{OLDEST_SM % 10} or "
            f"later, got sm_{arch}; no other DSA backend of sglang runs there either"
        )


def check_config(
    *,
    kv_cache_dtype: str | torch.dtype,
    page_size: int,
    num_heads: int,
    index_heads: int,
    index_head_dim: int,
    index_topk: int,
    kv_lora_rank: int,
    rope_dim: int,
    index_kpool: int = 1,
) -> None:
    """Check the settings of a model and a server against what the kernels support.

    The server calls this at start-up. The error names the setting, its value, the accepted values and what
    to change.

    Args:
        kv_cache_dtype: ``fp8_e4m3`` or ``bfloat16`` (also ``bf16``, or the torch dtype).
        page_size: rows per page of the pools; 64. With a pooled index, sglang's ``--page-size`` from
            0.5.22 on is this times ``index_kpool``, and sglang sets it.
        num_heads: attention heads on this rank; 1 to 128.
        index_heads: heads of the indexer, which are not divided among ranks; 1 to 128.
        index_head_dim: 128.
        index_topk: keys selected per query; 1 to 4096.
        kv_lora_rank: 512.
        rope_dim: rotary part of a latent row; 64, or 0 (GLM-5.3-Flash).
        index_kpool: keys that share one key of the indexer (1 without a pooled indexer); a divisor of 64,
            because a page of 64 pooled keys stands for whole pages of rows.

    Raises:
        ValueError: a setting, the Triton version or the GPU is not supported.
    """
    name = str(kv_cache_dtype).removeprefix("torch.")
    if name not in _KV_DTYPES:
        raise ValueError(
            f"ada_dsa: KV cache dtype {name!r} is not supported; start the server with "
            "--kv-cache-dtype fp8_e4m3 (recommended) or --kv-cache-dtype bfloat16"
        )
    if page_size != PAGE_SIZE:
        raise ValueError(
            f"ada_dsa: page size {page_size} is not supported; start the server with "
            f"--page-size {PAGE_SIZE}"
        )
    if not 1 <= num_heads <= MAX_HEADS:
        raise ValueError(
            f"ada_dsa: {num_heads} attention heads on a rank are not supported, 1 to {MAX_HEADS} "
            "are; choose a --tp-size that divides the model's heads accordingly"
        )
    if not 1 <= index_heads <= MAX_HEADS:
        raise ValueError(
            f"ada_dsa: {index_heads} index heads (index_n_heads of the model's config) are not "
            f"supported, 1 to {MAX_HEADS} are; use another DSA backend for this model"
        )
    if not 1 <= index_topk <= MAX_TOPK:
        raise ValueError(
            f"ada_dsa: index_topk {index_topk} is not supported, 1 to {MAX_TOPK} is; use another "
            "DSA backend for this model, or override index_topk with --json-model-override-args"
        )
    accepted: tuple[tuple[str, int, tuple[int, ...]], ...] = (
        ("index_head_dim", index_head_dim, (INDEX_HEAD_DIM,)),
        ("kv_lora_rank", kv_lora_rank, (KV_LORA_RANK,)),
        ("qk_rope_head_dim", rope_dim, (ROPE_DIM, 0)),
        ("index_kpool", index_kpool, KPOOLS),
    )
    for setting, got, wanted in accepted:
        if got not in wanted:
            listed = "only " + " or ".join(map(str, wanted))
            raise ValueError(
                f"ada_dsa: {setting} {got} of the model's config is not supported, {listed} "
                "is; use another DSA backend for this model"
            )
    check_triton()
    check_gpu()
