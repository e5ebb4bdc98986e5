"""``tool doctor``: whether an environment and its GPUs are fit to serve the fork, and what to do if not."""

from __future__ import annotations

from pathlib import Path

from tool.doctor.environment import Environment, SelfTest, probe_environment, run_selftest
from tool.interpreter import find_interpreter
from tool.project import Progress


def examine_environment(python: Path | None, progress: Progress) -> tuple[Environment, SelfTest]:
    """Look at the environment of ``python`` (default: this one) and run every kernel once, where one can.

    Raises:
        UsageError: ``python`` is no interpreter.
        EnvironmentFault: it does not answer.
    """
    interpreter = find_interpreter(python)
    facts = probe_environment(interpreter)
    skipped = _untestable(facts)
    if skipped is not None or facts.kernels is None:
        return facts, SelfTest(skipped=skipped)
    progress.note(
        "running every kernel once; compiling them for the first time takes a minute or two"
    )
    return facts, run_selftest(interpreter, Path(facts.kernels))


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
