"""Run bench/serving/harness.py on the CPU over sglang's own request pools, allocator and batches; print JSON.

Run ``python serving_harness_on_cpu.py FOLDER`` with the variables of the tests of a patched tree and with
TRITON_INTERPRET=1, because Triton kernels allocate. The model is a stand-in that writes the position of
each token into its KV row. The result then shows where each row came from.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
SLOTS = 2048
"""More than are used: the release makes room for a page a request before every step."""


def prepare() -> None:
    """Find the tree, on the faked platform."""
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[2])]
    if overlay := os.environ.get("ADA_OVERLAY"):
        sys.path.insert(0, overlay)
    sys.path.insert(0, os.environ["ADA_PATCHED_TREE"])
    import fake_cuda

    fake_cuda.install()
    # Of all that the engine's module has, the benchmark of one batch takes a function that starts one.
    engine = types.ModuleType("sglang.srt.entrypoints.engine")
    engine._set_envs_and_config = None  # type: ignore[attr-defined]
    sys.modules[engine.__name__] = engine
    # Its module that starts ranks waits for an HTTP server, which the test requirements do not have.
    launch = types.ModuleType("sglang.srt.distributed.gated_launch")
    launch.maybe_wait_for_gated_launch = None  # type: ignore[attr-defined]
    sys.modules[launch.__name__] = launch


def a_runner(folder: Path, forwards: list[Any]) -> SimpleNamespace:
    import tree
    from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
    from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.model_executor import forward_batch_info

    forward_batch_info.clamp_position = lambda lens: (lens - 1).clamp(min=0)  # CUDA source
    args = tree.server_args(tree.write_configs(folder)["glm"], disable_radix_cache=True)
    tree.start_one_rank(args, folder)
    runner = tree.runner(args, SLOTS)
    pool = runner.token_to_kv_pool

    def forward(batch: Any) -> SimpleNamespace:
        forwards.append([batch.forward_mode.name, batch.seq_lens.tolist(), len(batch.input_ids)])
        for rows, index in zip(pool.kv_buffer, pool.index_k_with_scale_buffer, strict=True):
            value = (batch.positions % 251).to(torch.uint8)
            rows.view(torch.uint8)[batch.out_cache_loc] = value[:, None, None]
            index[batch.out_cache_loc // 64] = 7
        logits = SimpleNamespace(next_token_logits=torch.zeros(len(batch.seq_lens), 4))
        return SimpleNamespace(logits_output=logits)

    runner.token_to_kv_pool_allocator = PagedTokenToKVPoolAllocator(
        SLOTS, 64, runner.kv_cache_dtype, "cpu", pool, False
    )
    runner.req_to_token_pool = ReqToTokenPool(8, 512, "cpu", enable_memory_saver=False)
    runner.kv_index_translator = KVIndexTranslator(
        req_to_token=runner.req_to_token_pool.req_to_token,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        token_to_kv_pool=pool,
        page_size=64,
        device="cpu",
    )
    runner.max_total_num_tokens = SLOTS
    runner.ngram_embedding_manager = SimpleNamespace(enabled=False)
    runner.prefill_attention_backend_str = "dsa"
    runner.lora_manager = None
    runner.attn_tp_sequence_sharded = False
    runner.attn_backend = SimpleNamespace(needs_cpu_seq_lens=True)
    runner.forward = forward
    runner.sample = lambda _, batch: torch.zeros(len(batch.seq_lens), dtype=torch.int64)
    return runner


def main(folder: Path) -> None:
    from bench.serving.harness import Harness

    forwards: list[Any] = []
    harness = object.__new__(Harness)  # its start is that of a model runner
    harness.use(a_runner(folder, forwards))
    harness.clear()
    req = harness.request(0, 200)
    prefill = harness.prefill(req, 128)
    source = harness.rows(req, 200)
    harness.clear()
    batch = harness.streams(3, 250, source)
    steps, graphs = harness.decode(batch, 10)
    assert not graphs
    rows = harness.runner.token_to_kv_pool.kv_buffer[0].view(torch.uint8)
    slots = [harness.slots(one, 260).long() for one in batch.reqs]
    found = {
        "capacity": harness.capacity,
        "prefill": prefill,
        "forwards": forwards,
        "steps": len(steps),
        "lengths": batch.seq_lens.tolist(),
        "slots": [one.tolist() for one in slots],
        "rows": [rows[one][:, 0, 0].tolist() for one in slots],
        "index": [int(buffer.max()) for buffer in harness.buffers[-1:]],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    prepare()
    main(Path(sys.argv[1]))
