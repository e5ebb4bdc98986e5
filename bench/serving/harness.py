"""One of sglang's model runners without a server, for exact times of its steps.

sglang's ``benchmark.one_batch`` makes the runner and runs the steps. The harness adds prefill in chunks, and
decoding at contexts that are not prefilled. There every stream gets pages of its own, filled with the rows
of one prefilled prompt, repeated. The time of a step depends on the number of rows and not on their values,
but pages of zeros or random bytes could take other branches than real rows do.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

import torch

PAGE: Final = 64
COPY: Final = 4096
"""Pages that are copied at a time, 170 MiB of packed rows."""


def pages_of(slots: torch.Tensor) -> torch.Tensor:
    """The pages of consecutive slots, the first of which begins a page."""
    return slots[::PAGE].long() // PAGE


class Harness:
    """A loaded model runner. Its pools are empty at first."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Load a model by the fields of ServerArgs."""
        from sglang.benchmark import one_batch
        from sglang.srt.server_args import PortArgs, ServerArgs

        args = ServerArgs(**given)
        args.resolve_once()
        one_batch._set_envs_and_config(args)
        ranks = one_batch.SpawnRanks(world_rank=0, gpu_id=0)
        one_batch.publish(args, role="scheduler", ranks=ranks)
        one_batch._init_process_global_configs()
        one_batch.get_tokenizer = lambda *_, **__: None  # the model has none
        loaded, _ = one_batch.load_model(args, PortArgs.init_new(args), 0, 0)
        self.use(loaded.torch_runner)

    def use(self, runner: Any) -> None:
        """Take a model runner and view the buffers of its KV pool as ``[pages, bytes]``."""
        self.runner = runner
        self.graphs: list[tuple[Any, Any]] = []
        if graphs := getattr(runner, "decode_cuda_graph_runner", None):
            graphs.backend.replay = self._between_events(graphs.backend.replay)
        pool = runner.token_to_kv_pool
        self.buffers = [
            buffer.view(torch.uint8).view(-1, PAGE * buffer.shape[-1]) for buffer in pool.kv_buffer
        ]
        # A layer that shares another's indexer has an empty buffer, from 0.5.18 on.
        self.buffers += [buffer for buffer in pool.index_k_with_scale_buffer if len(buffer)]

    def _between_events(self, replay: Callable[..., Any]) -> Callable[..., Any]:
        """Record when a replay of a captured step begins and ends on the GPU."""

        def noted(*given: Any, **named: Any) -> Any:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            out = replay(*given, **named)
            end.record()
            self.graphs.append((begin, end))
            return out

        return noted

    @property
    def capacity(self) -> int:
        """How many tokens the KV pool holds."""
        return int(self.runner.max_total_num_tokens)

    def clear(self) -> None:
        """Drop all requests from the pools."""
        self.runner.req_to_token_pool.clear()
        self.runner.token_to_kv_pool_allocator.clear()

    def request(self, number: int, tokens: int) -> Any:
        """A request of that many tokens, none of them prefilled."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        draw = random.Random(number)
        ids = array("q", (draw.randrange(4000) for _ in range(min(tokens, 8192))))
        ids = array("q", (ids * -(-tokens // len(ids)))[:tokens])
        sampling = SamplingParams(temperature=0, max_new_tokens=1)
        req = Req(str(number), "", ids, sampling)
        req.full_untruncated_fill_ids = req.origin_input_ids
        req.logprob_start_len = -1
        req.prefix_len, req.extend_end = 0, tokens
        return req

    def prefill(self, req: Any, chunk: int) -> float:
        """Run the whole request through the model, ``chunk`` tokens at a time.

        Returns:
            The seconds that it took.
        """
        from sglang.benchmark import one_batch

        total = len(req.origin_input_ids)
        self._wait()
        begin = time.perf_counter()
        for start in range(0, total, chunk):
            req.prefix_len, req.extend_end = start, min(start + chunk, total)
            one_batch.extend([req], self.runner)
        self._wait()
        return time.perf_counter() - begin

    def slots(self, req: Any, tokens: int) -> torch.Tensor:
        """The KV pool slots of the request's first tokens."""
        table: torch.Tensor = self.runner.req_to_token_pool.req_to_token
        return table[req.kv.req_pool_idx, :tokens]

    def rows(self, req: Any, tokens: int) -> list[torch.Tensor]:
        """Copies of the request's pages, ``[pages, bytes]`` of every buffer."""
        pages = pages_of(self.slots(req, tokens))
        return [buffer[pages] for buffer in self.buffers]

    def streams(self, count: int, tokens: int, rows: list[torch.Tensor]) -> Any:
        """A batch of ``count`` requests of ``tokens`` each, filled with the ``rows``, repeated."""
        from sglang.benchmark import one_batch

        runner = self.runner
        reqs = [self.request(number, tokens) for number in range(count)]
        batch = one_batch.ScheduleBatch.init_new(
            reqs=reqs,
            req_to_token_pool=runner.req_to_token_pool,
            token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
            tree_cache=one_batch.TreeCacheNamespace(
                page_size=one_batch.get_schedule().page_size,
                device=runner.device,
                token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
            ),
            model_config=runner.model_config,
            enable_overlap=False,
            spec_algorithm=one_batch.SpeculativeAlgorithm.NONE,
        )
        batch.prepare_for_extend()
        for req in reqs:
            self._fill(pages_of(self.slots(req, tokens)), rows)
        return batch

    def _fill(self, pages: torch.Tensor, rows: list[torch.Tensor]) -> None:
        for buffer, known in zip(self.buffers, rows, strict=True):
            for start in range(0, len(pages), COPY):
                part = pages[start : start + COPY]
                wanted = torch.arange(start, start + len(part), device=part.device) % len(known)
                buffer[part] = known[wanted]

    def decode(self, batch: Any, steps: int) -> tuple[list[float], list[float]]:
        """Run that many steps, each from an idle GPU until the GPU is idle again.

        Returns:
            The seconds of each step, and the seconds of each replayed graph on the GPU. The second list
            is shorter if a step ran without a graph.
        """
        from sglang.benchmark import one_batch

        # A token of its own for each stream: equal tokens would all go to the same experts.
        ids = torch.arange(len(batch.reqs), dtype=torch.int64, device=self.runner.device)
        seconds = []
        self.graphs.clear()
        for _ in range(steps):
            self._wait()
            begin = time.perf_counter()
            ids, _ = one_batch.decode(ids, batch, self.runner)
            self._wait()
            seconds.append(time.perf_counter() - begin)
        return seconds, [begin.elapsed_time(end) / 1e3 for begin, end in self.graphs]

    def _wait(self) -> None:
        torch.get_device_module(self.runner.device).synchronize()
