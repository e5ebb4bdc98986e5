"""Fixtures for 0.5.13 and later: a single rank, model folders, and a recorder of kernel calls."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

BUNDLE = "sglang.srt.layers.attention.ada_dsa"


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model folders of the tiny configurations, with a single-rank process group running."""
    import tree

    folder = tmp_path_factory.mktemp("models")
    paths = tree.write_configs(folder)
    tree.start_one_rank(tree.server_args(paths["glm"]), folder)
    return paths


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[tuple[Any, ...], Any]]]:
    """``record(name, result)`` replaces a function of the bundled kernels; its calls come back.

    ``result`` is returned by each call, or called with the call's arguments if it is callable.
    """
    bundle = importlib.import_module(BUNDLE)

    def replace(name: str, result: Any = None) -> list[tuple[tuple[Any, ...], Any]]:
        calls: list[tuple[tuple[Any, ...], Any]] = []

        def kernel(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            return result(*args, **kwargs) if callable(result) else result

        monkeypatch.setattr(bundle, name, kernel)
        return calls

    return replace
