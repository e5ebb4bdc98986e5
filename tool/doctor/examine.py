"""``tool doctor``: whether an environment and its GPUs are fit to serve the fork, and what to do if not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from tool.cli import output as report
from tool.cli.output import Report
from tool.doctor import diagnose as doctor_judge
from tool.doctor import environment as doctor_env
from tool.doctor.diagnose import Diagnosis, Package
from tool.doctor.environment import Environment, SelfTest
from tool.errors import UsageError


def examine(python: Path | None, note: Callable[[str], None]) -> Report:
    """Examine the environment of ``python`` (default: this one); exit code 1 with findings.

    Raises:
        UsageError: ``python`` is no interpreter.
        EnvironmentFault: it does not answer.
    """
    interpreter = _interpreter(python)
    facts = doctor_env.examine(interpreter)
    skipped = _untestable(facts)
    if skipped is None and facts.kernels is not None:
        note("running every kernel once; compiling them for the first time takes a minute or two")
        tested = doctor_env.selftest(interpreter, Path(facts.kernels))
    else:
        tested = SelfTest(skipped=skipped)
    return report_on(facts, tested, doctor_judge.diagnose(facts, tested))


def _interpreter(python: Path | None) -> Path:
    """An absolute path, links left as they are: a virtual environment's Python is one."""
    if python is None:
        return Path(sys.executable)
    if python.parent == Path() and (found := shutil.which(str(python))):
        return Path(found).absolute()
    path = python.expanduser().absolute()
    if path.is_dir():
        raise UsageError(
            "is a folder", where=str(path), next_step=f"name its Python: {path / 'bin' / 'python'}"
        )
    return path


def _untestable(facts: Environment) -> str | None:
    """Why the self-test is not even started."""
    if facts.kernels is None:
        return "there is no ada_dsa in this environment"
    if not facts.driver.gpus:
        return "no NVIDIA GPU"
    if facts.torch is None or facts.torch.version is None:
        return "torch cannot be imported"
    if not (Path(facts.kernels) / "selftest.py").is_file():
        return "these kernels are older than their self-test; build and install the fork again"
    return None


def report_on(facts: Environment, tested: SelfTest, found: Diagnosis) -> Report:
    """The report of ``tool doctor``."""
    lines = [*report.table(list(_summary(facts, tested, found))), ""]
    lines += report.table(
        [
            ("package", "installed", "wanted", ""),
            *(
                (one.name, one.installed or "-", one.wanted or "-", _verdict(one))
                for one in found.packages
            ),
        ]
    )
    lines.append("")
    for one in found.findings:
        lines += [one.what, f"  why:  {one.why}", f"  next: {one.next_step}"]
    lines.append(f"{len(found.findings)} finding(s)")
    result = {"environment": asdict(facts), "selftest": asdict(tested), **asdict(found)}
    return Report(result, lines, int(bool(found.findings)))


def _verdict(package: Package) -> str:
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
    served = None if driver.cuda is None else f"{release}, CUDA {doctor_judge.cuda(driver.cuda)}"
    yield "driver", served or "none"
    built = f"built for CUDA {torch.cuda}" if torch and torch.cuda else "built without CUDA"
    yield "torch", f"{torch.version}, {built}" if torch and torch.version else "none"
    for gpu in driver.gpus:
        yield f"GPU {gpu.index}", doctor_judge.describe(gpu)
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
        verdict = "ok" if one.ok else "FAIL"
        error = one.problem if one.error is None else f"error {one.error:.1e}"
        bound = f"at most {one.bound:.0e}" if one.bound else "exact"
        yield "", f"{one.name:37} {verdict:5} {error}, wanted {bound}"
