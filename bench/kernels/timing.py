"""Times of GPU work: each call is captured into a CUDA graph, and the graph is replayed."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Callable, Mapping

import torch

_MAX_CALLS = 128  # calls in one graph
_REPLAYS = 15


class Timer:
    """Work that is captured as a graph of several calls."""

    def __init__(self, work: Callable[[], object], seconds: float) -> None:
        """Capture as many calls as all replays together can run in about ``seconds``."""
        for _ in range(3):  # compiles the kernels and fills the allocator's caches
            work()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(5):
            work()
        end.record()
        torch.cuda.synchronize()
        once = max(begin.elapsed_time(end) / 5e3, 1e-6)
        self._calls = max(2, min(_MAX_CALLS, int(seconds / _REPLAYS / once)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(self._calls):
                work()
        self._graph.replay()
        torch.cuda.synchronize()

    def sample(self) -> float:
        """Microseconds per call in one replay."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / self._calls


def measure(
    calls: Mapping[str, Callable[[], object]], seconds: float
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Time the calls in turn, so that a change of the GPU's clock affects all of them alike.

    Args:
        calls: what to time, by name.
        seconds: about how long each of them is timed.

    Returns:
        The median microseconds of each call, None where it failed; and the errors by name.
    """
    timers: dict[str, Timer] = {}
    errors: dict[str, str] = {}
    for name, work in calls.items():
        try:
            timers[name] = Timer(work, seconds)
        except Exception as err:  # a library may refuse a shape; the others are still timed
            errors[name] = summary(err)
            torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(_REPLAYS):
        for name, timer in timers.items():
            samples[name].append(timer.sample())
    times = {name: statistics.median(found) for name, found in samples.items()}
    return {name: times.get(name) for name in calls}, errors


def summary(error: Exception) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def conditions() -> dict[str, str]:
    """The date, the GPU, and the architecture that Triton was told to compile for, if any."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(),
        "override": os.environ.get("TRITON_OVERRIDE_ARCH", ""),
    }
