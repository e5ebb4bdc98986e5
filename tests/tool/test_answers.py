"""Whole answers of `tool drift`: the same words without the work, and never to another question."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import NEXT, TREE, UTILS, Lab, git, loaded_by

from tool import drift as command
from tool import git as gits
from tool.verdict_cache import VerdictCache

TEXT = TREE["sglang/srt/utils.py"]
OURS = TEXT.replace("return 3\n", "return 33\n")
UPSTREAM: dict[str, str | None] = {
    "moved": "START = 1\n" + TEXT,
    "conflict": TEXT.replace("return 3\n", "return 34\n"),
    "target gone": None,
}
LAST = "0.5.25"

Works = Callable[[], int]


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Works:
    """How many times an answer was worked out since the last call."""
    seen: list[object] = []
    within = command.within

    def counting(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return within(*args, **kwargs)

    def count() -> int:
        found = len(seen)
        seen.clear()
        return found

    monkeypatch.setattr(command, "within", counting)
    return count


def carried_to(lab: Lab, upstream: str | None, release: str = NEXT) -> None:
    lab.patch("answer.patch", {UTILS: OURS})
    lab.relock()
    files = {path: text for path, text in TREE.items() if path != "sglang/srt/utils.py"}
    lab.release(release, files | ({} if upstream is None else {"sglang/srt/utils.py": upstream}))


def ask(lab: Lab, *args: str, onto: str = NEXT) -> tuple[dict[str, Any], str, int]:
    """The envelope, the words for a person and the exit code of `tool drift`."""
    options = ("drift", "--onto", f"v{onto}", "--offline", *args)
    said = lab.tool(*options, code=None)
    return lab.json(*options, code=said.exit_code), said.stdout, said.exit_code


@pytest.mark.parametrize("kind", UPSTREAM)
def test_the_same_question_has_the_same_answer(lab: Lab, works: Works, kind: str) -> None:
    carried_to(lab, UPSTREAM[kind])
    first = ask(lab)
    assert first[0]["result"]["patches"][0]["verdict"] == kind
    assert first[2] == (0 if kind == "moved" else 1)
    assert works() == 1  # ask asks twice
    assert ask(lab) == first and works() == 0


def test_the_answer_is_the_one_without_what_was_kept(
    lab: Lab, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_to(lab, UPSTREAM["conflict"])
    kept = ask(lab)
    monkeypatch.setattr("tool.store.Store.get", lambda *_: None)
    works()
    assert ask(lab) == kept and works() == 2


def test_a_known_answer_loads_nothing_heavy(lab: Lab) -> None:
    """What makes it slow is what is imported; bench/tool/check.py times it."""
    carried_to(lab, UPSTREAM["moved"])
    ask(lab)
    options = ["drift", "--onto", f"v{NEXT}", "--offline", "--series", str(lab.root)]
    words, modules = loaded_by(*options, env=lab.environ)
    assert words == lab.tool(*options[:4]).stdout.splitlines()
    heavy = {"tool.drift", "tool.series", "packaging.version", "tempfile", "shutil"}
    assert "tool.answers" in modules and not heavy & modules


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "series.txt": lambda text: text + b"# a word\n",
    "series.lock": lambda text: text + b"\n",
    "patches/other.patch": lambda text: text + b"\n",
}


@pytest.mark.parametrize("name", EDITS)
def test_another_project_is_another_question(lab: Lab, works: Works, name: str) -> None:
    carried_to(lab, UPSTREAM["moved"])
    (lab.root / "patches" / "other.patch").write_bytes(b"nobody lists it yet\n")
    first = ask(lab)
    works()
    path = lab.root / name
    path.write_bytes(EDITS[name](path.read_bytes()))
    assert ask(lab) == first and works() == 1


def test_a_patch_that_is_not_the_proven_one_is_refused_as_ever(lab: Lab, works: Works) -> None:
    carried_to(lab, UPSTREAM["moved"])
    assert ask(lab)[2] == 0
    path = lab.root / "patches" / "answer.patch"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"needed", b"wanted"))
    envelope, _, code = ask(lab)
    assert code == 5 and envelope["error"]["where"] == "patches/answer.patch"
    path.write_bytes(whole)
    works()
    assert ask(lab)[2] == 0 and works() == 0


def test_other_words_are_another_question(lab: Lab, works: Works) -> None:
    carried_to(lab, UPSTREAM["moved"])
    ask(lab)
    works()
    assert ask(lab, "--from", "v0.5.23")[0]["result"]["carries"] and works() == 1
    assert ask(lab, "--from", "v0.5.99")[2] == 2 and works() == 2
    assert ask(lab, "--from", "nonsense")[2] == 2


def test_a_release_that_comes_between_is_heard(lab: Lab, works: Works) -> None:
    """What breaks a patch first is looked for in every release the repository holds."""
    carried_to(lab, UPSTREAM["conflict"], LAST)
    assert ask(lab, onto=LAST)[0]["result"]["patches"][0]["first_broken_by"] == LAST
    files = TREE | {"sglang/srt/utils.py": UPSTREAM["conflict"] or ""}
    lock = (lab.root / "series.lock").read_bytes()
    lab.release(NEXT, files | {"sglang/srt/twins.py": ""})
    (lab.root / "series.lock").write_bytes(lock)  # the repository alone has changed
    works()
    assert ask(lab, onto=LAST)[0]["result"]["patches"][0]["first_broken_by"] == NEXT
    assert works() == 1


def test_another_git_is_another_question(
    lab: Lab, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a single verdict too: the third number counts, a merge may be mended in it."""
    carried_to(lab, UPSTREAM["moved"])
    first = ask(lab)
    works()
    gets: list[object] = []
    get = VerdictCache.get
    monkeypatch.setattr(VerdictCache, "get", lambda *a: gets.append(get(*a)) or gets[-1])
    monkeypatch.setattr(gits, "version", lambda: "git version 99.1.2\n")
    assert ask(lab) == first and works() == 1
    monkeypatch.setattr(gits, "version", lambda: "git version 99.1.3\n")
    assert ask(lab) == first and works() == 1
    assert gets == [None, None]


def test_another_reader_of_versions_is_another_question(
    lab: Lab, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_to(lab, UPSTREAM["moved"])
    ask(lab)
    works()
    monkeypatch.setattr("packaging.__version__", "99")
    ask(lab)
    assert works() == 1


@pytest.mark.parametrize("what", ["result", "pre-image"])
def test_an_object_that_is_gone_is_made_again(lab: Lab, works: Works, what: str) -> None:
    lab.patch("first.patch", {UTILS: OURS})
    lab.patch("second.patch", {UTILS: OURS.replace("return 20\n", "return 2020\n")})
    lab.relock()
    lab.release(NEXT, TREE | {"sglang/srt/utils.py": UPSTREAM["moved"] or ""})
    first = ask(lab)
    repository = lab.home.open_repository()
    release = next(iter(lab.lock.releases.values()))
    oid = {
        "result": first[0]["result"]["tree"],
        "pre-image": release.patches[1].files[0].before,
    }[what]
    (repository.git_dir / "objects" / oid[:2] / oid[2:]).unlink()
    works()
    assert ask(lab) == first and works() == 1
    assert lab.home.open_repository().has_objects([oid]) == {oid: True}


def test_what_another_repository_says_is_asked_every_time(
    lab: Lab, works: Works, tmp_path: Path
) -> None:
    carried_to(lab, UPSTREAM["moved"])
    upstream = tmp_path / "upstream"
    base = lab.lock.releases[max(lab.lock.releases)].base_commit
    git(tmp_path, "clone", "-q", "--bare", str(lab.home.repository), str(upstream))
    git(upstream, "fetch", "-q", str(lab.home.repository), f"refs/ada/base/v{NEXT}")
    git(upstream, "update-ref", f"refs/tags/v{NEXT}", base)
    options = ("drift", "--onto", f"v{NEXT}", "--source", str(upstream))
    for _ in range(2):
        assert lab.json(*options)["result"]["base"] == base
        assert works() == 1


def test_an_edit_while_it_works_is_not_taken_for_the_state_before(
    lab: Lab, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_to(lab, UPSTREAM["moved"])
    path = lab.root / "series.txt"
    before, within = path.read_bytes(), command.within

    def edited(*args: Any, **kwargs: Any) -> Any:
        path.write_bytes(before + b"# while it works\n")
        return within(*args, **kwargs)

    monkeypatch.setattr(command, "within", edited)
    options = ("drift", "--onto", f"v{NEXT}", "--offline")
    lab.tool(*options)
    path.write_bytes(before)
    works()
    lab.tool(*options)
    assert works() == 1


def test_a_known_answer_heals_what_a_killed_command_left(lab: Lab, works: Works) -> None:
    carried_to(lab, UPSTREAM["moved"])
    ask(lab)
    works()
    repository = lab.home.repository
    stale = repository / "refs" / "ada" / "base" / "v1.lock"
    stale.touch()
    left = repository / "scratch.killed"
    left.mkdir()
    ask(lab)
    assert works() == 0 and not stale.exists() and not left.exists()
