"""What the probe finds out in its own process, with a driver and packages that are made up."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tool.doctor.environment import PROBE


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # it takes its own folder out
    for name in ("ada_dsa", "sglang"):  # a test before may have imported it
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("probe", PROBE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- packages ------------------------------------------------------------------------------------------


def test_where_an_import_would_find_a_package(
    probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here" / "__init__.py")
    write(tmp_path / "single.py")
    (tmp_path / "folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert probe._folder_of("here") == tmp_path / "here"
    assert probe._folder_of("folder") == tmp_path / "folder"
    assert probe._folder_of("single") is None and probe._folder_of("gone") is None
    assert probe._folder_of("") is None and probe._folder_of("gone.below") is None


def test_the_version_that_the_package_states(probe: ModuleType, tmp_path: Path) -> None:
    assert probe._stated_version(None) is None and probe._stated_version(tmp_path) is None
    write(tmp_path / "_version.py", "version: str\n__version__ = version = '0.5.23'\n")
    assert probe._stated_version(tmp_path) == "0.5.23"
    write(tmp_path / "_version.py", "__version__ = '0.5.23'\n")
    assert probe._stated_version(tmp_path) is None


class Damaged:
    @property
    def metadata(self) -> Any:
        raise ValueError("damaged")

    def read_text(self, _: str) -> str:
        raise OSError("damaged")


def test_distributions(probe: ModuleType) -> None:
    named = SimpleNamespace(metadata={"Name": "My_Pack.age", "Version": "1"})
    assert probe._identity(named) == ("my-pack-age", "1")
    assert probe._identity(SimpleNamespace(metadata={"Name": None, "Version": None})) == ("", "")
    assert probe._identity(Damaged()) == ("", "")
    for record, ships in (("sglang/a.py,,\n", True), ("a.py,,\nsglang/a.py,,\n", True)):
        assert probe._ships_sglang(SimpleNamespace(read_text=lambda _, r=record: r)) is ships
    for other in ("sglang_router/a.py,,\n", "x/sglang/a.py,,\n", None):
        assert not probe._ships_sglang(SimpleNamespace(read_text=lambda _, r=other: r))
    assert not probe._ships_sglang(Damaged())


def test_requirements(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe._requires("no-such-distribution") == []
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: None)
    assert probe._requires("x") == []
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["torch"])
    assert probe._requires("x") == ["torch"]


def distribution(name: str, version: str, place: Path, record: str = "") -> Any:
    metadata = {"Name": name, "Version": version}
    return SimpleNamespace(
        metadata=metadata, read_text=lambda _: record, locate_file=lambda _: place
    )


def test_everything(probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sglang"
    write(package / "__init__.py")
    write(package / "_version.py", "__version__ = version = '0.5.23'\n")
    write(tmp_path / "ada_dsa" / "__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    first = distribution("sglang", "0.5.23", tmp_path)
    twice = [first, first, distribution("sglang", "0.5.9", tmp_path / "later")]
    others = [
        distribution("other", "1", tmp_path, "sglang/x.py,,\n"),
        distribution("third", "2", tmp_path, "third/x.py,,\n"),
        distribution("", "3", tmp_path),
        distribution("broken", "", tmp_path),
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [*twice, *others])
    monkeypatch.setattr(probe, "_driver", dict)
    monkeypatch.setattr(probe, "_torch", lambda: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = probe.environment()
    assert found["installed"] == {"sglang": "0.5.23", "other": "1", "third": "2"}
    assert [(one["name"], one["version"]) for one in found["owners"]] == [
        ("sglang", "0.5.23"), ("sglang", "0.5.9"), ("other", "1"),
    ]  # fmt: skip
    assert found["package"] == str(package) and found["package_version"] == "0.5.23"
    assert found["kernels"] == str(tmp_path / "ada_dsa")
    assert found["variables"]["TRITON_INTERPRET"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in found["variables"]
    inside = write(package.joinpath(*probe.KERNELS) / "__init__.py").parent
    assert probe.environment()["kernels"] == str(inside)
    monkeypatch.setattr(probe, "_folder_of", lambda _: None)
    nothing = probe.environment()
    assert nothing["package"] is None and nothing["kernels"] is None


# -- driver and torch ----------------------------------------------------------------------------------


class Cuda:
    """A libcuda that knows two cards; ``fails`` is a function that gives an error."""

    def __init__(self, fails: str = "") -> None:
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        if name == "missing" or (self._fails == "AttributeError" and name == "cuInit"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == self._fails:
                return 999
            self._answer(name, arguments)
            return 0

        return call

    @staticmethod
    def _answer(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "cuGetErrorString":
            arguments[1]._obj.value = b"unknown error"
        elif name == "cuDriverGetVersion":
            arguments[0]._obj.value = 13000
        elif name == "cuDeviceGetCount":
            arguments[0]._obj.value = 2
        elif name == "cuDeviceGetName":
            arguments[0].value = b"a card"
        elif name == "cuDeviceTotalMem_v2":
            arguments[0]._obj.value = 24 << 30
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = {75: 8, 76: 9, 97: 101_376}[arguments[1]]


def test_a_driver_with_cards(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_driver_release", lambda: "580")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Cuda())
    found = probe._driver()
    assert (found["release"], found["cuda"], found["error"]) == ("580", 13000, None)
    card = {"name": "a card", "sm": 89, "memory": 24 << 30, "shared": 101_376}
    assert found["gpus"] == [{"index": 0, **card}, {"index": 1, **card}]


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        ("cuInit", "cuInit failed with error 999 (unknown error)"),
        ("cuDeviceGetCount", "cuDeviceGetCount failed with error 999 (unknown error)"),
        ("cuDeviceGetAttribute", "cuDeviceGetAttribute failed with error 999 (unknown error)"),
        ("AttributeError", "cuInit"),
    ],
)
def test_a_driver_that_fails(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, fails: str, error: str
) -> None:
    monkeypatch.setattr(probe, "_driver_release", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Cuda(fails))
    found = probe._driver()
    assert (found["cuda"], found["error"], found["gpus"]) == (13000, error, [])


def test_no_driver(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(probe, "_driver_release", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert probe._driver() == {
        "release": None, "cuda": None, "error": "no NVIDIA driver: no such library", "gpus": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "output", "release"),
    [(0, "580.1\n580.1\n", "580.1"), (1, "580.1", None), (0, "", None)],
)
def test_the_drivers_release(
    probe: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    output: str,
    release: str | None,
) -> None:
    done = SimpleNamespace(returncode=code, stdout=output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert probe._driver_release() == release


def test_no_nvidia_smi(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert probe._driver_release() is None


def init_fails() -> None:
    raise RuntimeError("no CUDA here\nand more words")


@pytest.mark.parametrize(
    ("found", "facts"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), None),
        (
            ModuleNotFoundError("No module named 'numpy'", name="numpy"),
            (None, None, "import torch: No module named 'numpy'"),
        ),
        (OSError("libc10.so"), (None, None, "import torch: libc10.so")),
        (
            SimpleNamespace(
                __version__="2.14", version=SimpleNamespace(cuda="13.0"),
                cuda=SimpleNamespace(init=lambda: None),
            ),
            ("2.14", "13.0", None),
        ),
        (
            SimpleNamespace(
                __version__="2.14", version=SimpleNamespace(cuda=None),
                cuda=SimpleNamespace(init=init_fails),
            ),
            ("2.14", None, "no CUDA here"),
        ),
    ],
)  # fmt: skip
def test_torch(
    probe: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    found: Any,
    facts: tuple[str | None, str | None, str | None] | None,
) -> None:
    def load(_: str) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", load)
    wanted = facts and dict(zip(("version", "cuda", "error"), facts, strict=True))
    assert probe._torch() == wanted


def test_what_an_uninstalled_torch_leaves(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = ModuleType("torch")
    empty.__path__ = ["/site/torch"]
    monkeypatch.setattr(importlib, "import_module", lambda _: empty)
    found = probe._torch()
    assert found["version"] is None and "it was found in /site/torch" in found["error"]


def test_a_folder_without_kernels(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "spec_from_file_location", lambda *_, **__: None)
    with pytest.raises(ImportError, match="no package in /none"):
        probe.selftest(Path("/none"))


# -- how it is started ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
def test_what_it_is_asked_for(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(probe, "selftest", asked.append)
    monkeypatch.setattr(probe, "end_with_parent", lambda: asked.append("ends with its parent"))
    arguments = ["probe.py", "selftest", "/kernels", *(["--end-with-parent"] if ends else [])]
    monkeypatch.setattr(sys, "argv", arguments)
    probe.main()
    assert asked == [*(["ends with its parent"] if ends else []), Path("/kernels")]
