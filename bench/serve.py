"""Speed of serving: decode steps and prefill of each flavour, on a tiny model whose attention dominates.

    python bench/serve.py [--model FOLDER] [--heads 8] [--json FILE] [--docs FILE] [--fallback WHEEL]

One process a flavour, one start each. Stock natively, the fork natively and under the sm_89 lowering;
with ``--fallback``, also stock's own sm_89 fallback, as functions of a released wheel (or of the small
archive that ``bench/serve_fallback.py --cut`` made of one; ``fallback.zip`` in ``ADA_GPU_HOME`` is taken
if it is there). ``--docs`` writes the table and the plot.

Needs the packages that ``python -m tests.serving.support.stage install`` puts in place, and a Hopper GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from serve_rig import Rig

ROOT: Final = Path(__file__).resolve().parents[1]

STREAMS: Final = (1, 8, 64)
CONTEXTS: Final = (2048, 32_768, 131_072)
PREFILLS: Final = (2048, 8192, 32_768)
CHUNK: Final = 8192
WARM: Final = 5
STEPS: Final = 30
LIMIT: Final = 400.0
"""Seconds that a flavour may take, its start included."""


def changes() -> dict[str, Any]:
    """ServerArgs fields of the benchmark, over what all flavours share."""
    longest = max(CONTEXTS)
    return {
        "context_length": longest + 1024,
        "chunked_prefill_size": CHUNK,
        "max_running_requests": max(STREAMS) + 8,
        "max_total_tokens": max(STREAMS) * (longest + 2 * 64),
        "mem_fraction_static": 0.85,
        "cuda_graph_bs_decode": list(STREAMS),
        "disable_radix_cache": True,
    }


# -- in the child ---------------------------------------------------------------------------------


def measure(flavour: str, given: dict[str, Any], out: Path) -> None:
    """Time every point that fits; ``out`` is written anew after each."""
    from serve_rig import Rig

    begin = time.perf_counter()
    rig = Rig(given)
    found: dict[str, Any] = {
        "flavour": flavour,
        "about": about(rig.runner),
        "start_seconds": time.perf_counter() - begin,
        "capacity": rig.capacity,
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
            rig.clear()
            req = rig.request(0, tokens)
            seconds.append(rig.prefill(req, CHUNK))
        note(kind="prefill", streams=1, context=tokens, **spread(seconds[1:]))
        source = rig.rows(req, tokens)
    assert source is not None
    points = [(streams, context) for context in CONTEXTS for streams in STREAMS]
    # Twice, and the first time is not noted: for its first second a process takes half a millisecond longer
    # between two graphs than ever after, whichever flavour it serves.
    for streams, context in points:
        decode(rig, streams, context, source)
    for streams, context in points:
        timed = decode(rig, streams, context, source)
        note(kind="decode", streams=streams, context=context, **timed)


def decode(rig: Rig, streams: int, context: int, rows: list[torch.Tensor]) -> dict[str, Any]:
    """Times of a step that ends at ``context`` tokens a stream, or the ``reason`` why there are none."""
    if streams * (context + 64) > rig.capacity:
        return {"reason": f"the pool holds {rig.capacity} tokens"}
    rig.clear()
    batch = rig.streams(streams, context - WARM - STEPS, rows)
    steps, graphs = rig.decode(batch, WARM + STEPS)
    if len(graphs) < len(steps):
        return {"reason": f"{len(steps) - len(graphs)} steps ran without a CUDA graph"}
    return {**spread(steps[WARM:]), "gpu_ms": spread(graphs[WARM:])["ms"]}


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the median, the fastest and the slowest."""
    return {
        "ms": statistics.median(seconds) * 1e3,
        "least_ms": min(seconds) * 1e3,
        "most_ms": max(seconds) * 1e3,
    }


def about(runner: Any) -> dict[str, Any]:
    import importlib.metadata

    import torch

    args = runner.server_args
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "sglang": importlib.metadata.version("sglang"),
        "heads": runner.model_config.num_attention_heads,
        "layers": runner.model_config.num_hidden_layers,
        "kv_cache_dtype": args.kv_cache_dtype,
        "dsa_prefill_backend": args.dsa_prefill_backend,
        "dsa_decode_backend": args.dsa_decode_backend,
    }


# -- in the parent --------------------------------------------------------------------------------


def run(name: str, command: list[str], environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run a child that writes ``folder/NAME.json``; what it wrote, and ``error`` if it did not finish."""
    from tests.serving.support.children import end_of, kill

    out, log = folder / f"{name}.json", folder / f"{name}.log"
    begin = time.monotonic()
    with log.open("wb") as to:
        child = subprocess.Popen(
            [*command, str(out)],
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
    parser.add_argument("--model", type=Path, help="model folder; by default one is made")
    parser.add_argument(
        "--heads", type=int, default=8, help="of a model that is made (default 8: a rank at TP=8)"
    )
    parser.add_argument("--flavours", default="stock,fork,fork-sm89", help="default: %(default)s")
    parser.add_argument("--fallback", type=Path, help="released wheel, or what was cut from one")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--docs", type=Path, help="write table and plot there, as Markdown and SVG")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("out", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    from tests.serving.support import engines as shared
    from tests.serving.support.flavours import HOME

    if options.child:
        (flavour,) = shared.flavours(options.child)
        measure(options.child, shared.arguments(flavour, options.model, **changes()), options.out)
        return 0
    if missing := shared.missing_sites():
        parser.error(missing)
    if options.fallback and not options.fallback.exists():
        parser.error(f"{options.fallback}: no such file. Give a wheel of sglang 0.5.22 or later.")
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
            if options.json:  # after each: a benchmark that is stopped keeps what it has
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(result, indent=1) + "\n")

        for flavour in shared.flavours(options.flavours):
            child = [sys.executable, __file__, "--child", flavour.name, "--model", str(model)]
            note(run(flavour.name, child, shared.environ(flavour), folder))
        fallback = options.fallback or HOME / "fallback.zip"
        if fallback.exists():
            child = [sys.executable, str(ROOT / "bench" / "serve_fallback.py")]
            child += ["--from", str(fallback), "--heads", str(options.heads)]
            child += ["--context-length", str(changes()["context_length"]), "--json"]
            path = os.pathsep.join(map(str, (ROOT, HOME / "stack")))
            environment = {**os.environ, "PYTHONPATH": path, "TRITON_OVERRIDE_ARCH": "sm89"}
            note(run("fallback", child, environment, folder))
    import serve_report

    if options.docs:
        serve_report.write(result, options.docs)
    print(serve_report.markdown(result, plot=None))
    return 1 if any("error" in one for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
