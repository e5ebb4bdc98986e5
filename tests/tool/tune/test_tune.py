"""The command with a process that stands in for the worker: it takes requests, answers them, and dies.

Its times follow from a formula. The tool's part is real: the process, the folder of results, the files and
the patch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import EDITED, UTILS, Lab
from tests.tool.tune.test_search import DEFAULT
from tool.errors import EnvironmentFault, UsageError
from tool.plan import find_model
from tool.project.session import SILENT
from tool.tune import Tuned, list_gemms, process
from tool.tune.shapes import TOKENS, Shape
from tool.tune.tune import tune

SHAPES = (Shape("gemm", (128, 256), ""), Shape("gemm", (512, 256), ""))
"""Short sums have few candidates, so a test measures them all."""
FAKE = r"""
import json, os, sys, time
DEFAULT = %(default)s
def us(config):
    return 10 + abs(config["BLOCK_SIZE_N"] - 64) / 10 + abs(config["num_stages"] - 3)
first = json.loads(sys.stdin.readline())
name = "sglang/configs/N=%%d,K=%%d,device_name=x,block_shape=[128, 128].json"
files = [{**one, "path": name %% tuple(one["sizes"])} for one in first["shapes"]]
known = {"sglang": "0.5.23", "torch": "2", "triton": "3.8.0", "device": "A Card", "sm": 89,
         "named": (first["device_name"] or "A Card").replace(" ", "_"), "files": files}
%(start)s
print(json.dumps({"described": known}), flush=True)
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    %(each)s
    results = [{"config": one, "us": us(one)} for one in request["configs"]]
    for one in results:
        if one["config"]["BLOCK_SIZE_N"] == 128:
            one.pop("us")
            one["rejected"] = "120000 bytes of shared memory, the limit is 101376"
    timed = [one for one in results if "us" in one]
    if timed:
        min(timed, key=lambda one: one["us"])["error"] = 0.001
    default = {"config": DEFAULT, "us": us(DEFAULT), "error": 0.001}
    print(json.dumps({"unit": request["unit"], "default": default, "results": results}), flush=True)
"""


def fake(path: Path, *, start: str = "", each: str = "pass") -> Path:
    path.write_text(FAKE % {"default": DEFAULT, "start": start, "each": each})
    return path


def run(tmp_path: Path, worker: Path, seconds: float = 60, **changes: Any) -> Tuned:
    arguments: dict[str, Any] = {"progress": SILENT, "worker": worker} | changes
    shapes = arguments.pop("shapes", SHAPES)
    return tune(Path(sys.executable), shapes, tmp_path / "out", seconds=seconds, **arguments)


def count(out: Path) -> int:
    path = out / "results.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_run_finds_what_is_fastest_and_writes_whole_files(tmp_path: Path) -> None:
    found = run(tmp_path, fake(tmp_path / "worker.py"))
    assert found.complete and len(found.rows) == found.total == 2 * len(TOKENS)
    assert all(row.config["BLOCK_SIZE_N"] == 64 for row in found.rows)
    assert all(row.config["num_stages"] == 3 for row in found.rows)
    assert found.rejected.keys() == {"shared memory"} and not found.failures
    for path, content in found.files.items():
        assert (tmp_path / "out" / path).read_bytes() == content
        assert [int(m) for m in json.loads(content)] == list(TOKENS)


def test_a_short_run_gives_every_shape_something(tmp_path: Path) -> None:
    slow = fake(tmp_path / "worker.py", each="time.sleep(0.02)")
    found = run(tmp_path, slow, seconds=3)
    assert len(found.rows) == found.total and not found.complete and len(found.files) == 2


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """The tool itself is killed, with SIGKILL, and its worker ends with it."""
    slow = fake(tmp_path / "worker.py", each="time.sleep(0.05)")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from tests.tool.tune.test_tune import run\n"
        f"run(Path({str(tmp_path)!r}), Path({str(slow)!r}))\n"
    )
    root = Path(__file__).parents[3]
    begun = subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(root)}
    )
    limit = time.monotonic() + 60
    while count(tmp_path / "out") < 20 and time.monotonic() < limit:
        time.sleep(0.05)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    path = tmp_path / "out" / "results.jsonl"
    with path.open("a") as out:
        out.write('{"unit": "gemm N=128,K=2')  # what a write that was cut off leaves
    before = path.read_text().splitlines()[:-1]
    measured = {
        (one["unit"], json.dumps(result["config"]))
        for one in map(json.loads, before)
        if "unit" in one
        for result in one["results"]
    }
    assert len(measured) > 50
    found = run(tmp_path, fake(tmp_path / "fast.py"))
    after = path.read_text().splitlines()
    assert after[: len(before)] == before and found.complete
    again = [
        (one["unit"], json.dumps(result["config"]))
        for one in map(json.loads, after[len(before) :])
        if "unit" in one
        for result in one["results"]
    ]
    repeated = [one for one in again if one in measured]
    assert len(set(again) - measured) > 50
    # A best configuration is timed again beside the next ones; nothing else is.
    assert len(set(repeated)) <= len(found.rows)


def test_a_worker_that_dies_is_started_again_and_what_killed_it_is_left(tmp_path: Path) -> None:
    each = (
        'if any(one["BLOCK_SIZE_N"] == 16 for one in request["configs"]) and "N=128," in request["unit"]'
        ' and "M=1" == request["unit"][-3:]: os.kill(os.getpid(), 11)'
    )
    found = run(tmp_path, fake(tmp_path / "worker.py", each=each))
    assert found.complete and len(found.rows) == found.total
    assert found.rejected["does not compile or run"] > 0
    log = (tmp_path / "out" / "results.jsonl").read_text()
    assert "was ended by SIGSEGV" in log


def test_one_that_keeps_dying_ends_the_command_and_its_results_stay(tmp_path: Path) -> None:
    worker = fake(tmp_path / "worker.py", each='sys.exit("CUDA error") if number == 9 else None')
    with pytest.raises(EnvironmentFault, match="does not stay alive") as ended:
        run(tmp_path, worker)
    assert "ended with status 1: CUDA error" in str(ended.value.why)
    assert count(tmp_path / "out") > 4 * 9
    assert len(run(tmp_path, worker, seconds=0).rows) >= 9


def test_what_cannot_be_tuned_says_why(tmp_path: Path) -> None:
    unfit = fake(
        tmp_path / "unfit.py", start='print(json.dumps({"unfit": "no sglang"})); sys.exit()'
    )
    with pytest.raises(EnvironmentFault, match="cannot be tuned") as refused:
        run(tmp_path, unfit)
    assert refused.value.why == "no sglang"
    crash = fake(tmp_path / "crash.py", start="os.kill(os.getpid(), 9)")
    with pytest.raises(EnvironmentFault, match="does not stay alive") as ended:
        run(tmp_path / "other", crash)
    assert "SIGKILL" in str(ended.value.why)


def test_a_worker_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tune.__globals__, "START_SECONDS", 0.5)
    with pytest.raises(EnvironmentFault, match="does not stay alive") as ended:
        run(tmp_path, fake(tmp_path / "worker.py", start="time.sleep(60)"))
    assert "did not start" in str(ended.value.why)


def test_the_real_worker_says_what_this_environment_lacks(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be tuned") as refused:
        run(tmp_path, process.WORKER)
    assert "CUDA" in str(refused.value.why) or "NVIDIA" in str(refused.value.why)


def test_results_of_another_device_are_refused(tmp_path: Path) -> None:
    worker = fake(tmp_path / "worker.py")
    run(tmp_path, worker, seconds=2)
    with pytest.raises(UsageError, match="of another environment") as refused:
        run(tmp_path, worker, device_name="NVIDIA GeForce RTX 4090")
    assert "named A_Card then, NVIDIA_GeForce_RTX_4090 now" in str(refused.value.why)


def test_without_results_there_is_nothing_to_take(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was measured"):
        run(tmp_path, fake(tmp_path / "worker.py"), seconds=0)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "results.jsonl").write_text("[]\n")
    with pytest.raises(UsageError, match="is no result of tool tune"):
        run(tmp_path, fake(tmp_path / "worker.py"), seconds=0)


def test_the_files_become_a_change_of_the_series(lab: Lab, tmp_path: Path) -> None:
    """Their names have spaces, commas and brackets. The patch passes the checks, the wheel has the files,
    and a later run puts more into the same patch."""
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    nine = list_gemms(find_model("GLM-5.2-FP8", None), 8)
    worker = fake(tmp_path / "worker.py")
    run(tmp_path, worker, seconds=4, shapes=nine[:2])
    command = ["tune", "--model", "GLM-5.2-FP8", "--tp", "8", "--gemm", "--budget", "0"]
    command += ["--out", str(tmp_path / "out"), "--change", "tuned-a-card"]
    first = lab.json(*command)["result"]
    assert first["patch"]["written"] == ["tuned-a-card/v0.5.23.patch"]
    paths = [f"python/{path}" for path in found_files(tmp_path / "out")]
    assert len(paths) == 2 and sorted(first["patch"]["files"]) == sorted(paths)
    text = (lab.root / "patches/tuned-a-card/v0.5.23.patch").read_text()
    assert "Measured on A Card with torch 2 and Triton 3.8.0" in text
    lab.tool("lint")
    lab.tool("check", "--offline")
    assert "has these files already" in lab.tool(*command, code=2).stderr

    run(tmp_path, worker, seconds=8, shapes=nine)
    second = lab.json(*command)["result"]
    assert len(found_files(tmp_path / "out")) == 9 and len(second["files"]) == 9
    assert second["patch"]["written"] == ["tuned-a-card/v0.5.23.patch"]
    lab.tool("lint")
    lab.tool("check", "--offline")
    worktree = tmp_path / "worktree"
    lab.apply(worktree)
    for path in found_files(tmp_path / "out"):
        assert (worktree / "python" / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
    lab.tool("verify", str(worktree), "--offline")


def test_the_report_is_a_table_and_says_what_is_next(lab: Lab, tmp_path: Path) -> None:
    gemms = list_gemms(find_model("GLM-5.2-FP8", None), 8)
    short = [shape for shape in gemms if shape.sizes == (6144, 256)]
    worker = fake(tmp_path / "worker.py")
    run(tmp_path, worker, shapes=tuple(short), device_name="NVIDIA GeForce RTX 4090")
    command = ["tune", "--model", "GLM-5.2-FP8", "--tp", "8", "--gemm", "--budget", "0"]
    text = lab.tool(*command, "--out", str(tmp_path / "out")).stdout
    assert "A Card, sm_89 for NVIDIA_GeForce_RTX_4090" in text
    assert "rows      16 of 16 measured, 16 faster than the default" in text
    row = next(line for line in text.splitlines() if line.startswith("gemm N=6144,K=256  1 "))
    assert row.split()[3:6] == ["16.4", "10.0", "1.64"] and " 16/64/128/1/" in row
    assert "--budget 0 --change NAME" in text
    assert "--budget '5 days' is no time" in lab.tool(*command, "--budget", "5 days", code=2).stderr


def found_files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.glob("sglang/**/*.json"))
