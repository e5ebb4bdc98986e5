"""Engines in child processes and what is read of them, without an engine or a GPU.

The runner is the real one; the sglang it imports, and the jobs that misbehave, are stand-ins.
"""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving import test_serve as whole
from tests.serving.support import comparison, engine_runner, engines, metrics, prompts
from tests.serving.support.engines import Job
from tests.serving.support.flavours import FLAVOURS, Flavour


def output(prompt: list[int], start: int, generated: list[int]) -> dict[str, Any]:
    """An engine's output whose logprob of token t at position p is -(p + t / 10_000)."""
    said = [(-(p + t / 10_000), t, None) for p, t in enumerate(prompt)]
    first = [(None, prompt[start], None), *said[start + 1 :]]
    own = [(-(len(prompt) + i + t / 10_000), t, None) for i, t in enumerate(generated)]
    return {
        "meta_info": {
            "finish_reason": {"type": "length"},
            "input_token_logprobs": first,
            "output_token_logprobs": own,
            "output_top_logprobs": [[entry, (entry[0] - 0.5, 4000, None)] for entry in own],
            "cached_tokens": 0,
        }
    }


def test_an_answer_is_read_from_an_output() -> None:
    prompt = prompts.ids(20, seed=3)
    answer = engine_runner.answer(output(prompt, 20 - 5 - 1, [7, 8]), prompt, 5)
    assert answer["ids"] == [7, 8]
    first = answer["logprobs"][0]
    assert answer["best"][0] == [[7, first], [4000, first - 0.5]]
    assert answer["tail"] == pytest.approx([-(p + prompt[p] / 10_000) for p in range(15, 20)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.update(finish_reason={"type": "abort", "message": "no"}), "aborted.*no"),
        (lambda meta: meta["input_token_logprobs"].pop(), "do not end the prompt"),
        (lambda meta: meta["input_token_logprobs"].__setitem__(-1, (None, 0, None)), "prompt"),
    ],
)
def test_a_wrong_output_is_an_error(change: Any, message: str) -> None:
    prompt = prompts.ids(20, seed=3)
    given = output(prompt, 10, [7])
    change(given["meta_info"])
    with pytest.raises(ValueError, match=message):
        engine_runner.answer(given, prompt, 5)


def test_selected_keys_are_those_of_rows_that_select() -> None:
    keys = np.arange(20 * 3 * 4, dtype=np.int32).reshape(20, 3, 4)
    encoded = base64.b64encode(keys.tobytes()).decode()
    rows, found = engine_runner.selected({"meta_info": {"indexer_topk": encoded}}, 3, 4)
    assert rows.tolist() == [4, 8, 12, 16]
    assert np.array_equal(found, keys[[4, 8, 12, 16]])


def test_logprobs_meet_the_witness_at_the_same_tokens() -> None:
    """Every served value is the witness's plus 0.25."""
    answers, said = {}, {}
    for length in (64, 2049):
        generated = prompts.ids(6, seed=length + 1)
        own = np.random.default_rng(length).normal(size=length + 5)  # of tokens 1 and later
        answers[length] = {
            "ids": generated,
            "tail": (own[length - 1 - 10 : length - 1] + 0.25).tolist(),
            "logprobs": (own[length - 1 :] + 0.25).tolist(),
        }
        said[comparison.name_of([*prompts.single(length), *generated])] = own
    found = comparison.against_witness(answers, said)
    assert sorted(found) == sorted(whole.GROUPS)
    for group, logprobs in found.items():
        assert logprobs.distance.tokens == (10 if "prompts" in group else 6)
        assert logprobs.distance.max == pytest.approx(0.25)
        assert logprobs.distance.mean == pytest.approx(0.25)


def test_a_parting_has_the_gap_that_its_token_won_by() -> None:
    best = [[[1, -1.0], [4, -3.0]], [[2, -1.5], [7, -1.6], [5, -1.75]], [[3, -2.0], [4, -9.0]]]
    one = {"ids": [1, 2, 3], "logprobs": [-1.0, -1.5, -2.0], "best": best}
    found = comparison.parting(one, {"ids": [1, 5, 3]})
    assert (found.agreement.length, found.gap) == (1, 0.25)
    assert (
        comparison.parting(one, {"ids": [1, 2, 77]}).gap == 7
    )  # at least: 77 is not among the best
    assert comparison.parting(one, one).gap == 0


def test_prompts_are_the_same_everywhere() -> None:
    assert prompts.ids(4, seed=0) == [3751, 2449, 2661, 1417]
    crowd = prompts.crowd(64)
    assert len(crowd) == 64
    known = [prompt for prompt in crowd if prompt == prompts.single(len(prompt))]
    assert {64, 2049, 512, 3000} == {len(prompt) for prompt in known} <= set(prompts.SINGLES)
    assert max(max(prompt) for prompt in crowd) < prompts.VOCAB - prompts.RESERVED
    assert set(prompts.EAGER) | {prompts.SELECTED, prompts.PREFIXED} <= set(prompts.SINGLES)


# A stand-in for the engine's runner: what becomes of a child that answers, fails, hangs or dies.

STAND_IN = """
import json, os, subprocess, sys, time
scenario, folder = json.load(open(sys.argv[1])), sys.argv[2]
how = scenario["arguments"]["how"]
steps = [{"name": s["name"], "seconds": 0, "answers": [{"ids": [1]}]} for s in scenario["steps"]]
if how == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(folder + "/child", "w").write(str(child.pid))
    steps = steps[:1]
json.dump({"steps": steps, "error": None}, open(folder + "/result.json", "w"))
print("this is the log of", how, flush=True)
if how == "hangs":
    time.sleep(600)
sys.exit(3 if how == "fails" else 0)
"""


def test_jobs_end_however_they_behave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(engines, "RUNNER", "stand_in")
    monkeypatch.setattr(engines, "limit_of", lambda job: 3.0 if job.name == "hangs" else 60.0)
    plain = Flavour("plain", "stack")
    steps = [engines.Step(name, [[1, 2]]) for name in ("one", "two")]
    jobs = [Job(how, plain, {"how": how}, steps) for how in ("hangs", "fails", "answers")]
    begin = time.monotonic()
    served = engines.run_all(jobs, tmp_path / "out", at_once=2)
    assert time.monotonic() - begin < 30
    assert served["answers"].problems() == []
    assert served["answers"].answer("two") == {"ids": [1]}
    assert served["fails"].problems() == ["exit code 3"]
    assert served["hangs"].code is None
    assert served["hangs"].problems()[-1] == "two was not reached"
    assert "this is the log of hangs" in served["hangs"].why()
    with pytest.raises(LookupError, match="no answer to two"):
        served["hangs"].answer("two")
    child = int((tmp_path / "out" / "hangs" / "child").read_text())
    for _ in range(50):  # until the init process has collected it
        if not Path(f"/proc/{child}").exists() or "Z" in _state(child):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a hanging job's child outlives it")


# The real runner over a stand-in for sglang, whose engine answers by the prompt's first token.

ENGINE = """
import asyncio
from types import SimpleNamespace

__version__ = "0.0"

class Engine:
    def __init__(self, **given):
        if given.get("refuse"):
            raise ValueError("no such backend")
        self.given, self.tokenizer_manager = given, self
        self.loop = asyncio.new_event_loop()
        self.flushed = 0

    def get_server_info(self):
        return {**self.given, "max_total_num_tokens": 10, "unasked": 1}

    async def flush_cache(self, timeout_s):
        self.flushed += 1
        return SimpleNamespace(success=True, message="")

    async def generate_request(self, asked, _):
        outputs = []
        for prompt, start in zip(asked.input_ids, asked.logprob_start_len):
            if prompt[0] == 1:
                await asyncio.sleep(60)
            if prompt[0] == 2:
                raise ValueError("too long")
            said = [(-1.5, token, None) for token in prompt[start:]]
            own = [(-0.5, 9, None)] * asked.sampling_params["max_new_tokens"]
            outputs.append({"meta_info": {
                "finish_reason": {"type": "length"},
                "input_token_logprobs": [(None, *said[0][1:]), *said[1:]],
                "output_token_logprobs": own,
                "output_top_logprobs": [[one, (-2.0, 8, None)] for one in own],
                "cached_tokens": self.flushed,
            }})
        yield outputs

    def shutdown(self):
        print("shut down", flush=True)
"""
REQUEST = """
from dataclasses import dataclass
from typing import Any

@dataclass
class GenerateReqInput:
    input_ids: Any
    sampling_params: Any
    return_logprob: Any
    logprob_start_len: Any
    top_logprobs_num: Any
    return_indexer_topk: Any
"""


def test_the_runner_keeps_what_was_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    managers = tmp_path / "sglang" / "srt" / "managers"
    managers.mkdir(parents=True)
    (tmp_path / "sglang" / "__init__.py").write_text(ENGINE)
    (managers / "io_struct.py").write_text(REQUEST)
    device = "import torch; torch.cuda.get_device_name = lambda: 'none'"
    (tmp_path / "sitecustomize.py").write_text(device)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    absent = Flavour("absent", "absent")
    first = {"good": 5, "refused": 2, "hangs": 1, "late": 5}
    steps = [
        engines.Step(name, [[token, 6, 7], [token, 8]], 2, flush=name != "refused", limit=1)
        for name, token in first.items()
    ]
    jobs = [
        Job("good", absent, {"tp_size": 3}, steps),
        Job("refused", absent, {"refuse": True}, steps),
    ]
    served = engines.run_all(jobs, tmp_path / "out", at_once=2)
    good = served["good"]
    assert good.result["resolved"]["tp_size"] == 3 and "unasked" not in good.result["resolved"]
    assert good.answer("good") == {
        "ids": [9, 9],
        "logprobs": [-0.5, -0.5],
        "best": [[[9, -0.5], [8, -2.0]]] * 2,
        "tail": [-1.5, -1.5],
        "cached": 1,
        "verified": 0,
    }
    assert len(good.answer("good", 1)["tail"]) == 1
    assert good.problems() == [
        "exit code 1",
        "TimeoutError",
        "refused: ValueError: too long",
        "hangs was not reached",
        "late was not reached",
    ]
    assert "shut down" in good.why()
    assert served["refused"].problems()[:2] == ["exit code 1", "ValueError: no such backend"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_the_witness_runs_in_a_child(tmp_path: Path) -> None:
    """On the CPU, two short sequences; bf16 differs from fp32, and a short prompt selects all it sees."""
    model = engines.make_model(tmp_path / "model", "--layers", "4")
    tokens = {name: prompts.ids(size, seed=size) for name, size in (("a", 12), ("b", 20))}
    found = engines.witness_of(model, tokens, tmp_path / "witness", selecting="a")
    assert {name: len(said) for name, said in found.exact.items()} == {"a": 11, "b": 19}
    assert 0 < metrics.distance(found.exact["a"], found.rounded["a"]).mean < 1
    assert sorted(found.keys) == [0, 1, 2]
    assert (found.keys[0][5] >= 0).sum() == 6


def test_options_of_a_command_line() -> None:
    words = engines.command_line(
        {"model_path": "m", "sizes_of": [1, 8], "is_on": True, "is_off": False}
    )
    assert words == ["--model-path", "m", "--sizes-of", "1", "8", "--is-on"]


def test_an_unknown_flavour_is_named() -> None:
    assert [one.name for one in engines.flavours("fork,stock")] == ["fork", "stock"]
    with pytest.raises(ValueError, match="no flavour spoon: there are stock, fork"):
        engines.flavours("spoon")


def test_eager_engines_share_what_is_not_about_graphs() -> None:
    given = engines.arguments(FLAVOURS["fork"], "m", tp_size=2)
    assert given["tp_size"] == 2 and given["kv_cache_dtype"] == "fp8_e4m3"
    assert "kv_cache_dtype" not in engines.arguments(FLAVOURS["fork-sm89"], "m")
    job = Job("j", replace(FLAVOURS["stock"], environment={"A": "1"}), {}, [], {"B": "2"})
    assert {"A": "1", "B": "2", **engines.SPARSE}.items() <= job.environ().items()
