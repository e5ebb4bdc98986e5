"""What fits on given cards, why the rest does not, and the command that starts it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from packaging.version import Version

from tool.errors import UsageError
from tool.plan.cards import GIB, Cards
from tool.plan.layouts import Layout, find_fewest, rank_layouts
from tool.plan.memory import (
    CHUNK,
    CONTEXT,
    MARGIN,
    RUNNING,
    RUNNING_LINEAR,
    STATES,
    VISIBLE,
    Setting,
    latent_row,
)
from tool.plan.model import Model
from tool.plan.routes import OLDEST_SM, OPTIONS, Route, route
from tool.plan.weights import PREDICTION, list_weights, sum_stored

DEFAULT_CONTEXT: Final = 32_768
"""Tokens that one request may have if ``--context`` is not given."""
FIRST_GLM5_NEXT: Final = Version("0.5.20")
"""The first release with GLM-5.3-Flash (``models/glm5_next.py``)."""
FIRST_MARLIN_NVFP4: Final = Version("0.5.13")
"""The first release that runs NVFP4 below sm_100, through Marlin (``ModelOptFp4Config``)."""
FIRST_POOLED: Final = Version("0.5.21")
"""The first release whose pooled indexer calls ada_dsa (``pooled-index`` of the series)."""
GLM5_NEXT: Final = "Glm5Next"


@dataclass(frozen=True)
class Plan:
    """Sizes are bytes. ``checkpoint``: all weights; ``prediction``: those of the MTP layer among them.

    ``needed``: tokens of ``streams`` requests of ``context``. ``kernels``: what serves DSA with the commands.
    ``on_request``: options that choose ada_dsa where the server would take sglang's own kernels, for models
    that it serves.
    ``obstacles``: why the server would not start. ``fits_in_4bit``: it does not fit, and would in NVFP4.
    """

    model: Model
    release: Version
    cards: Cards
    kernels: str
    checkpoint: int
    prediction: int
    source: str
    row: int
    context: int
    streams: int
    needed: int
    running: int
    layouts: tuple[Layout, ...]
    fewest: tuple[Cards, Layout] | None
    obstacles: tuple[str, ...]
    commands: tuple[str, ...]
    on_request: str
    fits_in_4bit: bool
    warnings: tuple[str, ...]

    @property
    def chosen(self) -> Layout | None:
        """The best layout that fits."""
        return self.layouts[0] if self.layouts[0].fits else None


def make_plan(
    model: Model,
    cards: Cards,
    release: Version,
    *,
    context: int | None = None,
    streams: int | None = None,
) -> Plan:
    """Plan a server. ``context``: tokens of a request; ``streams``: requests of that length at once.

    Raises:
        UsageError: the request makes no sense, or the checkpoint is damaged.
    """
    if not OPTIONS[-1][0] <= release:
        raise UsageError(
            f"there is no fork of sglang {release}", why=f"the first is of {OPTIONS[-1][0]}"
        )
    _check_demand(model, context, streams)
    weights, source, stated = list_weights(model)
    path = route(cards.sm, release, fork=True)
    row = latent_row(model, _row_layout(cards.sm))
    running = streams or (RUNNING_LINEAR if model.linear else RUNNING)
    longest = min(context or model.max_context, model.max_context)
    setting = Setting(model, weights, cards, release, row, running, longest)
    asked = context or min(DEFAULT_CONTEXT, model.max_context)
    needed = asked * (streams or 1)
    layouts = tuple(rank_layouts(setting, needed))
    obstacles = tuple(_find_obstacles(model, cards.sm, release, path))
    commands: tuple[str, ...] = ()
    if layouts[0].fits and not obstacles:
        commands = tuple(_write_commands(setting, layouts[0], context))
    return Plan(
        model=model,
        release=release,
        cards=cards,
        kernels=_name_kernels(model, cards.sm, path),
        checkpoint=sum_stored(weights),
        prediction=sum(one.size for one in weights if one.place == PREDICTION),
        source=source,
        row=row,
        context=asked,
        streams=streams or 1,
        needed=needed,
        running=running,
        layouts=layouts,
        fewest=find_fewest(setting, needed),
        obstacles=obstacles,
        commands=commands,
        on_request=_list_options(model, cards.sm, release, path),
        fits_in_4bit=not layouts[0].fits and _fits_in_4bit(setting, needed),
        warnings=tuple(_compare_index(stated, sum_stored(weights))),
    )


def _lacks_kernel(model: Model, sm: int) -> bool:
    """Whether the fork chooses ada_dsa for this model: sglang's own kernel for sm_12x serves GLM alone."""
    return sm // 10 == 12 and not model.architecture.startswith("GlmMoeDsa")


def _list_options(model: Model, sm: int, release: Version, path: Route) -> str:
    pooled = model.architecture.startswith(GLM5_NEXT)
    if _lacks_kernel(model, sm) or (pooled and release < FIRST_POOLED):
        return ""
    return path.options


def _name_kernels(model: Model, sm: int, path: Route) -> str:
    if path.kind == "request" and _lacks_kernel(model, sm):
        why = f"sglang has no kernel for this model on sm_{sm}"
        return f"ada_dsa by default: packed fp8 KV cache, ada_dsa for prefill and decode; {why}"
    return path.text


def _fits_in_4bit(setting: Setting, needed: int) -> bool:
    model = replace(setting.model, format="nvfp4", folder=None)
    if setting.model.format not in ("fp8", "bf16"):
        return False
    smaller = replace(setting, model=model, weights=list_weights(model)[0])
    return rank_layouts(smaller, needed)[0].fits


def _check_demand(model: Model, context: int | None, streams: int | None) -> None:
    if context is not None and not 1 <= context <= model.max_context:
        raise UsageError(
            f"--context {context} is not between 1 and {model.max_context} tokens",
            where=model.name,
            why=f"the model has {model.max_context} positions",
        )
    if streams is not None and not 1 <= streams <= 4096:
        raise UsageError(f"--streams {streams} is not between 1 and 4096")


def _compare_index(stated: int | None, computed: int) -> Iterator[str]:
    if stated and abs(computed - stated) > stated / 100:
        yield (
            f"the weights add up to {computed / 1e9:.1f} GB, and the checkpoint's index says "
            f"{stated / 1e9:.1f} GB: the plan may be wrong by as much"
        )


def _find_obstacles(model: Model, sm: int, release: Version, path: Route) -> Iterator[str]:
    """What stops the server on this kind of card, however much memory there is."""
    if path.kind == "refused":
        yield path.text
    if model.architecture.startswith(GLM5_NEXT):
        if release < FIRST_GLM5_NEXT:
            yield f"sglang {release} does not have this model; {FIRST_GLM5_NEXT} is the first that has"
        elif OLDEST_SM <= sm < 89:
            yield (
                f"sglang writes the pooled index keys of {model.architecture} in Triton's e4m3 type, "
                f"which sm_{sm} does not have"
            )
        elif (sm == 89 or sm >= 120) and release < FIRST_POOLED:
            yield (
                f"sglang has no attention kernel for {model.architecture} on sm_{sm}, "
                f"and ada_dsa serves this model from sglang {FIRST_POOLED} on"
            )
    if model.format == "fp8" and OLDEST_SM <= sm < 89:
        yield f"sglang has no fp8 MoE kernel for sm_{sm}: take a 4-bit checkpoint (--weights int4 or nvfp4)"
    if model.format == "nvfp4" and sm < 100 and release < FIRST_MARLIN_NVFP4:
        yield f"sglang {release} runs NVFP4 on sm_100 only; sm_{sm} needs {FIRST_MARLIN_NVFP4} or later"


def _row_layout(sm: int) -> str:
    """Format of the latent rows that the command of ``_write_commands`` leads to.

    sm_90 has bf16 by default, sm_100 fp8 rows of trtllm (``_dsa_kv_cache_dtype_default``). ada_dsa and
    FlashInfer's sparse MLA on sm_120 read packed rows.
    """
    if 90 <= sm < 100:
        return "bf16"
    return "raw" if 100 <= sm < 120 else "packed"


def _write_commands(setting: Setting, layout: Layout, context: int | None) -> Iterator[str]:
    """The launch command of every node, with the release's option names."""
    model, nodes = setting.model, setting.cards.nodes
    assert layout.reserve is not None
    variables = []
    if layout.pp > 1 and not layout.own_division:
        variables.append(f"SGLANG_PP_LAYER_PARTITION={','.join(map(str, layout.partition))}")
    for rank in range(nodes):
        words = [*variables, "python -m sglang.launch_server --model-path", shlex.quote(model.path)]
        words.append(f"--tp-size {layout.tp}")
        if layout.pp > 1:
            words.append(f"--pp-size {layout.pp}")
        if nodes > 1:
            words.append(f"--nnodes {nodes} --node-rank {rank} --dist-init-addr NODE0:30200")
        words.append(f"--mem-fraction-static {layout.reserve.fraction:.2f}")
        words.append(f"--chunked-prefill-size {CHUNK} --max-running-requests {setting.running}")
        if context:
            words.append(f"--context-length {context}")
        if model.linear:
            words.append(f"--max-mamba-cache-size {STATES * setting.running}")
        if model.format in ("nvfp4", "int4"):
            words.append("--disable-shared-experts-fusion")
        words += [model.options, "--host 0.0.0.0 --port 30000"]
        yield " ".join(word for word in words if word)


def list_assumptions(plan: Plan) -> list[tuple[str, str]]:
    """What the plan takes for granted: name, and value with its reason."""
    found = [
        (
            "card",
            f"{VISIBLE:.0%} of its memory is there, {CONTEXT / GIB:.1f} GiB of it for CUDA and NCCL",
        ),
        ("requests", f"{plan.running} at once (--max-running-requests)"),
        ("latent row", f"{plan.row} bytes a token and layer"),
        ("speculation", "off, so the prediction (MTP) layer is not loaded"),
    ]
    reserve = plan.layouts[0].reserve
    if reserve:
        found[1:1] = [
            ("activations", f"{reserve.activations / GIB:.1f} GiB for chunks of {CHUNK} tokens"),
            ("CUDA graphs", f"{reserve.graphs / GIB:.1f} GiB, as sglang reserves"),
            ("margin", f"{MARGIN / GIB:.1f} GiB for fragmentation, logits and workspaces"),
            ("static memory", f"{reserve.fraction:.2f} of the rest (--mem-fraction-static)"),
        ]
    if plan.model.linear:
        found.append(("linear attention", f"{STATES} state slots for each request"))
    return found
