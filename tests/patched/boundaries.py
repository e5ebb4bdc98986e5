"""Where the fork's start differs from sglang's, and why: a matrix over GPUs, models and options.

``cells`` resolves the arguments of every cell in the tree that is first on the path. The rules below say
what the fork does differently. A cell without a rule must be equal. Run as a program, this file prints
``docs/boundaries.md`` from the same rules.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

SMS = (80, 86, 89, 90, 100, 120, 121)
GLM, V32 = "GLM-5.2", "DeepSeek-V3.2"
MODELS = {GLM: "glm", V32: "deepseek_v32"}
HEADS = 16
"""Attention heads of the tiny models."""
QUANTISED: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": None},
}
BOTH = ("prefill", "decode")
TOPK_V2 = "SGLANG_OPT_USE_TOPK_V2"
KERNELS = (
    "ada_dsa",
    "flashmla_kv",
    "flashmla_sparse",
    "fa3",
    "trtllm",
    "tilelang",
    "flashinfer_sparse_mla",
)
FP8, BF16 = {"kv_cache_dtype": "fp8_e4m3"}, {"kv_cache_dtype": "bfloat16"}
MTP = {
    "speculative_algorithm": "EAGLE",
    "speculative_num_steps": 3,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}
PP = {"pp_size": 2, "disable_overlap_schedule": True}


def dsa(prefill: str | None = None, decode: str | None = None) -> dict[str, Any]:
    chosen = {"prefill": prefill, "decode": decode}
    return {f"dsa_{phase}_backend": name for phase, name in chosen.items() if name}


OPTIONS: dict[str, dict[str, Any]] = {
    "no option": {},
    "attention flashinfer": {"attention_backend": "flashinfer"},
    "attention triton": {"attention_backend": "triton"},
    "attention by phase": {
        "prefill_attention_backend": "flashinfer",
        "decode_attention_backend": "triton",
    },
    "fp8 rows": FP8,
    "bf16 rows": BF16,
    "e5m2 rows": {"kv_cache_dtype": "fp8_e5m2"},
    **{f"{name}, fp8 rows": {**FP8, **dsa(name, name)} for name in KERNELS},
    **{f"{name}, bf16 rows": {**BF16, **dsa(name, name)} for name in KERNELS},
    "ada_dsa": dsa("ada_dsa", "ada_dsa"),
    "prefill ada_dsa": {**FP8, **dsa(prefill="ada_dsa")},
    "decode ada_dsa": {**FP8, **dsa(decode="ada_dsa")},
    "prefill triton_sparse_mla": {**FP8, **dsa(prefill="triton_sparse_mla")},
    "logits deepgemm": {"dsa_paged_mqa_logits_backend": "deepgemm"},
    "logits cutedsl": {"dsa_paged_mqa_logits_backend": "cutedsl"},
    **{f"{name} weights": {"weights": name} for name in QUANTISED},
    "MTP": MTP,
    "MTP on pipeline stages": {**MTP, **PP},
    "pipeline stages": PP,
    "DP attention": {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True},
    "4 heads on a rank": {"tp_size": 4},
    "DCP": {"tp_size": 2, "dcp_size": 2},
    "HiSparse": {"enable_hisparse": True, "disable_radix_cache": True},
    "HiCache": {"enable_hierarchical_cache": True},
    "no prefix cache": {"disable_radix_cache": True},
    "page size 1": {"page_size": 1},
    "page size 128": {"page_size": 128},
    "deterministic": {"enable_deterministic_inference": True},
}


LACKING = "not an option of this release: "
"""Begins the outcome of a cell that a release cannot be asked for."""


# -- what a tree resolves ---------------------------------------------------------------------------


def cells(
    configs: Mapping[str, Mapping[str, Any]],
    resolve: Callable[..., Mapping[str, Any]],
    write: Callable[[Path, Mapping[str, Any]], str],
    capability: Callable[[int, int], Any],
    kind: str,
) -> dict[str, Any]:
    """Every cell's outcome in this tree. A release is asked only for what its command line accepts.

    Args:
        configs: the tiny models.
        resolve: ``resolve(model_path, **options)`` gives the resolved arguments by name.
        write: writes a configuration as a model folder and returns its path.
        capability: a context manager that makes the GPU one of that compute capability.
        kind: the prefix of the DSA options in this era, ``dsa`` or ``nsa``.
    """
    found: dict[str, Any] = {}
    parser = _command_line()
    os.environ.pop(TOPK_V2, None)  # a start before this one may have set it
    started_with = dict(os.environ)
    paths: dict[tuple[str, str], str] = {}
    for config, weights in itertools.product(MODELS.values(), ("", *QUANTISED)):
        quantised = {"quantization_config": QUANTISED[weights]} if weights else {}
        folder = Path(f"boundaries_{config}_{weights or 'plain'}")
        paths[config, weights] = write(folder, {**configs[config], **quantised})
    for sm in SMS:
        with capability(sm // 10, sm % 10):  # empties sglang's caches, so not for each cell
            for (model, config), (name, options) in itertools.product(
                MODELS.items(), OPTIONS.items()
            ):
                given = {
                    field.replace("dsa_", f"{kind}_", 1): value
                    for field, value in options.items()
                    if field != "weights"
                }
                path = paths[config, options.get("weights", "")]
                if refused := _find_lacking(parser, given):
                    outcome: Any = LACKING + refused
                else:
                    outcome = _outcome(resolve, path, given, kind)
                found[f"boundary {sm} {model}: {name}"] = outcome
                os.environ.clear()
                os.environ.update(started_with)
    return found


def _command_line() -> argparse.ArgumentParser:
    """The options of this tree's server."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser


def _find_lacking(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> str:
    """The first option, or value of an option, that the release does not have; empty if it has all.

    sglang has no ada_dsa. The stock tree is asked for it nevertheless: it then gives the arguments that
    the fork's are compared with.
    """
    known = parser._option_string_actions
    for field, value in given.items():
        option = "--" + field.replace("_", "-")
        if option not in known:
            return option
        choices = known[option].choices
        if choices is not None and value not in (*choices, "ada_dsa"):
            return f"{option} {value}"
    return ""


def _outcome(resolve: Callable[..., Any], path: str, given: dict[str, Any], kind: str) -> Any:
    try:
        resolved = resolve(path, **given)
    except Exception as err:
        return f"{type(err).__name__}: {' '.join(str(err).split())}"[:400]
    named = {
        "rows": "kv_cache_dtype",
        "prefill": f"{kind}_prefill_backend",
        "decode": f"{kind}_decode_backend",
    }
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    left_out = {*named.values(), "enforce_shared_experts_fusion"}
    rest = {
        field: repr(value)
        for field, value in sorted(resolved.items())
        if isinstance(value, plain) and field not in left_out and not field.startswith("_")
    }
    digest = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    topk = os.environ.get(TOPK_V2, "")
    return {**{k: resolved.get(f) for k, f in named.items()}, "topk v2": topk, "rest": digest}


# -- what the fork does differently -----------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One cell, and the release it is resolved in."""

    sm: int
    model: str
    name: str
    release: Version

    @property
    def options(self) -> dict[str, Any]:
        return OPTIONS[self.name]

    @property
    def asked(self) -> dict[str, str]:
        """The DSA backends that were asked for, by phase."""
        named = {phase: self.options.get(f"dsa_{phase}_backend") for phase in BOTH}
        return {phase: name for phase, name in named.items() if name}

    @property
    def ampere_or_ada(self) -> bool:
        return self.sm < 90

    @property
    def blackwell_12x(self) -> bool:
        return self.sm >= 120

    @property
    def rows(self) -> str:
        """The KV dtype that the fork resolves to."""
        fp8 = self.ampere_or_ada or self.sm >= 100 or (self.asked_ada and self.at("<0.5.15"))
        return str(self.options.get("kv_cache_dtype", "fp8_e4m3" if fp8 else "bfloat16"))

    @property
    def asked_ada(self) -> bool:
        return "ada_dsa" in self.asked.values()

    @property
    def overwritten(self) -> bool:
        """Whether sglang replaces an ada_dsa that was asked for by trtllm."""
        early = self.at(">=0.5.10,<0.5.11") and self.sm == 100
        return early and self.asked_ada and self.rows == "fp8_e4m3"

    @property
    def dsa_attention(self) -> bool:
        return not any("attention_backend" in field for field in self.options)

    def at(self, specifier: str) -> bool:
        return self.release in SpecifierSet(specifier)

    def has_kernel(self, backend: str) -> bool:
        """Whether sglang's backend has a kernel for this cell on sm_8x and sm_12x."""
        fp8 = self.rows == "fp8_e4m3"
        if backend == "tilelang":
            return fp8 and self.sm >= 89 and self.at(">=0.5.22")
        if self.ampere_or_ada:
            return False
        if backend == "flashinfer_sparse_mla":
            heads = HEADS // self.options.get("tp_size", 1)
            if "enable_dp_attention" in self.options:
                heads = HEADS
            return self.model == GLM and fp8 and heads in (8, 16, 32, 64, 128)
        return backend == "triton_sparse_mla"

    @property
    def native(self) -> bool:
        """Whether sglang's default has a kernel here."""
        return self.at(">=0.5.17") and self.has_kernel("flashinfer_sparse_mla")


Outcome = dict[str, Any] | str


@dataclass(frozen=True)
class Rule:
    """One reason why the fork differs.

    Attributes:
        cards, asked, sglang, fork, why: the columns of the table.
        releases: where it holds.
        applies: whether it covers a cell of those releases.
        refusal: what the fork's error must match; None where the fork starts.
    """

    cards: str
    asked: str
    sglang: str
    fork: str
    why: str
    applies: Callable[[Cell], bool]
    releases: str = ">=0.5.9"
    refusal: str | None = None


def _lacking(cell: Cell) -> bool:
    """sm_8x and sm_12x, with the dsa attention backend, where sglang's default has no kernel."""
    covered = cell.dsa_attention and (cell.ampere_or_ada or cell.blackwell_12x)
    return covered and not cell.native


def _asked_without_kernel(cell: Cell) -> bool:
    covered = cell.dsa_attention and (cell.ampere_or_ada or cell.blackwell_12x)
    return covered and any(
        name != "ada_dsa" and not cell.has_kernel(name) for name in cell.asked.values()
    )


RULES = (
    Rule(
        "sm_80, sm_86",
        "an FP8 checkpoint",
        "starts, and fails when the first MoE layer is compiled",
        "refused",
        "Triton has no e4m3 type below sm_89. 4-bit and bf16 checkpoints run.",
        lambda c: c.dsa_attention and c.sm < 89 and c.options.get("weights") == "fp8",
        refusal="FP8 weights.*4-bit",
    ),
    Rule(
        "sm_80, sm_86, sm_89; up to 0.5.16 also sm_120, sm_121",
        "`--dsa-paged-mqa-logits-backend deepgemm`",
        "starts, and DeepGEMM refuses the GPU",
        "refused",
        "DeepGEMM has kernels for sm_90 and sm_100, and for sm_12x from 0.5.17 on.",
        lambda c: (
            c.name == "logits deepgemm"
            and (c.ampere_or_ada or (c.blackwell_12x and c.at("<0.5.17")))
        ),
        ">=0.5.15",
        "--dsa-paged-mqa-logits-backend deepgemm",
    ),
    Rule(
        "sm_80, sm_86, sm_89, sm_120, sm_121",
        "`--dsa-paged-mqa-logits-backend cutedsl`",
        "refused when the model is built",
        "refused when the arguments are resolved",
        "The kernel is for sm_100.",
        lambda c: c.name == "logits cutedsl" and (c.ampere_or_ada or c.blackwell_12x),
        ">=0.5.15",
        "--dsa-paged-mqa-logits-backend cutedsl",
    ),
    Rule(
        "sm_80, sm_86, sm_89, sm_120, sm_121, except GLM on sm_12x from 0.5.17 on",
        "HiSparse",
        "starts with flashmla_sparse or flashmla_kv, which have no kernel for the GPU",
        "refused",
        "ada_dsa does not read HiSparse's pool.",
        lambda c: _lacking(c) and c.name == "HiSparse",
        ">=0.5.10",
        "HiSparse.*Drop --enable-hisparse",
    ),
    Rule(
        "sm_80, sm_86, sm_89, sm_120, sm_121",
        "`--dcp-size` above 1",
        "starts with trtllm, which has no kernel for the GPU",
        "refused",
        "ada_dsa does not divide the keys of a request among ranks.",
        lambda c: (
            c.dsa_attention
            and (c.ampere_or_ada or c.blackwell_12x)
            and c.name == "DCP"
            and not (c.native and c.at("<0.5.22"))
        ),
        ">=0.5.15",
        "--dcp-size 2.*Drop --dcp-size",
    ),
    Rule(
        "sm_80, sm_86, sm_89, sm_120, sm_121",
        "a DSA backend without a kernel for the GPU and the KV dtype",
        "starts, and fails at the first request or when a graph is captured",
        "refused, with the option's name",
        "flashmla, fa3 and trtllm have kernels for sm_90 or sm_100 only; TileLang for fp8 rows from "
        "sm_89 on and 0.5.22 on; flashinfer_sparse_mla for GLM over fp8 rows on sm_12x.",
        _asked_without_kernel,
        refusal="-backend .* has no kernel for sm_",
    ),
    Rule(
        "sm_80, sm_86, sm_89",
        "nothing, or ada_dsa",
        "bf16 rows, flashmla_sparse and fa3 (flashmla_kv over fp8 rows): no kernel for the GPU",
        "fp8 rows unless bf16 is asked for; ada_dsa; top-k v2 off in 0.5.15 to 0.5.20",
        "sglang has no DSA kernel below sm_90. Top-k v2 of those releases needs clusters.",
        lambda c: _lacking(c) and c.ampere_or_ada,
    ),
    Rule(
        "sm_120, sm_121",
        "nothing: DeepSeek-V3.2; GLM with bf16 rows or with other than 8, 16, 32, 64 or 128 heads on a "
        "rank; up to 0.5.16 every DSA model",
        "trtllm, flashmla or flashinfer_sparse_mla: no kernel for this case",
        "ada_dsa",
        "sglang's kernel for sm_12x serves GLM over fp8 rows, from 0.5.17 on.",
        lambda c: _lacking(c) and c.blackwell_12x,
    ),
    Rule(
        "every GPU",
        "ada_dsa, without a KV dtype",
        "does not know ada_dsa",
        "fp8 rows",
        "Kept from the fork's first releases.",
        lambda c: c.asked_ada and "kv_cache_dtype" not in c.options,
        "<0.5.15",
    ),
    Rule(
        "sm_100",
        "ada_dsa",
        "sets trtllm for both phases, whatever is asked for",
        "keeps ada_dsa; a phase without an option gets flashmla_auto (prefill) or flashmla_kv (decode)",
        "In 0.5.9 these are sglang's own choice for sm_100. They read the same rows as ada_dsa; trtllm "
        "does not.",
        lambda c: c.overwritten,
        ">=0.5.10,<0.5.11",
    ),
)
ELSEWHERE = (
    (
        "sm_89",
        "nothing",
        "the shared expert in the fused MoE",
        "apart, for a DSA model with the dsa attention backend",
        "Incoherent output was reported from an RTX 4090 with the fused form. The separate form is the "
        "checkpoint's own, so it is right for every weight format, 4-bit ones included. "
        "`--enforce-shared-experts-fusion` fuses.",
        ">=0.5.9",
    ),
    (
        "sm_80, sm_86",
        "nothing",
        "Triton kernels that store e4m3: they do not compile",
        "KV rows, index keys and queries are written as bytes",
        "Triton has no e4m3 type below sm_89.",
        ">=0.5.9",
    ),
    (
        "sm_80, sm_86, sm_89",
        "`--dsa-paged-mqa-logits-backend auto`",
        "DeepGEMM, which refuses the GPU",
        "ada_dsa",
        "Up to 0.5.21 the logits follow the attention on every GPU.",
        ">=0.5.9",
    ),
    (
        "every GPU",
        "MTP on pipeline stages",
        "refused; the message does not name the variable that allows it",
        "refused; the message names `SGLANG_ENABLE_PP_SPEC=1`",
        "The rule is sglang's; the fork changes the message only.",
        ">=0.5.21",
    ),
)
"""Differences beyond the arguments, as rows of the table. test_start_up and test_e4m3_codes hold them."""


def rule_for(cell: Cell) -> Rule | None:
    return next(
        (
            rule
            for rule in RULES
            if cell.release in SpecifierSet(rule.releases) and rule.applies(cell)
        ),
        None,
    )


def expected(cell: Cell, rule: Rule, stock: dict[str, Any]) -> dict[str, Any]:
    """What a rule without a refusal makes of sglang's outcome."""
    ada = {phase: cell.asked.get(phase, "ada_dsa") for phase in BOTH} if _lacking(cell) else {}
    if not ada and cell.asked_ada:
        ada = cell.asked
    if cell.overwritten:
        ada = {"prefill": "flashmla_auto", "decode": "flashmla_kv", **cell.asked}
    topk = {}
    if cell.ampere_or_ada and cell.at(">=0.5.15,<0.5.21"):
        topk = {"topk v2": "False"}
    return {**stock, "rows": cell.rows, **ada, **topk}


def compare(stock: dict[str, Any], fork: dict[str, Any], release: Version) -> Iterator[str]:
    """What is wrong, one line for each cell."""
    for key, before in stock.items():
        if not key.startswith("boundary "):
            continue
        where, _, name = key.removeprefix("boundary ").partition(": ")
        sm, _, model = where.partition(" ")
        cell, after = Cell(int(sm), model, name, release), fork[key]
        rule = rule_for(cell)
        if isinstance(before, str) and before.startswith(LACKING):
            if after != before:
                yield f"{key}: an option of the fork alone: {after}"
        elif isinstance(before, str):
            # sglang refuses by itself; so does the fork, maybe earlier and in other words.
            if not isinstance(after, str):
                yield f"{key}: sglang refuses ({before}), the fork starts: {after}"
        elif rule is None:
            if after != before:
                yield f"{key}: no reason to differ: {before} -> {after}"
        elif rule.refusal is not None:
            refused = isinstance(after, str) and after.startswith("ValueError: ")
            if not (refused and re.search(rule.refusal, str(after))):
                yield f"{key}: not refused with {rule.refusal!r}: {after}"
        elif after != (want := expected(cell, rule, before)):
            yield f"{key}: {after}, not {want}"


# -- the page ---------------------------------------------------------------------------------------

LAST_RUN = "2026-11-28"
"""When the comparison was last run for every release."""

HEAD = """# Where the fork's start differs from sglang's

The rule: where sglang serves, nothing changes. Where sglang has no kernel for the GPU, the fork serves. Where
neither can, the start says so and names what to change.

`tests/patched/boundaries.py` prints this page from its rules. The tests resolve the arguments of a start in
the released tree and in the patched one, and compare both with the rules. They do so for every release, for
{models}, on {sms}, and with these options:

{options}

A release is asked only for options that its command line has. A combination without a row in the table gives
the same start in both trees.

The comparison was last run on {last_run}, for all 19 releases from 0.5.9 to 0.5.23, post releases included.
Each of the {combinations} combinations of a release was as described here.

The GPU is faked: this page is about what a start chooses, not about what was run. Attention backends other
than dsa (`--attention-backend flashinfer` and the like) get sglang's own arguments on every GPU. `--dsa-*`
options are named `--nsa-*` up to 0.5.12.post1. On sm_12x, ada_dsa is the alternative for GLM where
FlashInfer's kernel hangs (sglang#29580): ask for it with both DSA backend options.

| GPUs | asked for | sglang | fork | why | releases |
|---|---|---|---|---|---|
"""


def page() -> str:
    rows = [(r.cards, r.asked, r.sglang, r.fork, r.why, r.releases) for r in RULES]
    lines = [
        "| " + " | ".join((*columns, f"`{releases}`")) + " |"
        for *columns, releases in (*rows, *ELSEWHERE)
    ]
    return (
        HEAD.format(
            sms=", ".join(f"sm_{sm}" for sm in SMS),
            models=" and ".join(MODELS),
            options=textwrap.fill("; ".join(OPTIONS) + ".", 110),
            last_run=LAST_RUN,
            combinations=len(SMS) * len(MODELS) * len(OPTIONS),
        )
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    print(page(), end="")
