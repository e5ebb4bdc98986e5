"""The worker of ``tool tune`` on the release's own modules: names of files, compilation. Tests of every era.

There is no GPU: the tests give Triton a driver that only names a target. What runs on a GPU is not tested
here.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cuda
import pytest
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from tool.tune.candidates import list_candidates
from tool.tune.process import WORKER
from tool.tune.shapes import Shape

DEVICE = "NVIDIA GeForce RTX 4090"
GEMM = Shape("gemm", (512, 6144), "")
MOE = Shape("moe", (8, 256, 512, 2, 0), "")
"""A small MoE: compiled code does not depend on the number of experts."""
FITS = {
    "BLOCK_SIZE_M": 16,
    "BLOCK_SIZE_N": 64,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 1,
    "num_warps": 4,
    "num_stages": 4,
}
HALF_BLOCKS = FITS | {"BLOCK_SIZE_K": 64}
TOO_LARGE = FITS | {"BLOCK_SIZE_M": 128, "BLOCK_SIZE_N": 256, "num_stages": 5, "num_warps": 8}


class _Driver:
    """Names a target, and has no device."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 89, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


class _Skip(TorchDispatchMode):
    """Leaves out sglang's operators that are registered for CUDA alone. Each writes into its arguments."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func.namespace in ("sglang", "sgl_kernel"):
            return None
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tune_worker_under_test", WORKER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sm_89(worker: ModuleType) -> Iterator[None]:
    before = triton.runtime.driver._active if hasattr(triton.runtime.driver, "_active") else None
    triton.runtime.driver.set_active(_Driver())
    worker.limit_shared.cache_clear()
    with fake_cuda.capability(8, 9), _Skip():
        yield
    if before is not None:
        triton.runtime.driver.set_active(before)


def operation(worker: ModuleType, shape: Shape, name: str | None = DEVICE) -> Any:
    found = worker.KINDS[shape.kind](list(shape.sizes), "cpu", name)
    if shape.kind == "moe":
        # This operator returns something, so it is replaced by what it calls.
        def outplace(*arguments: Any, **keywords: Any) -> Any:
            implementation = found.module.fused_experts_impl
            return implementation(*arguments[:7], False, *arguments[7:], **keywords)

        found.module.outplace_fused_experts = outplace
    return found


def shipped(pattern: str) -> list[Path]:
    root = Path(os.environ["ADA_PATCHED_TREE"])
    return sorted(path for path in root.glob("sglang/**/configs/**/*.json") if pattern in path.name)


def test_a_gemm_file_has_the_path_of_a_shipped_one(worker: ModuleType) -> None:
    suffix = "device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"
    found = [path for path in shipped(suffix) if path.name.startswith("N=")]
    assert found
    for path in found[:5]:
        n, k = (int(part.partition("=")[2]) for part in path.name.split(",")[:2])
        asked = operation(worker, Shape("gemm", (n, k), ""), "NVIDIA H200").path()
        assert Path(os.environ["ADA_PATCHED_TREE"]) / asked == path


def test_an_moe_file_has_the_name_of_a_shipped_one(worker: ModuleType) -> None:
    asked = operation(worker, Shape("moe", (256, 256, 6144, 8, 0), ""), "NVIDIA B200").path()
    names = {path.name for path in shipped("E=256,N=256,device_name=NVIDIA_B200")}
    folder, name = asked.rsplit("/", 1)
    assert name in names
    version = triton.__version__.replace(".", "_")
    assert folder.endswith(f"/configs/triton_{version}")
    parent = Path(os.environ["ADA_PATCHED_TREE"], folder).parent
    assert any(path.parent.parent == parent for path in shipped("E=256,N=256,device_name=NVIDIA_"))


def test_a_folder_of_ones_own_leaves_the_path(
    worker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = operation(worker, MOE).path()
    monkeypatch.setenv("SGLANG_MOE_CONFIG_DIR", str(tmp_path))
    assert operation(worker, MOE).path() == found
    assert os.environ["SGLANG_MOE_CONFIG_DIR"] == str(tmp_path)


def test_a_file_of_the_second_gemm_is_refused(worker: ModuleType) -> None:
    found = shipped("_down.json")
    if not found:
        pytest.skip("this release ships none")
    fields = dict(part.split("=", 1) for part in found[0].name.split(",")[:3])
    if "block_shape" not in found[0].name:
        pytest.skip("this release ships none for block fp8")
    moe = Shape("moe", (int(fields["E"]), int(fields["N"]), 6144, 8, 0), "")
    with pytest.raises(worker.Unfit, match="second GEMM"):
        operation(worker, moe, fields["device_name"].replace("_", " ")).path()


@pytest.mark.usefixtures("sm_89")
@pytest.mark.parametrize("shape", [GEMM, MOE], ids=lambda one: one.kind)
@pytest.mark.parametrize("m", [1, 64])
def test_a_configuration_is_compiled_as_launched(worker: ModuleType, shape: Shape, m: int) -> None:
    made = worker.compile_config(operation(worker, shape), m, FITS)
    assert 0 < made["shared"] <= 101_376 and worker.judge(made) is None
    if shape.kind == "moe":
        half = worker.compile_config(operation(worker, shape), m, HALF_BLOCKS)
        assert half["shared"] < made["shared"]


@pytest.mark.usefixtures("sm_89")
@pytest.mark.parametrize("shape", [GEMM, MOE], ids=lambda one: one.kind)
def test_too_much_shared_memory_is_rejected(worker: ModuleType, shape: Shape) -> None:
    made = worker.compile_config(operation(worker, shape), 256, TOO_LARGE)
    assert "bytes of shared memory, the limit is 101376" in str(worker.judge(made))
    assert worker.judge({"shared": 1, "spills": 3}) == "3 registers spilled"


@pytest.mark.usefixtures("sm_89")
@pytest.mark.parametrize("shape", [GEMM, MOE], ids=lambda one: one.kind)
def test_the_default_is_what_sglang_launches(worker: ModuleType, shape: Shape) -> None:
    found = operation(worker, shape)
    data = found.prepare(4, 1, random=False)
    assert worker.find_default(found, data) == {
        "BLOCK_SIZE_M": 64,
        "BLOCK_SIZE_N": 128,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": 32,
        "num_warps": 4,
        "num_stages": 3,
    }


@pytest.mark.usefixtures("sm_89")
def test_the_default_is_the_row_of_a_shipped_file(worker: ModuleType) -> None:
    suffix = "device_name=NVIDIA_L40,dtype=fp8_w8a8,block_shape=[128, 128].json"
    found = [path for path in shipped(suffix) if path.name.startswith("N=")]
    if not found:
        pytest.skip("this release ships none for the L40")
    n, k = (int(part.partition("=")[2]) for part in found[0].name.split(",")[:2])
    gemm = operation(worker, Shape("gemm", (n, k), ""), "NVIDIA L40")
    rows = json.loads(found[0].read_text())
    assert worker.find_default(gemm, gemm.prepare(16, 1, random=False)) == rows["16"]


def test_the_references_are_the_products(worker: ModuleType) -> None:
    torch.manual_seed(0)
    gemm = operation(worker, Shape("gemm", (256, 384), ""))
    a, a_scale, b, b_scale = data = gemm.prepare(40, 2, random=True)
    wanted = torch.empty(32, 256)
    for i in range(2):
        part = sum(
            a[:32, 128 * j : 128 * j + 128].float()
            * a_scale[:32, j : j + 1]
            @ (b[0, 128 * i : 128 * i + 128, 128 * j : 128 * j + 128].float() * b_scale[0][i, j]).T
            for j in range(3)
        )
        wanted[:, 128 * i : 128 * i + 128] = part
    assert torch.allclose(gemm.reference(data), wanted, rtol=1e-4, atol=1e-4)

    moe = operation(worker, Shape("moe", (5, 128, 256, 3, 1), ""))
    hidden, ids, weights, _ = data = moe.prepare(3, 1, random=True)
    assert all(4 in row for row in ids[0].tolist()), "every token takes the shared expert"
    w1, s1, w2, s2 = (one.float() for one in moe.weights)
    w1 = w1 * s1.repeat_interleave(128, 1).repeat_interleave(128, 2)
    w2 = w2 * s2.repeat_interleave(128, 1).repeat_interleave(128, 2)
    both = torch.einsum("th,eoh->teo", hidden.float(), w1)
    middle = torch.nn.functional.silu(both[..., :128]) * both[..., 128:]
    every = torch.einsum("teo,eho->teh", middle, w2)
    chosen = every.gather(1, ids[0].long()[..., None].expand(-1, -1, 256))
    wanted = (chosen * weights[0][..., None]).sum(1)
    error = (moe.reference(data) - wanted).norm() / wanted.norm()
    assert error < 0.08, "activations are quantised twice"


@pytest.mark.exhaustive
@pytest.mark.usefixtures("sm_89")
@pytest.mark.parametrize("m", [1, 16, 256])
def test_every_candidate_compiles_or_is_rejected(worker: ModuleType, m: int) -> None:
    gemm = operation(worker, GEMM)
    for config in list_candidates(GEMM, m).values():
        assert worker.compile_config(gemm, m, dict(config))["shared"] > 0
