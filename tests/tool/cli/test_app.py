"""The commands around apply: export back to files, lint, status, and the command line itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.support.lab import TREE, UTILS, Lab, git, header, loaded_by
from tool.cli import app as cli
from tool.series import lint
from tool.series import model as series

EDITED = TREE["sglang/srt/utils.py"].replace("return 3\n", "return 33\n")
AGAIN = EDITED.replace("return 20\n", "return 2020\n")


@pytest.fixture
def fork(lab: Lab, tmp_path: Path) -> Path:
    lab.patch("demo/first.patch", {UTILS: EDITED})
    lab.patch("demo/second.patch", {UTILS: AGAIN})
    lab.relock()
    lab.apply(tmp_path / "fork")
    return tmp_path / "fork"


class TestExport:
    def test_is_the_inverse_of_apply(self, lab: Lab, fork: Path) -> None:
        files = {
            p: (p.read_bytes(), p.stat().st_mtime_ns)
            for p in (lab.root / "patches").rglob("*.patch")
        }
        result = lab.json("export", str(fork))["result"]
        assert result == {"written": [], "kept": ["demo/first.patch", "demo/second.patch"]}
        assert files == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}

    def test_writes_only_what_changed(self, lab: Lab, fork: Path) -> None:
        first = (lab.root / "patches" / "demo/first.patch").read_bytes()
        text = (fork / UTILS).read_text().replace("return 2020", "return 2021")
        (fork / UTILS).write_text(text)
        sha = git(fork, "log", "--format=%H", "--grep=Patch-Name: demo/second.patch")
        git(fork, "commit", "-qam", "wip", "--fixup", sha)
        git(fork, "-c", "sequence.editor=true", "rebase", "-qi", "--autosquash", "HEAD~4")
        result = lab.json("export", str(fork))["result"]
        assert result["written"] == ["demo/second.patch"]
        assert (lab.root / "patches" / "demo/first.patch").read_bytes() == first
        assert b"+    return 2021" in (lab.root / "patches" / "demo/second.patch").read_bytes()
        lab.relock()
        lab.apply(fork.parent / "again", "--branch", "again")
        assert (fork.parent / "again" / UTILS).read_text() == text

    def test_an_edited_message_edits_the_header(self, lab: Lab, fork: Path) -> None:
        message = git(fork, "log", "-1", "--format=%B", "HEAD^").replace(
            "Forwarded: no", "Forwarded: yes"
        )
        git(fork, "reset", "-q", "--hard", "HEAD^")
        git(fork, "commit", "-q", "--amend", "-m", message)
        assert lab.json("export", str(fork))["result"]["written"] == ["demo/second.patch"]
        assert b"\nForwarded: yes\n" in (lab.root / "patches" / "demo/second.patch").read_bytes()

    def test_refuses_a_dirty_tree_an_unnamed_commit_and_a_second_one(
        self, lab: Lab, fork: Path
    ) -> None:
        (fork / UTILS).write_text(AGAIN + "# more\n")
        assert "uncommitted" in lab.json("export", str(fork), code=2)["error"]["message"]
        git(fork, "commit", "-qam", "mine")
        error = lab.json("export", str(fork), code=2)["error"]
        assert "no Patch-Name" in error["message"] and "mine" in error["where"]
        git(
            fork,
            "commit",
            "-q",
            "--amend",
            "-m",
            "mine\n\nOrigin: vendor\nPatch-Name: demo/first.patch",
        )
        assert "second commit" in lab.json("export", str(fork), code=2)["error"]["message"]
        git(
            fork,
            "commit",
            "-q",
            "--amend",
            "-m",
            "mine\n\nOrigin: vendor\nPatch-Name: demo/third.patch",
        )
        assert "series.txt" in lab.json("export", str(fork), code=2)["error"]["message"]

    def test_refuses_a_change_to_the_bundled_kernels(self, lab: Lab, fork: Path) -> None:
        (fork / "python/sglang/srt/layers/attention/ada_dsa/__init__.py").write_text("x = 1\n")
        sha = git(fork, "log", "-1", "--format=%H", "HEAD^")
        git(
            fork,
            "commit",
            "-qam",
            git(fork, "log", "-1", "--format=%B", sha).replace("second", "third"),
        )
        (lab.root / "series.txt").write_text(
            (lab.root / "series.txt").read_text() + "demo/third.patch ==0.5.23\n"
        )
        assert "ada_dsa/" in lab.json("export", str(fork), code=2)["error"]["next"]

    def test_refuses_a_folder_that_is_not_ours(self, lab: Lab, fork: Path, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        assert (
            "not a worktree" in lab.json("export", str(tmp_path / "x"), code=2)["error"]["message"]
        )


class TestLint:
    def test_a_good_series_has_no_findings(self, lab: Lab, fork: Path) -> None:
        assert lab.json("lint")["result"]["findings"] == []

    @pytest.mark.parametrize(
        ("old", "new", "rule", "words"),
        [
            (b"Origin: vendor\n", b"", "header", "no Origin"),
            (b"Forwarded: no\n", b"", "header", "neither Forwarded nor Applied-Upstream"),
            (b"Drop-When: never\n", b"", "header", "no Drop-When"),
            (b"Releases: ==0.5.23", b"Releases: ==0.5.22", "header", "series.txt"),
            (b" Because it is needed.\n", b"", "header", "not why"),
            (b"needed.\n", b"needed.\n .\n", "canonical", "canonical"),
            (b"return 33", b"return\x0033", "character", "U+0000"),
            (b"return 33", "return '​'".encode(), "character", "ZERO WIDTH SPACE"),
        ],
    )
    def test_findings(
        self, lab: Lab, fork: Path, old: bytes, new: bytes, rule: str, words: str
    ) -> None:
        path = lab.root / "patches" / "demo/first.patch"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        findings = lab.json("lint", code=1)["result"]["findings"]
        assert any(f["rule"] == rule and words in f["message"] for f in findings), findings

    def test_folder_and_order_file_agree(self, lab: Lab, fork: Path) -> None:
        (lab.root / "patches" / "demo/stray.patch").write_bytes(header("==0.5.23"))
        (lab.root / "patches" / "demo/first.patch").unlink()
        found = lint.lint_series(series.load_series(lab.root))
        assert {(f.rule, f.where.split(":")[0]) for f in found} == {
            ("file", "series.txt"),
            ("file", "patches/demo/stray.patch"),
        }

    @pytest.mark.parametrize("line", ["import sglang", "from tool import git", "import requests.x"])
    def test_kernels_import_relatively(self, lab: Lab, fork: Path, line: str) -> None:
        (lab.root / "ada_dsa" / "k.py").write_text(f"from . import x\nimport torch\n{line}\n")
        (finding,) = lab.json("lint", code=1)["result"]["findings"]
        assert finding["rule"] == "kernels" and finding["where"] == "ada_dsa/k.py:3"


def test_status_tells_what_each_patch_does(lab: Lab, fork: Path) -> None:
    with (lab.root / "series.txt").open("a") as handle:
        handle.write(
            "change guard ==0.5.9 upstream 0.5.10: configurer\nguard/guard.patch ==0.5.9\n"
        )
    result = lab.json("status")["result"]
    states = {p["patch"]: p["state"] for p in result["patches"]}
    assert states == {
        "demo/first.patch": "applies",
        "demo/second.patch": "applies",
        "guard/guard.patch": "upstream",
    }
    assert result["imported"] and str(fork) in result["worktrees"].values()
    elsewhere = lab.json("status", "--sglang-ref", "v0.5.9")["result"]
    assert {p["patch"]: p["state"] for p in elsewhere["patches"]}["guard/guard.patch"] == "applies"


class TestCommandLine:
    def test_help_loads_nothing_heavy(self) -> None:
        """--help imports little, because imports make it slow. bench/tool/apply.py measures the time."""
        text, modules = loaded_by("--help")
        assert "Exit codes" in "\n".join(text)
        heavy = {"git", "unidiff", "rich", "packaging", "torch", "sglang", "ada_dsa"}
        assert not heavy & modules

    def test_every_command_is_found_without_the_others(self) -> None:
        context = click.Context(cli.main)
        folder = Path(cli.__file__).parent / "commands"
        files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        names = cli.main.list_commands(context)
        assert {"import_" if name == "import" else name for name in names} == files
        for name in names:
            command = cli.main.get_command(context, name)
            assert command is not None and command.name == name
            text, modules = loaded_by(name, "--help")
            assert f"{name} [OPTIONS]" in text[0]
            loaded = {m for m in modules if m.startswith("tool.cli.commands.")}
            assert loaded == {f"tool.cli.commands.{'import_' if name == 'import' else name}"}

    def test_a_misspelt_command_is_recognized(self, lab: Lab) -> None:
        assert "'lint'" in lab.tool("lit", code=2).stderr

    def test_json_is_one_document_on_stdout(self, lab: Lab, fork: Path) -> None:
        for args, code in (
            (["status", "--json"], 0),
            (["apply", "--json", "--sglang-ref", "-x"], 2),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "tool", *args, "--series", str(lab.root)],
                capture_output=True, text=True, env=lab.environ,
            )  # fmt: skip
            envelope = json.loads(done.stdout)
            assert done.returncode == code == envelope["exit_code"]
            assert envelope["schema"] == 2 and envelope["command"] == args[0]

    def test_apply_for_a_person_says_where_and_what_next(self, lab: Lab, fork: Path) -> None:
        text = lab.tool("apply", "--into", str(fork), "--offline").output
        assert str(fork) in text and "tool build" in text and "nothing changed" in text

    def test_no_series_here(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tool", "status"], cwd="/", capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
        assert done.returncode == 2 and "no series.txt" in done.stderr and "--series" in done.stderr

    def test_parts_never_import_each_other(self) -> None:
        root = Path(__file__).parents[3]
        for folder, banned in (("tool", "torch sglang ada_dsa triton"), ("ada_dsa", "tool sglang")):
            for path in (root / folder).rglob("*.py"):
                for _, module in lint.absolute_imports(path):
                    assert module.split(".")[0] not in banned.split(), f"{path} imports {module}"
