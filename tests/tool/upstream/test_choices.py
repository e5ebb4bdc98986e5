"""Which release, source and wheel are meant, and what pip's answers mean. No index is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.version import Version

from tool.errors import EnvironmentFault, IntegrityError, ToolError, UsageError
from tool.git import Git
from tool.project import Session
from tool.project.workspace import Workspace
from tool.rebase.watch import find_new
from tool.series import Lock, LockedRelease, LockedWheel, Series
from tool.series.lockfile import LockedPatch
from tool.upstream import download, git_source, index, resolve, wheel_import
from tool.upstream.basis import Basis
from tool.upstream.git_source import GitSource
from tool.upstream.resolve import (
    Request,
    carried_release,
    find_release,
    names_release,
    previous_release,
)

V9, V23, V24 = Version("0.5.9"), Version("0.5.23"), Version("0.5.24")
SERIES = cast(Series, SimpleNamespace(pin=V23))


def wheel(tags: str, version: Version = V23) -> LockedWheel:
    return LockedWheel(f"sglang-{version}-{tags}.whl", "a" * 64, 1)


def locked(version: Version, *tags: str, patches: int = 1) -> LockedRelease:
    patch = LockedPatch("demo/a.patch", "s", "t", "c", ())
    wheels = tuple(wheel(one, version) for one in tags)
    return LockedRelease(version, wheels, "b" * 40, "t" * 40, (patch,) * patches)


def lock(*entries: LockedRelease) -> Lock:
    return Lock({entry.version: entry for entry in entries})


# -- releases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "release", "named"),
    [
        (Request("pin"), V23, True),
        (Request("v0.5.9"), V9, True),
        (Request("0.5.9"), V9, True),
        (Request("main"), None, False),
        (Request("main", release=V9), None, False),
        (Request("v1"), None, False),
    ],
)
def test_which_release_is_meant(request_: Request, release: Version | None, named: bool) -> None:
    assert names_release(request_.ref) is named
    if release is not None:
        assert find_release(SERIES, request_) == release
        return
    with pytest.raises(UsageError, match="is not a release"):
        find_release(SERIES, request_)


def test_the_release_to_start_from() -> None:
    known = lock(locked(V9), locked(V23), locked(V24, patches=0))
    assert previous_release(known, V24, None) == V23
    assert previous_release(known, V23, None) == V9
    assert previous_release(known, V23, V9) == V9
    with pytest.raises(UsageError, match="the series has no patch on sglang 0.5.24"):
        previous_release(known, V23, V24)
    with pytest.raises(UsageError, match="does not carry sglang 0.5.8"):
        previous_release(known, V23, Version("0.5.8"))
    with pytest.raises(UsageError, match="supports nothing older than sglang 0.5.9") as caught:
        previous_release(known, V9, None)
    assert caught.value.why == "supported releases: v0.5.9, v0.5.23"
    with pytest.raises(UsageError) as caught:
        previous_release(lock(), V9, None)
    assert caught.value.why == "supported releases: none"


def test_the_release_whose_patches_serve_a_ref() -> None:
    known = lock(locked(V9), locked(V23), locked(V24, patches=0))
    assert carried_release(known, V23) == V23
    assert carried_release(known, V24) == V23
    assert carried_release(known, Version("0.5.22.post1")) == V9
    assert carried_release(known, V24, V9) == V9
    with pytest.raises(UsageError, match="the series has no patch on sglang 0.5.24"):
        carried_release(known, V24, V24)
    with pytest.raises(UsageError, match="no release up to sglang 0.5.8") as caught:
        carried_release(known, Version("0.5.8"))
    assert caught.value.why == "supported releases: v0.5.9, v0.5.23"


class FakeGit:
    """A repository that holds some refs, and a remote that answers as it is told."""

    git_dir = Path("/data/sglang.git")
    env: dict[str, str] = {}

    def __init__(self, refs: dict[str, str] | None = None, **answers: tuple[int, str]) -> None:
        self.refs = refs or {}
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        self.asked: list[tuple[str, ...]] = []

    def resolve(self, ref: str) -> str | None:
        return self.refs.get(ref)

    def tree_of(self, commit: str) -> str:
        return f"tree of {commit}"

    def find(self, name: str) -> str | None:
        return None

    def out(self, *args: str) -> str:
        return "2026-01-02"

    def run(self, *args: str, **_: Any) -> Any:
        self.asked.append(args)
        code, text = self.answers.get(args[0], (0, ""))
        return SimpleNamespace(returncode=code, stdout=text.encode(), stderr=text.encode())


def session(git: FakeGit, known: Lock | None = None, *, offline: bool = False) -> Session:
    found = SimpleNamespace(
        series=SERIES, lock=known or lock(), git=git, offline=offline,
        progress=SimpleNamespace(note=lambda _: None),
        workspace=Workspace(Path("/none"), Path("/none")), folder=Path("/none"),
    )  # fmt: skip
    return cast(Session, found)


REF = "refs/ada/base/v0.5.23"


def test_a_base_that_is_not_the_locked_one() -> None:
    entry = locked(V23)
    assert resolve.find_imported(cast(Git, FakeGit()), entry) is None
    assert resolve.find_imported(cast(Git, FakeGit({REF: "b" * 40})), entry) == "b" * 40
    with pytest.raises(IntegrityError, match="the base of sglang 0.5.23 is not the locked one"):
        resolve.find_imported(cast(Git, FakeGit({REF: "c" * 40})), entry)


def test_an_import_that_gives_another_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    git = FakeGit()
    names = ["cp398-cp398-linux_x86_64", "cp399-cp399-linux_x86_64"]
    entry = locked(V23, *names)
    monkeypatch.setattr(resolve, "fetch_wheel", lambda *given: Path(given[2].filename))
    monkeypatch.setattr(resolve, "import_wheel", lambda _, path, *__, **___: commits[path.name])
    commits = {wheel.filename: "b" * 40 for wheel in entry.wheels}
    found = resolve._from_index(session(git), entry)
    assert (found.commit, found.source, found.label) == ("b" * 40, "pypi", "v0.5.23")
    assert ("update-ref", "-d", REF) not in git.asked

    first, second = commits
    commits[first] = "c" * 40  # the same files, other modes
    assert resolve._from_index(session(git), entry).commit == "b" * 40
    assert git.asked[-1] == ("update-ref", "-d", REF)
    commits[second] = "d" * 40
    with pytest.raises(IntegrityError, match=f"importing {second} gave commit d"):
        resolve._from_index(session(git), entry)
    assert git.asked[-1] == ("update-ref", "-d", REF)


@pytest.mark.parametrize(
    ("asked", "where", "label"),
    [
        (Request("v0.5.23"), "index", "v0.5.23"),
        (Request("pin", "pypi"), "index", "v0.5.23"),
        (Request("pin", "git"), resolve.DEFAULT_URL, "v0.5.23"),
        (Request("main"), resolve.DEFAULT_URL, "main"),
        (Request("main", "https://me:t@host/x"), "https://host/x", "main"),
    ],
)
def test_where_a_base_comes_from(
    monkeypatch: pytest.MonkeyPatch, asked: Request, where: str, label: str
) -> None:
    taken: list[tuple[str, str]] = []

    def find_commit(_: Session, source: GitSource, ref: str, *, refresh: bool) -> str:
        assert refresh
        taken.append((source.url, ref))
        return "c" * 40

    monkeypatch.setattr(resolve, "find_commit", find_commit)
    monkeypatch.setattr(resolve, "find_basis", lambda *_: Basis(V24, "told"))
    monkeypatch.setattr(resolve, "_from_index", lambda *_: taken.append(("index", "v0.5.23")))
    resolve.resolve_base(session(FakeGit(), lock(locked(V23))), asked)
    assert taken == [(where, label)]


def test_the_index_knows_only_releases() -> None:
    with pytest.raises(UsageError, match="the package index knows only releases"):
        resolve.resolve_base(session(FakeGit()), Request("main", "pypi"))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("https://host/x.git", True), ("ssh://git@host/x", True), ("file:///x", True),
        ("git@host:x/y.git", True), ("http://host/x", False), ("https://-x", False),
        ("--upload-pack=evil", False), ("nowhere", False), ("ext::sh", False),
    ],
)  # fmt: skip
def test_what_a_source_may_be(text: str, good: bool) -> None:
    if good:
        assert git_source.check_url(text) == text
        return
    with pytest.raises(UsageError, match="is not a source"):
        git_source.check_url(text)


def test_a_source_that_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "-folder"):
        Path(name).mkdir()
    assert git_source.check_url("folder") == str(tmp_path / "folder")
    with pytest.raises(UsageError):
        git_source.check_url("-folder")


def test_a_git_source() -> None:
    source, oid = GitSource("https://host/x"), "d" * 40
    local, tags = f"{source.refs}/commits/{oid}", f"+refs/tags/v*:{source.refs}/tags/v*"
    git = FakeGit({local: oid})
    git_source._fetch_name(cast(Git, git), source, oid)
    fetch, *settings = git.asked
    assert fetch[0] == "fetch" and "--filter=blob:none" in fetch
    assert fetch[-2:] == (tags, f"+{oid}:{local}")
    assert [one[-2] for one in settings] == [
        f"remote.{source.url}.promisor",
        f"remote.{source.url}.partialclonefilter",
    ]
    git = FakeGit({oid: oid})
    assert git_source.find_commit(session(git, offline=True), source, oid) == oid
    assert git_source.find_commit(session(git), source, oid, refresh=True) == oid
    assert git.asked == [], "an id is the same commit for ever"
    with pytest.raises(EnvironmentFault, match="was never fetched"):
        git_source.find_commit(session(FakeGit(), offline=True), source, oid)
    with pytest.raises(EnvironmentFault, match="has no complete history"):
        git_source.find_commit(session(FakeGit()), source, oid)
    with pytest.raises(EnvironmentFault, match="cannot fetch"):
        git_source.find_commit(session(FakeGit(fetch=(128, "fatal: gone"))), source, oid)


@pytest.mark.parametrize("words", ["error: index-pack died of signal 25", "write: File too large"])
def test_a_fetch_is_bounded(words: str) -> None:
    with pytest.raises(EnvironmentFault, match="sends more than 4 GiB"):
        git = FakeGit(fetch=(128, words))
        git_source.find_commit(session(git), GitSource("https://host/x"), "d" * 40)


def test_a_local_repository_is_fetched_whole(tmp_path: Path) -> None:
    git = FakeGit()
    git_source._fetch_name(cast(Git, git), GitSource(str(tmp_path)), "d" * 40)
    assert len(git.asked) == 1 and "--filter=blob:none" not in git.asked[0]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["heads/x"], "heads/x"),
        (["heads/x", "tags/x"], "tags/x"),
        ([], None),
    ],
)
def test_a_tag_wins_over_a_branch(names: list[str], found: str | None) -> None:
    source = GitSource("https://h/x")
    answer = "".join(f"1\trefs/{name}\n" for name in names)
    refs = {f"{source.refs}/{name}": name for name in names} | {name: name for name in names}
    git = FakeGit(refs, ls_remote=(0, answer))
    if found:
        assert git_source.find_commit(session(git), source, "x", refresh=True) == found
        return
    with pytest.raises(UsageError, match="has no tag, branch or commit x"):
        git_source.find_commit(session(git), source, "x")
    with pytest.raises(EnvironmentFault, match="cannot reach https://h/x"):
        git_source.find_commit(session(FakeGit(ls_remote=(128, "fatal"))), source, "x")


@pytest.mark.parametrize(
    ("cached", "offline", "whole", "taken"),
    [
        (True, True, True, "cache"), (True, True, False, "cache"), (True, False, False, "cache"),
        (True, False, True, "index"), (False, False, False, "index"), (False, False, True, "index"),
        (False, True, False, "fails"),
    ],
)  # fmt: skip
def test_wheels_of_a_release_that_is_not_locked(
    monkeypatch: pytest.MonkeyPatch, cached: bool, offline: bool, whole: bool, taken: str
) -> None:
    mine, theirs = (wheel("py3-none-any"),), (wheel("cp311-cp311-linux_x86_64"),)
    monkeypatch.setattr(resolve, "list_cached", lambda *_: mine if cached else ())
    monkeypatch.setattr(resolve, "discover_wheels", lambda *_, whole: theirs)
    notes: list[str] = []
    asking = session(FakeGit(), offline=offline)
    asking.progress.note = notes.append  # type: ignore[method-assign]
    if taken == "fails":
        with pytest.raises(EnvironmentFault, match="no wheel of sglang 0.5.23 is in the cache"):
            resolve._find_wheels(asking, V23, whole=whole)
        return
    found = resolve._find_wheels(asking, V23, whole=whole)
    assert found == (mine if taken == "cache" else theirs)
    assert bool(notes) is (taken == "cache" and whole)


def test_a_release_by_its_lock_by_an_earlier_look_or_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = resolve.Base(V23, "b", "t", "pypi", "v0.5.23")
    monkeypatch.setattr(resolve, "resolve_base", lambda *_: base)
    monkeypatch.setattr(resolve, "import_wheel", lambda *_, **__: "new")
    wheels = (wheel("py3-none-any", V24),)
    monkeypatch.setattr(resolve, "_find_wheels", lambda *_, whole: wheels)
    known = lock(locked(V23, "py3-none-any"))

    def ask(ref: str, whole: bool, refs: dict[str, str] | None = None) -> Any:
        return resolve.resolve_release(session(FakeGit(refs), known), Request(ref), whole=whole)

    assert ask("v0.5.23", True).wheels == known.get(V23).wheels
    monkeypatch.setattr(resolve, "resolve_ref", lambda *_: base)
    assert ask("main", False).base == base
    seen = {"refs/ada/base/v0.5.24": "seen"}
    assert (ask("v0.5.24", False, seen).base.commit, ask("v0.5.24", False, seen).wheels) == (
        "seen",
        (),
    )
    assert (ask("v0.5.24", True, seen).base.commit, ask("v0.5.24", True).wheels) == ("new", wheels)
    monkeypatch.setattr(
        resolve, "resolve_base", lambda *_: resolve.Base(V23, "b", "t", "git", "main of x")
    )
    assert ask("v0.5.23", True).wheels == ()


# -- wheels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("sglang-0.5.23-py3-none-any.whl", True),
        ("sglang-0.5.23-cp310-cp310-manylinux_2_34_x86_64.whl", True),
        ("sglang-0.5.23-cp310-abi3-linux_aarch64.whl", True),
        ("sglang-0.5.23-cp39-cp39-manylinux_2_34_x86_64.whl", False),
        ("sglang-0.5.23-py2-none-any.whl", False),
        ("sglang-0.5.23-py2.py3-none-any.whl", True),
        ("sglang-0.5.23-pp310-pypy310_pp73-linux_x86_64.whl", False),
        ("sglang-0.5.23-cp310-cp310-win_amd64.whl", False),
        ("sglang-0.5.23-cp310-cp310-macosx_11_0_x86_64.whl", False),
        ("sglang-0.5.23-cp310-cp310-manylinux_2_34_ppc64le.whl", False),
        ("sglang-0.5.23+cu129-py3-none-any.whl", False),
        ("sglang.whl", False),
    ],
)
def test_wheels_that_serve_at_all(name: str, usable: bool) -> None:
    assert index._version_if_usable(name) == (V23 if usable else None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sglang-1-py3-none-any.whl", "py 3 none any"),
        ("sglang-1-cp311-cp311-linux_x86_64.whl", "cp 3.11 cp311 linux_x86_64"),
    ],
)
def test_pip_is_asked_for_one_file(name: str, options: str) -> None:
    implementation, version, abi, platform = options.split()
    assert index._tag_options(name) == [
        "--implementation", implementation, "--python-version", version, "--abi", abi,
        "--platform", platform, "--ignore-requires-python",
    ]  # fmt: skip
    both = index._tag_options("sglang-1-cp311-cp311-manylinux2014_x86_64.linux_x86_64.whl")
    assert both.count("--platform") == 2


@pytest.mark.parametrize(
    ("python", "machine", "tags"),
    [
        ("cp311", "x86_64", "cp311-cp311-manylinux_2_34_x86_64"),
        ("cp312", "x86_64", "cp310-abi3-manylinux_2_34_x86_64"),
        ("cp311", "aarch64", "py3-none-any"),
        ("cp39", "x86_64", "py3-none-any"),
    ],
)
def test_the_wheel_that_pip_would_take(python: str, machine: str, tags: str) -> None:
    offered = (
        "py3-none-any",
        "cp310-abi3-manylinux_2_34_x86_64",
        "cp311-cp311-manylinux_2_34_x86_64",
    )
    assert download.choose_wheel(locked(V23, *offered), python, machine) == wheel(tags)


@pytest.mark.parametrize(
    ("python", "machine"), [("cp310", "x86_64"), ("cp311", "ppc64le"), ("py3", "x86_64")]
)
def test_no_wheel_for_that(python: str, machine: str) -> None:
    entry = locked(V23, "cp311-cp311-linux_x86_64")
    with pytest.raises(UsageError, match=f"has no wheel for {python} on {machine}"):
        download.choose_wheel(entry, python, machine)


def test_the_order_of_the_wheels_that_can_give_a_base(tmp_path: Path) -> None:
    found = SimpleNamespace(workspace=Workspace(tmp_path, tmp_path))
    entry = locked(V23, "cp399-cp399-linux_x86_64", "py3-none-any")
    assert download.order_wheels(cast(Session, found), entry) == entry.wheels[::-1]
    other = locked(V23, "cp398-cp398-linux_x86_64", "cp399-cp399-linux_x86_64")
    assert download.order_wheels(cast(Session, found), other) == other.wheels
    found.workspace.wheels.mkdir(parents=True)
    (found.workspace.wheels / other.wheels[1].filename).write_bytes(b"")
    assert download.order_wheels(cast(Session, found), other) == other.wheels[::-1]


def test_cached_wheels_of_a_release(tmp_path: Path) -> None:
    space = Workspace(tmp_path, tmp_path)
    space.wheels.mkdir(parents=True)
    for name in ("sglang-0.5.23-py3-none-any.whl", "sglang-0.5.9-py3-none-any.whl", "sglang-x.whl"):
        (space.wheels / name).write_bytes(b"x")
    (one,) = download.list_cached(space, V23)
    assert (one.filename, one.size) == ("sglang-0.5.23-py3-none-any.whl", 1)


# -- pip -----------------------------------------------------------------------------------------------

Asking = Callable[..., None]


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Asking:
    """What pip answers from now on; ``files`` are what it downloads."""

    def answer(code: int = 0, errors: str = "", log: str = "", files: tuple[str, ...] = ()) -> None:
        def ask(arguments: list[str], folder: Path, watch: object = None) -> Any:
            for name in files:
                (folder / "files" / name).write_bytes(b"")
            return index._Answer(code, errors, log)

        monkeypatch.setattr(index, "_ask", ask)

    return answer


LINK = "Found link https://h/{} (from y)\n"
NAME = "sglang-0.5.23-py3-none-any.whl"


def test_what_the_index_offers(pip: Asking) -> None:
    names = (
        NAME,
        "sglang-0.5.9-py3-none-any.whl",
        "sglang-0.5.24rc1-py3-none-any.whl",
        "sglang-x.whl",
    )
    pip(log="".join(map(LINK.format, names)))
    assert list(index.list_wheels().values()) == [V9, V23, Version("0.5.24rc1")]
    assert find_new(Lock({}), index.list_wheels().values(), prereleases=False) == [V9, V23]
    pip(1, "ERROR: No matching distribution found for sglang")
    assert index.list_wheels() == {}


@pytest.mark.parametrize(
    ("code", "errors", "log", "message"),
    [
        (1, "/python: No module named pip", "", "pip is not installed"),
        (1, "ERROR: one\nERROR: two\nnote", "", "pip cannot list the releases"),
        (
            0,
            "",
            "Could not fetch URL https://h/: 503 Server Error - skipping\n",
            "cannot be reached",
        ),
        (0, "", "Skipping page https://h/ because it is odd.\n", "cannot be reached"),
    ],
)
def test_an_index_that_cannot_be_asked(
    pip: Asking, code: int, errors: str, log: str, message: str
) -> None:
    pip(code, errors, log)
    with pytest.raises(EnvironmentFault, match=message) as caught:
        index.list_wheels()
    if "list" in message:
        assert caught.value.why == "ERROR: two"


def test_a_page_that_is_not_there_is_an_answer(pip: Asking) -> None:
    pip(0, "", "Could not fetch URL https://h/: 404 Client Error: Not Found - skipping\n")
    assert index.list_wheels() == {}


@pytest.mark.parametrize(
    ("errors", "log", "error", "message"),
    [
        ("No module named pip", "", EnvironmentFault, "pip is not installed"),
        ("ERROR: No matching distribution", "", UsageError, "no usable wheel of sglang 0.5.23"),
        ("ERROR: Could not find a version", "", UsageError, "no usable wheel of sglang 0.5.23"),
        ("words", "", EnvironmentFault, "pip could not download sglang 0.5.23"),
        (
            "No matching distribution",
            "Could not fetch URL https://h/: timed out\n",
            EnvironmentFault,
            "the package index cannot be reached",
        ),
    ],
)
def test_a_download_that_fails(
    pip: Asking, tmp_path: Path, errors: str, log: str, error: type[ToolError], message: str
) -> None:
    pip(1, errors, log)
    with pytest.raises(error, match=message):
        index.download(NAME, tmp_path, new=False)


def test_a_download_of_another_file(pip: Asking, tmp_path: Path) -> None:
    for number, files in enumerate(((), ("other.whl",), (NAME, "other.whl"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        pip(files=files)
        with pytest.raises(IntegrityError, match="the index served (no file|.*other.whl)"):
            index.download(NAME, folder, new=False)


@pytest.mark.parametrize("new", [True, False])
def test_a_release_that_was_withdrawn(pip: Asking, tmp_path: Path, new: bool) -> None:
    words = (
        "WARNING: The candidate selected is a yanked version\nReason for being yanked: broken \n"
    )
    pip(errors=words, files=(NAME,))
    if not new:
        assert index.download(NAME, tmp_path, new=False) == tmp_path / "files" / NAME
        return
    with pytest.raises(index.Yanked, match="was yanked") as caught:
        index.download(NAME, tmp_path, new=True)
    assert caught.value.why == "broken"


def test_the_last_error_of_pip() -> None:
    assert index._last_error("ERROR: a\nERROR: b\nnote\n") == "ERROR: b"
    assert index._last_error("one\ntwo\n") == "two" and index._last_error("\n") is None


def test_bytes_that_are_there(tmp_path: Path) -> None:
    assert index._size(tmp_path / "gone") == 0
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "large").write_bytes(b"x" * 10)
    (tmp_path / "small").write_bytes(b"x")
    assert index._size(tmp_path) == 10


# -- import --------------------------------------------------------------------------------------------


def test_a_git_that_refuses_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.lab import write_wheel

    path = write_wheel(tmp_path, "0.5.23", {"sglang/__init__.py": ""})

    class Failing(FakeGit):
        def start(self, *_: str) -> subprocess.Popen[bytes]:
            command = ["sh", "-c", "cat >/dev/null; echo fatal: odd >&2; exit 1"]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    with pytest.raises(ToolError, match="git fast-import failed with exit code 1"):
        wheel_import.import_wheel(cast(Git, Failing()), path, V23)


@pytest.mark.parametrize(
    ("member", "taken"),
    [
        ("sglang/a.py", True), ("sglang/a.txt", True), ("sglang/a.so", False), ("sglang/", False),
        ("sglang/b/", False), ("other/a.py", False), ("sglang-0.5.23.dist-info/RECORD", False),
    ],
)  # fmt: skip
def test_members_of_the_base(member: str, taken: bool) -> None:
    assert wheel_import.is_imported(member) is taken
