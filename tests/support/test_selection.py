"""``--sglang-ref`` selects the right releases."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support import selection

CARRIED = ("0.5.9", "0.5.10", "0.5.10.post1", "0.5.23")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A series on four releases, pinned to the second, in a repository of one commit."""
    monkeypatch.delenv(selection.BASE, raising=False)
    (tmp_path / "patches" / "a").mkdir(parents=True)
    (tmp_path / "patches" / "a" / "a.patch").write_text("Description: a\nReleases: >=0.5.9\n---\n")
    (tmp_path / "series.txt").write_text(
        "pin 0.5.10\nrevision 1\nchange a >=0.5.9\n    a/a.patch >=0.5.9\n"
    )
    lock(tmp_path, dict.fromkeys(CARRIED, {"a/a.patch": "1"}))
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit(tmp_path)
    return tmp_path


def lock(root: Path, releases: dict[str, dict[str, str]]) -> None:
    entry = {"wheels": {}, "base": {"commit": "0" * 40, "tree": "0" * 40}}
    patch = {"tree": "0" * 40, "commit": "0" * 40, "files": {}}
    body = {
        release: entry
        | {"patches": [{"name": n, "sha256": s * 64} | patch for n, s in names.items()]}
        for release, names in releases.items()
    }
    (root / "series.lock").write_text(json.dumps({"format": 1, "releases": body}))


def git(root: Path, *args: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *args], check=True)


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "state")


def chosen(root: Path, *refs: str) -> list[str]:
    return [str(release) for release in selection.releases(root, refs)]


def test_names_of_releases(root: Path) -> None:
    assert chosen(root, "pin") == ["0.5.10"]
    assert chosen(root, "all") == list(CARRIED)
    assert chosen(root, "v0.5.23", "0.5.9", "pin") == ["0.5.9", "0.5.10", "0.5.23"]


@pytest.mark.parametrize("ref", ["v0.5.11", "main", "v0.5"])
def test_a_release_that_is_not_carried_is_refused(root: Path, ref: str) -> None:
    with pytest.raises(pytest.UsageError, match=f"{ref}: not a supported.*v0.5.10.post1"):
        chosen(root, ref)


def test_ci_without_a_base_takes_first_pin_and_newest(root: Path) -> None:
    assert chosen(root, "ci") == ["0.5.9", "0.5.10", "0.5.23"]


def test_ci_adds_what_the_change_touches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against where the branch left its base, committed or not, whatever the base did since."""
    monkeypatch.setenv(selection.BASE, "main")
    assert chosen(root, "ci") == ["0.5.9", "0.5.10", "0.5.23"]
    git(root, "checkout", "--quiet", "-b", "topic")
    edited = dict.fromkeys(CARRIED, {"a/a.patch": "1"}) | {"0.5.10.post1": {"a/a.patch": "2"}}
    lock(root, edited)
    assert chosen(root, "ci") == list(CARRIED)
    commit(root)
    assert chosen(root, "ci") == list(CARRIED)
    git(root, "checkout", "--quiet", "main")
    lock(root, dict.fromkeys(CARRIED, {"a/a.patch": "2"}))
    commit(root)
    git(root, "checkout", "--quiet", "topic")
    assert chosen(root, "ci") == list(CARRIED)


@pytest.mark.parametrize("after", [{"a/a.patch": "1", "a/b.patch": "1"}, {"a/b.patch": "1"}])
def test_another_set_of_patches_touches_a_release(
    root: Path, monkeypatch: pytest.MonkeyPatch, after: dict[str, str]
) -> None:
    monkeypatch.setenv(selection.BASE, "HEAD")
    lock(root, dict.fromkeys(CARRIED, {"a/a.patch": "1"}) | {"0.5.10.post1": after})
    assert chosen(root, "ci") == list(CARRIED)


def test_a_new_release_is_touched_and_a_dropped_one_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(selection.BASE, "HEAD")
    kept = [*CARRIED[:2], "0.5.22", CARRIED[3]]
    lock(root, dict.fromkeys(kept, {"a/a.patch": "1"}))
    assert chosen(root, "ci") == kept


def test_a_base_that_does_not_resolve_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(selection.BASE, "origin/gone")
    with pytest.raises(pytest.UsageError, match="ADA_BASE_REF=origin/gone.*unset ADA_BASE_REF"):
        chosen(root, "ci")


def test_many_touched_releases_are_sampled() -> None:
    """If every release is touched, the gate must not take as long as testing all of them."""
    found = [Version(f"0.5.{n}") for n in range(19)]
    taken = selection.spread(found, selection.MOST)
    assert len(taken) == selection.MOST == len(set(taken))
    assert taken[0] == found[0] and taken[-1] == found[-1]
    assert selection.spread(found[:5], selection.MOST) == found[:5]
