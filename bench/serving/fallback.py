"""Time the functions of stock's own sm_89 fallback, from a released wheel, against the fork's kernels.

    python -m bench.serving.fallback --from WHEEL --cut SMALL.zip
    python -m bench.serving.fallback --from WHEEL|SMALL.zip [--heads 64] [--context-length N] [--json FILE]

The first command makes a small archive of what the second one needs, to copy to a GPU machine.

From 0.5.22 on, stock on an RTX 4090 computes the indexer's logits in torch, and TileLang attends over raw
e4m3 rows. Those releases need a newer torch than most machines have, so their server is not started. The
functions ``fp8_paged_mqa_logits_torch`` and ``tilelang_sparse_fwd`` are loaded from the wheel unchanged, and
are timed in a CUDA graph on the same shapes as the fork's.

In a captured step of a server the page tables are as wide as its ``--context-length``, whatever the requests
hold (``dsa_backend.py``: ``max_seqlen_k = self.req_to_token.shape[1]``). Therefore both logits get tables of
that width. Columns past the end of a request name page 0, which the L2 cache then holds. Stock's logits
compute every column, so they are also timed with a table of the context's width. Top-k is the same in both
and is left out. Set TRITON_OVERRIDE_ARCH=sm89; TileLang compiles for the GPU of the machine.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.util
import json
import os
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F

from ada_dsa import fp8_paged_mqa_logits
from ada_dsa.kv_cache.layout import KvLayout
from bench.kernels import indexer, sparse_mla, timing
from bench.kernels.sparse_mla import SM_SCALE
from bench.serving.report import CONTEXTS, NARROW, STREAMS

LOGITS: Final = "sglang/srt/layers/attention/dsv4/indexer.py"
SPARSE: Final = "sglang/kernels/ops/attention/dsa/tilelang_kernel.py"
MEMBERS: Final = (LOGITS, SPARSE)
PAGE: Final = 64


def cut(wheel: Path, small: Path) -> None:
    """Write the members that :func:`load_logits` and :func:`load_sparse` read to a small archive."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as part:
        for member in MEMBERS:
            part.writestr(member, whole.read(member))
        part.comment = wheel.name.encode()


def origin(archive: Path) -> str:
    """The file name of the wheel, or of the wheel that the archive was cut from."""
    with zipfile.ZipFile(archive) as opened:
        return opened.comment.decode() or archive.name


def load_logits(archive: Path) -> Callable[..., torch.Tensor]:
    """The release's ``fp8_paged_mqa_logits_torch``. Its module imports the server, and is not run.

    Raises:
        LookupError: the release has no such function.
    """
    name = "fp8_paged_mqa_logits_torch"
    with zipfile.ZipFile(archive) as opened:
        tree = ast.parse(opened.read(LOGITS))
    found: list[ast.stmt] = [
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name
    ]
    if not found:
        raise LookupError(
            f"{archive}: no {name} in {LOGITS}; give a wheel of sglang 0.5.22 or later"
        )
    values: dict[str, Any] = {
        "torch": torch,
        "F": F,
        "Any": Any,
        "FP8_DTYPE": torch.float8_e4m3fn,
        "_arange_cache": {},
    }
    exec(compile(ast.Module(found, type_ignores=[]), LOGITS, "exec"), values)
    function: Callable[..., torch.Tensor] = values[name]
    return function


def load_sparse(archive: Path, folder: Path) -> Callable[..., torch.Tensor]:
    """The release's ``tilelang_sparse_fwd``.

    Its module is written to ``folder``, because TileLang reads the source. The three functions that it
    imports from sglang say whether this is an AMD GPU; stand-ins say that it is not.
    """
    file = folder / "tilelang_kernel.py"
    with zipfile.ZipFile(archive) as opened:
        file.write_bytes(opened.read(SPARSE))
    stand_ins = {
        "sglang.kernels.ops.quantization.fp8_kernel": ("is_fp8_fnuz",),
        "sglang.srt.utils": ("is_gfx95_supported", "is_hip"),
    }
    before = {name: module for name, module in sys.modules.items() if name.startswith("sglang")}
    try:
        for name, functions in stand_ins.items():
            parts = name.split(".")
            for end in range(1, len(parts)):
                sys.modules.setdefault(
                    ".".join(parts[:end]), types.ModuleType(".".join(parts[:end]))
                )
            sys.modules[name] = types.ModuleType(name)
            for asked in functions:
                setattr(sys.modules[name], asked, lambda: False)
        spec = importlib.util.spec_from_file_location("released_tilelang_kernel", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name in [name for name in sys.modules if name.startswith("sglang")]:
            del sys.modules[name]
        sys.modules.update(before)
    function: Callable[..., torch.Tensor] = module.tilelang_sparse_fwd
    return function


def calls_at(
    logits: Callable[..., torch.Tensor],
    sparse: Callable[..., torch.Tensor],
    point: tuple[int, int],
    heads: int,
    longest: int,
) -> tuple[dict[str, Callable[[], object]], Callable[[], float]]:
    """The calls to time at ``point``, which is streams and context.

    Args:
        longest: the server's ``--context-length`` in tokens.

    Returns:
        The calls by name, and a function that computes how far stock's logits, of bf16 products, are from
        ours: the mean difference over the mean size.
    """
    streams, context = point
    index = indexer.paged_work([context] * streams, torch.device("cuda"), longest=longest)
    lens = index.lens[:, 0].contiguous()
    wide = index.tables[0]
    narrow = wide[:, : -(-context // PAGE)].contiguous()
    theirs = sparse_mla.make_work(streams, heads, 1 << 18, KvLayout.RAW_FP8)
    ours = sparse_mla.make_work(streams, heads, 1 << 18, KvLayout.PACKED_FP8)

    def stock(table: torch.Tensor) -> torch.Tensor:
        width = table.shape[1] * PAGE
        given = (index.q, index.pool, index.weights, lens, table, None, width)
        return logits(*given, clean_logits=False)

    def off() -> float:
        other = stock(narrow)
        own = fp8_paged_mqa_logits(
            index.q, index.pool, index.weights, index.lens, narrow, None, other.shape[1]
        )
        seen = torch.arange(other.shape[1], device=other.device) < lens[:, None]
        return float((own - other).abs()[seen].mean() / own.abs()[seen].mean())

    calls: dict[str, Callable[[], object]] = {
        "our logits": indexer.ours_paged(index),
        "their logits": lambda: stock(wide),
        NARROW: lambda: stock(narrow),
        "our attention": sparse_mla.rotating(ours, sparse_mla.ours(ours)),
        "their attention": sparse_mla.rotating(
            theirs, lambda at: sparse(theirs.q, theirs.pool, at.unsqueeze(1), SM_SCALE, 512)
        ),
    }
    return calls, off


def compare(
    logits: Callable[..., torch.Tensor],
    sparse: Callable[..., torch.Tensor],
    heads: int,
    longest: int,
    note: Callable[..., None],
) -> None:
    """Time stock's functions and ours at every point.

    Args:
        longest: the server's ``--context-length`` in tokens.
        note: is called with each row: ``us`` and ``errors`` by call, and ``logits_off`` as
            :func:`calls_at` has it.
    """
    for context in CONTEXTS:
        for streams in STREAMS:
            gc.collect()
            torch.cuda.empty_cache()
            calls, off = calls_at(logits, sparse, (streams, context), heads, longest)
            times, errors = timing.measure(calls, 0.2)
            note(
                kind="functions",
                streams=streams,
                context=context,
                us=times,
                errors=errors,
                logits_off=None if NARROW in errors else off(),
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="archive", type=Path, required=True, metavar="FILE",
        help="a wheel of sglang 0.5.22 or later, or what was cut from one",
    )  # fmt: skip
    parser.add_argument("--cut", type=Path, metavar="SMALL.zip", help="only make the small archive")
    parser.add_argument("--heads", type=int, default=64, help="attention heads")
    parser.add_argument(
        "--context-length",
        type=int,
        default=max(CONTEXTS),
        metavar="N",
        help="of the server, tokens",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options = parser.parse_args(arguments)
    if options.cut:
        cut(options.archive, options.cut)
        return 0
    if not torch.cuda.is_available():
        print("bench.serving.fallback: no CUDA GPU is visible, and this needs one", file=sys.stderr)
        return 2
    import tilelang
    import triton

    found: dict[str, Any] = {
        "about": {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "tilelang": tilelang.__version__,
            "lowering": os.environ.get("TRITON_OVERRIDE_ARCH", ""),
            "from": origin(options.archive),
            "heads": options.heads,
            "context_length": options.context_length,
        },
        "rows": [],
    }

    def note(**row: Any) -> None:
        found["rows"].append(row)
        if options.json:
            options.json.write_text(json.dumps(found))
        print(json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        sparse = load_sparse(options.archive, Path(folder))
        logits = load_logits(options.archive)
        compare(logits, sparse, options.heads, options.context_length, note)
    return 1 if any(row["errors"] for row in found["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
