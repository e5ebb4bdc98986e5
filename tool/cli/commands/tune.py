"""``tool tune``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from packaging.version import Version

from tool.authoring import put_files
from tool.cli.header import make_header, report_edit
from tool.cli.options import command
from tool.cli.output import Report, format_table
from tool.errors import UsageError
from tool.plan import find_model
from tool.project import Session
from tool.tune import Row, Shape, Tuned, list_gemms, list_moes
from tool.tune import tune as measure
from tool.wheel import public_release


@command(
    session="offline quiet",
    example=(
        "tool tune --python ~/venv/bin/python --model GLM-5.2-FP8 --tp 8 --out tuned",
        "tool tune --model GLM-5.2-FP8 --tp 8 --out tuned --budget 0 --change tuned-rtx-4090",
    ),
)
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Interpreter of the environment with sglang. Default: the one that runs the tool.",
)
@click.option(
    "--model", required=True, metavar="ID|PATH", help="GLM-5.2-FP8, an id of the hub, or a folder."
)
@click.option("--fetch-config", is_flag=True, help="Fetch config.json of the id from the hub.")
@click.option("--tp", required=True, type=click.IntRange(1), metavar="N", help="Ranks: --tp-size.")
@click.option("--gemm", is_flag=True, help="Tune the dense GEMMs. Default: both.")
@click.option("--moe", is_flag=True, help="Tune the fused MoE. Default: both.")
@click.option(
    "--fuse-shared-experts",
    "fused",
    is_flag=True,
    help="The server has the shared experts in the fused MoE (docs/tune.md).",
)
@click.option(
    "--budget",
    default="20m",
    show_default=True,
    metavar="TIME",
    help="How long to measure: 90s, 20m or 2h. 0 takes what --out has.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="tuned",
    show_default=True,
    help="Folder of results and files. A run goes on with what is there.",
)
@click.option(
    "--device-name",
    metavar="NAME",
    help="Write files for a device of this name. Default: the GPU's own.",
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes that compile.")
@click.option("--change", metavar="NAME", help="Put the files into a patch of this change.")
def tune(
    session: Session,
    python: Path | None,
    model: str,
    fetch_config: bool,
    tp: int,
    gemm: bool,
    moe: bool,
    fused: bool,
    budget: str,
    out: Path,
    device_name: str | None,
    jobs: int | None,
    change: str | None,
) -> Report:
    """Find the fastest fp8 GEMM and MoE configurations for a model on this GPU.

    They are measured in an environment's own sglang, against its default, and never replace a faster one.
    A server uses them once they are in its sglang: as a change of the series, or copied.
    """
    found = find_model(model, None, fetch=fetch_config)
    shapes: tuple[Shape, ...] = ()
    shapes += list_gemms(found, tp) if gemm or not moe else ()
    shapes += list_moes(found, tp, fused=fused) if moe or not gemm else ()
    tuned = measure(
        python,
        shapes,
        out.absolute(),
        seconds=_parse_time(budget),
        progress=session.progress,
        device_name=device_name,
        jobs=jobs,
    )
    lines = list(_write(tuned, out))
    result = _flatten(tuned, out)
    if change:
        edit = _put(session, tuned, change)
        lines += edit.lines
        result |= {"patch": edit.result}
    elif tuned.files:
        lines += list(_write_next(tuned, out))
    return Report(result, lines)


def _parse_time(text: str) -> float:
    """``20m`` → 1200 seconds."""
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text.strip().lower(), re.ASCII)
    if not found:
        raise UsageError(f"--budget {text!r} is no time", next_step="give for example --budget 20m")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _put(session: Session, tuned: Tuned, change: str) -> Report:
    where = tuned.surroundings
    if not tuned.files:
        raise UsageError(
            "no row is faster than the default, so there is nothing to put into a patch"
        )
    release = public_release(Version(where.sglang))
    session.lock.get(release)
    faster = [row for row in tuned.rows if row.config != row.default]
    device = where.named.replace("_", " ")
    measured = where.device if where.device == device else f"{where.device}, for {device}"
    reason = (
        f"Measured on {measured} with torch {where.torch} and Triton {where.triton}:\n"
        f"{len(faster)} of {len(tuned.rows)} measured rows are faster than the default of\n"
        f"sglang {release}. The other rows are the default."
    )
    header = make_header(
        f"v{release}",
        change,
        f"Add block-fp8 configurations tuned for {device}",
        reason,
        "sglang ships configurations of these shapes for this device",
    )
    files = {f"python/{path}": content for path, content in tuned.files.items()}
    return report_edit(put_files(session, header, files, release))


def _flatten(tuned: Tuned, out: Path) -> dict[str, Any]:
    where = tuned.surroundings
    return {
        "sglang": where.sglang,
        "torch": where.torch,
        "triton": where.triton,
        "device": where.device,
        "named": where.named,
        "sm": where.sm,
        "unfit": {" ".join(shape): why for shape, why in where.unfit.items()},
        "rows": [
            {
                "kind": row.unit.shape.kind,
                "shape": row.unit.shape.title,
                "sizes": row.unit.shape.sizes,
                "m": row.unit.m,
                "default_us": row.default_us,
                "us": row.us,
                "ratio": row.ratio,
                "config": dict(row.config),
                "default": dict(row.default) if row.default else None,
                "error": row.error,
                "measured": row.measured,
            }
            for row in tuned.rows
        ],
        "total": tuned.total,
        "complete": tuned.complete,
        "rejected": dict(tuned.rejected),
        "failures": dict(tuned.failures),
        "files": [str(out / path) for path in tuned.files],
    }


def _write(tuned: Tuned, out: Path) -> Iterator[str]:
    where = tuned.surroundings
    faster = sum(row.config != row.default for row in tuned.rows)
    files = f"for {where.named}" if where.named != where.device.replace(" ", "_") else ""
    yield from format_table(
        [
            ("device", f"{where.device}, sm_{where.sm} {files}".rstrip()),
            ("sglang", f"{where.sglang}, torch {where.torch}, Triton {where.triton}"),
            (
                "rows",
                f"{len(tuned.rows)} of {tuned.total} measured, {faster} faster than the default",
            ),
            ("rejected", ", ".join(f"{n} {why}" for why, n in tuned.rejected.items()) or "none"),
        ]
    )
    yield ""
    if tuned.rows:
        yield from format_table(list(_list_rows(tuned.rows)))
    for title, why in tuned.failures.items():
        yield f"{title} cannot be measured: {why}"
    for (kind, title), why in where.unfit.items():
        yield f"{kind} {title} is left out: {why}"
    if not tuned.complete:
        yield "There are candidates left; the same command goes on."
    yield from (f"wrote {out / path}" for path in tuned.files)


def _list_rows(rows: tuple[Row, ...]) -> Iterator[tuple[str, ...]]:
    yield "shape", "M", "default us", "tuned us", "ratio", "error", "configuration"
    for row in sorted(
        rows, key=lambda one: (one.unit.shape.kind, one.unit.shape.sizes, one.unit.m)
    ):
        sizes = "/".join(str(value) for value in row.config.values())
        yield (
            f"{row.unit.shape.kind} {row.unit.shape.title}",
            str(row.unit.m),
            "-" if row.default_us is None else f"{row.default_us:.1f}",
            f"{row.us:.1f}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            "-" if row.error is None else f"{row.error:.1e}",
            "default" if row.config == row.default else sizes,
        )


def _write_next(tuned: Tuned, out: Path) -> Iterator[str]:
    yield (
        "next: put them into the fork with the same command and --budget 0 --change NAME, then tool build"
    )
    roots = {path.partition("/configs/")[0] for path in tuned.files if "/E=" in path}
    for root in sorted(roots):
        yield f"or, for the MoE alone, start the server with SGLANG_MOE_CONFIG_DIR={out.absolute() / root}"
