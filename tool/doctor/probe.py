"""Runs in the Python that ``tool doctor`` examines; never imported by the tool.

``probe.py environment`` prints one JSON object, on the last line: what is installed, what the driver and
torch say. ``probe.py selftest FOLDER`` runs the self-test of the kernels in FOLDER. With
``--end-with-parent`` as the last argument it ends when its standard input does.

Standard library alone, and Python 3.10: another environment's Python runs this file. What the facts mean
is decided in ``tool.doctor.diagnose``. sglang is not imported (it loads most of its dependencies), only
found.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

# The folder of this file is the first on the path otherwise, and its modules are none of the environment.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]

KERNELS = ("srt", "layers", "attention", "ada_dsa")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "SGLANG_ADA_DSA_OVERRIDE_ARCH",
    "TRITON_OVERRIDE_ARCH",
    "TRITON_INTERPRET",
    "PYTHONPATH",
)
# cuda.h: CUdevice_attribute.
MAJOR, MINOR, SHARED_OPTIN = 75, 76, 97
SMI_SECONDS = 30


def environment() -> dict[str, Any]:
    """Everything, as JSON takes it. Keys are the fields of ``tool.doctor.environment.Environment``."""
    package = _folder_of("sglang")
    kernels = package.joinpath(*KERNELS) if package else None
    if kernels is None or not (kernels / "__init__.py").is_file():
        kernels = _folder_of("ada_dsa")
    installed: dict[str, str] = {}
    owners = []
    for dist in importlib.metadata.distributions():
        name, version = _identity(dist)
        if not (name and version):
            continue  # what an interrupted pip left
        installed.setdefault(name, version)  # the first on the path is the one imported
        if name == "sglang" or _ships_sglang(dist):
            location = os.path.realpath(str(dist.locate_file("")))  # a venv's lib64 is its lib
            owner = {"name": name, "version": version, "location": location}
            if owner not in owners:
                owners.append(owner)
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "markers": _markers(),
        "owners": owners,
        "package": str(package) if package else None,
        "package_version": _stated_version(package),
        "kernels": str(kernels) if kernels else None,
        "installed": installed,
        "requires": {name: _requires(name) for name in ("sglang", "torch")},
        "driver": _driver(),
        "torch": _torch(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _folder_of(package: str) -> Path | None:
    """Where ``import package`` would find it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    found = list(spec.submodule_search_locations or ()) if spec else []
    return Path(found[0]) if found else None


def _identity(dist: importlib.metadata.Distribution) -> tuple[str, str]:
    """Normalised name and version; empty where METADATA is missing or damaged."""
    with contextlib.suppress(Exception):  # the reader of METADATA raises whatever it meets
        name = re.sub(r"[-_.]+", "-", str(dist.metadata["Name"] or "")).lower()
        return name, str(dist.metadata["Version"] or "")
    return "", ""


def _ships_sglang(dist: importlib.metadata.Distribution) -> bool:
    try:
        record = dist.read_text("RECORD") or ""
    except (OSError, ValueError):
        return False
    return re.search(r"^sglang/", record, re.MULTILINE) is not None


def _stated_version(package: Path | None) -> str | None:
    try:
        text = (package / "_version.py").read_text(encoding="utf-8") if package else ""
    except (OSError, ValueError):
        return None
    found = re.search(r"^__version__ = version = '([^']+)'$", text, re.MULTILINE)
    return found[1] if found else None


def _requires(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except Exception:  # PackageNotFoundError, or whatever a damaged METADATA raises
        return []


def _markers() -> dict[str, str]:
    """The environment that markers of PEP 508 are evaluated in."""
    return {
        "implementation_name": sys.implementation.name,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
        "extra": "",
    }


def _driver() -> dict[str, Any]:
    """What the driver itself says: it is asked without torch, which may be the part that fails."""
    facts: dict[str, Any] = {"release": _driver_release(), "cuda": None, "error": None, "gpus": []}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        return facts | {"error": f"no NVIDIA driver: {err}"}
    try:
        version = ctypes.c_int()
        cuda.cuDriverGetVersion(ctypes.byref(version))
        facts["cuda"] = version.value
        _ask(cuda, "cuInit", 0)
        count = ctypes.c_int()
        _ask(cuda, "cuDeviceGetCount", ctypes.byref(count))
        facts["gpus"] = [_gpu(cuda, index) for index in range(count.value)]
    except (OSError, AttributeError) as err:  # AttributeError: a libcuda without the function
        facts["error"] = str(err)
    return facts


def _gpu(cuda: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, value = ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _ask(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _ask(cuda, "cuDeviceGetName", name, len(name), device)
    _ask(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    attributes = {}
    for attribute in (MAJOR, MINOR, SHARED_OPTIN):
        _ask(cuda, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        attributes[attribute] = value.value
    return {
        "index": index,
        "name": name.value.decode("utf-8", "replace"),
        "sm": attributes[MAJOR] * 10 + attributes[MINOR],
        "memory": memory.value,
        "shared": attributes[SHARED_OPTIN],
    }


def _ask(cuda: ctypes.CDLL, function: str, *arguments: Any) -> None:
    status = getattr(cuda, function)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        said = (text.value or b"").decode("utf-8", "replace")
        raise OSError(f"{function} failed with error {status} ({said})")


def _driver_release() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def _torch() -> dict[str, Any] | None:
    """Version, the CUDA it was built for, and why it cannot use a GPU; None where there is no torch."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as err:
        if err.name == "torch":
            return None
        return {"version": None, "cuda": None, "error": f"import torch: {err}"}
    except Exception as err:  # a torch whose libraries do not fit raises whatever it likes
        return {"version": None, "cuda": None, "error": f"import torch: {err}"}
    try:
        facts = {"version": str(torch.__version__), "cuda": torch.version.cuda, "error": None}
    except AttributeError as err:  # a folder that an uninstalled torch has left is an empty package
        place = ", ".join(getattr(torch, "__path__", ["?"]))
        return {"version": None, "cuda": None, "error": f"{err}; it was found in {place}"}
    try:
        torch.cuda.init()
    except Exception as err:
        facts["error"] = str(err).split("\n")[0]
    return facts


def selftest(folder: Path) -> None:
    """Run the self-test of the kernel package in ``folder``, under the name ``ada_dsa``.

    Not as a module of sglang, whose ``__init__`` needs its dependencies, and not by way of
    ``sys.path``, where the folder's neighbours would hide other packages.
    """
    spec = importlib.util.spec_from_file_location(
        "ada_dsa", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ada_dsa"] = module
    spec.loader.exec_module(module)
    sys.argv = ["selftest", "--json"]
    runpy.run_module("ada_dsa.selftest", run_name="__main__", alter_sys=True)


def end_with_parent() -> None:
    """Kill this process group when the tool is gone: standard input is a pipe that only the tool holds."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    if sys.argv[-1] == "--end-with-parent":
        end_with_parent()
    if sys.argv[1] == "selftest":
        selftest(Path(sys.argv[2]))
        return
    # Importing torch may print; standard output is for the one object, on a line of its own: what a .pth
    # file prints comes before this file runs.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        out.write("\n")
        json.dump(environment(), out)


if __name__ == "__main__":
    main()
