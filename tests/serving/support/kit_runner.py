"""Child process: sglang's own DSA attention kit, unmodified, against one DSA backend.

The kit ships inside the wheel (``sglang.test.kits.attention_unittest``): it builds a pool, a backend and a
layer, and compares with its own torch reference. It takes the backend's name as an argument; its list
of kernels for each GPU, which some of its entry points consult first, does not know names that it was
not written with, so the functions behind those entry points are called too.

``kit/`` cases run as the kit has them. Two things make them weak: its tolerance of 0.16 is wider than
the outputs themselves (about 0.03), and it hands positions to a backend that, while top-k is fused
(the default), takes them for slots. ``keys/`` cases close both gaps with the kit's own options:
``SGLANG_DSA_FUSE_TOPK=0`` and lists of 2048, so that the keys are the ones that the reference reads, and
the relative error of each comparison the kit makes is bounded as well.

Prints one JSON line per case: ``case``, ``outcome`` (passed, failed, skipped), ``says``, ``error`` (the
largest relative error, null where nothing was compared), ``seconds``; ``begin`` before each, ``end`` at last.
``--list`` prints the names alone and needs no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from unittest import mock

Body = Callable[[unittest.TestCase], None]

KV: Final = (("bf16", False), ("fp8", True))
BOUNDS: Final = {"bf16": 0.008, "fp8": 0.06}
"""Relative error (norms). One lost key of 2048 makes 0.01, rounding to bf16 0.003, e4m3 rows up to 0.03."""
LAYOUTS: Final = ("contiguous", "shuffled_pages", "interleaved_pages", "non_monotonic_extend")
PATTERNS: Final = ("trailing", "strided", "head_tail")
HEADS: Final = (8, 16, 64)
"""Beside the kit's own 4: what 8, 4 or 1 ranks of GLM-5.2 see."""
TOPK: Final = 2048
SPECULATED: Final = (((128,), (3,)), ((64, 200), (4, 4)), ((4096,), (2,)))
"""Prefix and draft lengths."""
FATAL: Final = ("CUDA error", "device-side assert", "illegal memory access")
"""After one of these the CUDA context is lost, and no later result of the process counts."""


@dataclass(frozen=True)
class Case:
    """``bound`` is of the relative error; with one, top-k is not fused."""

    name: str
    body: Body
    bound: float | None = None


def cases(backend: str) -> Iterator[Case]:
    """All cases, in the order to run them."""
    yield from _as_they_are(backend)
    yield from _with_their_keys(backend)
    yield from _gated(backend)


def _as_they_are(backend: str) -> Iterator[Case]:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.test.kits.attention_unittest.attention_methods import dsa_attention as kit
    from sglang.test.kits.attention_unittest.runner_modes import (
        cuda_graph_decode_runner,
        speculative_draft_runner,
    )

    both = {"dsa_prefill_backend": backend, "dsa_decode_backend": backend}
    sparse = kit.make_dsa_sparse_cases("dsa")
    decode = [case for case in sparse if case.forward_mode.is_decode()]
    longest = max(decode, key=lambda case: max(case.prefix_lens))
    for (kv, fp8), case in itertools.product(KV, sparse):
        body = partial(kit.run_dsa_sparse_attention_case, case=case, fp8_kv_cache=fp8, **both)
        yield Case(f"kit/{_mode(case)}/{kv}/{case.name}", body)
    for mode in (ForwardMode.TARGET_VERIFY, ForwardMode.DRAFT_EXTEND_V2):
        for prefixes, drafts in SPECULATED:
            case = _speculated(longest, mode, prefixes, drafts)
            body = partial(
                kit.run_dsa_sparse_speculative_forward_mode_case,
                case=case,
                dsa_decode_backend=backend,
            )
            yield Case(f"kit/{mode.name.lower()}/bf16/{case.name}", body)
    for (kv, fp8), case in itertools.product(KV, decode):
        body = partial(
            cuda_graph_decode_runner.run_dsa_sparse_cuda_graph_decode_case,
            case=case,
            dsa_decode_backend=backend,
            fp8_kv_cache=fp8,
        )
        yield Case(f"kit/graph_metadata/{kv}/{case.name}", body)
    chain = dataclasses.replace(longest, name="eagle_chain", prefix_lens=(128, 192))
    body = partial(_fixed, speculative_draft_runner, both)
    body = partial(body, speculative_draft_runner.run_dsa_eagle_draft_cuda_graph_runner_case, chain)
    yield Case("kit/eagle_draft_graph/bf16/chain", body)


def _with_their_keys(backend: str) -> Iterator[Case]:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.test.kits.attention_unittest.attention_methods import dsa_attention as kit
    from sglang.test.kits.attention_unittest.runner_modes import cuda_graph_decode_runner

    both = {"dsa_prefill_backend": backend, "dsa_decode_backend": backend}
    sparse = kit.make_dsa_sparse_cases("dsa")
    decode = [case for case in sparse if case.forward_mode.is_decode()]
    longest = max(decode, key=lambda case: max(case.prefix_lens))
    several = max((c for c in sparse if c not in decode), key=lambda case: case.batch_size)
    deep = dataclasses.replace(longest, name="dsa_sparse_decode_deep", prefix_lens=(4096, 2100))

    def keys(kv: str, name: str, case: Any, **arguments: Any) -> Case:
        body = partial(
            kit.run_dsa_sparse_attention_case,
            case=case,
            fp8_kv_cache=kv == "fp8",
            index_topk=TOPK,
            **both,
            **arguments,
        )
        # Other backends quantize bf16 rows on the way to their kernel.
        bound = BOUNDS[kv if backend == "ada_dsa" else "fp8"]
        return Case(f"keys/{_mode(case)}/{kv}/{name}", body, bound)

    for kv, _ in KV:
        for case in (*sparse, deep):
            yield keys(kv, case.name, case)
        for layout, case in itertools.product(LAYOUTS, (deep, several)):
            yield keys(kv, f"{case.name}/{layout}", case, loc_layout=layout)
        for pattern in PATTERNS:
            yield keys(kv, f"{deep.name}/{pattern}", deep, index_pattern=pattern)
        for heads, case in itertools.product(HEADS, (deep, several)):
            changed = dataclasses.replace(case, name=f"{case.name}_{heads}", num_heads=heads)
            yield keys(kv, changed.name, changed)
        for mode in (ForwardMode.TARGET_VERIFY, ForwardMode.DRAFT_EXTEND_V2):
            for prefixes, drafts in SPECULATED:
                case = _speculated(longest, mode, prefixes, drafts)
                yield keys(kv, case.name, case)
        for case in (*decode, deep):
            bound = BOUNDS[kv if backend == "ada_dsa" else "fp8"]
            body = partial(_fixed, cuda_graph_decode_runner, {"index_topk": TOPK})
            body = partial(
                body,
                cuda_graph_decode_runner.run_dsa_sparse_cuda_graph_decode_case,
                case,
                dsa_decode_backend=backend,
                fp8_kv_cache=kv == "fp8",
            )
            yield Case(f"keys/graph_metadata/{kv}/{case.name}", body, bound)
            body = partial(_replayed, case=case, fp8_kv_cache=kv == "fp8", **both)
            yield Case(f"keys/graph/{kv}/{case.name}", body, bound)


def _gated(backend: str) -> Iterator[Case]:
    """Entry points that ask the kit's list of kernels, and those that no DSA backend takes part in."""
    from sglang.test.kits.attention_unittest.attention_methods import dsa_attention as kit

    sparse = kit.make_dsa_sparse_cases("dsa")
    prefill = next(case for case in sparse if not case.forward_mode.is_decode())
    decode = next(case for case in sparse if case.forward_mode.is_decode())
    for name, run, case, argument in (
        ("prefill", kit.run_dsa_sparse_prefill_impl_variant_case, prefill, "impl"),
        ("decode", kit.run_dsa_sparse_decode_impl_variant_case, decode, "impl"),
        ("graph", kit.run_dsa_sparse_cuda_graph_decode_impl_variant_case, decode, "impl"),
        ("fp8_prefill", kit.run_dsa_sparse_fp8_prefill_case, prefill, "dsa_prefill_backend"),
        ("fp8_decode", kit.run_dsa_sparse_fp8_decode_case, decode, "dsa_decode_backend"),
    ):
        yield Case(f"gated/{name}", partial(run, case=case, **{argument: backend}))
    for case in kit.make_dsa_dense_fallback_cases("dsa"):
        yield Case(f"dense/{case.name}", partial(_dense, kit, case, backend))


def _speculated(base: Any, mode: Any, prefixes: tuple[int, ...], drafts: tuple[int, ...]) -> Any:
    name = f"dsa_sparse_{mode.name.lower()}_{'_'.join(map(str, prefixes))}"
    return dataclasses.replace(
        base, name=name, forward_mode=mode, prefix_lens=prefixes, extend_lens=drafts
    )


def _mode(case: Any) -> str:
    name = case.forward_mode.name.lower()
    return "prefill" if name == "extend" else str(name)


def _fixed(
    module: Any,
    arguments: dict[str, Any],
    run: Callable[..., None],
    case: Any,
    test: unittest.TestCase,
    **more: Any,
) -> None:
    """Run a case of a module that does not hand ``arguments`` on to the fixture, which takes them."""
    name = "build_dsa_sparse_attention_fixture"
    with mock.patch.object(module, name, partial(getattr(module, name), **arguments)):
        run(test, case, **more)


def _replayed(test: unittest.TestCase, case: Any, **arguments: Any) -> None:
    """The kit's fixture and reference around a graph that is really captured and replayed.

    The kit's own graph case fills the metadata of a graph, and launches the kernels eagerly.
    """
    import torch
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
    from sglang.test.kits.attention_unittest.attention_methods import dsa_attention as kit

    fixture = kit.build_dsa_sparse_attention_fixture(test, case, index_topk=TOPK, **arguments)
    inputs = kit.dsa_sparse_fixture_inputs(fixture)
    expected = kit.expected_dsa_sparse_fixture_output(fixture)
    batch = fixture.forward_batch
    with torch.no_grad(), forward_context(ForwardContext(attn_backend=fixture.backend)):
        fixture.backend.init_forward_metadata(batch)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            kit.run_dsa_sparse_forward(fixture, batch, inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            actual = kit.run_dsa_sparse_forward(fixture, batch, inputs)
        for _ in range(2):
            actual.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            tolerance = kit.DSA_SPARSE_FP8_ATOL
            torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def _dense(kit: Any, case: Any, backend: str, test: unittest.TestCase) -> None:
    if backend == "ada_dsa":
        test.skipTest("dense one-shot prefill runs FlashAttention 3, whatever the DSA backend")
    kit.run_dsa_attention_case(test, case, head_dim=128)


def main() -> int:
    parser = argparse.ArgumentParser(description="sglang's DSA attention kit against one backend")
    parser.add_argument("--backend", default="ada_dsa")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [case for case in cases(options.backend) if options.only in case.name]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    lost = ""
    for case in chosen:
        _say({"begin": case.name})
        start = time.monotonic()
        if lost:
            row: dict[str, Any] = {"outcome": "failed", "says": f"not run: {lost}", "error": None}
        else:
            row = _outcome(case)
        if row["outcome"] == "failed" and any(sign in row["says"] for sign in FATAL):
            lost = lost or f"the CUDA context was lost in {case.name}"
        _say({"case": case.name, **row, "seconds": round(time.monotonic() - start, 3)})
    _say({"end": len(chosen)})
    return 0


def _outcome(case: Case) -> dict[str, Any]:
    import torch
    from sglang.srt.environ import envs

    errors: list[float] = []
    compare = torch.testing.assert_close

    def measured(actual: Any, expected: Any, *args: Any, **kwargs: Any) -> None:
        if torch.is_tensor(actual) and torch.is_tensor(expected):  # the kit compares None with None
            scale = expected.float().norm()
            errors.append(float((actual.float() - expected.float()).norm() / scale))
        compare(actual, expected, *args, **kwargs)

    outcome, says = "passed", ""
    try:
        with (
            mock.patch.object(torch.testing, "assert_close", measured),
            envs.SGLANG_DSA_FUSE_TOPK.override(case.bound is None),
        ):
            case.body(unittest.TestCase())
        torch.cuda.synchronize()
    except unittest.SkipTest as reason:
        outcome, says = "skipped", str(reason)
    except Exception as err:
        frame = traceback.extract_tb(err.__traceback__)[-1]
        text = " ".join(f"{type(err).__name__}: {err}".split())
        outcome, says = "failed", f"{text[:600]} ({frame.filename}:{frame.lineno})"
    error = max(errors, key=lambda one: (one != one, one), default=None)  # a NaN above all
    if (
        outcome == "passed"
        and case.bound is not None
        and not (error is not None and error <= case.bound)
    ):
        outcome, says = "failed", f"relative error {error}, at most {case.bound} is right"
    return {"outcome": outcome, "says": says, "error": error if error == error else None}


def _say(row: dict[str, object]) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
