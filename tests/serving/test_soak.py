"""The soak on a GPU, and its clients' own logic against a small server that speaks ``/generate``.

The small server is real HTTP and no sglang: what is tested there is that the soak does what it says,
and finds each fault that it looks for.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.serving.support import engines, soak
from tests.serving.support.flavours import FLAVOURS, Flavour
from tests.serving.support.server import Failed, Server, started
from tests.serving.support.soak import Fixed, changed, grown


@pytest.mark.gpu
def test_a_server_stands_mixed_load(tmp_path: Path) -> None:
    """``ADA_SOAK_SECONDS`` of load, default 60; the whole run is ``python -m tests.serving.support.soak``."""
    if missing := engines.missing_sites():
        pytest.skip(missing)
    out = Path(os.environ.get("ADA_GPU_OUT") or tmp_path) / "soak.json"
    seconds = os.environ.get("ADA_SOAK_SECONDS", "60")
    soak.main([str(tmp_path / "model"), "--seconds", seconds, "--out", str(out)])
    assert not json.loads(out.read_text())["problems"]


# -- a small server -------------------------------------------------------------------------------


class Small(ThreadingHTTPServer):
    """A server whose answers follow from the prompt. ``fault`` names what it does wrongly."""

    daemon_threads = True

    def __init__(self, fault: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.lock = threading.Lock()
        self.running: set[str] = set()
        self.aborted: set[str] = set()
        self.leaked = 0
        self.served = 0
        self.flushes = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is not an error."""


class Handler(BaseHTTPRequestHandler):
    server: Small

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(200, {})
        else:
            with self.server.lock:
                running = len(self.server.running)
                used = running * 64 + self.server.leaked
            load = {"num_running_reqs": running, "num_waiting_reqs": 0, "num_used_tokens": used}
            self.reply(200, {"loads": [load]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/abort_request":
            self.server.aborted.add(asked["rid"])
            self.reply(200, {})
        elif self.path.startswith("/flush_cache"):
            self.server.flushes += 1
            self.reply(200, {})
        elif len(asked["input_ids"]) >= soak.POOL and self.server.fault != "takes everything":
            self.reply(400, {"error": {"message": "too long"}})
        else:
            self.generate(asked)

    def generate(self, asked: dict[str, Any]) -> None:
        rid = asked.get("rid") or f"{threading.get_ident()}-{time.monotonic_ns()}"
        self.server.running.add(rid)
        try:
            if asked.get("stream"):
                self.send_response(200)
                self.end_headers()
                self.stream(asked, rid)
            else:
                self.reply(200, self.output(asked, asked["sampling_params"]["max_new_tokens"]))
        except OSError:
            if self.server.fault == "leaks where clients leave":
                self.server.leaked += 64
        finally:
            self.server.running.discard(rid)

    def stream(self, asked: dict[str, Any], rid: str) -> None:
        wanted = asked["sampling_params"]["max_new_tokens"]
        for count in range(1, wanted + 1):
            output = self.output(asked, count)
            over = rid in self.server.aborted
            if over:
                output["meta_info"]["finish_reason"] = {"type": "abort"}
            self.wfile.write(b"data: " + json.dumps(output).encode() + b"\n\n")
            self.wfile.flush()
            if over:
                break
            time.sleep(0.001)
        self.wfile.write(b"data: [DONE]\n\n")

    def output(self, asked: dict[str, Any], count: int) -> dict[str, Any]:
        with self.server.lock:
            self.server.served += 1
            worn = self.server.fault == "wears out" and self.server.served > 200
        count -= self.server.fault == "loses a token" and not asked.get("return_logprob")
        shift = sum(asked["input_ids"]) % 97 + (50 if worn else 0)
        ids = [(shift + i) % 100 for i in range(count)]
        said = [(-(i % 7) - 0.1, token, None) for i, token in enumerate(ids)]
        start = asked.get("logprob_start_len", 0)
        prompt = [
            (-(token % 5) - (1.0 if worn else 0.0), token, None)
            for token in asked["input_ids"][start:]
        ]
        return {
            "output_ids": ids,
            "meta_info": {
                "completion_tokens": count,
                "finish_reason": {"type": "length"},
                "output_token_logprobs": said,
                "output_top_logprobs": [[one, (one[0] - 1, 101, None)] for one in said],
                "input_token_logprobs": [(None, *prompt[0][1:]), *prompt[1:]] if prompt else [],
            },
        }


@contextmanager
def small(fault: str = "") -> Iterator[tuple[Small, Server]]:
    with Small(fault) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield listening, Server(listening.server_address[1], patience=20)
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_nvidia_smi(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(soak, "gpu_memory", lambda: 1000)


def test_a_good_server_has_no_problem() -> None:
    with small() as (listening, server):
        found = soak.soak(server, seconds=4, clients=8, every=0.25)
    assert found["problems"] == []
    assert set(found["done"]) == {*soak.KINDS, "killed"}
    assert found["idle"] == {"running_reqs": 0, "waiting_reqs": 0, "used_tokens": 0}
    assert found["memory_growth_mib"] == 0
    assert listening.flushes == 3 + soak.QUARTERS + 1
    assert found["fixed"]["end"] == found["fixed"]["starts"][0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("takes everything", "past the .*: Failed: a prompt of .* tokens got status 200"),
        ("leaks where clients leave", "idle, the server still has .*'used_tokens': [1-9]"),
        ("loses a token", "whole: Failed: .* tokens where .* were asked for"),
        ("wears out", "the fixed prompt's logprobs moved by 1.0"),
    ],
)
def test_each_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str, message: str) -> None:
    until_idle = soak.until_idle
    monkeypatch.setattr(soak, "until_idle", lambda server: until_idle(server, 1.5))
    with small(fault) as (_, server):
        found = soak.soak(server, seconds=3, clients=6, every=0.25)
    assert any(re.search(message, problem) for problem in found["problems"]), found["problems"]


def test_a_server_that_dies_is_a_problem_and_no_crash() -> None:
    with small() as (listening, server):
        timer = threading.Timer(1.0, listening.server_close)
        timer.start()
        found = soak.soak(server, seconds=2, clients=4, every=0.25)
        timer.join()
    assert any("ConnectionRefusedError" in problem for problem in found["problems"])
    assert found["fixed"]["end"] is None


def fixed(change: Callable[[dict[str, Any]], None] = lambda _: None) -> Fixed:
    values: dict[str, Any] = {"ids": [5, 6, 7], "gaps": [2.0, 0.01, 3.0], "tail": [-1.0] * 8}
    change(values)
    return Fixed(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: None, ""),
        (lambda v: v.update(ids=[5, 9, 1]), ""),  # its second token was as good as another
        (lambda v: v.update(ids=[9, 6, 7]), "token 0 was 5 and is 9, which was 2.000 nats behind"),
        (lambda v: v.update(ids=[5, 6, 1]), "token 2 was 7"),
        (lambda v: v.update(tail=[-1.04] * 8), ""),
        (lambda v: v.update(tail=[-1.2] * 8), "moved by 0.2000 nats; they varied by 0.0000"),
    ],
)
def test_a_changed_answer(change: Callable[[dict[str, Any]], None], message: str) -> None:
    found = changed([fixed(), fixed()], fixed(change))
    assert (message in found) if message else not found


def test_answers_that_varied_before_may_vary() -> None:
    other = fixed(lambda v: v.update(ids=[8, 8, 8], tail=[-1.2] * 8))
    assert changed([fixed(), other], other) == ""


def test_tokens_as_close_as_the_answers_varied_may_change_places() -> None:
    """The last answer may differ from each of the first ones where their tokens were nearly as good."""
    other = fixed(lambda v: v.update(gaps=[0.3, 2.0, 3.0], tail=[-1.2] * 8))
    assert changed([fixed(), other], fixed(lambda v: v.update(ids=[4, 1, 1]))) == ""
    far = changed([fixed(), other], fixed(lambda v: v.update(ids=[5, 6, 1])))
    assert far.endswith("token 2 was 7 and is 1, which was 3.000 nats behind; they varied by 0.200")


def test_memory_that_an_idle_server_keeps_is_a_leak() -> None:
    assert grown([9000, 9010, 9100, 9010]) == (10, "")
    growth, message = grown([9000, 9200, 9400, 9600])
    assert growth == 600
    assert message == "idle and with empty caches, the server kept 600 MiB more GPU memory"
    assert grown([None] * 4) == (None, "")


def test_memory_is_compared_where_the_server_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator keeps the memory of odd shapes until its cache is emptied. That is not a leak."""
    with small() as (listening, server):
        monkeypatch.setattr(soak, "gpu_memory", lambda: listening.served)
        monkeypatch.setattr(soak, "fresh", lambda _: fixed())
        monkeypatch.setattr(soak, "rest", lambda _: setattr(listening, "served", 0) or {})
        found = soak.soak(server, seconds=2, clients=4, every=0.1)
    assert max(found["memory_mib"]) > 0
    assert found["rested_mib"] == [0] * soak.QUARTERS and found["memory_growth_mib"] == 0


def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text("raise SystemExit('no such backend')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flavour = Flavour("plain", "absent", FLAVOURS["fork"].arguments)
    with (
        pytest.raises(Failed, match="(?s)exit code 1.*no such backend"),
        started(flavour, tmp_path, tmp_path / "log", {}),
    ):
        pytest.fail("it is not up")
