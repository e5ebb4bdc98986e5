"""``tool doctor`` as processes: interpreters that hang or crash, this machine, and one with a card.

The card is a stand-in, a ``libcuda.so.1`` compiled here, and so are torch and sglang; the probe, its
processes and the report are the tool's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tool.cli.app import main
from tool.doctor import environment as probing
from tool.doctor.environment import SelfTest
from tool.doctor.examine import examine_environment
from tool.errors import EnvironmentFault, UsageError
from tool.project.session import SILENT


def script(path: Path, text: str) -> Path:
    """An executable that stands where an interpreter is expected."""
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


def test_what_is_no_interpreter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be run: No such file"):
        probing.probe_environment(tmp_path / "python")
    with pytest.raises(UsageError, match="not a Python interpreter") as refused:
        probing.probe_environment(
            script(tmp_path / "other", "import sys; sys.exit('I am another')")
        )
    assert refused.value.why == "I am another"
    with pytest.raises(UsageError, match="is a folder") as folder:
        examine_environment(tmp_path, SILENT)
    assert folder.value.next_step == f"name its Python: {tmp_path / 'bin' / 'python'}"


def test_an_environment_that_hangs_or_crashes(tmp_path: Path) -> None:
    text = "import subprocess, sys, time\nprint('loading', file=sys.stderr, flush=True)\n"
    text += "subprocess.Popen(['sleep', '60'])\ntime.sleep(60)"  # a child that keeps the pipes open
    begin = time.monotonic()
    with pytest.raises(EnvironmentFault, match="did not answer in 1 s") as hung:
        probing.probe_environment(script(tmp_path / "slow", text), seconds=1)
    assert hung.value.why == "loading" and time.monotonic() - begin < 30
    crash = script(tmp_path / "crash", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(EnvironmentFault, match="was ended by SIGSEGV"):
        probing.probe_environment(crash)


def test_a_self_test_that_hangs_or_crashes_leaves_what_it_found(tmp_path: Path) -> None:
    head = {"device": "a card", "sm": 89, "torch": "2", "triton": "3"}
    check = {"name": "top-k", "ok": True, "error": 0.0, "bound": 0.0, "seconds": 1.0}
    said = "\n".join(["ptxas info: noise", json.dumps(head), json.dumps(check | {"problem": None})])
    text = f"import os, sys, time\nprint({said!r}, flush=True)\n"
    hung = probing.run_selftest(
        script(tmp_path / "slow", text + "time.sleep(60)"), tmp_path, seconds=2
    )
    assert [one.name for one in hung.checks] == ["top-k"] and hung.sm == 89
    assert hung.broken == "did not end within 2 s" and hung.seconds is None
    crashed = probing.run_selftest(
        script(tmp_path / "crash", text + "sys.exit('CUDA error: illegal address')"), tmp_path
    )
    assert crashed.broken == "ended with status 1: CUDA error: illegal address"
    unfit = script(tmp_path / "unfit", 'print(\'{"unfit": "too old"}\'); raise SystemExit(6)')
    assert probing.run_selftest(unfit, tmp_path) == SelfTest(skipped="too old")


# -- real runs --------------------------------------------------------------------------------------


def run(*arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the envelope of ``tool doctor --json``."""
    done = CliRunner(env=variables).invoke(main, ["doctor", "--json", *arguments])
    return done.exit_code, json.loads(done.stdout)


def test_this_machine() -> None:
    status, envelope = run()
    result = envelope["result"]
    assert envelope["command"] == "doctor" and status == envelope["exit_code"]
    assert result["environment"]["executable"] == sys.executable
    assert status == int(bool(result["findings"]))
    if not result["environment"]["driver"]["gpus"]:
        assert "no NVIDIA GPU" in [one["what"] for one in result["findings"]]
        assert result["selftest"]["skipped"]
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == status
    assert done.stdout.splitlines()[-1] == f"{len(result['findings'])} finding(s)"


LIBCUDA = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static int sm(void) { return atoi(getenv("FAKE_SM")); }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuInit(unsigned flags) { return sm() == 0 ? 100 : 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = i + 7; return 0; }
int cuDeviceGetName(char *name, int size, int d) { strncpy(name, "Fake Card", size); return d != 7; }
int cuDeviceTotalMem_v2(size_t *bytes, int d) { *bytes = (size_t)24 << 30; return d != 7; }
int cuDeviceGetAttribute(int *v, int which, int d) {
    *v = which == 75 ? sm() / 10 : which == 76 ? sm() % 10 : which == 97 ? 101376 : -1;
    return d != 7;
}
int cuGetErrorString(int status, const char **text) {
    *text = status == 100 ? "no CUDA-capable device is detected" : "other"; return 0;
}
"""
FAKE_TORCH = """
print("a torch that talks on standard output")
__version__ = "2.14.1+cu130"
class version: cuda = "13.0"
class cuda:
    @staticmethod
    def init(): pass
"""
FAKE_SELFTEST = """
import json, sys
from . import VALUE
assert __name__ == "__main__" and sys.argv[1:] == ["--json"]
print(json.dumps({"device": "Fake Card", "sm": 89, "torch": "2", "triton": "3"}))
for name in ("top-k", "KV pack"):
    print(json.dumps({"name": name, "error": VALUE, "bound": 0.0, "ok": VALUE == 0, "seconds": 0.1,
                      "problem": None}))
print(json.dumps({"seconds": 0.2}))
sys.exit(int(VALUE != 0))
"""


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Variables that make this Python's environment one with a card, torch and a fork of sglang."""
    if (compiler := shutil.which("cc") or shutil.which("gcc")) is None:
        pytest.skip("no C compiler")
    (tmp_path / "libcuda.c").write_text(LIBCUDA)
    library = [
        "-shared",
        "-fPIC",
        "-o",
        str(tmp_path / "libcuda.so.1"),
        str(tmp_path / "libcuda.c"),
    ]
    subprocess.run([compiler, *library], check=True)
    site = tmp_path / "site"
    files = {
        "torch.py": FAKE_TORCH,
        "sglang/__init__.py": "raise RuntimeError('sglang was imported')",
        "sglang/_version.py": "\n__version__ = version = '0.5.23+ada.1'\n",
        "sglang/srt/layers/attention/ada_dsa/__init__.py": "VALUE = 0.0\n",
        "sglang/srt/layers/attention/ada_dsa/selftest.py": FAKE_SELFTEST,
        "sglang/srt/layers/attention/json.py": "raise RuntimeError('a neighbour was imported')",
        "sglang-0.5.23+ada.1.dist-info/METADATA": "Name: sglang\nVersion: 0.5.23+ada.1\n"
        "Requires-Dist: torch==2.14.1\n",
        "sglang-0.5.23+ada.1.dist-info/RECORD": "sglang/__init__.py,,\n",
        "torch-2.14.1+cu130.dist-info/METADATA": "Name: torch\nVersion: 2.14.1+cu130\n",
        "_broken-1.dist-info/METADATA": "",
    }

    def make(sm: int = 89, **changed: str) -> dict[str, str]:
        for name, text in {**files, **changed}.items():
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        known = os.environ.get("PYTHONPATH")
        return {
            "FAKE_SM": str(sm),
            "LD_LIBRARY_PATH": str(tmp_path),
            "PYTHONPATH": f"{site}{os.pathsep}{known}" if known else str(site),
            "CUDA_VISIBLE_DEVICES": "0",
        }

    return make


def test_a_machine_with_a_card(machine: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    status, envelope = run(**machine())
    result = envelope["result"]
    assert result["findings"] == [] and status == 0 and result["fork"]
    environment = result["environment"]
    assert environment["driver"]["gpus"] == [
        {"index": 0, "name": "Fake Card", "sm": 89, "memory": 24 << 30, "shared": 101_376}
    ]
    assert environment["torch"] == {"version": "2.14.1+cu130", "cuda": "13.0", "error": None}
    assert [one["location"] for one in environment["owners"]] == [str(tmp_path / "site")]
    assert [one["name"] for one in result["selftest"]["checks"]] == ["top-k", "KV pack"]
    assert result["routes"][0]["kind"] == "default"


def test_its_report_for_a_person(machine: Callable[..., dict[str, str]]) -> None:
    done = CliRunner(env=machine()).invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert re.search(
        r"^GPU 0 +Fake Card, sm_89, 24\.0 GiB, 99 KiB shared memory a block$", text, re.M
    )
    assert re.search(r"^driver +.*, CUDA 13\.0$", text, re.M)
    assert re.search(r"^sm_89 +ada_dsa by default: packed fp8 KV cache", text, re.M)
    assert "2 of 2 kernels ok on GPU 0, sm_89" in text
    assert re.search(r"^ +KV pack +ok +error 0\.0e\+00, wanted exact$", text, re.M)
    assert text.endswith("\n0 finding(s)\n")


def test_a_wrong_kernel_a_second_owner_and_a_card_that_is_gone(
    machine: Callable[..., dict[str, str]],
) -> None:
    ada_dsa = "sglang/srt/layers/attention/ada_dsa/__init__.py"
    changed = {
        ada_dsa: "VALUE = 0.5\n",
        "other-1.0.dist-info/METADATA": "Name: Other_Engine\nVersion: 1.0\n",
        "other-1.0.dist-info/RECORD": "other.py,,\nsglang/version.py,,\n",
    }
    status, envelope = run(**machine(**changed))
    whats = [one["what"] for one in envelope["result"]["findings"]]
    assert status == 1
    assert whats == ["2 distributions ship sglang", "2 of 2 kernels fail their self-test"]
    assert "other-engine 1.0" in envelope["result"]["findings"][0]["why"]
    status, envelope = run(**machine(0))
    gone = next(f for f in envelope["result"]["findings"] if f["what"] == "no NVIDIA GPU")
    assert status == 1
    assert gone["why"].startswith(
        "cuInit failed with error 100 (no CUDA-capable device is detected)"
    )


def test_kernels_without_a_self_test(
    machine: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    variables = machine()
    (tmp_path / "site/sglang/srt/layers/attention/ada_dsa/selftest.py").unlink()
    status, envelope = run(**variables)
    (found,) = envelope["result"]["findings"]
    assert status == 1 and "older than their self-test" in found["why"]


# -- environments in disorder ---------------------------------------------------------------------------


@pytest.fixture
def empty_environment(tmp_path: Path) -> tuple[Path, Path]:
    """An interpreter for which nothing is installed, and its site-packages."""
    folder = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    return folder / "bin" / "python", site


def test_the_folder_that_an_uninstalled_torch_left(empty_environment: tuple[Path, Path]) -> None:
    python, site = empty_environment
    (site / "torch" / "lib").mkdir(parents=True)
    status, envelope = run("--python", str(python))
    findings = envelope["result"]["findings"]
    (found,) = [f for f in findings if f["what"] == "torch cannot be imported"]
    assert status == 1 and str(site / "torch") in found["why"]


@pytest.mark.parametrize("noise", ["print('{}')", "import sys; sys.stdout.write('no newline')"])
def test_a_path_file_that_prints(empty_environment: tuple[Path, Path], noise: str) -> None:
    python, site = empty_environment
    (site / "noisy.pth").write_text(f"import sys; {noise}; sys.stdout.flush()\n")
    status, envelope = run("--python", str(python))
    assert status == 1
    assert "sglang is not installed" in [one["what"] for one in envelope["result"]["findings"]]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"Name", b"\n\nName: torch\n", b"\x00" * 4096])
def test_damaged_metadata(
    machine: Callable[..., dict[str, str]], tmp_path: Path, damage: bytes
) -> None:
    variables = machine()
    for name in ("sglang-0.5.23+ada.1", "torch-2.14.1+cu130", "_broken-1"):
        (tmp_path / "site" / f"{name}.dist-info" / "METADATA").write_bytes(damage)
        (tmp_path / "site" / f"{name}.dist-info" / "RECORD").write_bytes(b"\xff")
    status, envelope = run(**variables)
    assert status in (0, 1) and envelope["result"]["environment"]["package_version"]


def test_nothing_is_written_into_the_environment(
    machine: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    variables = machine()
    before = sorted((tmp_path / "site").rglob("*"))
    assert run(**variables)[0] == 0
    assert sorted((tmp_path / "site").rglob("*")) == before


@pytest.mark.parametrize("path", ["", ":", "HERE:"])
def test_the_current_folder_is_not_part_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for folder in (here, other):
        folder.mkdir()
    for name in ("torch", "json", "ctypes"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(here)
    run(PYTHONPATH=path.replace("HERE", str(other)))
    assert not (tmp_path / "ran").exists()


def test_the_probe_ends_when_the_tool_is_killed(
    machine: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """It and what it started; the tool has no chance to do anything about it."""
    sign = tmp_path / "sign"
    torch = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\n"
    torch += f"open({str(sign) + '.new'!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
    torch += f"os.rename({str(sign) + '.new'!r}, {str(sign)!r})\ntime.sleep(600)\n"
    env = {**os.environ, **machine(**{"torch.py": torch})}
    tool = subprocess.Popen(
        [sys.executable, "-m", "tool", "doctor"], env=env, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert tool.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    tool.kill()
    tool.wait()
    pids = [int(text) for text in sign.read_text().split()]
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Does the process run? A zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
