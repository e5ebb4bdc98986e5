"""The server arguments of tests/serving, resolved by the release that they are for, as on a Hopper GPU.

What a GPU run would find out after minutes: that a field is gone, that an option does not parse, that
a flavour resolves to another backend than its name says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import releases
import tiny_models
import tree

from bench.serving import steps
from tests.serving import test_flash as flash
from tests.serving.support import engine_runner, engines, flash_model, flavours, soak

pytestmark = releases.only(f"=={flavours.RELEASE}")

EXPECTED = {
    "stock": ("fp8_e4m3", "flashmla_kv", "flashmla_kv"),
    "fork": ("fp8_e4m3", "ada_dsa", "ada_dsa"),
    "fork-sm89": ("fp8_e4m3", "ada_dsa", "ada_dsa"),
    "fork-sm86": ("fp8_e4m3", "ada_dsa", "ada_dsa"),
    "fork-sm86-bf16": ("bfloat16", "ada_dsa", "ada_dsa"),
    "fork-sm120": ("fp8_e4m3", "ada_dsa", "ada_dsa"),
}
FOLDER: dict[str, Any] = {"context_length": 2048}
"""The folder's configuration has 4096 positions."""
VARIANTS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "eager": engines.EAGER,
    "tp2": {**engines.PARALLEL, "tp_size": 2},
    "pp2": {**engines.PARALLEL, "pp_size": 2},
    "soak": soak.CHANGES,
    "bench": steps.changes(),
}


def given(flavour: str, variant: str, model: str) -> dict[str, Any]:
    one = engines.arguments(flavours.FLAVOURS[flavour], model, **VARIANTS[variant])
    return {**one, **FOLDER}


def resolve(flavour: str, variant: str, model: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    environment = flavours.FLAVOURS[flavour].environment
    return resolve_fields(given(flavour, variant, model), environment, monkeypatch)


def resolve_fields(
    given: dict[str, Any], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    for name, value in {**environment, **engines.SPARSE}.items():
        monkeypatch.setenv(name, value)
    # The folder has no weights, and graphs are part of what is tested.
    fields = {"load_format": "dummy", "disable_cuda_graph": False, **given}
    with fake_cuda.capability(9, 0):
        args = tree.server_args(fields.pop("model_path"), **fields)
        args.check_server_args()
        return tree.resolved(args)


@pytest.mark.parametrize("flavour", list(EXPECTED))
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_each_flavour_resolves_to_what_it_is_named_for(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch, flavour: str, variant: str
) -> None:
    r = resolve(flavour, variant, configs["glm"], monkeypatch)
    assert (r["kv_cache_dtype"], r["dsa_prefill_backend"], r["dsa_decode_backend"]) == (
        EXPECTED[flavour]
    )
    assert (r["attention_backend"], r["page_size"]) == ("dsa", 64)
    assert r["chunked_prefill_size"] == VARIANTS[variant].get("chunked_prefill_size", 4096)
    assert r["sampling_backend"] == "pytorch"
    assert r["disable_overlap_schedule"] == (variant in ("pp2", "eager"))
    graphs = r["cuda_graph_config"]
    prefill = "disabled" if variant in ("pp2", "eager") else "breakable"
    assert graphs["prefill"]["backend"] == prefill
    assert graphs["decode"]["backend"] == ("disabled" if variant == "eager" else "full")
    assert graphs["decode"]["bs"] == VARIANTS[variant].get("cuda_graph_bs_decode", [1, 8, 64])


FLASH = {
    "stock": ("bfloat16", "tilelang", "tilelang"),
    "stock-fp8": ("fp8_e4m3", "tilelang", "tilelang"),
    "fork": ("fp8_e4m3", "ada_dsa", "ada_dsa"),
    "fork-bf16": ("bfloat16", "ada_dsa", "ada_dsa"),
    "fork-sm89": ("fp8_e4m3", "ada_dsa", "ada_dsa"),
}


@pytest.mark.parametrize("name", flash.NAMES)
def test_each_flavour_of_flash_resolves_to_what_it_is_named_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With the configuration that is served, all of whose positions the prompts may need."""
    model = tiny_models.write(tmp_path, flash_model.config(flash_model.Spec()))
    (job,) = (one for one in flash.jobs(Path(model)) if one.name == name)
    r = resolve_fields(job.arguments, job.flavour.environment, monkeypatch)
    assert (r["kv_cache_dtype"], r["dsa_prefill_backend"], r["dsa_decode_backend"]) == (
        FLASH[job.flavour.name]
    )
    assert (r["attention_backend"], r["page_size"]) == ("dsa", flash.PAGE)
    assert r["mamba_radix_cache_strategy"] == "extra_buffer" and not r["disable_radix_cache"]
    assert not r["disable_overlap_schedule"]
    assert r["chunked_prefill_size"] == 4096 and r["enable_multimodal"] is False
    graphs = r["cuda_graph_config"]
    assert (graphs["prefill"]["backend"], graphs["decode"]["backend"]) == ("breakable", "full")
    assert r["speculative_algorithm"] == ("EAGLE" if name.endswith("-eagle") else None)


def test_short_prompts_are_not_left_to_dense_attention(
    configs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.environ import envs

    resolve("fork", "graphs", configs["glm"], monkeypatch)
    assert envs.SGLANG_DSA_PREFILL_DENSE_ATTN_KV_LEN_THRESHOLD.get() == 0


def test_eager_engines_return_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.environ import envs
    from sglang.srt.managers.io_struct import GenerateReqInput

    (name,) = engines.SEPARATE_TOPK
    monkeypatch.setenv(name, engines.SEPARATE_TOPK[name])
    assert not envs.SGLANG_DSA_FUSE_TOPK.get()
    assert GenerateReqInput(input_ids=[[1]], return_indexer_topk=True).return_indexer_topk


@pytest.mark.parametrize("flavour", list(EXPECTED))
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_command_line_says_the_same(
    configs: dict[str, str], flavour: str, variant: str
) -> None:
    from sglang.srt.server_args import ServerArgs

    fields = given(flavour, variant, configs["glm"])
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    parsed = vars(parser.parse_args(engines.command_line(fields)))
    assert {name: parsed[name] for name in fields} == fields


def test_flushing_waits_for_a_busy_engine() -> None:
    from sglang.srt.managers.io_struct import FlushCacheReqInput

    assert FlushCacheReqInput(timeout_s=engine_runner.FLUSH).timeout_s == engine_runner.FLUSH


def test_the_runner_asks_with_what_a_request_has() -> None:
    step = engines.asdict(engines.Step("one", [[5, 6, 7], list(range(300))]))
    asked = engine_runner.request(step)
    asked.normalize_batch_and_arguments()
    assert asked.batch_size == 2
    assert asked.logprob_start_len == [0, 300 - engines.TAIL - 1]
    one = asked[1]
    assert (one.top_logprobs_num, one.return_logprob, one.return_indexer_topk) == (
        engine_runner.TOP,
        True,
        False,
    )


def test_the_benchmark_drives_the_releases_own_batches(tmp_path: Path) -> None:
    """Prefill in chunks, streams on pages of their own with a prompt's rows repeated, decode."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("serving_harness_on_cpu.py")), str(tmp_path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    decodes = [["DECODE", [length] * 3, 3] for length in range(251, 261)]
    assert found["forwards"] == [["EXTEND", [128], 128], ["EXTEND", [200], 72], *decodes]
    assert found["steps"] == 10 and found["lengths"] == [260] * 3
    used = [slot for slots in found["slots"] for slot in slots]
    assert len(set(used)) == 3 * 260 and min(used) >= 64  # page 0 is for padding
    # 200 rows in four pages, the last of them partly zeros; 256 and on are another page's.
    prompt = [*range(200), *[0] * 56]
    assert all(rows[:250] == prompt[:250] for rows in found["rows"])
    assert all(rows[250:] == [p % 251 for p in range(250, 260)] for rows in found["rows"])
    assert found["index"] == [7] and found["prefill"] > 0
