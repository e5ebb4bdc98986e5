"""Helpers for 0.5.13 and later: tiny configurations, and real sglang objects on the CPU.

Importing this file does not import sglang; its functions do. Where releases use different names, the
branch on the release is here and not in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import releases
import tiny_models
import torch

MLA = {**tiny_models.MLA, "num_hidden_layers": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "glm": {
        **MLA,
        **tiny_models.DSA,
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
    },
    "deepseek_v32": {
        **MLA,
        **tiny_models.DSA,
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
    },
    "deepseek_v3": {
        **MLA,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
    },
}
if releases.at(">=0.5.20"):
    CONFIGS["glm5_next"] = tiny_models.glm5_next(kpool=4)


def write_configs(folder: Path) -> dict[str, str]:
    """Write each of CONFIGS as a model folder below ``folder``: name to path."""
    return tiny_models.write_all(folder, CONFIGS)


def server_args(model_path: str, **options: Any) -> Any:
    """Resolved ServerArgs for a model folder, as the server resolves them at start."""
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(
        **{
            "model_path": model_path,
            "skip_tokenizer_init": True,
            "load_format": "dummy",
            "disable_cuda_graph": True,
            "random_seed": 1,
            **options,
        }
    )
    if releases.at(">=0.5.19"):
        args.resolve_once()
    else:
        publish(args)
    return args


def resolved(args: Any) -> dict[str, Any]:
    values: dict[str, Any] = args.resolved_dict() if releases.at(">=0.5.19") else vars(args)
    return values


def publish(args: Any) -> None:
    """Publish ``args`` as the arguments of this process."""
    if releases.at("<0.5.17"):
        from sglang.srt.server_args import set_global_server_args_for_scheduler

        set_global_server_args_for_scheduler(args)
        return
    from sglang.srt import runtime_context

    ranks = {}
    if releases.at(">=0.5.21"):
        ranks["ranks"] = runtime_context.SpawnRanks(world_rank=0, gpu_id=0)
    runtime_context.publish(args, role="scheduler", **ranks)


def start_one_rank(args: Any, folder: Path) -> None:
    """Publish ``args`` and build the process groups of a single rank over gloo, if there are none."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.layers.moe import initialize_moe_config

    publish(args)
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
    if releases.at("<0.5.21"):
        initialize_dp_attention(args, ModelConfig.from_server_args(args))
    else:
        initialize_dp_attention(args)
    if releases.at("<0.5.19"):
        initialize_moe_config(args)
    else:
        initialize_moe_config()


def kv_dtype(args: Any) -> torch.dtype:
    return {"fp8_e4m3": torch.float8_e4m3fn, "bfloat16": torch.bfloat16}[
        resolved(args)["kv_cache_dtype"]
    ]


def _kv_cache_dim(args: Any, model_config: Any) -> int:
    """The width of a KV row, by the release's own rule."""
    given = {"model_config": model_config, "kv_cache_dtype": kv_dtype(args)}
    if releases.at("<0.5.16"):
        from sglang.srt.model_executor.model_runner_kv_cache_mixin import ModelRunnerKVCacheMixin

        face = SimpleNamespace(server_args=args, **given)
        return int(ModelRunnerKVCacheMixin.calculate_mla_kv_cache_dim(face))
    from sglang.srt.mem_cache.kv_cache_configurator import calculate_mla_kv_cache_dim

    if releases.at("<0.5.19"):
        given["server_args"] = args
    return int(calculate_mla_kv_cache_dim(**given))


def runner(args: Any, slots: int = 1024, **values: Any) -> SimpleNamespace:
    """What a backend reads of a ModelRunner, with real pools on the CPU.

    Publishes ``args``: the pools' layout follows the published backends.
    """
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool, ReqToTokenPool

    publish(args)
    model_config = ModelConfig.from_server_args(args)
    dtype = kv_dtype(args)
    pooled: dict[str, Any] = {}
    if (kpool := getattr(model_config.hf_config, "index_kpool", None) or 1) > 1:
        pooled = {
            "index_kpool": kpool,
            "index_kpool_compress": model_config.hf_config.index_kpool_compress,
            "max_running_requests": 4,
        }
    page_size = 64 * kpool if releases.at(">=0.5.22") else 64
    return SimpleNamespace(
        **{
            "device": "cpu",
            "page_size": page_size,
            "server_args": args,
            "model_config": model_config,
            "token_to_kv_pool": DSATokenToKVPool(
                size=slots,
                page_size=page_size,
                kv_lora_rank=model_config.kv_lora_rank,
                dtype=dtype,
                qk_rope_head_dim=model_config.qk_rope_head_dim,
                layer_num=1,
                device="cpu",
                index_head_dim=128,
                enable_memory_saver=False,
                kv_cache_dim=_kv_cache_dim(args, model_config),
                **pooled,
            ),
            "req_to_token_pool": ReqToTokenPool(
                size=4, max_context_len=512, device="cpu", enable_memory_saver=False
            ),
            "hisparse_coordinator": None,
            "is_draft_worker": False,
            "kv_cache_dtype": dtype,
            "max_running_requests": 4,
            **values,
        }
    )


def backend(args: Any) -> Any:
    """A real DeepseekSparseAttnBackend over :func:`runner`."""
    from sglang.srt.layers.attention.dsa_backend import DeepseekSparseAttnBackend

    return DeepseekSparseAttnBackend(runner(args))


def takes_dense_prefill(built: Any) -> bool:
    """Whether a short prompt is left to dense attention."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    built.set_dsa_prefill_impl(
        SimpleNamespace(
            forward_mode=ForwardMode.EXTEND,
            seq_lens_cpu=torch.tensor([10, 20]),
            get_max_chunk_capacity=lambda: 4096,
        )
    )
    return bool(built.use_mha)


def fused_shared_experts(
    args: Any, experts: int = 256, dsa: bool = True, quant_config: Any = None
) -> tuple[int, bool]:
    """The number of shared experts that GLM folds into its routed ones, and whether fusion is disabled.

    Args:
        dsa: False for the same model without sparse attention.
        quant_config: sglang's quantisation of the checkpoint.
    """
    from sglang.srt.models import deepseek_v2
    from sglang.srt.models.glm4_moe import GlmMoeDsaForCausalLM

    publish(args)
    if hasattr(deepseek_v2, "_device_sm"):  # read at import
        deepseek_v2._device_sm = fake_cuda.device_sm()
    config = SimpleNamespace(
        architectures=["GlmMoeDsaForCausalLM"],
        n_routed_experts=experts,
        n_shared_experts=1,
        index_topk=2048 if dsa else None,
    )
    if releases.at(">=0.5.23"):
        from sglang.srt.layers.moe.utils import resolve_shared_experts_config

        found = resolve_shared_experts_config(GlmMoeDsaForCausalLM, config, quant_config)
        return found.num_fused_shared_experts, found.num_fused_shared_experts == 0
    if releases.at(">=0.5.18"):
        from sglang.srt.layers.moe import utils

        utils.install_shared_experts_fusion_decision(GlmMoeDsaForCausalLM, config, quant_config)
        off = utils.is_shared_experts_fusion_disabled()
        return 0 if off else config.n_shared_experts, off
    model = SimpleNamespace(config=config, quant_config=quant_config)
    deepseek_v2.DeepseekV2ForCausalLM.determine_num_fused_shared_experts(
        model, "GlmMoeDsaForCausalLM"
    )
    return model.num_fused_shared_experts, model.num_fused_shared_experts == 0


def logits_functions() -> dict[str, Any]:
    """The functions from which the indexer and the backend get logits, schedule and SM count."""
    fake_cuda.clear_caches()
    if releases.at(">=0.5.22"):
        from sglang.srt.layers.attention.dsa import utils

        return {
            "num_sms": utils.resolve_num_sms(),
            "metadata": utils.resolve_paged_mqa_logits_metadata_fn(),
            "paged": utils.resolve_fp8_paged_mqa_logits_fn(),
            "ragged": utils.resolve_fp8_mqa_logits_fn(),
        }
    from sglang.srt.layers.attention import dsa_backend
    from sglang.srt.layers.attention.dsa import dsa_indexer

    named = dsa_indexer.deep_gemm
    assert dsa_backend.deep_gemm.get_num_sms() == named.get_num_sms()
    assert dsa_backend.deep_gemm.get_paged_mqa_logits_metadata is (
        named.get_paged_mqa_logits_metadata
    )
    return {
        "num_sms": named.get_num_sms(),
        "metadata": named.get_paged_mqa_logits_metadata,
        "paged": named.fp8_paged_mqa_logits,
        "ragged": named.fp8_mqa_logits,
    }


@contextmanager
def bf16_by_default() -> Iterator[None]:
    """As a model is built with ``--dtype bfloat16``."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def build_model(model_class: type, path: str) -> Any:
    """The model of a folder as the loader builds it on sm_89, in bf16."""
    from sglang.srt.configs.model_config import ModelConfig

    with fake_cuda.capability(8, 9):
        args = server_args(path)
        publish(args)
        with bf16_by_default():
            return model_class(ModelConfig.from_server_args(args).hf_config, quant_config=None)


def load_onto_nan(model: Any, checkpoint: Mapping[str, torch.Tensor]) -> None:
    """Load a checkpoint with the model's own loader. What it does not write is NaN."""
    for parameter in model.parameters():
        # All bits set is NaN in every format here.
        parameter.data.reshape(-1).view(torch.uint8).fill_(0xFF)
    model.load_weights(iter(checkpoint.items()))


def unwritten(model: Any) -> set[str]:
    """Parameters that hold a NaN, except the scales of the KV cache, which the checkpoints do not have."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.float().isnan().any() and not name.endswith(("k_scale", "v_scale"))
    }
