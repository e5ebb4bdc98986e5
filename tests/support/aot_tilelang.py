"""Lower the TileLang kernel for a GPU that is not there, and read what came out."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ada_dsa import configs


@dataclass(frozen=True)
class Lowered:
    """What one configuration uses.

    Attributes:
        shared: bytes of dynamic shared memory a block.
        source: the CUDA source.
        registers: registers a thread; None without nvcc.
        spills: bytes of spill stores and loads; None without nvcc.
    """

    shared: int
    source: str
    registers: int | None
    spills: int | None


def lower(arch: int, heads: int, *, split: bool) -> Lowered:
    """Lower the kernel as :func:`ada_dsa.sparse_mla_fwd` would launch it, and compile it if nvcc is there."""
    import tilelang
    from tilelang.backend.target import determine_target

    from ada_dsa.sparse_mla.tilelang_kernel import PASS_CONFIGS, build

    config = configs.pick("sparse_mla_tilelang", arch, heads=heads)
    program = build(
        heads=heads,
        block_h=config.params["BLOCK_H"],
        block_n=config.params["BLOCK_N"],
        warps=config.num_warps,
        split=split,
    )
    target = determine_target({"kind": "cuda", "arch": f"sm_{arch}"}, return_object=True)
    with target, tilelang.tvm.transform.PassContext(opt_level=3, config=PASS_CONFIGS):
        artifact = tilelang.lower(program, target=target)
    (function,) = (f for _, f in artifact.device_mod.functions.items())
    shared = int(function.attrs["dyn_shared_memory_buf"])
    registers, spills = _compile(artifact.kernel_source, arch, Path(tilelang.__file__).parent)
    return Lowered(shared, artifact.kernel_source, registers, spills)


def _compile(source: str, arch: int, home: Path) -> tuple[int | None, int | None]:
    if shutil.which("nvcc") is None:
        return None, None
    with tempfile.TemporaryDirectory() as temp:
        path = Path(temp) / "kernel.cu"
        path.write_text(source)
        command = ["nvcc", f"-arch=sm_{arch}", "-std=c++17", "-cubin", "-Xptxas", "-v"]
        command += ["-I", str(home / "src"), "-I", str(home / "3rdparty" / "cutlass" / "include")]
        command += ["-o", str(Path(temp) / "kernel.cubin"), str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)]
    if len(registers) != 1 or len(spills) != 2:
        raise RuntimeError(f"nvcc reported no usage: {done.stderr}")
    return registers[0], sum(spills)
