"""A server under mixed load for ten minutes: no leak, no wrong answer, no client that harms another.

``python -m tests.serving.support.soak MODEL [--flavour fork] [--seconds 600] [--out FILE]`` starts the
server, sends it requests of 16 … 6000 tokens from several clients at once (whole, streamed, aborted, hung
up, killed, too long for the model, too long for the pool), and samples the GPU's memory. After each
quarter the server rests, idle and with its caches empty: what it holds then is compared. Before and
after, resting, it is asked a fixed prompt. Prints JSON; exit code 1 when it found a problem.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.serving.support import engines, prompts
from tests.serving.support.flavours import FLAVOURS
from tests.serving.support.metrics import distance
from tests.serving.support.server import Failed, Server, body_of, started

CONTEXT: Final = 32_768
POOL: Final = 24_576
CHANGES: Final[dict[str, Any]] = {
    "context_length": CONTEXT,
    "max_total_tokens": POOL,  # small: a full pool is part of the load
    "max_running_requests": 16,
    "cuda_graph_bs_decode": [1, 8, 16],
}
"""ServerArgs beyond what all flavours share."""
FIXED: Final = 3000
"""Tokens of the fixed prompt."""
QUARTERS: Final = 4
GROWTH: Final = 128
"""MiB that a resting server may hold beyond what it held after the first quarter: a kernel first needed
later is loaded later, and blocks of the allocator stay where one tensor in them does. A leak at this load
takes more. What the server holds while it works is no measure: its allocator keeps the largest blocks
that any batch needed, and new batches are larger now and then."""
PART: Final = 0.05
"""Nats. Two tokens this close may change places: the order in which top-k writes keys is not fixed."""
ASTRAY: Final = 0.08
"""Nats, mean of the prompt's end: under load other products are summed together, never other keys."""
KINDS: Final = {
    "whole": 6,
    "stream": 5,
    "known": 2,
    "abort": 2,
    "hang-up": 2,
    "past the model": 1,
    "past the pool": 1,
}
"""What clients do, with weights. One more client kills a process every few seconds."""


# -- the fixed prompt -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """An answer to the fixed prompt; ``gaps`` in nats, by which each token beat the next best."""

    ids: list[int]
    gaps: list[float]
    tail: list[float]


def ask_fixed(server: Server) -> Fixed:
    ids = prompts.single(FIXED)
    start = FIXED - 64 - 1
    more = {"return_logprob": True, "logprob_start_len": start, "top_logprobs_num": 2}
    status, body = server.ask("/generate", body_of(ids, 32, **more))
    if status != 200:
        raise Failed(f"the fixed prompt got status {status}: {body[:200]!r}")
    meta = json.loads(body)["meta_info"]
    generated = [(entry[0], entry[1]) for entry in meta["output_token_logprobs"]]
    gaps = [
        value - max(other[0] for other in best if other[1] != token)
        for (value, token), best in zip(generated, meta["output_top_logprobs"], strict=True)
    ]
    tail = [entry[0] for entry in meta["input_token_logprobs"][1:]]
    return Fixed([token for _, token in generated], gaps, tail)


def parting(one: Fixed, other: Fixed) -> int | None:
    """The place of the first token that differs, or None."""
    pairs = enumerate(zip(one.ids, other.ids, strict=True))
    return next((at for at, (a, b) in pairs if a != b), None)


def changed(starts: list[Fixed], end: Fixed) -> str:
    """Say what is wrong with the last answer, given those at the start; empty if nothing is.

    The first answers, each from an empty cache, show how much the server varies by itself. Two tokens may
    change places where their gap is within what the worst logprob varied by, on either of them.
    """
    first = starts[0]
    apart = [distance(first.tail, other.tail) for other in starts]
    varied, worst = max(one.mean for one in apart), max(one.max for one in apart)
    if (drift := distance(first.tail, end.tail).mean) > 2 * varied + PART:
        return f"the fixed prompt's logprobs moved by {drift:.4f} nats; they varied by {varied:.4f}"
    partings = [(at, start) for start in starts if (at := parting(start, end)) is not None]
    if len(partings) < len(starts) or any(
        start.gaps[at] <= max(PART, 2 * worst) for at, start in partings
    ):
        return ""
    at, nearest = max(partings, key=lambda pair: pair[0])
    return (
        f"the fixed prompt's token {at} was {nearest.ids[at]} and is {end.ids[at]}, "
        f"which was {nearest.gaps[at]:.3f} nats behind; they varied by {worst:.3f}"
    )


# -- load -----------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was done how often, and what failed. Shared by threads."""

    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory: list[int | None] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def did(self, kind: str) -> None:
        with self._lock:
            self.done[kind] += 1

    def failed(self, kind: str, err: BaseException) -> None:
        with self._lock:
            self.done[f"{kind}: failed"] += 1
            if len(self.failures) < 50:
                self.failures.append(f"{kind}: {type(err).__name__}: {err}")


@dataclass(frozen=True)
class Client:
    """What one client does. Each method is one exchange and raises :class:`Failed` at a wrong answer."""

    server: Server
    draw: random.Random
    known: Fixed

    def prompt(self, most: int = 6000) -> list[int]:
        length = self.draw.choice((16, 100, 700, 2000, 2100, 3500, 6000))
        return prompts.ids(min(length, most), seed=self.draw.randrange(40))

    def do(self, kind: str) -> None:
        {
            "whole": self.whole,
            "stream": self.stream,
            "known": self.ask_known,
            "abort": self.abort,
            "hang-up": self.hang_up,
            "past the model": lambda: self.refused(CONTEXT + self.draw.randrange(1000)),
            "past the pool": lambda: self.refused(self.draw.randrange(POOL, CONTEXT - 200)),
            "killed": self.killed,
        }[kind]()

    def whole(self) -> None:
        wanted = self.draw.randrange(1, 100)
        status, body = self.server.ask("/generate", body_of(self.prompt(), wanted))
        if status != 200:
            raise Failed(f"status {status}: {body[:200]!r}")
        if (got := len(json.loads(body)["output_ids"])) != wanted:
            raise Failed(f"{got} tokens where {wanted} were asked for")

    def stream(self) -> None:
        wanted = self.draw.randrange(2, 100)
        with contextlib.closing(self.server.connect()) as link:
            last = _last(self.server.stream(link, body_of(self.prompt(), wanted)))
        meta = (last or {}).get("meta_info", {})
        if meta.get("completion_tokens") != wanted:
            raise Failed(f"a stream of {wanted} tokens ended with {last}"[:300])

    def ask_known(self) -> None:
        drift = distance(self.known.tail, ask_fixed(self.server).tail).mean
        if drift > ASTRAY:
            raise Failed(f"the fixed prompt's logprobs are off by {drift:.3f} nats under load")

    def abort(self) -> None:
        rid = f"abort-{self.draw.getrandbits(64):016x}"
        with contextlib.closing(self.server.connect()) as link:
            events = self.server.stream(link, body_of(self.prompt(), 400, rid=rid))
            next(events)
            status, _ = self.server.ask("/abort_request", {"rid": rid})
            if status != 200:
                raise Failed(f"an abort got status {status}")
            last = _last(events)
        reason = ((last or {}).get("meta_info", {}).get("finish_reason") or {}).get("type")
        if last is not None and "error" not in last and reason not in ("abort", "length"):
            raise Failed(f"an aborted stream ended with {last}"[:300])

    def hang_up(self) -> None:
        """Close the connection in the middle of an answer; by a reset, half of the time."""
        with contextlib.closing(self.server.connect()) as link:
            events = self.server.stream(link, body_of(self.prompt(), 300))
            for _ in range(self.draw.randrange(1, 4)):
                next(events, None)
            if self.draw.random() < 0.5 and link.sock is not None:
                link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def refused(self, length: int) -> None:
        status, body = self.server.ask("/generate", body_of(prompts.ids(length, seed=0), 8))
        if not 400 <= status < 500:
            raise Failed(f"a prompt of {length} tokens got status {status}: {body[:200]!r}")

    def killed(self) -> None:
        """A process that streams, killed by SIGKILL once it has begun."""
        asked = json.dumps({**body_of(self.prompt(), 400), "stream": True})
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", _VICTIM, self.server.host, str(self.server.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin and process.stdout
        timer = threading.Timer(self.server.patience, process.kill)
        timer.start()
        try:
            process.stdin.write(asked.encode())
            process.stdin.close()
            if not process.stdout.readline():
                raise Failed("a client got no event")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            timer.cancel()
        time.sleep(1)  # a process a second is enough


_VICTIM: Final = """
import http.client, sys
link = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=120)
link.request("POST", "/generate", sys.stdin.read(), {"Content-Type": "application/json"})
answer = link.getresponse()
while line := answer.readline():
    print(line.decode(), end="", flush=True)
"""


def _last(events: Iterable[Any]) -> Any:
    """The last event, or None where there is none."""
    return next(iter(deque(events, maxlen=1)), None)


def _repeat(tally: Tally, client: Client, deeds: Mapping[str, int], until: float) -> None:
    while time.monotonic() < until:
        (kind,) = client.draw.choices(list(deeds), list(deeds.values()))
        try:
            client.do(kind)
        except Exception as err:  # of any kind: a client's thread must not end unnoticed
            tally.failed(kind, err)
            time.sleep(0.2)
        else:
            tally.did(kind)


def gpu_memory() -> int | None:
    """MiB in use on the first visible GPU, or None where nvidia-smi does not say."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = [
        "nvidia-smi",
        "-i",
        first,
        "--query-gpu=memory.used",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def load(tally: Tally, clients: list[Client], seconds: float, every: float) -> None:
    """Let every client send for ``seconds``; memory is sampled every ``every`` seconds."""
    until = time.monotonic() + seconds
    threads = []
    for number, client in enumerate(clients):
        deeds = {"killed": 1} if number == 0 else KINDS
        asked = (tally, client, deeds, until)
        threads.append(threading.Thread(target=_repeat, args=asked, daemon=True))
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        tally.memory.append(gpu_memory())
        time.sleep(min(every, max(until - time.monotonic(), 0.01)))
    for thread, client in zip(threads, clients, strict=True):
        thread.join(client.server.patience + 30)
        if thread.is_alive():
            tally.failed("client", TimeoutError("still waits for an answer"))


# -- the verdict ----------------------------------------------------------------------------------


def until_idle(server: Server, limit: float = 60.0) -> dict[str, int]:
    """Wait until nothing runs and no slot is used, at most ``limit`` seconds. Returns the load."""
    end = time.monotonic() + limit
    while True:
        found = server.load()
        if not any(found.values()) or time.monotonic() > end:
            return found
        time.sleep(0.5)


def rest(server: Server) -> dict[str, int]:
    """Wait until the server is idle and empty its caches, the allocator's too. Returns what it still does."""
    found = until_idle(server)
    status, body = server.ask("/flush_cache?timeout=30", {})
    if status != 200:
        raise Failed(f"the cache was not flushed: {body[:200]!r}")
    return found


def fresh(server: Server) -> Fixed:
    """Let the server rest, then ask the fixed prompt."""
    rest(server)
    return ask_fixed(server)


def grown(rested: list[int | None]) -> tuple[int | None, str]:
    """MiB by which memory grew from the first rest to the last, and the problem if that is too much."""
    known = [value for value in rested if value is not None]
    if len(known) < 2:
        return None, ""
    growth = known[-1] - known[0]
    wrong = f"idle and with empty caches, the server kept {growth} MiB more GPU memory"
    return growth, wrong if growth > GROWTH else ""


def soak(server: Server, seconds: float, clients: int = 12, every: float = 5.0) -> dict[str, Any]:
    """Run the whole soak against a server that is up. ``problems`` is empty if there was none."""
    starts = [fresh(server) for _ in range(3)]
    begin = time.monotonic()
    tally, problems = Tally(), []
    senders = [Client(server, random.Random(f"client {i}"), starts[0]) for i in range(clients)]
    rested: list[int | None] = []
    idle, end = None, None
    try:
        for _ in range(QUARTERS):
            load(tally, senders, seconds / QUARTERS, every)
            if any((idle := rest(server)).values()):
                problems.append(f"idle, the server still has {idle}")
            rested.append(gpu_memory())
        end = fresh(server)
        problems += [wrong] if (wrong := changed(starts, end)) else []
    except (Failed, OSError, ValueError, KeyError) as err:
        problems.append(f"at rest: {type(err).__name__}: {err}")
    growth, wrong = grown(rested)
    problems += [wrong] if wrong else []
    missing = sorted({*KINDS, "killed"} - {kind for kind, times in tally.done.items() if times})
    if missing:
        problems.append(f"never done: {', '.join(missing)}")
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "done": dict(sorted(tally.done.items())),
        "idle": idle,
        "memory_mib": tally.memory,
        "rested_mib": rested,
        "memory_growth_mib": growth,
        "fixed": {"starts": [asdict(one) for one in starts], "end": asdict(end) if end else None},
        "problems": tally.failures + problems,
    }


# -- command line ----------------------------------------------------------------------------------


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder; made by tiny_model.py if not there")
    parser.add_argument("--flavour", choices=FLAVOURS, default="fork")
    parser.add_argument("--seconds", type=float, default=600, help="of load (default 600)")
    parser.add_argument("--clients", type=int, default=12, help="threads that send (default 12)")
    parser.add_argument("--out", type=Path, help="also write the JSON there, the log beside it")
    options = parser.parse_args(given)
    if missing := engines.missing_sites():
        parser.error(missing)
    model = engines.make_model(options.model, "--heads", "16")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "soak.log"
        found: dict[str, Any] = {"problems": []}
        try:
            with started(FLAVOURS[options.flavour], model, log, CHANGES) as server:
                found = soak(server, options.seconds, options.clients)
        except (Failed, OSError) as err:
            found["problems"].append(f"{type(err).__name__}: {err}")
        found = {"flavour": options.flavour, **found}
        text = json.dumps(found, indent=1)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text + "\n")
            if log.exists():
                shutil.copy(log, options.out.with_name(f"{options.out.stem}-server.log"))
    print(text)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
