"""Compile a Triton kernel for a GPU that is not there, and read what came out.

``compile_kernel`` takes arguments the way a launch does (a dtype stands for a pointer), derives the
signature and the specialisation that a launch would derive, and compiles for one architecture. The
machine code is read back with the disassembler that Triton bundles. A compilation that exceeds shared
memory or spills registers raises no error, so a test has to check.

Run this in a process without ``TRITON_INTERPRET``, because kernels cannot be compiled under it.
"""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHS = (80, 86, 89, 90, 110, 120, 121)
SAMPLED = (86, 89, 120)
"""Those that every run of the tests compiles for; ``-m exhaustive`` compiles for the others."""
BORROWED = (110, 121)
"""Architectures without rows of their own: a kernel has to fit, but residency was chosen for another one."""
BORROWED_SPILLS = 8
"""Local loads and stores that a borrowed row may need."""

# Opt-in shared memory per block, in bytes: CUDA C++ programming guide, table of technical
# specifications per compute capability (99 KB; 163 KB on 8.0; 227 KB on 9.0 and 11.0).
SHARED_OPT_IN = {
    80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 110: 232_448, 120: 101_376, 121: 101_376,
}  # fmt: skip
# What a row of the table may take. A row for older architectures too is held to the small limit on
# sm_90, because it runs there under TRITON_OVERRIDE_ARCH; one for sm_90 alone may take what sm_90 has.
SHARED_LIMIT = SHARED_OPT_IN | {90: 101_376, 110: 101_376}

_POINTER = {
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}


@dataclass(frozen=True)
class Pointer:
    """A pointer argument that need not be 16-byte aligned."""

    dtype: torch.dtype
    aligned: bool = False


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one kernel for one architecture uses.

    Attributes:
        arch: capability as ``major * 10 + minor``.
        shared: bytes of shared memory per block.
        registers: registers per thread.
        spills: local loads and stores (``LDL``, ``STL``) in the machine code.
        mma: tensor-core instructions by mnemonic (``QMMA``, ``HMMA``, ``QGMMA``, ...).
        ldgsts: asynchronous global-to-shared copies (``LDGSTS``).
        ldg: plain global loads.
        instructions: all instructions.
        threads: threads per block.
        sass: the disassembly.
        ptx: the PTX text.
        cubin: the machine code as an ELF file.
        kernel: name of the kernel.
    """

    arch: int
    shared: int
    registers: int
    spills: int
    mma: dict[str, int]
    ldgsts: int
    ldg: int
    instructions: int
    threads: int
    sass: str
    ptx: str
    cubin: bytes
    kernel: str

    def summary(self) -> str:
        mma = " ".join(f"{k}={v}" for k, v in sorted(self.mma.items())) or "no MMA"
        return (
            f"sm_{self.arch}: shared {self.shared} B, {self.registers} registers x "
            f"{self.threads} threads, {self.spills} LDL/STL, {mma}, LDGSTS={self.ldgsts}, "
            f"LDG={self.ldg}, {self.instructions} instructions"
        )


listeners: list[Callable[[Compiled], None]] = []
"""Called with whatever :func:`compile_kernel` returns; ``bench/compile_gate/table.py`` records there."""


def _type_of(value: object) -> tuple[str, bool]:
    """(signature type, whether 16 divides it) of one launch argument."""
    if isinstance(value, torch.dtype):
        return _POINTER[value], True
    if isinstance(value, Pointer):
        return _POINTER[value.dtype], value.aligned
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    raise TypeError(f"cannot derive a Triton type from {value!r}")


def _source(kernel: Any, args: Mapping[str, object]) -> ASTSource:
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], object] = {}
    attrs: dict[tuple[int, ...], list[list[object]]] = {}
    unknown = set(args) - {p.name for p in kernel.params}
    if unknown:
        raise TypeError(f"{kernel.__name__} has no parameter(s) {sorted(unknown)}")
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in args:
            value = args[name]
        elif parameter.has_default:
            value = parameter.default
        else:
            raise TypeError(f"{kernel.__name__}: argument {name!r} is missing")
        specialise = not parameter.do_not_specialize
        is_one = specialise and isinstance(value, int) and value == 1
        if parameter.is_constexpr or value is None or is_one:
            signature[name] = "constexpr"
            constants[(position,)] = value
            continue
        signature[name], divisible = _type_of(value)
        if divisible and specialise:
            attrs[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attrs)


def _tool(name: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: Triton {triton.__version__} does not bundle {name}")
    return str(path)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def _disassemble(cubin: bytes) -> tuple[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return (
            _run(_tool("cuobjdump"), "--dump-resource-usage", file.name),
            # The analysis of branch stacks would take a quarter of the time and changes no line here.
            _run(_tool("nvdisasm"), "--print-code", "--no-dataflow", file.name),
        )


@functools.cache
def can_disassemble(arch: int) -> bool:
    """Whether the disassembler that Triton bundles knows the architecture."""
    return f"'SM{arch}'" in _run(_tool("nvdisasm"), "--help")


def compile_kernel(
    kernel: Any,
    args: Mapping[str, object],
    arch: int,
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    **options: object,
) -> Compiled:
    """Compile ``kernel`` for ``arch`` as a launch with ``args`` would, and measure the result.

    Args:
        args: parameter name to value: a ``torch.dtype`` is a 16-byte aligned pointer, a
            :class:`Pointer` one that may be unaligned, an int a scalar with the specialisation a
            launch gives it (1 becomes a constant, a multiple of 16 is known as one), ``None`` an
            absent argument; constexpr parameters take their value.
        arch: one of :data:`ARCHS`.

    Raises:
        triton.CompilationError: the kernel is not valid for that architecture.
    """
    compiled = triton.compile(
        _source(kernel, args),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, **options},
    )
    usage, sass = _disassemble(compiled.asm["cubin"])
    registers = re.search(r"\bREG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"cuobjdump printed no register count: {usage!r}")
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.M)
    mma: dict[str, int] = {}
    for opcode in opcodes:
        base = opcode.split(".")[0]
        if base.endswith(("MMA", "GMMA")) and base not in ("WARPGROUP",):
            mma[base] = mma.get(base, 0) + 1
    bases = [opcode.split(".")[0] for opcode in opcodes]
    result = Compiled(
        arch=arch,
        shared=compiled.metadata.shared,
        registers=int(registers.group(1)),
        spills=sum(base in ("LDL", "STL") for base in bases),
        mma=mma,
        ldgsts=bases.count("LDGSTS"),
        ldg=bases.count("LDG"),
        instructions=len(bases),
        threads=num_warps * 32,
        sass=sass,
        ptx=compiled.asm["ptx"],
        cubin=compiled.asm["cubin"],
        kernel=kernel.__name__,
    )
    for listener in listeners:
        listener(result)
    return result


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its arguments by name, and the compile options."""

    kernel: Any
    args: dict[str, object]
    options: dict[str, int]

    def compile(self, arch: int) -> Compiled:
        return compile_kernel(self.kernel, self.args, arch, **self.options)


@dataclass(frozen=True)
class _Recorder:
    kernel: Any
    launches: list[Launch]

    def __getitem__(self, grid: object) -> Any:
        def launch(*args: object, **kwargs: object) -> None:
            names = [parameter.name for parameter in self.kernel.params]
            bound = dict(zip(names, args, strict=False))
            options = {k: v for k, v in kwargs.items() if k not in names}
            bound.update({k: v for k, v in kwargs.items() if k in names})
            bound = {k: v.dtype if isinstance(v, torch.Tensor) else v for k, v in bound.items()}
            self.launches.append(Launch(self.kernel, bound, options))

        return launch


@contextlib.contextmanager
def recorded(module: ModuleType) -> Iterator[list[Launch]]:
    """Record the launches of ``module``'s kernels instead of running them.

    Code under test then runs on meta tensors, so that what is compiled is what it would launch.
    """
    launches: list[Launch] = []
    kernels = {k: v for k, v in vars(module).items() if isinstance(v, triton.JITFunction)}
    try:
        for name, kernel in kernels.items():
            setattr(module, name, _Recorder(kernel, launches))
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def check_limits(compiled: Compiled, *, blocks_per_sm: int = 1, row_arch: int = 80) -> None:
    """Assert that the kernel fits its architecture and spills nothing.

    Args:
        row_arch: architecture of the table row that the kernel was compiled from.
        blocks_per_sm: residency the configuration intends; the register file (65,536 a
            multiprocessor on every gated architecture) must allow it.
    """
    limits = SHARED_OPT_IN if row_arch == 90 else SHARED_LIMIT
    assert compiled.shared <= limits[compiled.arch], compiled.summary()
    borrowed = compiled.arch in BORROWED
    assert compiled.spills <= (BORROWED_SPILLS if borrowed else 0), compiled.summary()
    allocated = -(-compiled.registers // 8) * 8 * compiled.threads
    wanted = 1 if borrowed else blocks_per_sm
    assert allocated * wanted <= 65_536, (wanted, compiled.summary())
