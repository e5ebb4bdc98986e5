"""Serves one flavour in a process of its own: ``python -m
tests.serving.support.engine_runner SCENARIO.json OUT_FOLDER``.

The scenario is ``{"arguments": {ServerArgs field: value}, "steps": [Step]}``, a Step as in
``engines.py``. The engine starts once and runs every step. ``OUT_FOLDER/result.json`` is written
anew after the start and after each step, so that a process that dies leaves what it had:

* ``start_seconds``, ``release``, ``device``, ``resolved`` (server arguments as the engine resolved them),
* ``steps``: for each, ``name``, ``seconds`` and ``answers`` or ``error``. An answer has ``ids``,
  ``logprobs`` of the generated tokens, ``best``: for each of them the TOP best tokens as
  ``[id, logprob]``, ``tail``: the logprobs of the prompt's last tokens, ``cached``: prompt tokens
  found in the cache, ``verified``: steps that checked drafts,
* ``error``: what stopped the run, or null.

``OUT_FOLDER/STEP.npz`` has the keys that a step's only prompt selected, where the step asks for them:
``rows`` (positions) and ``keys`` int32 ``[rows, layers, topk]``, positions of the request, -1 for none.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

SELECTED_EVERY = 4
"""Of the rows that select keys, every fourth is kept: a row is 8 KiB a layer."""
TOP = 5
FLUSH = 20.0
RESOLVED = (
    "kv_cache_dtype",
    "page_size",
    "attention_backend",
    "dsa_prefill_backend",
    "dsa_decode_backend",
    "dsa_paged_mqa_logits_backend",
    "chunked_prefill_size",
    "disable_shared_experts_fusion",
    "moe_runner_backend",
    "fp8_gemm_runner_backend",
    "mem_fraction_static",
    "tp_size",
    "pp_size",
    "disable_overlap_schedule",
    "disable_radix_cache",
    "cuda_graph_config",
    "speculative_algorithm",
)


def plain(value: Any) -> Any:
    """The value if JSON has its type, else its text."""
    return value if isinstance(value, str | int | float | None) else str(value)


class Progress:
    """The result file. It is replaced as a whole, so it is complete at every moment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.values: dict[str, Any] = {"steps": [], "error": None}

    def save(self, **values: Any) -> None:
        self.values.update(values)
        part = self.folder / "result.json.part"
        part.write_text(json.dumps(self.values))
        part.replace(self.folder / "result.json")


def tail_of(meta: dict[str, Any], prompt: list[int], wanted: int) -> list[float]:
    """Logprobs of the last prompt tokens, at most ``wanted`` of them.

    ``input_token_logprobs`` begins with the token at ``logprob_start_len``, which has none.

    Raises:
        ValueError: the tokens are not those of the prompt, or one has no number.
    """
    pairs = [(entry[0], entry[1]) for entry in meta["input_token_logprobs"]][1:]
    if [token for _, token in pairs] != prompt[len(prompt) - len(pairs) :] or not pairs:
        raise ValueError(f"logprobs of {len(pairs)} tokens that do not end the prompt")
    if any(value is None for value, _ in pairs):
        raise ValueError("a prompt token after the first has no logprob")
    return [float(value) for value, _ in pairs][-wanted:]


def answer(output: dict[str, Any], prompt: list[int], tail: int) -> dict[str, Any]:
    """What is kept of one output of the engine."""
    meta = output["meta_info"]
    reason = meta["finish_reason"] or {}
    if reason.get("type") == "abort":
        raise ValueError(f"the engine aborted the request: {reason.get('message')}")
    generated = [(float(entry[0]), int(entry[1])) for entry in meta["output_token_logprobs"]]
    best = [[[int(e[1]), float(e[0])] for e in entries] for entries in meta["output_top_logprobs"]]
    return {
        "ids": [token for _, token in generated],
        "logprobs": [value for value, _ in generated],
        "best": best,
        "tail": tail_of(meta, prompt, tail),
        "cached": int(meta["cached_tokens"]),
        "verified": int(meta.get("spec_verify_ct") or 0),
    }


def selected(output: dict[str, Any], layers: int, topk: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions that had to select, and their keys ``[rows, layers, topk]`` int32."""
    raw = np.frombuffer(base64.b64decode(output["meta_info"]["indexer_topk"]), dtype=np.int32)
    keys = raw.reshape(-1, layers, topk)
    rows = np.arange(topk, len(keys), SELECTED_EVERY)
    return rows, keys[rows]


def request(step: dict[str, Any]) -> Any:
    from sglang.srt.managers.io_struct import GenerateReqInput

    prompts = step["prompts"]
    return GenerateReqInput(
        input_ids=prompts,
        sampling_params={
            "temperature": 0.0,
            "max_new_tokens": step["new_tokens"],
            "ignore_eos": True,
        },
        return_logprob=True,
        # The first of the returned positions has no logprob.
        logprob_start_len=[max(len(prompt) - step["tail"] - 1, 0) for prompt in prompts],
        top_logprobs_num=TOP,
        return_indexer_topk=bool(step["selected"]),
    )


def run(engine: Any, step: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One step's entry in the result."""
    if step["flush"]:
        # With a limit it waits until the engine is idle, which it is a little after its last answer.
        flushing = engine.tokenizer_manager.flush_cache(timeout_s=FLUSH)
        flushed = engine.loop.run_until_complete(asyncio.wait_for(flushing, 2 * FLUSH))
        if not flushed.success:
            raise RuntimeError(f"the cache was not flushed: {flushed.message}")
    begin = time.perf_counter()
    generating = engine.tokenizer_manager.generate_request(request(step), None).__anext__()
    outputs = engine.loop.run_until_complete(asyncio.wait_for(generating, step["limit"]))
    seconds = time.perf_counter() - begin
    answers = [
        answer(output, prompt, step["tail"])
        for output, prompt in zip(outputs, step["prompts"], strict=True)
    ]
    if step["selected"]:
        (output,) = outputs
        rows, keys = selected(output, step["selected"]["layers"], step["selected"]["topk"])
        np.savez(folder / f"{step['name']}.npz", rows=rows, keys=keys)
    return {"name": step["name"], "seconds": seconds, "answers": answers}


def main(scenario_file: Path, folder: Path) -> int:
    scenario = json.loads(scenario_file.read_text())
    progress = Progress(folder)
    begin = time.perf_counter()
    engine = None
    try:
        import sglang
        import torch

        engine = sglang.Engine(**scenario["arguments"])
        info = engine.get_server_info()
        progress.save(
            start_seconds=time.perf_counter() - begin,
            release=sglang.__version__,
            device=torch.cuda.get_device_name(),
            resolved={name: plain(info.get(name)) for name in RESOLVED},
            max_total_num_tokens=info.get("max_total_num_tokens"),
        )
        for step in scenario["steps"]:
            try:
                entry = run(engine, step, folder)
            except (ValueError, KeyError) as err:  # only this request failed; the engine goes on
                entry = {"name": step["name"], "error": f"{type(err).__name__}: {err}"}
            progress.values["steps"].append(entry)
            progress.save()
            print(
                f"{step['name']}: {entry.get('error') or format(entry['seconds'], '.2f')}",
                flush=True,
            )
    except BaseException as err:
        progress.save(error=f"{type(err).__name__}: {err}".rstrip(": "))
        traceback.print_exc()
        return 1
    finally:
        if engine is not None:
            engine.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
