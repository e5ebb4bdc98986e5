"""One server over HTTP: started, asked, streamed from, and gone at the end."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving.support import children, engines
from tests.serving.support.flavours import Flavour


class Failed(Exception):
    """The server did what it must not; the message says what."""


@dataclass(frozen=True)
class Server:
    """Where a server listens."""

    port: int
    host: str = "127.0.0.1"
    patience: float = 120.0

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=self.patience)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body; GET without a body to send."""
        with contextlib.closing(self.connect()) as link:
            if body is None:
                link.request("GET", path)
            else:
                link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = link.getresponse()
            return answer.status, answer.read()

    def stream(self, link: http.client.HTTPConnection, body: dict[str, Any]) -> Iterator[Any]:
        """The events of one streamed request over ``link``."""
        asked = json.dumps({**body, "stream": True})
        link.request("POST", "/generate", asked, {"Content-Type": "application/json"})
        answer = link.getresponse()
        if answer.status != 200:
            raise Failed(f"a stream got status {answer.status}: {answer.read()[:200]!r}")
        while line := answer.readline():
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line[6:])

    def load(self) -> dict[str, int]:
        """Requests running and waiting, and KV slots in use (cached ones that may be evicted aside)."""
        status, body = self.ask("/v1/loads")
        if status != 200:
            raise Failed(f"/v1/loads got status {status}")
        ranks = json.loads(body)["loads"]  # none before a scheduler has told its first
        names = ("running_reqs", "waiting_reqs", "used_tokens")
        return {name: sum(int(rank[f"num_{name}"]) for rank in ranks) for name in names}


def body_of(ids: list[int], new_tokens: int, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True}
    return {"input_ids": ids, "sampling_params": sampling, **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    flavour: Flavour,
    model: Path,
    log: Path,
    changes: Mapping[str, Any],
    limit: float = engines.START,
) -> Iterator[Server]:
    """A server of the flavour, up; killed with all it started at the end.

    ``changes`` are ServerArgs fields beyond what all flavours share.

    Raises:
        Failed: it ended, or was not up within ``limit`` seconds; shows the log's end.
    """
    server = Server(free_port())
    given = engines.arguments(flavour, model, **changes, host=server.host, port=server.port)
    command = [sys.executable, "-m", "sglang.launch_server", *engines.command_line(given)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=engines.environ(flavour),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_up(server, process, log, limit)
        yield server
        if (code := process.poll()) is not None:
            raise Failed(f"the server ended with exit code {code}. {tail_of(log)}")
    finally:
        children.kill(process)


def wait_until_up(
    server: Server, process: subprocess.Popen[bytes], log: Path, limit: float
) -> None:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if (code := process.poll()) is not None:
            raise Failed(f"the server ended with exit code {code}. {tail_of(log)}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            if server.ask("/health")[0] == 200:
                return
        time.sleep(1)
    raise Failed(f"the server was not up within {limit:.0f} s. {tail_of(log)}")


def tail_of(log: Path) -> str:
    return "\n".join([f"{log} ends:", *children.end_of(log)])
