"""``tool plan``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import click

from tool.cli.options import command, release_option
from tool.cli.output import Report, format_table
from tool.errors import UsageError
from tool.plan import (
    FORMATS,
    GIB,
    Layout,
    Plan,
    find_model,
    list_assumptions,
    make_plan,
    parse_gpus,
)
from tool.project import Session
from tool.upstream import Request, find_release


@command(
    reads=True,
    example=('tool plan --model GLM-5.2 --gpus "32x RTX 4090 48GB" --context 128K --streams 16',),
)
@release_option
@click.option(
    "--model", required=True, metavar="ID|PATH", help="GLM-5.2, an id of the hub, or a folder."
)
@click.option("--gpus", required=True, metavar="TEXT", help='For example "32x RTX 4090 48GB".')
@click.option("--nodes", type=int, metavar="N", help="Machines. Default: of 8 cards each.")
@click.option("--per-node", type=int, metavar="N", help="Cards on a machine.")
@click.option("--context", metavar="TOKENS", help="Length of a request, for example 128K.")
@click.option("--streams", type=int, metavar="N", help="Requests of that length at once.")
@click.option("--weights", type=click.Choice(FORMATS), help="Format of the checkpoint.")
@click.option("--fetch-config", is_flag=True, help="Fetch config.json of the id from the hub.")
def plan(
    session: Session,
    ref: str,
    model: str,
    gpus: str,
    nodes: int | None,
    per_node: int | None,
    context: str | None,
    streams: int | None,
    weights: str | None,
    fetch_config: bool,
) -> Report:
    """Compute what fits on given cards, and write the launch command.

    Exit code 1 when nothing fits, or when the server would not start there; why is said.
    """
    cards = parse_gpus(gpus, nodes, per_node)
    found = make_plan(
        find_model(model, weights, fetch=fetch_config),
        cards,
        find_release(session.series, Request(ref)),
        context=_parse_tokens(context) if context else None,
        streams=streams,
    )
    result = {**_flatten(found), "assumptions": dict(list_assumptions(found))}
    session.warnings += found.warnings
    return Report(result, list(_write(found)), int(not found.commands))


def _parse_tokens(text: str) -> int:
    """``128K`` → 131072, ``1M`` → 1048576."""
    found = re.fullmatch(r"(\d{1,9})([km]?)", text.strip().lower(), re.ASCII)
    if not found:
        raise UsageError(
            f"--context {text!r} is no number of tokens",
            next_step="give for example --context 128K",
        )
    return int(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2]]


def _flatten(found: Plan) -> dict[str, Any]:
    """The fields of the envelope: those of the plan, with what its properties say."""
    result = {**dataclasses.asdict(found), "release": str(found.release)}
    result["model"] = {
        "name": found.model.name,
        "path": found.model.path,
        "architecture": found.model.architecture,
        "format": found.model.format,
    }
    result["cards"]["per_node"] = found.cards.per_node
    for one, row in zip(found.layouts, result["layouts"], strict=True):
        row["fits"] = one.fits
    if found.fewest:
        fewest, layout = found.fewest
        result["fewest"] = {"cards": fewest.count, "tp": layout.tp, "pp": layout.pp}
    del result["warnings"]
    return result


def _write(found: Plan) -> Iterator[str]:
    best = found.layouts[0]
    yield from format_table(list(_summary(found)))
    yield ""
    yield from format_table(list(_layout_rows(found)))
    yield from _write_fewest(found)
    if best.stages:
        yield ""
        yield f"{best.title}, GiB on each card of a stage:"
        yield from format_table(list(_stage_rows(best)))
    yield ""
    yield from format_table([("assumed", ""), *list_assumptions(found)])
    yield ""
    yield from _write_commands(found) if found.commands else _write_why_not(found)


def _summary(found: Plan) -> Iterator[tuple[str, str]]:
    cards, model, source = found.cards, found.model, found.source
    size, mtp = found.checkpoint / 1e9, found.prediction / 1e9
    yield (
        "model",
        f"{model.name} in {model.format}, {size:.1f} GB by {source}, {mtp:.1f} GB of it for MTP",
    )
    where = f", {cards.nodes} nodes of {cards.per_node}" if cards.nodes > 1 else ""
    yield "cards", f"{cards.count} x {cards.name}, {cards.memory // GIB} GiB, sm_{cards.sm}{where}"
    yield "sglang", f"v{found.release}"
    yield "asked for", f"{found.streams} request(s) of {found.context:,} tokens"
    if found.obstacles:
        yield from zip(
            ("not served", *("" for _ in found.obstacles[1:])), found.obstacles, strict=True
        )
    else:
        yield "kernels", found.kernels


def _layout_rows(found: Plan) -> Iterator[tuple[str, ...]]:
    yield "layout", "layers of the stages", "weights", "tokens", "fits"
    for one in found.layouts:
        parts = ",".join(map(str, one.partition)) if 1 < one.pp <= 12 else ""
        weights = f"{max(s.weight for s in one.stages) / GIB:.1f} GiB" if one.stages else ""
        tokens = f"{one.tokens:,}" if one.tokens else ""
        yield one.title, parts, weights, tokens, "yes" if one.fits else f"no: {one.reason}"


def _write_fewest(found: Plan) -> Iterator[str]:
    if found.fewest is None:
        yield f"No number of such cards holds {found.needed:,} tokens."
        return
    cards, layout = found.fewest
    if cards.count != found.cards.count:
        yield f"The fewest such cards that hold {found.needed:,} tokens: {cards.count}, as {layout.title}."
    if found.chosen and cards.count * 2 <= found.cards.count:
        servers = found.cards.count // cards.count
        yield f"{servers} servers of {cards.count} cards side by side serve more requests at once."


_OTHER = ("norms", "router", "absorbed kv_b")
"""Small parts, which share a column."""


def _stage_rows(layout: Layout) -> Iterator[tuple[str, ...]]:
    parts = list(dict.fromkeys(part for stage in layout.stages for part in stage.weights))
    parts = [part for part in parts if part not in _OTHER]
    state = ["state"] if any(stage.state for stage in layout.stages) else []
    yield "layers", *parts, "other", "sum", *state, "for cache", "bytes a token", "tokens"
    assert layout.reserve is not None
    for one in layout.stages:
        sizes = [one.weights.get(part, 0) for part in parts]
        sizes += [sum(one.weights.get(part, 0) for part in _OTHER), one.weight]
        sizes += [one.state] if state else []
        sizes.append(max(layout.reserve.budget - one.weight - one.state, 0))
        yield (
            f"{one.first}-{one.first + one.layers - 1}",
            *(f"{size / GIB:.2f}" for size in sizes),
            f"{one.token:,}",
            "no cache" if one.tokens is None else f"{max(one.tokens, 0):,}",
        )


def _write_commands(found: Plan) -> Iterator[str]:
    many = len(found.commands) > 1
    yield "Start these on nodes 0, 1, ...; NODE0 is an address of node 0:" if many else "Start:"
    yield from found.commands
    if many:
        yield "Without InfiniBand: NCCL_IB_DISABLE=1, and NCCL_SOCKET_IFNAME names the interface."
    if found.on_request:
        yield f"For ada_dsa in place of sglang's kernels, add: {found.on_request}"


def _write_why_not(found: Plan) -> Iterator[str]:
    if found.obstacles:
        either = "" if found.chosen else " It would not fit on these cards either."
        yield f"No command, because the server would not start: see above.{either}"
        return
    ways = []
    if found.fewest:
        ways.append(f"{found.fewest[0].count} such cards ({found.fewest[1].title})")
    ways += ["a 4-bit checkpoint"] if found.fits_in_4bit else []
    if any(one.tokens for one in found.layouts):
        ways.append("a smaller --context or --streams")
    yield f"Nothing fits. What would: {', or '.join(ways) or 'cards with more memory'}."
