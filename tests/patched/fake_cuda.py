"""A CUDA platform without a GPU, for importing sglang's CUDA branches on a CPU-only torch.

``install()`` must run before sglang is imported. It makes torch report one GPU, answers
``torch.cuda`` questions from one settable capability, answers ``nvidia-smi``, and lets the compiled
packages that sglang imports (and that cannot load without a driver) import as empty stand-ins. Nothing is
computed here. The functions of a stand-in are mocks that record their calls, so a test can see what was
called.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import os
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import msgspec
import releases
import torch

# Compiled for CUDA alone, or (torchvision) tied to the CUDA build of torch.
STUBBED = (
    "sgl_kernel",
    "deep_gemm",
    "flashinfer",
    "flash_mla",
    "torchvision",
    "cutlass",
    "xgrammar",
)
if releases.at(">=0.5.15,<0.5.16"):  # imports it unguarded; later ones hide TVM's own probe for it
    STUBBED += ("cuda",)
NUM_SMS = 128
MEMORY_MIB = 49_140
"""What nvidia-smi prints: an RTX 4090 with 48 GiB."""

_capability = (8, 9)
_stubs: dict[str, types.ModuleType] = {}


class _Stub(types.ModuleType):
    """A stand-in for a compiled package. Every attribute is a mock that is created once."""

    __version__ = "9.9.9"
    __all__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        mock = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, mock)
        return mock


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] in STUBBED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        _stubs[spec.name] = _Stub(spec.name)
        return _stubs[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Stream:
    """A stream or event whose work is always finished."""

    cuda_stream = 0

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None: ...

    wait = wait_stream = wait_event = synchronize = record

    def record_event(self, *_: object) -> _Stream:
        return self


def _properties(*_: object) -> SimpleNamespace:
    major, minor = _capability
    return SimpleNamespace(
        name="Fake CUDA device",
        major=major,
        minor=minor,
        total_memory=24 << 30,
        multi_processor_count=NUM_SMS,
        warp_size=32,
        gcnArchName="",
        shared_memory_per_block_optin=101_376,
    )


def install(capability: tuple[int, int] = (8, 9)) -> None:
    """Make torch report one GPU of ``capability`` and stub the compiled packages. Run once."""
    global _capability
    _capability = capability
    torch.version.cuda = "13.0"
    answers: dict[str, object] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "Fake CUDA device",
        "mem_get_info": (20 << 30, 24 << 30),
        "memory_allocated": 0,
        "memory_reserved": 0,
        "is_current_stream_capturing": False,
        "synchronize": None,
        "empty_cache": None,
        "set_device": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    torch.cuda.Stream = torch.cuda.Event = _Stream
    torch.cuda.current_stream = _Stream
    torch.cuda.stream = nullcontext
    torch.cuda.get_device_capability = lambda *_: _capability
    torch.cuda.get_device_properties = _properties
    sys.meta_path.insert(0, _StubFinder())
    # pydantic builds a model with a field of this type.
    importlib.import_module("xgrammar").StructuralTag = dict
    _tolerate_missing_ops()
    _answer_nvidia_smi()
    _keep_fields_of_structs()


def _answer_nvidia_smi() -> None:
    """A start sizes its memory pools from the MiB. To start a process takes as long as half of the rest."""
    run = subprocess.run

    @functools.wraps(run)
    def answer(command: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(command, list) and command[0] == "nvidia-smi":
            return subprocess.CompletedProcess(command, 0, stdout=f"{MEMORY_MIB}\n", stderr="")
        return run(command, *args, **kwargs)

    subprocess.run = answer


def _keep_fields_of_structs() -> None:
    """sglang asks for them several times at a start; msgspec evaluates every annotation each time."""
    fields = msgspec.structs.fields
    kept = functools.cache(fields)
    msgspec.structs.fields = lambda one: kept(one) if isinstance(one, type) else fields(one)


def _tolerate_missing_ops() -> None:
    """Let ``register_fake`` name an operator whose compiled library is not loaded."""
    strict = torch.library.register_fake

    @functools.wraps(strict)
    def register_fake(op: Any, func: Any = None, /, **kwargs: Any) -> Any:
        def attach(function: Any) -> Any:
            try:
                strict(op, function, **kwargs)
            except RuntimeError as err:
                if "does not exist" not in str(err):
                    raise
            return function

        return attach if func is None else attach(func)

    torch.library.register_fake = register_fake


@contextmanager
def capability(major: int, minor: int) -> Iterator[None]:
    """Inside the block the device is sm_<major><minor>, also for what sglang has cached.

    Variables that a start sets for this device are gone after the block.
    """
    global _capability
    before, environ = _capability, dict(os.environ)
    _capability = (major, minor)
    clear_caches()
    try:
        yield
    finally:
        _capability = before
        os.environ.clear()
        os.environ.update(environ)
        clear_caches()


def device_sm() -> int:
    return _capability[0] * 10 + _capability[1]


def clear_caches() -> None:
    """Empty every ``lru_cache`` of every sglang module: platform probes and chosen functions."""
    wrapper = functools._lru_cache_wrapper
    for name, module in list(sys.modules.items()):
        if name == "sglang" or name.startswith("sglang."):
            # An exact type and a comprehension: there are 100,000 values.
            for cached in [v for v in vars(module).values() if type(v) is wrapper]:
                cached.cache_clear()


def _mocks() -> Iterator[tuple[str, MagicMock]]:
    for module, stub in sorted(_stubs.items()):
        for name, value in sorted(vars(stub).items()):
            if isinstance(value, MagicMock):
                yield f"{module}.{name}", value


def calls() -> list[str]:
    """The stand-ins' functions called since the last `forget`, and how often."""
    return [f"{name} x{mock.call_count}" for name, mock in _mocks() if mock.call_count]


def forget() -> None:
    for _, mock in _mocks():
        if mock.call_count:
            mock.reset_mock()
