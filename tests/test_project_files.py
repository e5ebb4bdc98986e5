"""What the documents and the GitHub files say is so: paths exist, commands and options too, YAML parses."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tool.cli.app import SUMMARIES, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted(ROOT.glob("docs/*.md"))
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"

FOREIGN = ("patches/series", "patches/ready-message/ready-message.patch")
"""Paths of other projects: quilt's order file, and a patch of the example in docs/authoring.md."""

_FOLDERS = r"tool|ada_dsa|bench|tests|docs|patches|\.ci|\.github"
_PATH = re.compile(rf"(?<![\w./-])(?:{_FOLDERS})/[\w./-]*(?![\w./*-])")
# In a code span, in a console line after its prompt or &&, or in a workflow's script.
_COMMAND = re.compile(r"(?:`|^ *\$ |&& |^ *(?:run: )?)tool ((?:\\\n|[^`\n|;&#>])+)", re.MULTILINE)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def paths(text: str) -> set[str]:
    """Paths of the repository in ``text``; of ``tests/tool/<package>`` the part before the placeholder."""
    return {found.rstrip("./") for found in _PATH.findall(text)}


def links(text: str) -> set[str]:
    """Targets of Markdown links to files of the repository, without the part after ``#``."""
    return set(re.findall(r"\]\((?!https?:)([^)#\s]+)", text))


def wrong(command: str) -> Iterator[str]:
    """What is no subcommand or no option of it in ``command``, which is without the word ``tool``."""
    found: click.Command = main
    for word in (word.rstrip("\\:.,") for word in command.split()):
        if word.startswith("-") and len(word) > 1:
            known = {option for one in found.params for option in one.opts}
            known |= {"-h", "--help"}
            if word.split("=")[0] not in known:
                yield f"tool {found.name}: no option {word}"
        elif word and isinstance(found, click.Group):
            sub = found.get_command(click.Context(found), word)
            if sub is None:
                yield f"tool has no command {word}"
                return
            found = sub


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page: Path) -> None:
    named = paths(page.read_text(encoding="utf-8"))
    assert sorted(p for p in named if p not in FOREIGN and not (ROOT / p).exists()) == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    found = links(page.read_text(encoding="utf-8"))
    assert sorted(link for link in found if not (page.parent / link).exists()) == []


def test_the_index_links_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    there = {(index.parent / link).resolve() for link in links(index.read_text(encoding="utf-8"))}
    assert [name(page) for page in PAGES if page != index and page not in there] == []


def test_the_page_of_boundaries_is_made_from_the_tests_rules() -> None:
    made = subprocess.run(
        [sys.executable, "tests/patched/boundaries.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert (ROOT / "docs" / "boundaries.md").read_text(encoding="utf-8") == made.stdout


@pytest.mark.parametrize("page", [*PAGES, *FORMS, *WORKFLOWS], ids=name)
def test_commands_and_options_exist(page: Path) -> None:
    commands = _COMMAND.findall(page.read_text(encoding="utf-8"))
    assert [message for command in commands for message in wrong(command)] == []


def test_the_container_file_copies_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        source for line in re.findall(r"^COPY (.+)$", text, re.M) for source in line.split()[:-1]
    }
    built = {source for source in copied if source.startswith("dist/")}
    assert len(built) == 1 and sorted(s for s in copied - built if not (ROOT / s).exists()) == []
    # What the editable installation reads, and what the commands read beside it.
    assert {"pyproject.toml", "README.md", "LICENSE", "tool", "ada_dsa"} <= copied
    pin = re.search(r"^pin (\S+)$", (ROOT / "series.txt").read_text(encoding="utf-8"), re.M)
    assert pin and f"ARG RELEASE={pin[1]}\n" in text


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_help_of_each_command_has_examples_that_exist(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None and command.epilog is not None
    found = _COMMAND.findall(command.epilog)
    assert found and all(line.split()[0] == name for line in found)
    assert [message for line in found for message in wrong(line)] == []


def test_the_checks_above_find_what_is_wrong() -> None:
    assert paths("see `tool/no_such.py`, tests/tool/<package>/ and sglang/tool/x.py.") == {
        "tool/no_such.py",
        "tests/tool",
    }
    assert links("[a](docs/x.md#part), [b](https://example.org), [c](#part)") == {"docs/x.md"}
    text = "`tool lint --json`\n$ tool lint -x\n$ cd a && tool frob \\\n    --b\nthe tool is\n"
    text += "  run: tool watch --new"
    found = [message for command in _COMMAND.findall(text) for message in wrong(command)]
    assert found == [
        "tool lint: no option -x",
        "tool has no command frob",
        "tool watch: no option --new",
    ]


def test_pre_commit_runs_what_ci_runs() -> None:
    hooks = [hook for repo in read(HOOKS)["repos"] for hook in repo["hooks"]]
    assert hooks and {hook["language"] for hook in hooks} == {"system"}
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [hook["entry"] for hook in hooks if hook["entry"] not in lines] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_workflows_ask_for_no_more_than_they_need(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"].pop("contents") == "read"
    assert workflow["permissions"] == ({"issues": "write"} if path.stem == "watch" else {})
    asked = {
        name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
    }
    wanted = {"release": {"contents": "write", "id-token": "write", "attestations": "write"}}
    assert asked == (wanted if path.stem == "release" else {})
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = {step["uses"].split("/")[0] for step in steps if "uses" in step}
    assert used == {"actions"}, "an action of a third party needs a full commit id and a review"
    wanted_run = {"ci": ".ci/run", "watch": "tool watch --json", "release": "tool publish --out"}
    assert any(wanted_run[path.stem] in step.get("run", "") for step in steps)


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_the_scripts_of_workflows_parse(path: Path) -> None:
    for job in read(path)["jobs"].values():
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            script = re.sub(r"\$\{\{.*?\}\}", "expression", step.get("run", ""))
            done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_the_release_workflow_attests_what_it_attaches() -> None:
    """On a tag alone, after the wheels were verified, and before anything is attached."""
    workflow = read(ROOT / ".github/workflows/release.yml")
    assert set(workflow[True]) == {"push"} and set(workflow[True]["push"]) == {
        "tags"
    }  # YAML's "on"
    steps = workflow["jobs"]["release"]["steps"]
    (attest,) = [
        at for at, step in enumerate(steps)
        if step.get("uses", "").startswith("actions/attest-build-provenance@v")
    ]  # fmt: skip
    runs = {
        word: at for at, step in enumerate(steps) for word in ("tool publish", "tool verify", "gh release")
        if word in step.get("run", "")
    }  # fmt: skip
    assert runs["tool publish"] < runs["tool verify"] < attest < runs["gh release"]
    subjects = steps[attest]["with"]["subject-path"].split()
    attached = re.findall(r"^\s+(attach/\S+)", steps[runs["gh release"]]["run"], re.MULTILINE)
    assert attached == subjects == ["attach/*"]


@pytest.mark.parametrize("path", [p for p in FORMS if p.stem != "config"], ids=name)
def test_a_form_has_what_github_asks_of_one(path: Path) -> None:
    form = read(path)
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert fields and len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in fields)


def test_a_checkout_has_the_repositorys_bytes_despite_autocrlf(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def git(*args: str, stdin: str = "") -> list[str]:
        command = ["git", "-C", str(ROOT), *args]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    git("-c", "core.autocrlf=true", "checkout-index", "--all", f"--prefix={tmp_path}/")
    rows = [row.split("\t") for row in git("-c", "core.quotePath=false", "ls-files", "--stage")]
    names = "".join(f"{tmp_path / path}\n" for _, path in rows)
    blobs = git("hash-object", "--no-filters", "--stdin-paths", stdin=names)
    there = zip(rows, blobs, strict=True)
    assert [path for (entry, path), blob in there if entry.split()[1] != blob] == []
