"""What the serving tests share: server arguments, scenarios, engines in child processes, the witness.

``python -m tests.serving.support.engines MODEL SEQUENCES.json OUT.npz`` runs the witness over sequences
of tokens, in fp32 and in bf16 (``witness_of`` does so in a child process).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.serving.support import children, prompts
from tests.serving.support.flavours import FLAVOURS, Flavour
from tests.serving.support.metrics import Distance, distance

if TYPE_CHECKING:
    import pytest

RUNNER: Final = f"{__package__}.engine_runner"
START: Final = 400.0
"""Seconds a start and the first requests may take: imports, nvcc and Triton builds, graph capture."""
STEP: Final = 60.0
"""Seconds after which a call that has not returned is taken to hang."""
MEANT: Final = 5.0
"""Seconds that a step is allowed on average."""
TAIL: Final = 128
NEW_TOKENS: Final = 64

SHARED: Final[dict[str, Any]] = {
    "skip_tokenizer_init": True,
    "random_seed": 1,
    "context_length": 32_768,
    "chunked_prefill_size": 4096,
    "max_running_requests": 64,
    "max_total_tokens": 262_144,
    "mem_fraction_static": 0.8,  # of what is free; the pools are small, and other engines start meanwhile
    "cuda_graph_bs_decode": [1, 8, 64],
    "cuda_graph_bs_prefill": [64, 512, 2048, 4096],  # by default 42 sizes, of 2.5 s each
    "disable_flashinfer_autotune": True,
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "watchdog_timeout": 120,
}
"""ServerArgs fields that all flavours share."""
EAGER: Final[dict[str, Any]] = {
    "disable_cuda_graph": True,
    "enable_return_indexer_topk": True,
    "disable_overlap_schedule": True,  # the capturer has one buffer, which the next step fills
    # The capturer keeps 8 KiB a token and layer on the host.
    "max_total_tokens": 16_384,
    "max_running_requests": 8,
}
PARALLEL: Final[dict[str, Any]] = {
    "cuda_graph_bs_decode": [1, 8],
    "max_running_requests": 8,
    "disable_custom_all_reduce": True,  # NCCL is what is tested
    "enforce_disable_flashinfer_allreduce_fusion": True,
}
SEPARATE_TOPK: Final = {"SGLANG_DSA_FUSE_TOPK": "0"}
"""With this, top-k gives positions in the request, and the page table is applied after it."""
SPARSE: Final = {"SGLANG_DSA_PREFILL_DENSE_ATTN_KV_LEN_THRESHOLD": "0"}
"""No dense attention for short prompts: sm_89 has none, and Hopper's needs FlashAttention 3."""


def arguments(flavour: Flavour, model: Path | str, **changes: Any) -> dict[str, Any]:
    """ServerArgs fields of a flavour that serves the model folder."""
    cache = {"kv_cache_dtype": "fp8_e4m3"} if flavour.arguments else {}
    return {"model_path": str(model), **SHARED, **cache, **flavour.arguments, **changes}


def environ(flavour: Flavour) -> dict[str, str]:
    """The environment of a process that serves the flavour, sparse attention for every prompt."""
    return {**flavour.environ(), **SPARSE}


def command_line(given: Mapping[str, Any]) -> list[str]:
    """The same as options of ``python -m sglang.launch_server``; a false flag is left out."""
    words: list[str] = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [option] if value else []
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words += [option, str(value)]
    return words


# -- scenarios ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One call of the engine: all ``prompts`` at once.

    ``tail`` is the number of last prompt tokens whose logprobs come back. ``flush`` empties the prefix
    cache before. ``selected`` (``layers`` and ``topk``) asks for the keys that the only prompt selects.
    ``limit`` is in seconds.
    """

    name: str
    prompts: list[list[int]]
    new_tokens: int = NEW_TOKENS
    tail: int = TAIL
    flush: bool = True
    selected: dict[str, int] | None = None
    limit: float = STEP


def warm_up() -> Step:
    """Compile what the other steps use, so that their limits need not allow for it."""
    both = [prompts.ids(2500, seed=1), prompts.ids(40, seed=2)]
    return Step("warm-up", both, new_tokens=4, limit=START - 40)


def single_steps(lengths: Sequence[int]) -> list[Step]:
    return [Step(f"single-{length}", [prompts.single(length)]) for length in lengths]


def graph_steps() -> list[Step]:
    """With CUDA graphs: lengths, concurrency, several requests in a prefill, chunks, prefix hits."""
    whole = prompts.single(prompts.PREFIXED)
    return [
        warm_up(),
        *single_steps(prompts.SINGLES),
        *(Step(f"crowd-{count}", prompts.crowd(count), new_tokens=16) for count in (2, 8, 33, 64)),
        Step("prefix", [whole[: prompts.PREFIXED - 1000]], new_tokens=1),
        Step("prefix-hit", [whole], flush=False),
    ]


def eager_steps(layers: int, topk: int) -> list[Step]:
    """Without CUDA graphs, and the keys that one prompt selects."""
    selected = {"layers": layers, "topk": topk}
    selecting = Step(
        f"selected-{prompts.SELECTED}", [prompts.single(prompts.SELECTED)], selected=selected
    )
    return [
        warm_up(),
        *single_steps(prompts.EAGER),
        selecting,
    ]


# -- running them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A scenario for one start of one flavour's engine."""

    name: str
    flavour: Flavour
    arguments: dict[str, Any]
    steps: list[Step]
    environment: dict[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        return {**environ(self.flavour), **self.environment}


@dataclass(frozen=True)
class Served:
    """What a job left in its folder, its exit code and its seconds."""

    job: Job
    folder: Path
    code: int | None
    seconds: float

    @cached_property
    def result(self) -> dict[str, Any]:
        file = self.folder / "result.json"
        return (
            json.loads(file.read_text()) if file.exists() else {"steps": [], "error": "no result"}
        )

    @cached_property
    def answers(self) -> dict[str, list[dict[str, Any]]]:
        """Answers by step, of the steps that have any."""
        return {step["name"]: step["answers"] for step in self.result["steps"] if "answers" in step}

    def answer(self, step: str, index: int = 0) -> dict[str, Any]:
        """
        Raises:
            LookupError: the step gave no answer; says why, with the log's end.
        """
        if step not in self.answers:
            raise LookupError(f"{self.job.name}: no answer to {step}. {self.why()}")
        return self.answers[step][index]

    def keys(self, step: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        with np.load(self.folder / f"{step}.npz") as stored:
            return stored["rows"], stored["keys"]

    def problems(self) -> list[str]:
        """What went wrong, empty when every step was answered."""
        found = []
        if self.code is None:
            found.append(f"killed after {self.seconds:.0f} s")
        elif self.code != 0:
            found.append(f"exit code {self.code}")
        if error := self.result["error"]:
            found.append(str(error))
        found += [f"{s['name']}: {s['error']}" for s in self.result["steps"] if "error" in s]
        done = {step["name"] for step in self.result["steps"]}
        found += [
            f"{step.name} was not reached" for step in self.job.steps if step.name not in done
        ]
        return found

    def why(self, lines: int = 25) -> str:
        log = self.folder / "log.txt"
        ends = children.end_of(log, lines) if log.exists() else ["no log"]
        return "\n".join(["; ".join(self.problems()) or "no problem noted", f"{log} ends:", *ends])


def limit_of(job: Job) -> float:
    """Seconds after which a job is killed."""
    return START + MEANT * len(job.steps)


def run_all(jobs: Sequence[Job], folder: Path, *, at_once: int = 3) -> dict[str, Served]:
    """Run the jobs, ``at_once`` at a time, each within :func:`limit_of` it; by name.

    A process that hangs is killed with all it started. Never raises for a job that fails: its
    :meth:`Served.problems` says so.
    """
    waiting = list(jobs)
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
    done: dict[str, Served] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running.append((job, _start(job, folder / job.name), time.monotonic()))
            time.sleep(0.2)
            for entry in list(running):
                job, process, begin = entry
                seconds = time.monotonic() - begin
                code = process.poll()
                if code is None and seconds < limit_of(job):
                    continue
                running.remove(entry)
                children.kill(process)  # a finished engine may have left processes too
                done[job.name] = Served(job, folder / job.name, code, seconds)
    finally:
        for _, process, _ in running:
            children.kill(process)
    return done


def serve(jobs: Sequence[Job], folder: Path, name: str, *, at_once: int = 3) -> dict[str, Served]:
    """Run the jobs, print how each went, and keep their files below ``name``.

    ``ADA_GPU_JOBS``, if it is set, says how many run at a time, not ``at_once``.
    """
    served = run_all(jobs, folder, at_once=int(os.environ.get("ADA_GPU_JOBS", at_once)))
    for one in served.values():
        print(f"{one.job.name}: {one.seconds:.0f} s, {'; '.join(one.problems()) or 'all answered'}")
    keep_files(served.values(), name)
    return served


def _start(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    scenario = {
        "arguments": job.arguments,
        "steps": [asdict(step) for step in job.steps],
    }
    (folder / "scenario.json").write_text(json.dumps(scenario))
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                RUNNER,
                str(folder / "scenario.json"),
                str(folder),
            ],
            cwd=children.ROOT,
            env=job.environ(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def make_model(folder: Path, *options: str, writer: str = "tiny_model") -> Path:
    """The tiny model's folder, written by the module ``writer`` with these options unless it is there."""
    if not (folder / "model.safetensors").exists():
        command = [sys.executable, "-m", f"{__package__}.{writer}", str(folder), *options]
        subprocess.run(command, cwd=children.ROOT, check=True, timeout=180)
    return folder


# -- the witness ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """Logprobs of tokens 1 and later of each sequence, fp32 and bf16; keys of one, per full layer."""

    exact: dict[str, NDArray[np.float32]]
    rounded: dict[str, NDArray[np.float32]]
    keys: dict[int, NDArray[np.int32]]

    @property
    def rounding(self) -> Distance:
        """The distance that rounding to bf16 makes. Another order of summing makes about as much."""
        both = ([kind[name] for name in sorted(kind)] for kind in (self.rounded, self.exact))
        return distance(*(np.concatenate(said) for said in both))


def witness_of(
    model: Path,
    sequences: Mapping[str, Sequence[int]],
    folder: Path,
    *,
    selecting: str | None = None,
    limit: float = 300.0,
) -> Witness:
    """Run the witness in a child process; ``selecting`` names the sequence whose keys come back.

    Raises:
        subprocess.SubprocessError: it failed, or took more than ``limit`` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given, out = folder / "sequences.json", folder / "witness.npz"
    given.write_text(json.dumps({"sequences": dict(sequences), "selecting": selecting}))
    command = [sys.executable, "-m", f"{__package__}.engines"]
    command += [str(model), str(given), str(out)]
    subprocess.run(command, cwd=children.ROOT, check=True, timeout=limit)
    found: dict[str, dict[str, Any]] = {"exact": {}, "rounded": {}, "keys": {}}
    with np.load(out) as stored:
        for name in stored.files:
            kind, _, key = name.partition("/")
            found[kind][key] = stored[name]
    keys = {int(layer): value for layer, value in found["keys"].items()}
    return Witness(found["exact"], found["rounded"], keys)


def _run_witness(model: Path, given: Path, out: Path) -> None:
    import torch

    from tests.serving.support.witness import token_logprobs

    witness = witness_module(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = json.loads(given.read_text())
    found: dict[str, NDArray[Any]] = {}
    for kind, dtype in (("exact", torch.float32), ("rounded", torch.bfloat16)):
        loaded = witness.load(model, dtype=dtype, device=device)
        for name, tokens in wanted["sequences"].items():
            with_keys = kind == "exact" and name == wanted["selecting"]
            answer = witness.forward(loaded, tokens, with_keys=with_keys)
            found[f"{kind}/{name}"] = token_logprobs(answer, tokens).cpu().numpy()
            for layer, keys in answer.keys.items():
                found[f"keys/{layer}"] = keys.cpu().numpy()
    np.savez(out, **found)


def witness_module(model: Path) -> Any:
    """The module with the model's ``load`` and ``forward``."""
    pooled = json.loads((model / "config.json").read_text())["model_type"] == "glm5_next"
    return import_module(f"{__package__}.{'flash_witness' if pooled else 'witness'}")


def missing_sites() -> str | None:
    """What the comparison of stock and fork lacks here, or None."""
    return children.missing("stack", "fork")


def keep_files(served: Iterable[Served], name: str) -> None:
    """Copy results and logs below the folder that ``ADA_GPU_OUT`` names, if it is set."""
    if not (where := os.environ.get("ADA_GPU_OUT")):
        return
    for one in served:
        folder = Path(where) / name / one.job.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("result.json", "log.txt"):
            if (one.folder / file).exists():
                shutil.copy(one.folder / file, folder / file)


def show_figures(text: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the tables, and write ``NAME.md`` in the folder that ``ADA_GPU_OUT`` names, if it is set."""
    with capsys.disabled():
        print("\n" + text)
    if where := os.environ.get("ADA_GPU_OUT"):
        Path(where, f"{name}.md").write_text(text)


def flavours(names: str) -> list[Flavour]:
    """Those named, comma-separated.

    Raises:
        ValueError: there is none of that name.
    """
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in FLAVOURS]:
        raise ValueError(f"no flavour {', '.join(unknown)}: there are {', '.join(FLAVOURS)}")
    return [FLAVOURS[name] for name in wanted]


if __name__ == "__main__":
    _run_witness(*map(Path, sys.argv[1:4]))
