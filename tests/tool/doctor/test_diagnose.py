"""``tool doctor``: diagnoses of made-up environments; its rules agree with the series and the kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tool import plan
from tool.doctor import diagnose
from tool.doctor.environment import Check, Driver, Environment, Gpu, Owner, SelfTest, Torch

SITE = "/venv/lib/python3.12/site-packages"
KERNELS = f"{SITE}/sglang/srt/layers/attention/ada_dsa"
PINNED = {
    "torch": "2.14.1+cu130",
    "triton": "3.8.0",
    "tilelang": "0.1.12",
    "apache-tvm-ffi": "0.1.11",
    "transformers": "5.19.0",
}
REQUIRES = {
    "sglang": [
        "torch==2.14.1",
        "tilelang==0.1.12",
        "apache_tvm_ffi==0.1.11",
        "transformers==5.19.0",
        "triton>=3.5.1",
        "sgl-deep-gemm==0.2.3 ; platform_machine == 'aarch64'",
        "flashinfer-python==0.7.2 ; extra == 'all'",
        "not a requirement at all",
    ],
    "torch": ['triton==3.8.0; platform_system == "Linux"'],
}
MARKERS = {"platform_machine": "x86_64", "platform_system": "Linux", "extra": ""}


def gpu(sm: int, name: str = "a card", index: int = 0, shared: int = 101_376) -> Gpu:
    return Gpu(index, name, sm, 24 << 30, shared)


RTX_4090 = gpu(89, "NVIDIA GeForce RTX 4090")
RTX_5090 = gpu(120, "NVIDIA GeForce RTX 5090")
H200 = gpu(90, "NVIDIA H200", shared=232_448)
GOOD = SelfTest(
    tuple(Check(name, True, 0.0, 0.0, 0.1, None) for name in ("top-k", "KV pack")), 89, 30.0
)


def facts(*gpus: Gpu, version: str = "0.5.23+ada.1", **changed: Any) -> Environment:
    """A machine without problems, with some of its facts changed."""
    return replace(
        Environment(
            python="3.12.9",
            executable="/venv/bin/python",
            markers=MARKERS,
            owners=(Owner("sglang", version, SITE),),
            package=f"{SITE}/sglang",
            package_version=version,
            kernels=KERNELS,
            installed=PINNED,
            requires=REQUIRES,
            driver=Driver("580.95.05", 13000, None, gpus or (RTX_4090,)),
            torch=Torch("2.14.1+cu130", "13.0", None),
            variables={},
        ),
        **changed,
    )


def findings(machine: Environment, tested: SelfTest = GOOD) -> list[diagnose.Finding]:
    return list(diagnose.diagnose_environment(machine, tested).findings)


def only(machine: Environment, tested: SelfTest = GOOD) -> diagnose.Finding:
    (found,) = findings(machine, tested)
    return found


# -- no findings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("card", [RTX_4090, RTX_5090, H200, gpu(80), gpu(86), gpu(100)])
def test_a_machine_that_is_well(card: Gpu) -> None:
    found = diagnose.diagnose_environment(facts(card), GOOD)
    assert found.findings == () and found.fork and found.version == "0.5.23+ada.1"
    assert [(one.name, one.installed, one.ok) for one in found.packages] == [
        (name, version, True) for name, version in PINNED.items()
    ]
    assert found.packages[1].wanted == "==3.8.0,>=3.5.1"


def test_a_worktree_on_pythonpath_is_the_fork() -> None:
    tree = "/home/ada/sglang-v0.5.23/python/sglang"
    kernels = f"{tree}/srt/layers/attention/ada_dsa"
    machine = facts(
        owners=(), package=tree, package_version="0.5.23", kernels=kernels, requires={"torch": []}
    )
    found = diagnose.diagnose_environment(machine, GOOD)
    assert found.fork and found.findings == ()
    assert all(one.ok and not one.wanted for one in found.packages)


# -- routes -----------------------------------------------------------------------------------------


def test_the_override_puts_any_gpu_on_the_sm_89_path() -> None:
    machine = facts(H200, variables={plan.OVERRIDE: "sm89"})
    found = diagnose.diagnose_environment(machine, GOOD)
    assert found.findings == () and found.routes[0].kind == "default"
    assert plan.OVERRIDE in found.routes[0].text
    wrong = only(facts(H200, variables={plan.OVERRIDE: "sm86"}))
    assert "'sm86'" in wrong.what and wrong.next_step == f"unset {plan.OVERRIDE}"


# -- findings ------------------------------------------------------------------------------------


def test_no_gpu() -> None:
    machine = facts()
    why = "no NVIDIA driver: libcuda.so.1: cannot open shared object file"
    machine = replace(machine, driver=Driver(None, None, why, ()))
    found = only(machine, SelfTest(skipped="no NVIDIA GPU"))
    assert found.what == "no NVIDIA GPU" and found.why == why and "nvidia-smi" in found.next_step
    hidden = replace(
        machine,
        driver=Driver("580.95.05", 13000, None, ()),
        variables={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert "CUDA_VISIBLE_DEVICES=''" in only(hidden, SelfTest(skipped="no NVIDIA GPU")).why


def test_too_old_a_gpu() -> None:
    found = only(facts(gpu(75, "Tesla T4")), SelfTest(skipped="ada_dsa needs a GPU of ..."))
    assert found.what == "sm_75 cannot serve a DSA model" and "8.0 or later" in found.why


def test_gpus_of_two_kinds_and_little_shared_memory() -> None:
    mixed = only(facts(RTX_4090, replace(RTX_5090, index=1)))
    assert "0: NVIDIA GeForce RTX 4090 (sm_89), 1: NVIDIA GeForce RTX 5090" in mixed.why
    small = only(facts(gpu(89, shared=65_536)))
    assert "64 KiB of shared memory" in small.what and "99 KiB" in small.why


def test_two_distributions_ship_sglang() -> None:
    other = Owner("sglang-nightly", "0.6.0.dev1", SITE)
    found = only(facts(owners=(Owner("sglang", "0.5.23+ada.1", SITE), other)))
    assert found.what == "2 distributions ship sglang"
    assert "sglang-nightly 0.6.0.dev1" in found.why and SITE in found.why
    assert "uninstall sglang sglang-nightly" in found.next_step


@pytest.mark.parametrize(
    ("changed", "what", "step"),
    [
        ({"owners": (), "package": None, "kernels": None}, "not installed", "tool build"),
        ({"package": None, "kernels": None}, "not found by import", "--force-reinstall"),
        (
            {"package_version": "0.5.20", "kernels": None},
            "sglang 0.5.20 is not the fork",
            "tool build --sglang-ref v0.5.20",
        ),
        ({"package_version": "0.5.20", "kernels": "/src/ada_dsa"}, "not the fork", "tool build"),
        ({"kernels": None}, "kernels of the fork 0.5.23+ada.1 are missing", "--force-reinstall"),
    ],
)
def test_sglang_that_is_not_the_fork(changed: dict[str, Any], what: str, step: str) -> None:
    found = only(facts(**changed), SelfTest(skipped="there is no ada_dsa in this environment")
                 if changed["kernels"] is None else GOOD)  # fmt: skip
    assert what in found.what and step in found.next_step


@pytest.mark.parametrize(
    ("package", "version", "wanted"),
    [
        ("torch", "2.11.0+cu128", "==2.14.1"),
        ("triton", "3.4.0", "==3.8.0,>=3.5.1"),
        ("tilelang", None, "==0.1.12"),
        ("apache-tvm-ffi", "0.1.15.post2", "==0.1.11"),
        ("transformers", "no version", "==5.19.0"),
    ],
)
def test_another_version_than_wanted(package: str, version: str | None, wanted: str) -> None:
    installed = {name: v for name, v in {**PINNED, package: version}.items() if v is not None}
    found = only(facts(installed=installed))
    assert found.what.startswith("1 package(s)")
    assert found.why == f"{package} {version or 'missing'} ({wanted} wanted)"
    assert found.next_step == "/venv/bin/python -m pip install sglang==0.5.23+ada.1"


def test_what_torch_wants_beside_a_worktree() -> None:
    old = {**PINNED, "triton": "3.4.0"}
    requires = {"sglang": [], "torch": REQUIRES["torch"]}
    found = only(facts(owners=(), installed=old, requires=requires))
    assert found.next_step == "/venv/bin/python -m pip install triton==3.8.0"


def test_torch_that_cannot_use_the_gpu() -> None:
    cpu = only(facts(torch=Torch("2.14.1+cpu", None, "Torch not compiled with CUDA enabled")))
    assert cpu.what == "torch 2.14.1+cpu is built without CUDA"
    assert "--force-reinstall torch==2.14.1" in cpu.next_step
    broken = only(facts(torch=Torch(None, None, "import torch: libcudnn.so.9: not found")))
    assert broken.what == "torch cannot be imported" and "libcudnn" in broken.why
    stuck = only(facts(torch=Torch("2.14.1", "13.0", "CUDA unknown error")))
    assert stuck.why == "CUDA unknown error"
    gone = {name: v for name, v in PINNED.items() if name != "torch"}
    assert "torch missing" in only(facts(torch=None, installed=gone)).why
    bare = facts(torch=None, installed=gone, requires={"sglang": [], "torch": []})
    assert only(bare).what == "torch is not installed"


def test_too_old_a_driver() -> None:
    old = Driver("550.54.14", 12040, None, (RTX_4090,))
    machine = facts(driver=old, torch=Torch("2.14.1+cu130", "13.0", "driver is too old"))
    found = only(machine)
    assert found.what == "the driver (550.54.14) is too old for torch 2.14.1+cu130"
    assert found.why == "it serves CUDA 12.4, torch was built for CUDA 13.0"
    # A driver of the same major version serves every minor one.
    assert not findings(facts(driver=old, torch=Torch("2.14.1+cu128", "12.8", None)))


def test_a_self_test_that_fails_or_does_not_finish() -> None:
    bad = (
        Check("top-k", False, 0.25, 0.0, 0.1, None),
        Check("KV pack", False, None, 0.0, 0.1, "OutOfResources: shared memory"),
        *GOOD.checks,
    )
    failed = only(facts(), SelfTest(bad, 89, 3.0))
    assert failed.what == "2 of 4 kernels fail their self-test"
    assert failed.why == "top-k: error 2.5e-01; KV pack: OutOfResources: shared memory"
    hung = only(facts(), SelfTest(GOOD.checks, 89, None, broken="did not end within 600 s"))
    assert hung.why == "did not end within 600 s, after KV pack" and KERNELS in hung.next_step
    crashed = only(facts(), SelfTest(broken="was ended by SIGSEGV"))
    assert crashed.why == "was ended by SIGSEGV, before the first kernel"
    unfit = only(facts(), SelfTest(skipped="ada_dsa supports Triton >=3.5.1,<3.10, got 3.4.0"))
    assert unfit.what == "the kernels were not tested" and "got 3.4.0" in unfit.why


def test_triton_that_only_interprets() -> None:
    assert "TRITON_INTERPRET" in only(facts(variables={"TRITON_INTERPRET": "1"})).what
    assert not findings(facts(variables={"TRITON_INTERPRET": "0"}))


@pytest.mark.parametrize(
    ("stated", "owners", "version"),
    [
        ("0.5.23", ("sglang 0.5.9",), "0.5.23"),
        (None, ("other 1.0", "sglang 0.5.9"), "0.5.9"),
        ("zero", ("other 1.0", "sglang 0.5.9"), "0.5.9"),
        (None, ("other 1.0",), None),
        (None, (), None),
    ],
)
def test_the_version_that_would_be_imported(
    stated: str | None, owners: tuple[str, ...], version: str | None
) -> None:
    """What the files state; else that of sglang as it was installed, of no other distribution."""
    found = tuple(Owner(*one.split(), location=SITE) for one in owners)
    known = diagnose.version_of(facts(package_version=stated, owners=found))
    assert (str(known) if known else None) == version
