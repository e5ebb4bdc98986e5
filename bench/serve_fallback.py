"""Stock's own way to serve GLM-5.2 on sm_89, as functions of a released wheel, against ours.

    python bench/serve_fallback.py --cut SMALL.zip --from WHEEL      what the rest needs, to send elsewhere
    python bench/serve_fallback.py --from WHEEL|SMALL.zip [--heads 64] [--json FILE]

From 0.5.22 on, stock on an RTX 4090 computes the indexer's logits in torch and attends by TileLang over raw
e4m3 rows. Those releases need a newer torch than most machines have, so their server is not started:
``fp8_paged_mqa_logits_torch`` and ``tilelang_sparse_fwd`` are loaded from the wheel, unchanged, and timed
in a CUDA graph, as ours are, on the same shapes. Stock's logits get a page table of exactly the context's
width; its server would give them the width of the longest context. Top-k is the same in both and left out.
Run it under ``TRITON_OVERRIDE_ARCH=sm89``; TileLang compiles for the GPU at hand.
"""

from __future__ import annotations

import argparse
import ast
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

BENCH: Final = Path(__file__).resolve().parent
LOGITS: Final = "sglang/srt/layers/attention/dsv4/indexer.py"
SPARSE: Final = "sglang/kernels/ops/attention/dsa/tilelang_kernel.py"
MEMBERS: Final = (LOGITS, SPARSE)
STREAMS: Final = (1, 8, 64)
CONTEXTS: Final = (2048, 32_768, 131_072)
PAGE: Final = 64


def cut(wheel: Path, small: Path) -> None:
    """Write an archive of the members that :func:`load_logits` and :func:`load_sparse` read."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as part:
        for member in MEMBERS:
            part.writestr(member, whole.read(member))


def load_logits(archive: Path) -> Callable[..., torch.Tensor]:
    """The release's ``fp8_paged_mqa_logits_torch``; its module, which imports a server, is not run.

    Raises:
        LookupError: the release has no such function.
    """
    name = "fp8_paged_mqa_logits_torch"
    with zipfile.ZipFile(archive) as opened:
        tree = ast.parse(opened.read(LOGITS))
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    if not found:
        raise LookupError(f"{archive}: no {name} in {LOGITS}. Give the wheel of 0.5.22 or later.")
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
    """The release's ``tilelang_sparse_fwd``, from its module in ``folder``: TileLang reads the source.

    The three functions that the module takes from sglang only ask whether this is an AMD GPU.
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
            for function in functions:
                setattr(sys.modules[name], function, lambda: False)
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


def compare(
    logits: Callable[..., torch.Tensor],
    sparse: Callable[..., torch.Tensor],
    heads: int,
    note: Callable[..., None],
) -> None:
    """Time both functions and ours at every point; ``note`` is called with each row.

    A row has ``us`` per call by way, ``errors`` by way, and ``logits_off``: the mean difference of the
    two logits over ours' mean size. Stock's are products in bf16.
    """
    import gc

    import indexer
    import run
    import sparse_mla
    from sparse_mla import SM_SCALE, KvLayout

    from ada_dsa import fp8_paged_mqa_logits

    device = torch.device("cuda")
    for context in CONTEXTS:
        for streams in STREAMS:
            gc.collect()
            torch.cuda.empty_cache()
            index = indexer.paged_work([context] * streams, device)
            lens = index.lens[:, 0].contiguous()
            table = index.tables[0].contiguous()
            theirs_rows = sparse_mla.make_work(streams, heads, 1 << 18, KvLayout.RAW_FP8)
            our_rows = sparse_mla.make_work(streams, heads, 1 << 18, KvLayout.PACKED_FP8)
            ways: dict[str, Callable[[], object]] = {
                "our logits": indexer.ours_paged(index),
                "their logits": lambda: logits(
                    index.q,
                    index.pool,
                    index.weights,
                    lens,
                    table,
                    None,
                    index.width,
                    clean_logits=False,
                ),
                "our attention": sparse_mla.rotating(our_rows, sparse_mla.ours(our_rows)),
                "their attention": sparse_mla.rotating(
                    theirs_rows,
                    lambda at: sparse(
                        theirs_rows.q, theirs_rows.pool, at.unsqueeze(1), SM_SCALE, 512
                    ),
                ),
            }
            times, errors = run.measure(ways, 0.2)
            off = None
            if "their logits" not in errors:
                pages = (index.lens, table, None, index.width)
                ours = fp8_paged_mqa_logits(index.q, index.pool, index.weights, *pages)
                theirs = ways["their logits"]()
                assert isinstance(theirs, torch.Tensor)
                off = float((ours - theirs).abs().mean() / ours.abs().mean())
            note(
                kind="functions",
                streams=streams,
                context=context,
                us=times,
                errors=errors,
                logits_off=off,
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="archive", type=Path, required=True, metavar="WHEEL|ZIP")
    parser.add_argument("--cut", type=Path, metavar="SMALL.zip")
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.cut:
        cut(options.archive, options.cut)
        return 0
    if not torch.cuda.is_available():
        print("bench/serve_fallback.py: no CUDA device is visible; it needs one", file=sys.stderr)
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
            "from": options.archive.name,
            "heads": options.heads,
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
        compare(load_logits(options.archive), sparse, options.heads, note)
    return 1 if any(row["errors"] for row in found["rows"]) else 0


if __name__ == "__main__":
    sys.path.insert(0, str(BENCH))
    sys.exit(main())
