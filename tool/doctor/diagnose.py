"""What the facts of an environment mean: pure functions from facts to routes, packages and findings.

Which GPU takes which kernels is in ``tool.plan.routes``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tool.doctor.environment import PROBE, Environment, Gpu, SelfTest
from tool.plan import OLDEST_SM, OVERRIDE, Route, route
from tool.wheel import is_fork, public_release

SHARED_BYTES: Final = 101_376
"""Shared memory of a block within which every kernel stays on sm_86, sm_89 and sm_120."""

WATCHED: Final = (
    "torch",
    "triton",
    "tilelang",
    "apache-tvm-ffi",
    "transformers",
    "sglang-kernel",
    "sgl-kernel",
    "sgl-deep-gemm",
    "sgl-flash-mla",
    "flashinfer-python",
)
"""Packages that serving a DSA model runs, and whose versions the release pins."""


@dataclass(frozen=True)
class Package:
    """``installed`` None: it is not there. ``wanted`` empty: nobody asks for it."""

    name: str
    installed: str | None
    wanted: str
    ok: bool


@dataclass(frozen=True)
class Finding:
    """``what`` is wrong, ``why`` that is known, and ``next_step`` to take."""

    what: str
    why: str
    next_step: str


@dataclass(frozen=True)
class Diagnosis:
    version: str | None
    fork: bool
    routes: tuple[Route, ...]
    packages: tuple[Package, ...]
    findings: tuple[Finding, ...]


def diagnose_environment(facts: Environment, tested: SelfTest) -> Diagnosis:
    """Everything that follows from the facts of an environment and its self-test."""
    version = version_of(facts)
    fork = version is not None and (is_fork(version) or has_kernels(facts))
    release = public_release(version) if version else None
    override = bool(facts.variables.get(OVERRIDE))
    sms = sorted({gpu.sm for gpu in facts.driver.gpus})
    routes = tuple(route(sm, release, fork=fork, override=override) for sm in sms)
    wanted = tuple(packages(facts))
    findings = (
        *_sglang(facts, version, fork),
        *_packages(facts, wanted),
        *_gpus(facts, routes),
        *_torch(facts, next((one.wanted for one in wanted if one.name == "torch"), "")),
        *_variables(facts),
        *_selftest(facts, tested),
    )
    return Diagnosis(str(version) if version else None, fork, routes, wanted, findings)


def version_of(facts: Environment) -> Version | None:
    """Version of the sglang that would be imported: as its files state it, else as it was installed."""
    installed = [one.version for one in facts.owners if one.name == "sglang"]
    for text in (facts.package_version, *installed):
        try:
            return Version(text or "")
        except InvalidVersion:
            continue
    return None


def has_kernels(facts: Environment) -> bool:
    """Whether the sglang that would be imported has the kernels inside. A worktree of ``tool apply`` on
    PYTHONPATH has, though its version is the release's own."""
    package, kernels = facts.package, facts.kernels
    return bool(package and kernels and kernels.startswith(package.rstrip("/") + "/"))


def packages(facts: Environment) -> Iterator[Package]:
    """The watched packages that are installed or asked for, in order."""
    asked = _asked(facts)
    for name in WATCHED:
        installed, specifier = facts.installed.get(name), asked.get(name)
        if installed is None and specifier is None:
            continue
        ok = specifier is None or _fits(specifier, installed)
        wanted = "any" if specifier is not None and not specifier else str(specifier or "")
        yield Package(name, installed, wanted, ok)


def _asked(facts: Environment) -> dict[str, SpecifierSet]:
    """What sglang and torch require of the watched packages on this machine, without extras."""
    found: dict[str, SpecifierSet] = {}
    for text in (one for lines in facts.requires.values() for one in lines):
        try:
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate(dict(facts.markers))
        except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
            continue  # what pip cannot read either
        name = canonicalize_name(requirement.name)
        if applies and name in WATCHED:
            found[name] = found.get(name, SpecifierSet()) & requirement.specifier
    return found


def _fits(specifier: SpecifierSet, version: str | None) -> bool:
    try:
        return version is not None and specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


# -- findings ---------------------------------------------------------------------------------------


def _sglang(facts: Environment, version: Version | None, fork: bool) -> Iterator[Finding]:
    install = f"{_pip(facts)} install dist/sglang-RELEASE+ada.N-….whl"
    again = install.replace("install ", "install --no-deps --force-reinstall ", 1)
    if facts.package is None and not facts.owners:
        yield Finding("sglang is not installed", facts.executable, f"tool build; then: {install}")
        return
    if len(facts.owners) > 1:
        named = ", ".join(f"{one.name} {one.version} in {one.location}" for one in facts.owners)
        names = " ".join(sorted({one.name for one in facts.owners}))
        yield Finding(
            f"{len(facts.owners)} distributions ship sglang",
            f"{named}: whichever was installed last has overwritten files of the other, or hides it",
            f"{_pip(facts)} uninstall {names}, until none is left; then: {install}",
        )
    if facts.package is None:
        yield Finding(
            "sglang is installed, but not found by import",
            ", ".join(one.location for one in facts.owners),
            again,
        )
    elif not fork:
        release = f" --sglang-ref v{version.public}" if version else ""
        yield Finding(
            f"sglang {version or 'of unknown version'} is not the fork",
            f"{facts.package} has no ada_dsa",
            f"tool build{release}; then: {install}",
        )
    elif not has_kernels(facts):
        yield Finding(
            f"the kernels of the fork {version} are missing",
            f"{facts.package} has no srt/layers/attention/ada_dsa",
            again,
        )


def _packages(facts: Environment, found: Sequence[Package]) -> Iterator[Finding]:
    wrong = [one for one in found if not one.ok]
    if not wrong:
        return
    listed = ", ".join(
        f"{one.name} {one.installed or 'missing'} ({one.wanted} wanted)" for one in wrong
    )
    # Installing what is installed already installs what it asks for, watched here or not.
    named = [f"sglang=={one.version}" for one in facts.owners if one.name == "sglang"]
    named = named[:1] or [one.name + one.wanted.removeprefix("any") for one in wrong]
    yield Finding(
        f"{len(wrong)} package(s) are not what this sglang and this torch ask for",
        listed,
        f"{_pip(facts)} install {' '.join(map(shlex.quote, named))}",
    )


def _gpus(facts: Environment, routes: Sequence[Route]) -> Iterator[Finding]:
    driver = facts.driver
    if not driver.gpus:
        hidden = facts.variables.get("CUDA_VISIBLE_DEVICES")
        why = driver.error or "the driver lists none"
        yield Finding(
            "no NVIDIA GPU",
            why if hidden is None else f"{why}; CUDA_VISIBLE_DEVICES={hidden!r}",
            "run this where nvidia-smi lists the GPU (in a container: docker run --gpus all)",
        )
    for one in routes:
        if one.kind == "refused":
            yield Finding(
                f"sm_{one.sm} cannot serve a DSA model",
                one.text,
                "use a GPU of capability 8.0 or later, or hide this one: CUDA_VISIBLE_DEVICES",
            )
    if len(routes) > 1:
        listed = ", ".join(f"{gpu.index}: {gpu.name} (sm_{gpu.sm})" for gpu in driver.gpus)
        yield Finding(
            "the GPUs are of different architectures",
            f"{listed}; each process of a server would choose its kernels by its own GPU",
            "let the server see those of one kind: CUDA_VISIBLE_DEVICES",
        )
    for gpu in driver.gpus:
        if gpu.sm >= OLDEST_SM and gpu.shared < SHARED_BYTES:
            yield Finding(
                f"GPU {gpu.index} gives a block {_kib(gpu.shared)} of shared memory",
                f"the kernels were checked within {_kib(SHARED_BYTES)}",
                "see which kernels of the self-test fail, and choose another backend if any does",
            )


def _torch(facts: Environment, wanted: str) -> Iterator[Finding]:
    torch, driver = facts.torch, facts.driver
    package = shlex.quote("torch" + wanted.removeprefix("any"))
    if torch is None:
        if not wanted:  # else it is among the packages
            yield Finding(
                "torch is not installed", facts.executable, f"{_pip(facts)} install torch"
            )
        return
    if torch.version is None:
        reinstall = f"{_pip(facts)} install --force-reinstall {package}"
        yield Finding("torch cannot be imported", torch.error or "", reinstall)
        return
    if torch.cuda is None:
        yield Finding(
            f"torch {torch.version} is built without CUDA",
            torch.error or "",
            f"{_pip(facts)} install --force-reinstall {package}, from an index of CUDA builds",
        )
    elif driver.cuda is not None and driver.cuda // 1000 < int(torch.cuda.split(".")[0]):
        yield Finding(
            f"the driver ({driver.release or 'release unknown'}) is too old for torch {torch.version}",
            f"it serves CUDA {format_cuda(driver.cuda)}, torch was built for CUDA {torch.cuda}",
            f"update the driver, or install a build of {package} for CUDA {driver.cuda // 1000}",
        )
    elif driver.gpus and torch.error:
        yield Finding(
            "torch cannot use the GPU that the driver sees",
            torch.error,
            f"see whether this works: {facts.executable} -c 'import torch; torch.cuda.init()'",
        )


def _variables(facts: Environment) -> Iterator[Finding]:
    override = facts.variables.get(OVERRIDE, "")
    if override not in ("", "sm89"):
        yield Finding(
            f"{OVERRIDE}={override!r}", "the only accepted value is 'sm89'", f"unset {OVERRIDE}"
        )
    if facts.variables.get("TRITON_INTERPRET", "0") not in ("", "0"):
        yield Finding(
            "TRITON_INTERPRET is set",
            "Triton would interpret the kernels on the CPU, and compile none",
            "unset TRITON_INTERPRET",
        )


def _selftest(facts: Environment, tested: SelfTest) -> Iterator[Finding]:
    failed = [one for one in tested.checks if not one.ok]
    if failed:
        yield Finding(
            f"{len(failed)} of {len(tested.checks)} kernels fail their self-test",
            "; ".join(f"{one.name}: {one.problem or f'error {one.error:.1e}'}" for one in failed),
            "serve with another DSA backend, and report this with the output of: tool doctor --json",
        )
    if tested.broken:
        after = f"after {tested.checks[-1].name}" if tested.checks else "before the first kernel"
        yield Finding(
            "the self-test of the kernels did not finish",
            f"{tested.broken}, {after}",
            f"see it run: {_selftest_command(facts)}",
        )
    could = facts.driver.gpus and all(gpu.sm >= OLDEST_SM for gpu in facts.driver.gpus)
    usable = facts.kernels and facts.torch and not facts.torch.error
    if tested.skipped and could and usable:
        yield Finding(
            "the kernels were not tested",
            tested.skipped,
            f"see for yourself: {_selftest_command(facts)}",
        )


def _selftest_command(facts: Environment) -> str:
    return shlex.join([facts.executable, str(PROBE), "selftest", facts.kernels or ""])


def _pip(facts: Environment) -> str:
    return f"{facts.executable} -m pip"


def _kib(size: int) -> str:
    return f"{size / 1024:.0f} KiB"


def format_cuda(version: int) -> str:
    """13010 → ``13.1``."""
    return f"{version // 1000}.{version % 1000 // 10}"


def describe_gpu(gpu: Gpu) -> str:
    """``NVIDIA GeForce RTX 4090, sm_89, 23.5 GiB, 99 KiB shared memory a block``."""
    memory = f"{gpu.memory / 2**30:.1f} GiB"
    return f"{gpu.name}, sm_{gpu.sm}, {memory}, {_kib(gpu.shared)} shared memory a block"
