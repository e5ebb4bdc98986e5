"""Time decode steps and prefill in sglang's model runner, with a tiny model whose attention dominates.

    python -m bench.serving.steps [--model FOLDER] [--heads 8] [--flavours LIST] [--fallback FILE]
        [--json FILE] [--docs FILE]

Stock is timed natively, the fork natively and under the sm_89 lowering, each in a process of its own. If
there is a file for ``--fallback``, the functions of stock's own sm_89 fallback are timed too
(``fallback.py``). The file is a released wheel, or the small archive that ``bench.serving.fallback --cut``
made of one; the default is ``fallback.zip`` in ADA_GPU_HOME. ``--docs`` writes a page and its plot.

This needs the packages that ``python -m tests.serving.support.stage install`` puts in place, and a
Hopper GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.serving import report
from bench.serving.report import CONTEXTS, STREAMS
from tests.serving.support import engines as shared
from tests.serving.support.children import end_of, kill
from tests.serving.support.flavours import HOME, MAIN

if TYPE_CHECKING:
    import torch

    from bench.serving.harness import Harness

ROOT: Final = Path(__file__).resolve().parents[2]

PREFILLS: Final = (2048, 8192, 32_768)
CHUNK: Final = 8192
WARM: Final = 5
STEPS: Final = 30
"""Decode steps that are timed, after WARM others."""
LIMIT: Final = 400.0
"""Seconds that a child process may take, its start included."""


def changes(contexts: Sequence[int] = CONTEXTS) -> dict[str, Any]:
    """The fields of ServerArgs in which the benchmark differs from the GPU tests."""
    longest = max(contexts)
    return {
        "context_length": longest + 1024,
        "chunked_prefill_size": CHUNK,
        "max_running_requests": max(STREAMS) + 8,
        "max_total_tokens": max(STREAMS) * (longest + 2 * 64),
        "mem_fraction_static": 0.85,
        "cuda_graph_bs_decode": list(STREAMS),
        "disable_radix_cache": True,
    }


# -- in the child process -------------------------------------------------------------------------


def measure(
    flavour: str, given: dict[str, Any], out: Path, contexts: Sequence[int] = CONTEXTS
) -> None:
    """Time one flavour and write ``out`` again after each result."""
    from bench.serving.harness import Harness

    begin = time.perf_counter()
    harness = Harness(given)
    found: dict[str, Any] = {
        "flavour": flavour,
        "about": about(harness.runner),
        "start_seconds": time.perf_counter() - begin,
        "capacity": harness.capacity,
        "rows": [],
    }

    def note(**row: Any) -> None:
        found["rows"].append(row)
        out.write_text(json.dumps(found))
        print(json.dumps(row), flush=True)

    source = None
    for tokens in PREFILLS:
        seconds = []
        for _ in range(4):
            harness.clear()
            req = harness.request(0, tokens)
            seconds.append(harness.prefill(req, CHUNK))
        note(kind="prefill", streams=1, context=tokens, **spread(seconds[1:]))
        source = harness.rows(req, tokens)
    assert source is not None
    points = [(streams, context) for context in contexts for streams in STREAMS]
    # The first pass is not recorded. For about a second, a new process of any flavour takes half a
    # millisecond longer between two graphs than later on.
    for streams, context in points:
        decode(harness, streams, context, source)
    for streams, context in points:
        timed = decode(harness, streams, context, source)
        note(kind="decode", streams=streams, context=context, **timed)


def decode(
    harness: Harness, streams: int, context: int, rows: list[torch.Tensor]
) -> dict[str, float] | dict[str, str]:
    """Time steps up to ``context`` tokens a stream.

    Args:
        rows: of a prefilled prompt, as :meth:`Harness.rows` gives them.

    Returns:
        ``ms``, ``least_ms`` and ``most_ms`` of a whole step and ``gpu_ms`` of its graph on the GPU; or
        the ``reason`` why there are no times.
    """
    if streams * (context + 64) > harness.capacity:
        return {"reason": f"the pool holds {harness.capacity} tokens"}
    harness.clear()
    batch = harness.streams(streams, context - WARM - STEPS, rows)
    steps, graphs = harness.decode(batch, WARM + STEPS)
    if len(graphs) < len(steps):
        return {"reason": f"{len(steps) - len(graphs)} steps ran without a CUDA graph"}
    return {**spread(steps[WARM:]), "gpu_ms": spread(graphs[WARM:])["ms"]}


def spread(seconds: list[float]) -> dict[str, float]:
    """The median, the least and the most of some seconds, in milliseconds."""
    return {
        "ms": statistics.median(seconds) * 1e3,
        "least_ms": min(seconds) * 1e3,
        "most_ms": max(seconds) * 1e3,
    }


def about(runner: Any) -> dict[str, Any]:
    """The GPU, the versions, and how the model is served."""
    import torch

    args = runner.server_args.resolved_dict()
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "sglang": importlib.metadata.version("sglang"),
        "heads": runner.model_config.num_attention_heads,
        "layers": runner.model_config.num_hidden_layers,
        "kv_cache_dtype": args["kv_cache_dtype"],
        "dsa_prefill_backend": args["dsa_prefill_backend"],
        "dsa_decode_backend": args["dsa_decode_backend"],
    }


# -- in the parent process ------------------------------------------------------------------------


def run(name: str, command: list[str], environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run a command that writes the results ``folder/NAME.json``, and stop it after LIMIT seconds.

    Returns:
        The results, with an ``error`` if the command failed or was stopped.
    """
    out, log = folder / f"{name}.json", folder / f"{name}.log"
    begin = time.monotonic()
    with log.open("wb") as to:
        child = subprocess.Popen(
            [*command, str(out)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code: int | None = child.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        kill(child)
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    found["flavour"] = name
    found["seconds"] = round(time.monotonic() - begin, 1)
    if code != 0:
        ending = f"exit code {code}" if code else f"over {LIMIT:.0f} s"
        found["error"] = "\n".join([ending, *end_of(log)])
        print(f"{name}: {found['error']}", file=sys.stderr)
    print(f"{name}: {len(found['rows'])} points in {found['seconds']} s", flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a model (default: make one)")
    parser.add_argument(
        "--heads", type=int, default=8, help="heads of the model that is made (8: a rank at TP=8)"
    )
    parser.add_argument(
        "--flavours", default=",".join(MAIN), help="comma-separated (default: %(default)s)"
    )
    parser.add_argument(
        "--fallback", type=Path, metavar="FILE", help="a released wheel, or what was cut from one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="write the page there, and the plot beside it"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("out", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        (flavour,) = shared.flavours(options.child)
        given = shared.arguments(flavour, options.model, **changes())
        measure(options.child, given, options.out)
        return 0
    if missing := shared.missing_sites():
        parser.error(missing)
    if options.fallback and not options.fallback.exists():
        parser.error(f"{options.fallback} does not exist; give a wheel of sglang 0.5.22 or later")
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        model = shared.make_model(options.model or folder / "model", "--heads", str(options.heads))
        runs: list[dict[str, Any]] = []
        result = {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "runs": runs,
        }

        def note(one: dict[str, Any]) -> None:
            runs.append(one)
            if options.json:  # after each, so that a run that is stopped keeps what it has
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(result, indent=1) + "\n")

        for flavour in shared.flavours(options.flavours):
            child = [sys.executable, "-m", "bench.serving.steps", "--child", flavour.name]
            child += ["--model", str(model.absolute())]
            note(run(flavour.name, child, shared.environ(flavour), folder))
        fallback = options.fallback or HOME / "fallback.zip"
        if fallback.exists():
            child = [sys.executable, "-m", "bench.serving.fallback"]
            child += ["--from", str(fallback.absolute()), "--heads", str(options.heads)]
            child += ["--context-length", str(changes()["context_length"]), "--json"]
            path = os.pathsep.join(map(str, (ROOT, HOME / "stack")))
            environment = {**os.environ, "PYTHONPATH": path, "TRITON_OVERRIDE_ARCH": "sm89"}
            note(run("fallback", child, environment, folder))
    if options.docs:
        report.write(result, options.docs)
    print(report.markdown(result, plot=None))
    return 1 if any("error" in one for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
