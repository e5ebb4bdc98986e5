"""Helpers for 0.5.9 to 0.5.12.post1: tiny configurations, and real sglang objects on the CPU.

Importing this file imports no sglang; its functions do, from whichever tree is first on the path.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import releases
import tiny_models
import torch

MLA: dict[str, Any] = {
    **tiny_models.MLA,
    # transformers knows neither glm_moe_dsa nor deepseek_v32 everywhere; the architecture decides.
    "model_type": "deepseek_v3",
    "num_hidden_layers": 12,
}
GLM: dict[str, Any] = {**MLA, **tiny_models.DSA, "architectures": ["GlmMoeDsaForCausalLM"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "glm": GLM,
    # GLM-5.2's rule: layers 0, 1, 2, 6, 10 of 12 have an indexer.
    "glm_sharing": {**GLM, "index_topk_freq": 4, "index_skip_topk_offset": 3},
    "deepseek_v32": {**MLA, **tiny_models.DSA, "architectures": ["DeepseekV3ForCausalLM"]},
    "deepseek_v3": {**MLA, "architectures": ["DeepseekV3ForCausalLM"]},
}
SHARING_FULL = (0, 1, 2, 6, 10)


def write_configs(folder: Path) -> dict[str, str]:
    """Write each of CONFIGS as a model folder below `folder`: name to path."""
    return tiny_models.write_all(folder, CONFIGS)


def server_args(model_path: str, **options: Any) -> Any:
    """Resolved ServerArgs of a model folder, made the process's global ones."""
    from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

    defaults = {
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "disable_cuda_graph": True,
        "random_seed": 1,
    }
    args = ServerArgs(model_path=model_path, **{**defaults, **options})
    set_global_server_args_for_scheduler(args)
    return args


def start_one_rank(args: Any, folder: Path) -> None:
    """Build the process groups of a single rank over gloo, if this process has none."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.layers.moe import initialize_moe_config

    if parallel_state.model_parallel_is_initialized():
        return
    parallel_state.is_cuda_alike = lambda: False
    parallel_state.init_distributed_environment(
        world_size=1,
        rank=0,
        distributed_init_method=f"file://{folder}/gloo",
        local_rank=0,
        backend="gloo",
    )
    parallel_state.initialize_model_parallel(backend="gloo")
    initialize_dp_attention(args, ModelConfig.from_server_args(args))
    initialize_moe_config(args)


def runner(args: Any, layers: int = 1, slots: int = 8192, requests: int = 4) -> Any:
    """A stand-in for ModelRunner with real pools on the CPU, sized by the runner's own rules."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.memory_pool import NSATokenToKVPool, ReqToTokenPool
    from sglang.srt.model_executor.model_runner_kv_cache_mixin import ModelRunnerKVCacheMixin

    model_config = ModelConfig.from_server_args(args)
    dtype = {"fp8_e4m3": torch.float8_e4m3fn, "bfloat16": torch.bfloat16}[args.kv_cache_dtype]
    face = SimpleNamespace(
        device="cpu",
        page_size=args.page_size,
        server_args=args,
        model_config=model_config,
        kv_cache_dtype=dtype,
        start_layer=0,
    )
    face.token_to_kv_pool = NSATokenToKVPool(
        size=slots,
        page_size=args.page_size,
        kv_lora_rank=model_config.kv_lora_rank,
        dtype=dtype,
        qk_rope_head_dim=model_config.qk_rope_head_dim,
        layer_num=layers,
        device="cpu",
        index_head_dim=128,
        enable_memory_saver=False,
        kv_cache_dim=ModelRunnerKVCacheMixin.calculate_mla_kv_cache_dim(face),
    )
    face.req_to_token_pool = ReqToTokenPool(
        size=requests, max_context_len=4096, device="cpu", enable_memory_saver=False
    )
    return face


def backend(args: Any, face: Any = None) -> Any:
    """A real NativeSparseAttnBackend with real pools on the CPU."""
    from sglang.srt.layers.attention.nsa_backend import NativeSparseAttnBackend

    return NativeSparseAttnBackend(face or runner(args), speculative_num_steps=3)


def indexer(args: Any) -> Any:
    """A real Indexer with GLM's shape, and with weights that give distinct scores."""
    from sglang.srt.layers.attention.nsa.nsa_indexer import Indexer

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = Indexer(
            hidden_size=256,
            index_n_heads=32,
            index_head_dim=128,
            rope_head_dim=64,
            index_topk=2048,
            q_lora_rank=128,
            max_position_embeddings=4096,
            rope_theta=10000.0,
            layer_id=0,
            scale_fmt="ue8m0",
            is_neox_style=False,
        )
    finally:
        torch.set_default_dtype(before)
    return made


def fused_shared_experts(
    args: Any, experts: int = 256, dsa: bool = True, quant_config: Any = None
) -> tuple[int, bool]:
    """The number of shared experts that GLM folds into its routed ones, and the flag afterwards.

    Args:
        dsa: False for the same model without sparse attention.
        quant_config: sglang's quantisation of the checkpoint.
    """
    from sglang.srt.models import deepseek_v2
    from sglang.srt.models.glm4_moe import GlmMoeDsaForCausalLM

    assert GlmMoeDsaForCausalLM.__mro__[1] is deepseek_v2.DeepseekV2ForCausalLM
    deepseek_v2._device_sm = fake_cuda.device_sm()  # read at import
    config = SimpleNamespace(
        architectures=["GlmMoeDsaForCausalLM"],
        n_routed_experts=experts,
        n_shared_experts=1,
        index_topk=2048 if dsa else None,
    )
    model = SimpleNamespace(config=config, quant_config=quant_config)
    deepseek_v2.DeepseekV2ForCausalLM.determine_num_fused_shared_experts(
        model, "GlmMoeDsaForCausalLM"
    )
    return model.num_fused_shared_experts, args.disable_shared_experts_fusion


def batch(
    face: Any,
    mode: str,
    lengths: list[int],
    extends: list[int] | None = None,
    room: int = 128,
) -> SimpleNamespace:
    """A batch in the terms that the backend and the indexer read, over consecutive pages.

    `lengths`: tokens of each request in the pool once this batch is written. `extends`: how many of
    them this batch adds (prefill and the draft's extension). Request i owns the `room` slots after
    those of request i - 1; page 0 is the padding page.
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    table = face.req_to_token_pool.req_to_token
    starts = [64 + i * room for i in range(len(lengths))]
    for i, first in enumerate(starts):
        table[i, :room] = torch.arange(first, first + room, dtype=torch.int32)
    seq_lens = torch.tensor(lengths, dtype=torch.int64)
    made = SimpleNamespace(
        forward_mode=ForwardMode[mode],
        batch_size=len(lengths),
        seq_lens=seq_lens,
        seq_lens_cpu=seq_lens,
        seq_lens_sum=int(seq_lens.sum()),
        req_pool_indices=torch.arange(len(lengths)),
        req_to_token_pool=face.req_to_token_pool,
        token_to_kv_pool=face.token_to_kv_pool,
        global_num_tokens_cpu=None,
        nsa_cp_metadata=None,
        attn_cp_metadata=None,
        hisparse_coordinator=None,
        spec_info=None,
        extend_seq_lens_cpu=None,
        extend_seq_lens=None,
        extend_prefix_lens_cpu=None,
        get_max_chunk_capacity=lambda: 1 << 20,
    )
    if extends is not None:
        made.extend_seq_lens_cpu = extends
        made.extend_seq_lens = torch.tensor(extends, dtype=torch.int64)
        made.extend_prefix_lens_cpu = [n - e for n, e in zip(lengths, extends, strict=True)]
        made.extend_num_tokens = sum(extends)
    added = extends or [1] * len(lengths)
    made.positions = torch.cat(
        [torch.arange(n - e, n) for n, e in zip(lengths, added, strict=True)]
    )
    made.out_cache_loc = torch.cat(
        [torch.arange(s + n - e, s + n) for s, n, e in zip(starts, lengths, added, strict=True)]
    )
    return made


def topk_ragged(index: Any, *arguments: Any) -> torch.Tensor:
    """The indexer's own method for prefill; 0.5.10 puts a flag for a second stream first."""
    first = [False] if releases.at(">=0.5.10") else []
    selected: torch.Tensor = index._get_topk_ragged(*first, *arguments)
    return selected


def gather_index_keys(
    pool: Any,
    buf: torch.Tensor,
    seq_len: int = 0,
    page_indices: torch.Tensor | None = None,
    seq_len_tensor: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sglang's Triton gather of index keys and scales, by its own slow form for the CPU.

    Until 0.5.9 for one request, from 0.5.10 on for all: a row of page_indices and a length each.
    """
    from sglang.srt.layers.attention.nsa import index_buf_accessor as access

    assert page_indices is not None
    if seq_len_tensor is None:
        requests = [(seq_len, page_indices)]
    else:
        requests = list(zip(seq_len_tensor.tolist(), page_indices, strict=True))
    keys = [access.GetK.slow(pool, buf, length, pages) for length, pages in requests]
    scales = [access.GetS.slow(pool, buf, length, pages) for length, pages in requests]
    return torch.cat(keys), torch.cat(scales)
