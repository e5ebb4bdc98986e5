"""No setting of a worktree, a user or a system, and no .gitattributes, reaches a result.

The keys are those of the installed git (``git help --config``). The sample gives all of them a hostile value
at once, in every place where git reads settings; the exhaustive test takes one key at a time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.lab import EDITED, NEXT, TREE, UTILS, Lab, git
from tool.errors import IntegrityError
from tool.git.isolation import isolated_folder
from tool.git.repository import Git

AGAIN: Final = EDITED.replace("return 20\n", "return 200\n")
UPSTREAM: Final = TREE["sglang/srt/utils.py"].replace("return 4\n", "return 44\n")
"""The next line that upstream changes: near the patch, so that a merge has something to decide."""
CRLF: Final = "python/sglang/srt/windows.txt"

VALUES: Final = ("true", "false", "union", "0")
"""A key is given each of these, unless SPECIAL names what suits it."""
SPECIAL: Final = {
    "core.attributesfile": "{hostile}/attributes",
    "core.excludesfile": "{hostile}/ignore",
    "core.hookspath": "{hostile}/hooks",
    "core.fsmonitor": "{hostile}/program",
    "core.worktree": "{hostile}",
    "core.abbrev": "4",
    "core.eol": "crlf",
    "core.autocrlf": "true",
    "core.compression": "0",
    "diff.context": "7",
    "diff.interhunkcontext": "9",
    "diff.algorithm": "patience",
    "diff.external": "{hostile}/program",
    "diff.orderfile": "{hostile}/order",
    "extensions.objectformat": "sha256",
    "i18n.commitencoding": "latin1",
    "i18n.logoutputencoding": "utf-16",
    "include.path": "{hostile}/included",
    "merge.default": "union",
    "user.name": "Mallory",
}
PROGRAMS: Final = (
    "command",
    "cmd",
    "program",
    "clean",
    "smudge",
    "process",
    "driver",
    "textconv",
    "helper",
)
NAMES: Final = {"<name>": "origin", "<driver>": "hostile", "<url>": "https://x.invalid", "*": "x"}


def keys() -> list[str]:
    """Every key that the installed git documents, with names in place of ``<name>``."""
    listed = subprocess.run(["git", "help", "--config"], capture_output=True, text=True, check=True)
    found = []
    for line in listed.stdout.splitlines():
        if re.fullmatch(r"\S+\.\S+", line):
            for placeholder, name in NAMES.items():
                line = line.replace(placeholder, name)
            found.append(re.sub(r"<[^>]+>", "x", line))
    return found


UNDOCUMENTED: Final = ("merge.default", "diff.trustExitCode", "core.bare", "diff.hostile.algorithm")
KEYS: Final = [*keys(), *UNDOCUMENTED]


def values(key: str, hostile: Path) -> list[str]:
    """Hostile values of a key; ``hostile`` holds the files and programs they name."""
    if key.lower() in SPECIAL:
        return [SPECIAL[key.lower()].format(hostile=hostile)]
    if key.rpartition(".")[2].lower().endswith(PROGRAMS):
        return [f"{hostile}/program"]
    return list(VALUES)


def setting(key: str, value: str) -> str:
    section, _, rest = key.partition(".")
    middle, _, name = rest.rpartition(".")
    title = f'{section} "{middle}"' if middle else section
    return f'[{title}]\n\t{name} = "{value}"\n'


class Machine:
    """A project, and every place where somebody may leave settings."""

    def __init__(self, lab: Lab, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab, self.place, self.runs = lab, place, 0
        self.hostile, self.ran = place / "hostile", place / "ran"
        self._prepare()
        lab.release(NEXT, TREE | {"sglang/srt/utils.py": UPSTREAM})
        lab.patch("demo/answer.patch", {UTILS: EDITED}, releases=">=0.5.23")
        lab.relock()
        self.project = place / "kept"
        shutil.copytree(lab.root, self.project)
        lab.apply(place / "first", "--branch", "first")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(place / "global"))
        monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(place / "system"))
        monkeypatch.delenv("GIT_CONFIG_NOSYSTEM")
        repository, home = lab.home.repository, Path(os.environ["HOME"])
        self.plain = (repository / "config").read_text()
        self.shared = repository / "config"
        self.others = [
            repository / "worktrees" / "first" / "config.worktree",
            place / "global",
            place / "system",
            home / ".gitconfig",
            home / "git" / "config",
        ]

    def _prepare(self) -> None:
        (self.hostile / "hooks").mkdir(parents=True)
        program = f"#!/bin/sh\ntouch {self.ran}\ncat\n"
        for name in ("program", "hooks/post-checkout", "hooks/reference-transaction"):
            (self.hostile / name).write_text(program)
            (self.hostile / name).chmod(0o755)
        (self.hostile / "attributes").write_text("* text eol=crlf filter=hostile merge=union\n")
        (self.hostile / "ignore").write_text("*\n")
        (self.hostile / "order").write_text("*.txt\n*.py\n")
        (self.hostile / "included").write_text(
            "[diff]\n\tnoprefix = true\n\tmnemonicPrefix = true\n"
        )

    def configure(self, text: str) -> None:
        self.shared.write_text(self.plain + "[extensions]\n\tworktreeConfig = true\n" + text)
        for path in self.others:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def results(self) -> dict[str, object]:
        """What the tool makes of the project: ids, a patch, a lock, outcomes."""
        self.runs += 1
        lab, tree = self.lab, self.place / f"tree{self.runs}"
        shutil.rmtree(lab.root)
        shutil.copytree(self.project, lab.root)
        found: dict[str, object] = {}
        found["head"] = lab.apply(tree, "--branch", tree.name)["result"]["head"]
        found["files"] = {
            str(path.relative_to(tree)): path.read_bytes()
            for path in sorted((tree / "python").rglob("*"))
            if path.is_file()
        }
        (tree / UTILS).write_text(AGAIN)
        (tree / "python/sglang/srt/added.py").write_text("ADDED = 1\n")
        lab.tool("refresh", "demo/answer.patch", str(tree))
        found["patch"] = (lab.root / "patches/demo/answer.patch").read_bytes()
        lab.tool("lock", "--offline", "--quiet")
        found["lock"] = (lab.root / "series.lock").read_bytes()
        drift = lab.json("drift", "--onto", NEXT, "--offline", "--quiet", code=None)
        found["drift"] = drift["result"]
        return found


@pytest.fixture
def machine(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(lab, tmp_path / "machine", monkeypatch)


def test_git_documents_several_hundred_keys() -> None:
    assert len(KEYS) > 500
    assert {
        "diff.noprefix",
        "diff.suppressBlankEmpty",
        "merge.default",
        "i18n.commitEncoding",
    } <= set(KEYS)


@pytest.mark.parametrize("nth", range(len(VALUES)), ids=VALUES)
def test_all_keys_at_once_change_nothing(
    machine: Machine, nth: int, record_property: Callable[[str, object], None]
) -> None:
    expected = machine.results()
    chosen = {key: values(key, machine.hostile) for key in KEYS}
    machine.configure("".join(setting(key, of[nth % len(of)]) for key, of in chosen.items()))
    record_property("tried", len(chosen))
    # The control: these settings stop git itself.
    assert subprocess.run(
        ["git", "status"], cwd=machine.place / "first", capture_output=True
    ).returncode
    assert machine.results() == expected
    assert not machine.ran.exists()


@pytest.mark.parametrize("key", ["diff.noprefix", "diff.suppressBlankEmpty", "i18n.commitEncoding"])
def test_one_key_changes_nothing(machine: Machine, key: str) -> None:
    expected = machine.results()
    machine.configure(setting(key, values(key, machine.hostile)[0]))
    assert git(machine.place / "first", "config", key), "git itself reads it"
    assert machine.results() == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("letter", sorted({key[0] for key in KEYS}))
def test_each_key_alone_changes_nothing(machine: Machine, letter: str) -> None:
    expected = machine.results()
    for key in KEYS:
        for value in values(key, machine.hostile) if key.startswith(letter) else ():
            machine.configure(setting(key, value))
            assert machine.results() == expected, (key, value)
            assert not machine.ran.exists(), (key, value)


def test_files_beside_the_configuration_change_nothing(machine: Machine) -> None:
    """Attributes, grafts, replaced objects, shallow marks and a configuration git cannot read."""
    expected = machine.results()
    repository = machine.lab.home.repository
    head, parent = git(machine.place / "first", "rev-parse", "HEAD", "HEAD^").split()
    git(repository, "update-ref", f"refs/replace/{head}", parent)
    (repository / "info" / "attributes").write_text("* text eol=crlf merge=union filter=hostile\n")
    (repository / "info" / "grafts").write_text(f"{head}\n")
    (repository / "shallow").write_text(f"{head}\n")
    (repository / "config").write_text("[core\n")
    assert machine.results() == expected


ATTRIBUTES: Final = (
    "* text eol=crlf",
    "*.py text working-tree-encoding=UTF-16",
    "*.py ident merge=union",
    "* filter=lfs diff=lfs merge=lfs -text",
    "[attr]mine text eol=crlf\n* mine",
    "* crlf=input export-ignore whitespace=trail",
    "*.py -merge -diff conflict-marker-size=3 encoding=utf-16",
)


@pytest.mark.parametrize("text", ATTRIBUTES)
def test_attributes_of_a_source_change_no_file(lab: Lab, tmp_path: Path, text: str) -> None:
    source = tmp_path / "source"
    crlf = b"first\r\nsecond $Id$\r\n"
    for path, content in TREE.items():
        (source / "python" / path).parent.mkdir(parents=True, exist_ok=True)
        (source / "python" / path).write_text(content)
    (source / CRLF).write_bytes(crlf)
    git(source, "init", "--quiet", "--initial-branch=main")
    git(source, "add", ".")
    (source / ".gitattributes").write_text(text + "\n")
    (source / "python/sglang/.gitattributes").write_text(text + "\n")
    git(source, "add", ".gitattributes", "python/sglang/.gitattributes")
    git(source, "commit", "--quiet", "-m", "base")
    lab.patch("demo/answer.patch", {UTILS: EDITED})
    lab.relock()
    fork = tmp_path / "fork"
    made = lab.json(
        "apply", "-q", "--into", str(fork), "--sglang-ref", "main", "--source", str(source)
    )
    assert made["ok"]
    assert (fork / UTILS).read_bytes() == EDITED.encode()
    assert (fork / CRLF).read_bytes() == crlf
    assert git(fork, "status", "--porcelain") == "", "a person's git sees no change either"
    assert lab.json("verify", str(fork), code=None)["result"]["outcome"] != "refuted"
    assert lab.json("export", str(fork))["result"]["written"] == []


def test_an_object_with_the_content_of_another_is_refused(lab: Lab) -> None:
    repository = Git(lab.home.repository)
    names = [
        repository.out("hash-object", "-w", "--stdin", stdin=text) for text in (b"one\n", b"two\n")
    ]
    one, two = (lab.home.repository / "objects" / name[:2] / name[2:] for name in names)
    one.chmod(0o644)
    one.write_bytes(two.read_bytes())
    with pytest.raises(IntegrityError, match="content of another"):
        repository.blobs(names)


def test_the_common_folder_is_made_once_and_again_when_it_is_gone(lab: Lab) -> None:
    folder = isolated_folder(lab.home.repository)
    assert folder is not None and folder == lab.home.repository / "tool"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "refs").symlink_to("../refs")
    assert Git(lab.home.repository).out("rev-parse", "--git-common-dir") == str(folder)
    assert [path.name for path in lab.home.repository.glob(".tool.*")] == []
