"""An index over years: it fails, it gets new wheels, and somebody's own wheels lie beside. pip is real."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.index import Index, serve
from tests.support.lab import EDITED, NEXT, RELEASE, TREE, Lab, write_wheel
from tool.errors import UsageError
from tool.series import LockedRelease, LockedWheel
from tool.upstream import choose_wheel, list_wheels

X86, ARM = "manylinux_2_34_x86_64", "manylinux_2_34_aarch64"


def offer(index: Index, version: str, *tags: str, files: dict[str, str] | None = None) -> None:
    """Put wheels of ``version`` with these tags on the index."""
    made = write_wheel(index.folder / "made", version, files or TREE)
    for tag in tags:
        shutil.copy(made, index.folder / f"sglang-{version}-{tag}.whl")


def apply(lab: Lab, tree: Path, code: int = 0) -> dict[str, object]:
    return lab.json("apply", "--quiet", "--into", str(tree), code=code)


# -- the fork's own wheels ----------------------------------------------------------------------------


def test_a_local_version_is_no_release_of_upstream(lab: Lab, index: Index, tmp_path: Path) -> None:
    offer(index, f"{RELEASE}+ada.1", "py3-none-any", files=TREE | {"sglang/own.py": ""})
    offer(index, f"{NEXT}+ada.1", "py3-none-any", f"cp311-cp311-{X86}")
    assert set(list_wheels().values()) == {Version(RELEASE)}
    assert apply(lab, tmp_path / "fork")["ok"]
    assert lab.json("watch", "--quiet")["result"]["newer"] is None
    error = lab.json("lock", "--sglang-ref", f"v{NEXT}", "--quiet", code=2)["error"]
    assert "no usable wheel" in error["message"]


def test_a_local_version_in_a_folder_of_links_is_not_taken(
    lab: Lab, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "links", f"{RELEASE}+ada.1", TREE | {"sglang/own.py": ""})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    assert apply(lab, tmp_path / "fork")["ok"]
    assert lab.json("watch", "--quiet")["result"]["newer"] is None


# -- an index that fails --------------------------------------------------------------------------------


LOCK = ("lock", "--sglang-ref", f"v{NEXT}", "--quiet")
ASKING = (
    LOCK,
    ("lock", "--wheels"),
    ("drift", "--onto", NEXT, "--quiet"),
    ("watch", "--quiet"),
    ("apply", "--quiet", "--into", "fork"),
)


@pytest.mark.parametrize(
    ("status", "command"),
    [(status, LOCK) for status in (401, 403, 429, 500, 502)] + [(503, one) for one in ASKING],
)
def test_an_index_that_fails_is_not_a_release_that_is_unknown(
    lab: Lab, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    status: int, command: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = (lab.root / "series.lock").read_bytes()
    offer(index, NEXT, "py3-none-any")
    index.status = status
    error = lab.json(*command, code=6)["error"]
    assert error["message"] == "the package index cannot be reached"
    assert str(status) in error["why"]
    assert (lab.root / "series.lock").read_bytes() == before


def test_an_address_with_404_in_it_can_fail_too(
    lab: Lab, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("/simple/", "/mirror-404/simple/"))
    index.status = 502
    error = lab.json("lock", "--sglang-ref", f"v{NEXT}", "--quiet", code=6)["error"]
    assert error["message"] == "the package index cannot be reached"


def test_a_page_that_is_no_index_is_a_failure(lab: Lab, index: Index) -> None:
    """The page of a portal that wants a login first."""
    index.content_type = "text/plain"
    error = lab.json("lock", "--sglang-ref", f"v{NEXT}", "--quiet", code=6)["error"]
    assert "text/plain" in error["why"]


def test_nobody_answers(lab: Lab, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    assert lab.json("watch", "--quiet", code=6)["error"]["message"].endswith("cannot be reached")


def test_one_of_two_indexes_fails(
    lab: Lab, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other one offers may not be all there is, so nothing is concluded."""
    offer(index, NEXT, "py3-none-any")
    with serve(tmp_path / "second") as second:
        second.status = 503
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", second.url)
        lab.json("lock", "--sglang-ref", f"v{NEXT}", "--quiet", code=6)
        second.status = 404  # it answers: it has no such project
        assert lab.json("lock", "--sglang-ref", f"v{NEXT}", "--quiet")["result"]["changed"] == [
            NEXT
        ]


def test_an_unknown_release_takes_one_look(
    lab: Lab, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_QUIET", "3")  # pip then says nothing of what is asked here
    error = lab.json("lock", "--sglang-ref", "v0.5.99", "--quiet", code=2)["error"]
    assert "0.5.99" in error["message"] and "the index answered" in error["why"]
    assert index.pages == 1


def test_variables_for_installations_do_not_matter(
    lab: Lab, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constraints.txt").write_text("sglang==0.1\n")
    variables = {"CONSTRAINT": str(tmp_path / "constraints.txt"), "REQUIRE_HASHES": "1"}
    variables |= {"PLATFORM": "win_amd64", "PYTHON_VERSION": "3.9", "ABI": "cp39", "QUIET": "3"}
    for name, value in variables.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    assert apply(lab, tmp_path / "fork")["ok"]


# -- wheels ---------------------------------------------------------------------------------------------


def test_a_release_is_locked_with_all_its_linux_wheels(lab: Lab, index: Index) -> None:
    linux = [
        f"cp310-abi3-{X86}",
        f"cp312-cp312-{ARM}",
        f"cp313-cp313-{X86}",
        "cp311.cp312-none-any",
    ]
    others = ["cp311-cp311-macosx_11_0_x86_64", "cp311-cp311-win_amd64", "cp39-cp39-linux_x86_64"]
    others += ["cp311-cp311-musllinux_1_2_x86_64", "pp310-pypy310_pp73-manylinux2014_x86_64"]
    offer(index, NEXT, *linux, *others)
    lab.tool("lock", "--sglang-ref", f"v{NEXT}", "--quiet")
    locked = lab.lock.get(Version(NEXT))
    assert [w.filename for w in locked.wheels] == sorted(
        f"sglang-{NEXT}-{tag}.whl" for tag in linux
    )
    assert {w.filename for w in locked.wheels} == {
        path.name for path in lab.home.wheels.glob("*.whl")
    }


def test_a_look_at_a_release_downloads_one_wheel(lab: Lab, index: Index, tmp_path: Path) -> None:
    apply(lab, tmp_path / "fork")
    index.requests.clear()
    offer(index, NEXT, f"cp310-abi3-{X86}", f"cp312-cp312-{ARM}", f"cp313-cp313-{X86}")
    lab.json("drift", "--onto", NEXT, "--quiet")
    assert len(index.downloads) == 1


def test_wheels_uploaded_later_join_the_lock(lab: Lab, index: Index) -> None:
    offer(index, NEXT, f"cp311-cp311-{X86}")
    lab.tool("lock", "--sglang-ref", f"v{NEXT}", "--quiet")
    before = lab.lock.get(Version(NEXT))
    offer(index, NEXT, f"cp310-abi3-{ARM}", f"cp313-cp313-{X86}")
    result = lab.json("lock", "--wheels", f"v{NEXT}")["result"]
    names = [f"sglang-{NEXT}-{tag}.whl" for tag in (f"cp310-abi3-{ARM}", f"cp313-cp313-{X86}")]
    assert result == {"changed": [NEXT], "added": {NEXT: names}}
    after = lab.lock.get(Version(NEXT))
    assert [w.filename for w in after.wheels] == sorted([*names, before.wheels[0].filename])
    assert before.wheels[0] in after.wheels and after.patches == before.patches
    assert lab.json("lock", "--wheels")["result"] == {"changed": [], "added": {}}
    lab.tool("check", "--refs", f"v{NEXT}", "--offline")


def test_a_later_wheel_with_other_files_is_refused(lab: Lab, index: Index) -> None:
    before = (lab.root / "series.lock").read_bytes()
    offer(index, RELEASE, f"cp313-cp313-{X86}", files=TREE | {"sglang/srt/utils.py": EDITED})
    error = lab.json("lock", "--wheels", code=5)["error"]
    assert "other Python files" in error["message"]
    assert (lab.root / "series.lock").read_bytes() == before


def test_offline_says_that_the_lock_may_lack_wheels(lab: Lab, index: Index) -> None:
    shutil.copy(write_wheel(index.folder / "made", NEXT, TREE), lab.home.wheels)
    done = lab.tool("lock", "--sglang-ref", f"v{NEXT}", "--offline")
    assert f"tool lock --wheels v{NEXT}" in done.stderr
    lab.json("lock", "--wheels", "--offline", code=2)


@pytest.mark.parametrize(
    ("python", "machine", "chosen"),
    [
        ("cp310", "x86_64", f"cp310-abi3-{X86}"),
        ("cp311", "x86_64", f"cp310-abi3-{X86}"),
        ("cp312", "x86_64", f"cp312-cp312-{X86}"),
        ("cp313", "x86_64", f"cp310-abi3-{X86}"),
        ("cp312", "aarch64", f"cp311.cp312-cp311.cp312-{ARM}.manylinux2014_aarch64"),
        ("cp313t", "x86_64", None),
        ("cp313", "aarch64", None),
        ("cp39", "x86_64", None),
        ("3.12", "x86_64", None),
    ],
)
def test_a_wheel_is_chosen_as_pip_would(python: str, machine: str, chosen: str | None) -> None:
    tags = (
        f"cp310-abi3-{X86}",
        f"cp312-cp312-{X86}",
        f"cp311.cp312-cp311.cp312-{ARM}.manylinux2014_aarch64",
        "cp313-cp313-macosx_11_0_x86_64",
    )
    wheels = tuple(LockedWheel(f"sglang-{RELEASE}-{tag}.whl", "0" * 64, 1) for tag in tags)
    locked = LockedRelease(Version(RELEASE), wheels, "1" * 40, "2" * 40, ())
    if chosen is None:
        with pytest.raises(UsageError, match="has no wheel for"):
            choose_wheel(locked, python, machine)
    else:
        assert choose_wheel(locked, python, machine).filename == f"sglang-{RELEASE}-{chosen}.whl"


# -- pip itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, ".", "", "HERE"])
def test_pip_is_not_taken_from_the_current_folder(
    lab: Lab, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("pip.py", "packaging.py", "logging.py", "sitecustomize.py"):
        (here / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(1)\n")
    monkeypatch.chdir(here)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path.replace("HERE", str(here)))
    assert lab.json("watch", "--quiet")["result"]["newer"] is None
    assert apply(lab, tmp_path / "fork")["ok"]
    assert not (tmp_path / "ran").exists()
