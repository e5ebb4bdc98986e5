"""The part of the measuring process that needs no GPU: which configuration is taken for right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tool.tune.worker import Entry, check_fastest

WANTED = torch.tensor([3.0, 4.0])
RIGHT, NEAR, WRONG = 0.0, 0.05, 5.0
"""What is added to the first value of WANTED, whose norm is 5."""


class Operation:
    """Adds ``config["off"]`` to the result and counts the calls."""

    def __init__(self) -> None:
        self.off, self.calls = 0.0, 0

    @contextlib.contextmanager
    def use(self, config: dict[str, Any]) -> Iterator[None]:
        self.off = config["off"]
        yield

    def call(self, data: Any, copy: int) -> torch.Tensor:
        self.calls += 1
        return torch.cat([WANTED + torch.tensor([self.off, 0.0]), torch.full((3,), 7.0)])


def entry(us: float, off: float, *, captured: bool = True) -> Entry:
    made = Entry({"off": off})
    made.graph, made.times = object() if captured else None, [us]
    return made


@pytest.mark.parametrize("near", [RIGHT, NEAR])
def test_the_fastest_that_is_right_ends_the_comparison(near: float) -> None:
    default, wrong, right, slow = entry(9, RIGHT), entry(1, WRONG), entry(2, near), entry(3, RIGHT)
    operation = Operation()
    check_fastest(operation, None, WANTED, 0.01, [default, slow, right, wrong])
    assert wrong.rejected == "differs from the float reference by 1 of its norm"
    assert wrong.error is None and right.rejected is None
    assert right.error == pytest.approx(near / 5)
    assert operation.calls == 2 and slow.error is None and default.error is None


def test_the_default_is_never_rejected() -> None:
    default, right = entry(1, WRONG), entry(2, RIGHT)
    check_fastest(Operation(), None, WANTED, 0.01, [default, right])
    assert default.rejected is None and default.error == pytest.approx(1.0)
    assert right.error == 0.0


def test_what_was_not_captured_is_not_compared() -> None:
    default, other = entry(2, RIGHT), entry(1, WRONG, captured=False)
    check_fastest(Operation(), None, WANTED, 0.01, [default, other])
    assert other.rejected is None and default.error == 0.0
