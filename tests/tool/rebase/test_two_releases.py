"""Two releases after the pin, carried by what the commands print after ``next:`` and by nothing else.

Upstream renames a file, changes the lines around a hunk, splits a function, takes a part of a change and
moves an import. A person edits only the worktree of each stop. The project's own tests of the patched
tree then pass on both releases.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from packaging.version import Version

from tests.support.index import Index, serve, use
from tests.support.lab import TREE, Lab, write_wheel
from tests.support.rebases import check
from tool.series import load_series

FIRST, SECOND = "0.5.24", "0.5.25"
SRT = "sglang/srt"

HOME = """\
def alpha(value):
    return value + 100


def size_of_pool(blocks):
    total = blocks * 2
    return total


def omega(value):
    return value - 100
"""
CONTEXT = """\
def limit(requests):
    first = requests[0]
    second = requests[1]
    third = requests[2]
    fourth = 4
    return first, second, third, fourth
"""
SPLIT = """\
def work(amount):
    first = amount + 1
    second = first * 2
    return second - 3
"""
SPLIT_UP = """\
def prepare(amount):
    first = amount + 1
    second = first * 2
    return second


def work(amount):
    return prepare(amount) - 3
"""
ONE = "def answer_to_everything():\n    return compute_the_answer(6, 7)\n"
ONE += "\n\ndef compute_the_answer(a, b):\n    return a * b\n"
TWO = "def number_of_replies():\n    return count_all_of_them(3)\n"
TWO += "\n\ndef count_all_of_them(a):\n    return a\n"
HELPERS = "def get_platform():\n    return 'sm_89'\n\n\ndef other():\n    return 1\n"
USER = "import os\n\n\ndef describe():\n    return os.sep and 'a card'\n"

PIN_TREE = TREE | {
    f"{SRT}/home.py": HOME,
    f"{SRT}/context.py": CONTEXT,
    f"{SRT}/split.py": SPLIT,
    f"{SRT}/one.py": ONE,
    f"{SRT}/two.py": TWO,
    f"{SRT}/helpers.py": HELPERS,
    f"{SRT}/user.py": USER,
}
FIRST_TREE = {name: text for name, text in PIN_TREE.items() if name != f"{SRT}/home.py"} | {
    f"{SRT}/core/__init__.py": "",
    f"{SRT}/core/home.py": HOME + "\n\ndef added(value):\n    return value\n",
    f"{SRT}/context.py": CONTEXT.replace("fourth = 4\n", "fourth = len(requests)\n"),
    f"{SRT}/split.py": SPLIT_UP,
}
ONE_OURS = ONE.replace("compute_the_answer(6, 7)", "compute_the_answer(6, 9)")
SECOND_TREE = FIRST_TREE | {
    f"{SRT}/one.py": ONE_OURS,
    f"{SRT}/helpers.py": "def other():\n    return 1\n",
    f"{SRT}/platforms.py": "def get_platform():\n    return 'sm_89'\n",
}
USER_OURS = USER.replace(
    "import os\n", "import os\n\nfrom sglang.srt.helpers import get_platform\n"
)
USER_OURS = USER_OURS.replace("'a card'", "get_platform()")
PATCHES: dict[str, dict[str, str | None]] = {
    "home": {"home.py": HOME.replace("blocks * 2", "blocks * 3")},
    "context": {"context.py": CONTEXT.replace("requests[0]", "max(requests)")},
    "split": {"split.py": SPLIT.replace("first * 2", "first * 20")},
    "part": {
        "one.py": ONE_OURS,
        "two.py": TWO.replace("count_all_of_them(3)", "count_all_of_them(33)"),
    },
    "import": {"user.py": USER_OURS},
}

Edit = Callable[[str], str]
DECISIONS: dict[str, tuple[str, Edit]] = {
    "split": ("split.py", lambda _: SPLIT_UP.replace("first * 2", "first * 20")),
    "import": ("user.py", lambda text: text.replace("srt.helpers", "srt.platforms")),
}
"""What a person makes of the worktree of a stop: the file, and how it reads afterwards."""

CONFTEST = """\
import subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]

def pytest_addoption(parser):
    parser.addoption("--sglang-ref", action="append")

@pytest.fixture
def tree(request, tmp_path):
    (release,) = request.config.getoption("--sglang-ref")
    command = [sys.executable, "-m", "tool", "apply", "--sglang-ref", release, "--offline"]
    command += ["--into", str(tmp_path / "tree"), "--series", str(ROOT)]
    command += ["--branch", f"tested/{tmp_path.parent.name}"]
    subprocess.run(command, check=True)
    return tmp_path / "tree" / "python"
"""
PATCHED = """\
import subprocess, sys

SCRIPT = '''
import importlib.util
from sglang.srt import context, one, split, two, user
old = importlib.util.find_spec("sglang.srt.home")
home = importlib.import_module("sglang.srt.home" if old else "sglang.srt.core.home")
assert home.size_of_pool(5) == 15
assert context.limit([1, 7, 3])[0] == 7
assert split.work(1) == 37
assert (one.answer_to_everything(), two.number_of_replies()) == (54, 33)
assert user.describe() == "sm_89"
'''

def test_the_patched_tree(tree):
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=tree, check=True)
"""


@pytest.fixture
def project(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The pinned release with one patch for each of upstream's edits, and tests of the patched tree."""
    monkeypatch.chdir(tmp_path)
    lab.release("0.5.23", PIN_TREE)
    for name, files in PATCHES.items():
        edits = {f"python/{SRT}/{path}": text for path, text in files.items()}
        lab.patch(f"demo/{name}.patch", edits)
    lab.relock()
    tests = lab.root / "tests"
    (tests / "patched").mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST)
    (tests / "patched" / "test_tree.py").write_text(PATCHED)
    return lab


def next_command(result: Result) -> list[str]:
    """The first command of the last ``next:`` line, without the word ``tool``."""
    line = [line for line in result.stdout.splitlines() if line.startswith("next: ")][-1]
    found = re.search(r"\btool ((?:[a-z]+)(?: --?[a-z-]+(?: v[\d.]+)?)*)", line)
    assert found, line
    return shlex.split(found[1])


def decide(result: Result) -> None:
    """Do a person's part of a stop, in the worktree that the command names."""
    stopped = re.search(r"^stopped at demo/([a-z]+)", result.stdout, re.MULTILINE)
    worktree = re.search(r"^the worktree is (.+), with", result.stdout, re.MULTILINE)
    assert stopped and worktree
    if stopped[1] in DECISIONS:
        name, edit = DECISIONS[stopped[1]]
        path = Path(worktree[1]) / "python" / SRT / name
        path.write_text(edit(path.read_text()))


def carry(lab: Lab, stops: list[str]) -> None:
    """Follow the printed commands from ``tool watch`` until the pin has moved."""
    command, met = ["watch", "-q"], []
    for _ in range(20):
        result = lab.tool(*command, code=None)
        assert result.exit_code in (0, 1, 3, 4), result.output
        if stopped := re.search(r"^stopped at demo/([a-z-]+)", result.stdout, re.MULTILINE):
            met.append(stopped[1])
            decide(result)
        if command[:2] == ["lock", "--pin"]:
            assert met == stops
            return
        command = next_command(result)
    raise AssertionError("the commands lead nowhere")


def test_both_are_carried(project: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    write_wheel(folder, FIRST, FIRST_TREE)
    with serve(folder) as index:
        use(index, monkeypatch)
        _carry_both(project, index)
    check(project)


def _carry_both(project: Lab, index: Index) -> None:
    carry(project, ["home", "split"])
    assert load_series(project.root).pin == Version(FIRST)
    write_wheel(index.folder, SECOND, SECOND_TREE)
    carry(project, ["part", "import"])
    series = load_series(project.root)
    assert series.pin == Version(SECOND)
    assert len(series.for_release(series.pin)) == len(PATCHES)
    project.tool("test", "--sglang-ref", FIRST)


def test_a_patched_tree_that_fails(project: Lab) -> None:
    path = project.root / "tests/patched/test_tree.py"
    path.write_text(PATCHED.replace("== 15", "== 16"))
    text = project.tool("test", code=1).stdout
    assert "v0.5.23: the patched tree fails its tests" in text and "tool refresh" in text


def test_what_cannot_be_tested(project: Lab, lab: Lab) -> None:
    assert (
        "'main' is not a release"
        in lab.json("test", "--sglang-ref", "main", code=2)["error"]["message"]
    )
    (project.root / "tests/patched/test_tree.py").write_text("")
    assert "found no test" in project.json("test", code=2)["error"]["message"]
    (project.root / "tests/conftest.py").write_text("raise ImportError('broken')\n")
    assert "could not run" in project.json("test", code=6)["error"]["message"]


def test_pytest_is_not_there(project: Lab) -> None:
    script = "import importlib.util, sys\nimportlib.util.find_spec = lambda name: None\n"
    script += "from tool.cli.app import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script, "test", "--series", str(project.root)],
        capture_output=True,
        text=True,
        env=project.environ,
    )
    assert done.returncode == 6 and "pytest is not installed" in done.stderr
    assert "pip install -e '.[test]'" in done.stderr


def test_without_such_tests(lab: Lab) -> None:
    lab.patch("demo/x.patch", {"python/sglang/srt/x.py": "A = 1\n"})
    lab.relock()
    assert "has no folder tests/patched" in lab.json("test", code=2)["error"]["message"]
