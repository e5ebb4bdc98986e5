"""``tool doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from tool.cli.options import report_command
from tool.cli.output import Report, format_table
from tool.cli.progress import Terminal
from tool.doctor import (
    Diagnosis,
    Environment,
    Package,
    SelfTest,
    describe_gpu,
    diagnose_environment,
    examine_environment,
    format_cuda,
)


@report_command(example=("tool doctor --python ~/venv/bin/python",))
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Interpreter of the environment to examine. Default: the one that runs the tool.",
)
def doctor(python: Path | None) -> Report:
    """Examine an environment: GPU, driver, versions, which kernels serve, a self-test of each.

    Exit code 1 when something would keep the fork from serving; what to do is said.
    """
    facts, tested = examine_environment(python, Terminal(quiet=False))
    found = diagnose_environment(facts, tested)
    lines = [*format_table(list(_summary(facts, tested, found))), ""]
    lines += format_table(
        [
            ("package", "installed", "wanted", ""),
            *((p.name, p.installed or "-", p.wanted or "-", _mark(p)) for p in found.packages),
        ]
    )
    lines.append("")
    for one in found.findings:
        lines += [one.what, f"  why:  {one.why}", f"  next: {one.next_step}"]
    lines.append(f"{len(found.findings)} finding(s)")
    result = {"environment": asdict(facts), "selftest": asdict(tested), **asdict(found)}
    return Report(result, lines, int(bool(found.findings)))


def _mark(package: Package) -> str:
    if package.ok:
        return ""
    return "DIFFERS" if package.installed else "MISSING"


def _summary(facts: Environment, tested: SelfTest, found: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "python", f"{facts.python}, {facts.executable}"
    kind = "the fork" if found.fork else "not the fork"
    yield "sglang", f"{found.version}, {kind}, {facts.package}" if facts.package else "none"
    if facts.package and not facts.owners:
        yield "", "installed by no package, so nothing says which versions it wants"
    driver, torch = facts.driver, facts.torch
    release = driver.release or "release unknown"
    served = None if driver.cuda is None else f"{release}, CUDA {format_cuda(driver.cuda)}"
    yield "driver", served or "none"
    built = f"built for CUDA {torch.cuda}" if torch and torch.cuda else "built without CUDA"
    yield "torch", f"{torch.version}, {built}" if torch and torch.version else "none"
    for gpu in driver.gpus:
        yield f"GPU {gpu.index}", describe_gpu(gpu)
    if not driver.gpus:
        yield "GPU", "none"
    for route in found.routes:
        yield f"sm_{route.sm}", route.text
        if route.options:
            yield "", route.options
    yield from _self_test(tested)


def _self_test(tested: SelfTest) -> Iterator[tuple[str, str]]:
    if tested.skipped:
        yield "self-test", f"not run: {tested.skipped}"
        return
    good = sum(one.ok for one in tested.checks)
    where = f" on GPU 0, sm_{tested.sm}" if tested.sm else ""
    took = "not finished" if tested.seconds is None else f"{tested.seconds:.1f} s with compilation"
    yield "self-test", f"{good} of {len(tested.checks)} kernels ok{where}, {took}"
    for one in tested.checks:
        mark = "ok" if one.ok else "FAIL"
        error = one.problem if one.error is None else f"error {one.error:.1e}"
        bound = f"at most {one.bound:.0e}" if one.bound else "exact"
        yield "", f"{one.name:37} {mark:5} {error}, wanted {bound}"
