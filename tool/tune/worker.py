"""Runs in the Python whose sglang ``tool tune`` tunes; never imported by the tool.

Requests are JSON objects, one a line, on standard input; answers are the same on standard output. The
first request describes the work and is answered by what the release, the device and the files are. Each
other one names a shape, an M and configurations, and is answered by their times. The process and all that
it started end when standard input does.

Each call is sglang's own: the worker only decides which configuration sglang finds. To compile without
running, it makes each launch of Triton a warm-up. Needs torch, Triton and sglang, which it imports by name,
and Python 3.10.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import importlib
import json
import math
import multiprocessing
import os
import queue
import signal
import statistics
import sys
import threading
import traceback
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

# The folder of this file is the first on the path otherwise, and its modules are none of the environment.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]

# torch.compile would take half a minute for a sum whose time no configuration changes.
os.environ["TORCH_COMPILE_DISABLE"] = os.environ["TORCHDYNAMO_DISABLE"] = "1"

GEMM_MODULES = (
    "sglang.kernels.ops.gemm.fp8_kernel",  # from 0.5.21 on
    "sglang.kernels.ops.quantization.fp8_kernel",  # from 0.5.16 on
    "sglang.srt.layers.quantization.fp8_kernel",
)
MOE_MODULES = (
    "sglang.srt.layers.moe.moe_runner.triton_utils",  # from 0.5.11 on
    "sglang.srt.layers.moe.fused_moe_triton",
)
CONFIG_KEYS = (
    "BLOCK_SIZE_M",
    "BLOCK_SIZE_N",
    "BLOCK_SIZE_K",
    "GROUP_SIZE_M",
    "num_warps",
    "num_stages",
    "SWAP_AB",
    "SPLIT_K",
)
BLOCK = 128
SHARED = {
    80: 166_912,
    86: 101_376,
    87: 166_912,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    120: 101_376,
}
"""Most bytes of shared memory of a block, by architecture (CUDA C++ Programming Guide, technical
specifications per compute capability). The device's own limit holds too: code may be compiled for another
architecture than the device's (TRITON_OVERRIDE_ARCH)."""
ROTATION = 2.5
"""Bytes that the launches of one graph read, in sizes of the L2 cache."""
MOST_LAUNCHES = 128
PASS_MS = 2.0
PASSES = 5
CLOSE = 1.15
"""Only configurations within this factor of the fastest are timed more than once."""
BOUNDS = {"gemm": 0.01, "moe": 0.03}
"""Most relative error (Frobenius norm). The output is bf16, 2^-9; an MoE also quantises between its GEMMs,
where a value near the middle of two codes can become either."""
CHECKED_ROWS = 32


class Unfit(Exception):
    """This environment cannot be tuned; the message says why."""


# -- sglang ------------------------------------------------------------------------------------------


def find_module(names: tuple[str, ...], attribute: str) -> Any:
    """The first of the modules that there is and that has ``attribute``."""
    problems = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            problems.append(f"{name}: {error}")
            continue
        if hasattr(module, attribute):
            return module
        problems.append(f"{name} has no {attribute}")
    raise Unfit("; ".join(problems))


class _Options:
    """Stands for options of a server: every one is off."""

    def __getattr__(self, name: str) -> bool:
        return False


class _Bags:
    """Stands for the state of a server: every attribute is a bag of options."""

    def __getattr__(self, name: str) -> _Options:
        return _Options()


def switch_server_off(module: Any) -> None:
    """Let ``module`` be called without a server around it."""
    replaced = {
        "get_exec": _Bags,
        "get_parallel": _Bags,
        "get_server_args": _Options,
        "get_global_server_args": _Options,
        "get_tp_group": _Options,
        "is_allocation_symmetric": lambda: False,
        "use_symmetric_memory": lambda *_, **__: contextlib.nullcontext(),
    }
    for name, value in replaced.items():
        if hasattr(module, name):
            setattr(module, name, value)


def name_device(module: Any, name: str | None) -> None:
    """Let ``module`` look for the files of the device ``name``."""
    if not hasattr(module, "get_device_name"):
        raise Unfit(f"{module.__name__} has no get_device_name")
    if name:
        module.get_device_name = lambda *_, **__: name


def path_asked_for(function: Any, *arguments: Any) -> str:
    """The file that sglang looks for when it calls ``function``, below the folder of ``sglang``."""
    asked: list[str] = []
    exists = os.path.exists

    def record(path: Any) -> bool:
        if str(path).endswith(".json"):
            asked.append(str(path))
            return False
        return exists(path)

    os.path.exists = record
    try:
        with contextlib.suppress(OSError):  # a folder of one's own may lack what it looks for next
            getattr(function, "__wrapped__", function)(*arguments)
    finally:
        os.path.exists = exists
    if not asked:
        raise Unfit(f"{function.__module__}.{function.__name__} looks for no file")
    root = Path(importlib.import_module("sglang").__path__[0]).resolve().parent
    return Path(asked[0]).resolve().relative_to(root).as_posix()


class Gemm:
    """``w8a8_block_fp8_matmul_triton``: [M, K] fp8 times [N, K] fp8 with scales of 128 by 128, to bf16."""

    kernel: ClassVar[str] = "fp8_matmul"

    def __init__(self, sizes: list[int], device: str, device_name: str | None) -> None:
        self.n, self.k = sizes
        self.device = device
        self.module = find_module(GEMM_MODULES, "get_w8a8_block_fp8_configs")
        name_device(self.module, device_name)
        self.lookup = self.module.get_w8a8_block_fp8_configs
        self.weights: tuple[Any, Any] | None = None

    def path(self) -> str:
        return path_asked_for(self.lookup, self.n, self.k, BLOCK, BLOCK)

    def bytes_read(self, m: int) -> int:
        return self.n * self.k

    def specialisation(self, m: int, config: dict[str, Any]) -> tuple[Any, ...]:
        """Shapes that agree in it get the same code."""
        return tuple((x == 1, x % 16 == 0) for x in (m, self.n, self.k, self.k // BLOCK))

    def prepare(self, m: int, copies: int, *, random: bool) -> Any:
        torch = importlib.import_module("torch")
        scales = (math.ceil(self.n / BLOCK), self.k // BLOCK)
        if not random:
            a = make_empty(torch, (m, self.k), self.device)
            a_scale = torch.empty((m, self.k // BLOCK), device=self.device)
            b = make_empty(torch, (1, self.n, self.k), self.device)
            return a, a_scale, b, [torch.empty(scales, device=self.device)]
        if self.weights is None or self.weights[0].shape[0] < copies:
            b = make_random(torch, (copies, self.n, self.k), self.device)
            # Tensors of their own: Triton compiles anew for an address that is not a multiple of 16.
            self.weights = b, [make_scales(torch, scales, self.device) for _ in range(copies)]
        a = make_random(torch, (m, self.k), self.device)
        a_scale = make_scales(torch, (m, self.k // BLOCK), self.device)
        return a, a_scale, *self.weights

    def call(self, data: Any, copy: int) -> Any:
        torch = importlib.import_module("torch")
        a, a_scale, b, b_scale = data
        return self.module.w8a8_block_fp8_matmul_triton(
            a, b[copy], a_scale, b_scale[copy], [BLOCK, BLOCK], output_dtype=torch.bfloat16
        )

    @contextlib.contextmanager
    def use(self, config: dict[str, Any] | None) -> Any:
        """Inside the block sglang finds ``config`` for every M; None: what it finds by itself."""
        if config is None:
            yield
            return
        self.module.get_w8a8_block_fp8_configs = lambda *_, **__: {1: dict(config)}
        try:
            yield
        finally:
            self.module.get_w8a8_block_fp8_configs = self.lookup

    def reference(self, data: Any) -> Any:
        """The first rows of the product in fp32."""
        a, a_scale, b, b_scale = data
        a = dequantise_rows(a[:CHECKED_ROWS], a_scale[:CHECKED_ROWS])
        return a @ dequantise_blocks(b[0], b_scale[0]).T


class Moe:
    """``fused_experts``: both grouped GEMMs, the activation between them, and the sum over experts."""

    kernel: ClassVar[str] = "fused_moe"

    def __init__(self, sizes: list[int], device: str, device_name: str | None) -> None:
        self.experts, self.width, self.hidden, self.per_token, self.shared = sizes
        self.device = device
        package = find_module(MOE_MODULES, "override_config")
        name = f"{package.__name__}.fused_moe_triton_config"
        self.configs = find_module((name,), "get_moe_configs")
        self.module = find_module((f"{package.__name__}.fused_moe",), "fused_experts")
        self.override = package.override_config
        for module in (self.configs, self.module):
            switch_server_off(module)
        name_device(self.configs, device_name)
        self.weights: Any = None

    def path(self) -> str:
        before = os.environ.pop("SGLANG_MOE_CONFIG_DIR", None)
        try:
            arguments = (self.experts, self.width, "fp8_w8a8", BLOCK, BLOCK)
            path = path_asked_for(self.configs.get_moe_configs, *arguments)
        finally:
            if before is not None:
                os.environ["SGLANG_MOE_CONFIG_DIR"] = before
        self._refuse_second_file()
        return path

    def _refuse_second_file(self) -> None:
        """A release can have another file for the second GEMM, which a tuned one would not go with."""
        name = self.configs.get_config_file_name(
            self.experts, self.width, "fp8_w8a8", [BLOCK, BLOCK], down_moe=True
        )
        root = Path(self.configs.__file__).resolve().parent / "configs"
        found = [folder for folder in root.glob("triton_*") if (folder / name).is_file()]
        if found:
            raise Unfit(f"sglang has a file for the second GEMM of the MoE: {found[0].name}/{name}")

    def bytes_read(self, m: int) -> int:
        used = min(self.experts, m * self.per_token)
        return used * 3 * self.width * self.hidden

    def specialisation(self, m: int, config: dict[str, Any]) -> tuple[Any, ...]:
        rows = m * self.per_token
        padded = rows + (self.experts + 1) * (config["BLOCK_SIZE_M"] - 1)
        return tuple((x == 1, x % 16 == 0) for x in (m, rows, padded)), m <= 32

    def prepare(self, m: int, copies: int, *, random: bool) -> Any:
        torch = importlib.import_module("torch")
        if self.weights is None:
            self.weights = self._make_weights(torch, random)
        hidden = torch.zeros((m, self.hidden), device=self.device, dtype=torch.bfloat16)
        logits = torch.rand((copies, m, self.experts), device=self.device)
        if random:
            hidden.normal_()
        if self.shared:
            logits[..., -self.shared :] = 2.0  # every token takes them
        ids = [one.topk(self.per_token, dim=-1).indices.to(torch.int32) for one in logits]
        weights = [
            torch.rand((m, self.per_token), device=self.device) / self.per_token for _ in ids
        ]
        return hidden, ids, weights, logits

    def _make_weights(self, torch: Any, random: bool) -> Any:
        made: list[Any] = []
        for n, k in ((2 * self.width, self.hidden), (self.hidden, self.width)):
            w = make_empty(torch, (self.experts, n, k), self.device)
            scale = torch.full((self.experts, n // BLOCK, k // BLOCK), k**-0.5, device=self.device)
            if random:
                for expert in range(self.experts):
                    w[expert] = make_random(torch, (n, k), self.device)
            made += [w, scale]
        return tuple(made)

    def call(self, data: Any, copy: int) -> Any:
        hidden, ids, weights, logits = data
        w1, w1_scale, w2, w2_scale = self.weights
        topk = importlib.import_module("sglang.srt.layers.moe.topk")
        runner = importlib.import_module("sglang.srt.layers.moe.moe_runner")
        config = runner.MoeRunnerConfig(
            num_experts=self.experts, num_local_experts=self.experts, inplace=False
        )
        return self.module.fused_experts(
            hidden,
            w1,
            w2,
            topk.StandardTopKOutput(weights[copy], ids[copy], logits[copy]),
            config,
            use_fp8_w8a8=True,
            w1_scale=w1_scale,
            w2_scale=w2_scale,
            block_shape=[BLOCK, BLOCK],
        )

    def use(self, config: dict[str, Any] | None) -> Any:
        """As ``Gemm.use``."""
        return self.override(dict(config)) if config else contextlib.nullcontext()

    def reference(self, data: Any) -> Any:
        """The first tokens in fp32, with activations quantised as sglang quantises them."""
        torch = importlib.import_module("torch")
        hidden, ids, weights, _ = data
        w1, w1_scale, w2, w2_scale = self.weights
        rows = []
        for token in range(min(len(hidden), CHECKED_ROWS)):
            x = quantise_and_back(torch, hidden[token].float())
            total = torch.zeros(self.hidden, device=self.device)
            for expert, weight in zip(ids[0][token].tolist(), weights[0][token], strict=True):
                both = dequantise_blocks(w1[expert], w1_scale[expert]) @ x
                gate, up = both.bfloat16().float().chunk(2)
                middle = (torch.nn.functional.silu(gate) * up).bfloat16().float()
                middle = quantise_and_back(torch, middle)
                total += weight * (dequantise_blocks(w2[expert], w2_scale[expert]) @ middle)
            rows.append(total)
        return torch.stack(rows)


KINDS: dict[str, Any] = {"gemm": Gemm, "moe": Moe}


def make_empty(torch: Any, shape: tuple[int, ...], device: str) -> Any:
    return torch.empty(shape, device=device, dtype=torch.uint8).view(torch.float8_e4m3fn)


def make_random(torch: Any, shape: tuple[int, ...], device: str) -> Any:
    return torch.randn(shape, device=device, dtype=torch.bfloat16).to(torch.float8_e4m3fn)


def make_scales(torch: Any, shape: tuple[int, ...], device: str) -> Any:
    return 0.01 * (torch.rand(shape, device=device) + 0.5)


def dequantise_rows(x: Any, scale: Any) -> Any:
    """[M, K] fp8 and [M, K / 128] to fp32."""
    return x.float() * scale.repeat_interleave(BLOCK, dim=1)


def dequantise_blocks(w: Any, scale: Any) -> Any:
    """[N, K] fp8 and [N / 128, K / 128] to fp32."""
    wide = scale.repeat_interleave(BLOCK, dim=0)[: w.shape[0]].repeat_interleave(BLOCK, dim=1)
    return w.float() * wide


def quantise_and_back(torch: Any, x: Any) -> Any:
    """[K] through e4m3 with a scale for each 128 channels."""
    groups = x.view(-1, BLOCK)
    scale = (groups.abs().amax(dim=1, keepdim=True) / 448.0).clamp(min=1e-12)
    return ((groups / scale).to(torch.float8_e4m3fn).float() * scale).view(-1)


# -- compiling ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def watch_launches(*, warm_up: bool) -> Any:
    """A list of (name, keyword arguments, compiled kernel) of every Triton launch inside the block, which
    is compiled but not run if ``warm_up``."""
    jit = importlib.import_module("triton.runtime.jit")
    original = jit.JITFunction.run
    found: list[tuple[str, dict[str, Any], Any]] = []

    @functools.wraps(original)
    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        compiled = original(self, *arguments, grid=grid, warmup=warmup or warm_up, **keywords)
        found.append((self.fn.__name__, keywords, compiled))
        return compiled

    jit.JITFunction.run = run
    try:
        yield found
    finally:
        jit.JITFunction.run = original


def compile_config(operation: Any, m: int, config: dict[str, Any]) -> dict[str, Any]:
    """What the kernel takes with ``config``: ``shared`` bytes, and ``spills``, None where no device says
    it. An MoE launches it twice; the larger counts."""
    data = operation.prepare(m, 1, random=False)
    with operation.use(config), watch_launches(warm_up=True) as launches:
        operation.call(data, 0)
    if read_config(operation, launches) != config:
        raise Unfit("sglang launched another configuration than the one it was given")
    made = [read_resources(one) for name, _, one in launches if operation.kernel in name]
    spills = [one["spills"] for one in made if one["spills"] is not None]
    return {"shared": max(one["shared"] for one in made), "spills": max(spills, default=None)}


def find_default(operation: Any, data: Any) -> dict[str, Any]:
    """The configuration that sglang launches by itself: of its file for the device, or its fallback."""
    with watch_launches(warm_up=True) as launches:
        operation.call(data, 0)
    return read_config(operation, launches)


def read_config(operation: Any, launches: Any) -> dict[str, Any]:
    """The configuration of the first launch of the tuned kernel."""
    for name, keywords, _ in launches:
        if operation.kernel in name:
            return {key: keywords[key] for key in CONFIG_KEYS if key in keywords}
    names = ", ".join(sorted({name for name, _, _ in launches})) or "none"
    raise Unfit(f"sglang launched no kernel named *{operation.kernel}*, but {names}")


def read_resources(compiled: Any) -> dict[str, Any]:
    shared = int(compiled.metadata.shared)
    spills = None
    if shared <= limit_shared():
        with contextlib.suppress(Exception):  # no device: the compiled code is enough for the rest
            compiled._init_handles()
            spills = compiled.n_spills
    return {"shared": shared, "spills": spills}


@functools.cache
def limit_shared() -> int:
    """Most bytes of shared memory of a block."""
    driver = importlib.import_module("triton.runtime").driver.active
    target = int(driver.get_current_target().arch)
    limits = [SHARED.get(target, SHARED.get(target // 10 * 10, 101_376))]
    with contextlib.suppress(Exception):  # a driver without a device
        properties = driver.utils.get_device_properties(driver.get_current_device())
        limits.append(int(properties["max_shared_mem"]))
    return min(limits)


def judge(made: dict[str, Any]) -> str | None:
    """Why a compiled configuration is not run."""
    if "problem" in made:
        return str(made["problem"])
    if made["shared"] > limit_shared():
        return f"{made['shared']} bytes of shared memory, the limit is {limit_shared()}"
    if made["spills"]:
        return f"{made['spills']} registers spilled"
    return None


_operations: dict[str, Any] = {}


def compile_in_child(
    kind: str, sizes: list[int], device_name: str | None, m: int, config: dict[str, Any]
) -> dict[str, Any]:
    """``compile_config`` in a process of the pool; the code goes into Triton's cache on the disk."""
    name = json.dumps([kind, sizes])
    try:
        if name not in _operations:
            _operations[name] = KINDS[kind](sizes, "cuda", device_name)
        return compile_config(_operations[name], m, config)
    except Exception as error:  # a compiler raises whatever it likes
        return {"problem": describe(error)}


class Compiler:
    """Compiles in other processes, ahead of the measurements."""

    def __init__(self, jobs: int, device_name: str | None) -> None:
        self.jobs = jobs
        self.device_name = device_name
        self.pool = self._start()
        self.futures: dict[str, Any] = {}

    def _start(self) -> concurrent.futures.ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return concurrent.futures.ProcessPoolExecutor(self.jobs, context)

    def submit(self, operation: Any, kind: str, sizes: list[int], m: int, config: Any) -> str:
        """Begin to compile; returns the name that ``result`` takes."""
        alike = operation.specialisation(m, config)
        name = json.dumps([kind, config, alike])
        if name not in self.futures:
            arguments = (kind, sizes, self.device_name, m, config)
            self.futures[name] = (self._submit(arguments), arguments)
        return name

    def _submit(self, arguments: Any) -> Any:
        try:
            return self.pool.submit(compile_in_child, *arguments)
        except BrokenProcessPool:
            self.pool = self._start()
            return self.pool.submit(compile_in_child, *arguments)

    def result(self, name: str) -> dict[str, Any]:
        """What became of it. A crash of a compiler breaks the whole pool, so what was under way is tried
        once more, alone."""
        future, arguments = self.futures[name]
        if not isinstance(future, dict):
            try:
                future = future.result()
            except BrokenProcessPool:
                try:
                    future = self._submit(arguments).result()
                except BrokenProcessPool:
                    future = {"problem": "the compiler crashed"}
            self.futures[name] = (future, arguments)
        return dict(future)


# -- measuring ----------------------------------------------------------------------------------------


class Tuner:
    """The operations of one device, measured as they are asked for."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.device_name: str | None = request.get("device_name")
        try:
            self.torch = importlib.import_module("torch")
            self.torch.cuda.init()
            self.sglang = importlib.import_module("sglang")
        except Exception as error:
            raise Unfit(describe(error)) from error
        self.compiler = Compiler(int(request["jobs"]), self.device_name)
        self.operations: dict[str, Any] = {}
        self.queue = request["shapes"]
        properties = self.torch.cuda.get_device_properties(0)
        self.l2 = int(getattr(properties, "L2_cache_size", 0)) or 64 << 20

    def describe(self) -> dict[str, Any]:
        """The environment, and for each shape ``path`` of its file or ``unfit``."""
        utils = importlib.import_module("sglang.srt.utils")
        triton = importlib.import_module("triton")
        files = []
        for shape in self.queue:
            try:
                operation = self.find(shape["kind"], shape["sizes"])
                files.append({**shape, "path": operation.path()})
            except Unfit as error:
                files.append({**shape, "unfit": str(error)})
            except Exception as error:
                files.append({**shape, "unfit": describe(error)})
        device = utils.get_device_name()
        major, minor = self.torch.cuda.get_device_capability()
        return {
            "sglang": str(self.sglang.__version__),
            "torch": str(self.torch.__version__),
            "triton": str(triton.__version__),
            "device": device,
            "named": (self.device_name or device).replace(" ", "_"),
            "sm": major * 10 + minor,
            "files": files,
        }

    def find(self, kind: str, sizes: list[int]) -> Any:
        name = json.dumps([kind, sizes])
        if name not in self.operations:
            self.operations[name] = KINDS[kind](sizes, "cuda", self.device_name)
        return self.operations[name]

    def begin(self, request: dict[str, Any]) -> list[str]:
        """Begin to compile what ``request`` asks for."""
        kind, sizes, m = request["kind"], request["sizes"], request["m"]
        operation = self.find(kind, sizes)
        return [
            self.compiler.submit(operation, kind, sizes, m, config) for config in request["configs"]
        ]

    def measure(self, request: dict[str, Any], compiled: list[str]) -> dict[str, Any]:
        """Times of the default and of the configurations of ``request``, in microseconds a call."""
        operation, m = self.find(request["kind"], request["sizes"]), request["m"]
        try:
            copies = count_copies(operation.bytes_read(m), self.l2)
            data = operation.prepare(m, copies, random=True)
            wanted = operation.reference(data)
            default = find_default(operation, data)
        except Exception as error:
            return {"failed": describe(error)}
        bound = BOUNDS[request["kind"]]
        entries = [Entry(default)]
        for config, name in zip(request["configs"], compiled, strict=True):
            entries.append(Entry(config, judge(self.compiler.result(name))))
        timing = Timing(self.torch, operation, data, copies)
        for entry in entries:
            timing.capture(entry)
        timing.run(entries)
        check_fastest(operation, data, wanted, bound, entries)
        timing.close()
        return {
            "default": entries[0].as_answer(),
            "results": [entry.as_answer() for entry in entries[1:]],
        }


class Entry:
    """A configuration on its way through one request."""

    def __init__(self, config: dict[str, Any], rejected: str | None = None) -> None:
        self.config = config
        self.rejected = rejected
        self.graph: Any = None
        self.repeats = 1
        self.times: list[float] = []
        self.error: float | None = None

    @property
    def us(self) -> float:
        return statistics.median(self.times) if self.times else math.inf

    def as_answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"config": self.config}
        if self.rejected is not None:
            return {**answer, "rejected": self.rejected}
        answer["us"] = round(self.us, 3)
        return answer if self.error is None else {**answer, "error": self.error}


class Timing:
    """CUDA graphs of ``copies`` calls, each on other weights, replayed in turn."""

    def __init__(self, torch: Any, operation: Any, data: Any, copies: int) -> None:
        self.torch, self.operation, self.data, self.copies = torch, operation, data, copies
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, entry: Entry) -> None:
        if entry.rejected is not None:
            return
        try:
            with self.operation.use(entry.config):
                self.operation.call(self.data, 0)
                self.torch.cuda.synchronize()
                graph = self.torch.cuda.CUDAGraph()
                with self.torch.cuda.graph(graph, pool=self.pool):
                    for copy in range(self.copies):
                        self.operation.call(self.data, copy)
            entry.graph = graph
        except Exception as error:
            refuse_broken_device(error)
            entry.rejected = describe(error)

    def run(self, entries: list[Entry]) -> None:
        """Time what was captured: all once, and then those near the fastest in turn."""
        ready = [entry for entry in entries if entry.graph is not None]
        for entry in ready:
            entry.graph.replay()
            once = self.replay(entry)
            entry.repeats = min(max(math.ceil(PASS_MS * 1000 / (once * self.copies)), 1), 50)
            entry.times = [self.replay(entry)]
        fastest = min((entry.us for entry in ready), default=math.inf)
        close = [one for one in ready if one.us <= CLOSE * fastest or one is entries[0]]
        for _ in range(PASSES - 1):
            for entry in close:
                entry.times.append(self.replay(entry))

    def replay(self, entry: Entry) -> float:
        """Microseconds of a call."""
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(entry.repeats):
            entry.graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1000 / (entry.repeats * self.copies)

    def close(self) -> None:
        self.data = None
        self.torch.cuda.synchronize()


def check_fastest(
    operation: Any, data: Any, wanted: Any, bound: float, entries: list[Entry]
) -> None:
    """Compare with the float reference: the fastest ones, until one is right that beats the default."""
    for entry in sorted(entries, key=lambda one: one.us):
        if entry.graph is None:
            continue
        with operation.use(entry.config):
            got = operation.call(data, 0)[: len(wanted)].float()
        error = float((got - wanted).norm() / wanted.norm())
        if error <= bound or entry is entries[0]:
            entry.error = error
        if error <= bound:
            return
        if entry is not entries[0]:
            entry.rejected = f"differs from the float reference by {error:.2g} of its norm"


def count_copies(size: int, l2: int) -> int:
    """How many sets of weights of ``size`` bytes keep each other out of the L2 cache."""
    return min(max(math.ceil(ROTATION * l2 / size), 2), MOST_LAUNCHES)


def refuse_broken_device(error: Exception) -> None:
    """After some errors every further call fails: only a new process can go on."""
    text = str(error)
    if "illegal" in text or "misaligned" in text or "unspecified launch failure" in text:
        raise error


def describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


# -- the process --------------------------------------------------------------------------------------


def read_requests(into: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Kill this process group when the tool is gone: standard input is a pipe that only the tool holds."""
    for line in sys.stdin:
        into.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def serve(out: Any) -> None:
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        tuner = Tuner(requests.get())
        say({"described": tuner.describe()})
        gc.freeze()  # each capture of a graph collects garbage, and there are millions of objects
    except Unfit as error:
        say({"unfit": str(error)})
        return
    waiting: deque[tuple[dict[str, Any], list[str]]] = deque()
    while True:
        while not waiting or not requests.empty():
            request = requests.get()
            waiting.append((request, tuner.begin(request)))
        request, compiled = waiting.popleft()
        say({"unit": request["unit"], **tuner.measure(request, compiled)})


def main() -> None:
    # sglang and compilers print; standard output is for the answers.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        try:
            serve(out)
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # the processes of the pool end with standard input


if __name__ == "__main__":
    main()
