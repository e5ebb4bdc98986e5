"""The scripts of the workflows, in order, with the real tool and git. ``gh`` writes down how it is called."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.support.index import serve, use
from tests.support.lab import EDITED, NEXT, RELEASE, TREE, UTILS, Lab, write_wheel
from tests.support.rebases import make_upstream
from tests.support.shipping import make_shippable

ROOT = Path(__file__).parents[2]
GH = """\
#!{python}
import json, sys
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1:3] == ["issue", "list"]:
    print({number!r})
"""


class Workflow:
    """The steps of a workflow's one job that are scripts, but the installation of the tool."""

    def __init__(self, name: str, lab: Lab, folder: Path, number: str = "") -> None:
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
        ((_, job),) = workflow["jobs"].items()
        scripts = [step["run"] for step in job["steps"] if "run" in step]
        assert "pip install" in scripts[0]
        self.scripts: list[str] = scripts[1:]
        self.lab, self._calls = lab, folder / "calls"
        programs = folder / "bin"
        programs.mkdir()
        tool = (
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m tool "$@"\n'
        )
        gh = GH.format(python=sys.executable, calls=str(self._calls), number=number)
        for program, text in (("tool", tool), ("gh", gh)):
            (programs / program).write_text(text)
            (programs / program).chmod(0o755)
        path = (str(programs), str(Path(sys.executable).parent), os.environ["PATH"])
        self._environment = {
            "PATH": os.pathsep.join(path),
            "TOOL_CACHE_DIR": str(lab.home.cache),
            "TOOL_DATA_DIR": str(lab.home.data),
        }

    def run(self, replaced: tuple[str, str], **variables: str) -> int:
        """Run the scripts as GitHub does, until one fails; the exit code of the last."""
        assert replaced[0] in self.scripts[0]
        for script in self.scripts:
            done = subprocess.run(
                ["bash", "-e", "-c", script.replace(*replaced)],
                cwd=self.lab.root,
                env=os.environ | self._environment | variables,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                print(done.stdout, done.stderr)
                return done.returncode
        return 0

    @property
    def calls(self) -> list[list[str]]:
        if not self._calls.exists():
            return []
        return [json.loads(line) for line in self._calls.read_text().splitlines()]


@pytest.mark.parametrize("number", ["", "12"])
def test_watch_opens_one_issue_and_then_edits_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    path = lab.patch("demo/answer.patch", {UTILS: EDITED})
    thread = "Forwarded: no\n Upstream thread: #35429 (open, DSA below Hopper).\n"
    path.write_text(path.read_text().replace("Forwarded: no\n", thread))
    lab.relock()
    write_wheel(tmp_path / "index", NEXT, TREE)
    source = make_upstream(tmp_path / "upstream", "Serve DSA below Hopper (#35429)")
    watch = Workflow("watch", lab, tmp_path, number)
    with serve(tmp_path / "index") as index:
        use(index, monkeypatch)
        assert watch.run(("--source git", f"--source {source}")) == 0
    calls = {tuple(call[:2]): call[2:] for call in watch.calls}
    written = ("issue", "edit") if number else ("issue", "create")
    assert set(calls) == {("label", "create"), ("issue", "list"), written}
    arguments = calls[written]
    title = arguments[arguments.index("--title") + 1]
    assert title == f"sglang {NEXT} is released; upstream threads: #35429"
    assert (arguments[0] == number) == bool(number)
    body = (lab.root / arguments[arguments.index("--body-file") + 1]).read_text()
    assert f"Next: `tool rebase --onto v{NEXT}`" in body
    assert "Serve DSA below Hopper (#35429)" in body
    assert any(line.startswith("|") and NEXT in line for line in body.splitlines())


def test_watch_is_silent_where_nothing_is_new(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    write_wheel(tmp_path / "index", RELEASE, TREE)
    source = make_upstream(tmp_path / "upstream", "Something else")
    watch = Workflow("watch", lab, tmp_path)
    with serve(tmp_path / "index") as index:
        use(index, monkeypatch)
        assert watch.run(("--source git", f"--source {source}")) == 0
    assert watch.calls == []


def test_release_attaches_what_was_verified(lab: Lab, tmp_path: Path) -> None:
    lab = make_shippable(lab)
    release = Workflow("release", lab, tmp_path)
    offline = ("tool publish ", "tool publish --offline ")
    assert release.run(offline, GITHUB_REF_NAME="v0.5.23+ada.1") == 0
    (call,) = release.calls
    assert call[:3] == ["release", "create", "v0.5.23+ada.1"] and "--verify-tag" in call
    files = [lab.root / word for word in call if word.startswith("attach/")]
    names = {file.name for file in files}
    assert {"SHA256SUMS", "index.tar.gz", "RELEASE_NOTES.md"} <= names
    wheels = {name for name in names if name.endswith(".whl")}
    assert wheels and all(name.startswith("sglang-0.5.23+ada.1-") for name in wheels)
    with tarfile.open(lab.root / "attach" / "index.tar.gz") as archive:
        assert "simple/sglang/index.html" in archive.getnames()
    assert (lab.root / call[call.index("--notes-file") + 1]).read_text()


def test_release_stops_at_a_tag_of_another_version(lab: Lab, tmp_path: Path) -> None:
    release = Workflow("release", make_shippable(lab), tmp_path)
    offline = ("tool publish ", "tool publish --offline ")
    assert release.run(offline, GITHUB_REF_NAME="v0.5.23+ada.2") == 1
    assert release.calls == []
