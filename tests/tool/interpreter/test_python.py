"""How another environment's Python is found, and what it inherits."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tool.errors import UsageError
from tool.interpreter import find_interpreter, kill_group, make_variables


def test_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_interpreter(None) == Path(sys.executable)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/py" if name == "py" else None)
    monkeypatch.chdir(tmp_path)
    assert find_interpreter(Path("py")) == Path("/bin/py")
    assert find_interpreter(Path("other")) == tmp_path / "other"
    assert find_interpreter(Path("bin/py")) == tmp_path / "bin/py"
    monkeypatch.setenv("HOME", "/home/ada")
    assert find_interpreter(Path("~/bin/py")) == Path("/home/ada/bin/py")
    with pytest.raises(UsageError, match="is a folder") as caught:
        find_interpreter(tmp_path)
    assert str(tmp_path / "bin" / "python") in (caught.value.next_step or "")


@pytest.mark.parametrize(
    ("path", "given"), [("", None), (":", None), ("/a::/b", "/a:/b"), (None, None)]
)
def test_variables_of_the_process(
    monkeypatch: pytest.MonkeyPatch, path: str | None, given: str | None
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    found = make_variables()
    assert found.get("PYTHONPATH") == given and found["PYTHONDONTWRITEBYTECODE"] == "1"


def test_a_group_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", gone)
    kill_group(SimpleNamespace(pid=1))  # type: ignore[arg-type]
