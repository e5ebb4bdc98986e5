"""What stands beside the package in a site-packages folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tool.errors import EnvironmentFault
from tool.verify.beside import inspect_scripts, inspect_site, inspect_start_folder, is_kept
from tool.wheel import RecordRow

INFO = "sglang-0.5.23+ada.1.dist-info"
POINTS = "[console_scripts]\nsglang = sglang.cli:main\n[other]\nx = a:b\n"
POINTS += "[gui_scripts]\nshow = sglang.gui:App.run\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site-packages"


def write(site: Path, *names: str, text: str = "") -> None:
    for name in names:
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text(text)


@pytest.mark.parametrize(
    ("name", "difference", "unproven"),
    [
        ("SGLang-0.5.9.dist-info/METADATA", "a second distribution of sglang", None),
        ("sglang-0.5.9.egg-info/PKG-INFO", "a second distribution of sglang", None),
        ("sglang.egg-link", "a second distribution of sglang", None),
        ("sglang_router-1.dist-info/METADATA", None, None),
        ("__editable__.sglang-0.5.9.pth", "an editable installation of sglang", None),
        ("__editable___sglang_0_5_9_finder.py", "an editable installation of sglang", None),
        ("__editable__.other-0.5.9.pth", None, "a path file, which Python follows when it starts"),
        ("distutils-precedence.pth", None, "a path file, which Python follows when it starts"),
        ("sitecustomize.py", None, "Python runs it when it starts"),
        ("usercustomize.cpython-311.so", None, "Python runs it when it starts"),
        ("sitecustomize/__init__.py", None, "Python runs it when it starts"),
        ("sitecustomize.txt", None, None),
        ("sglang.py", "stands for the package sglang", None),
        ("sglang.so", "stands for the package sglang", None),
        ("sglang.txt", None, None),
        ("stray.py", None, "a module that belongs to no distribution"),
        ("stray/x.py", None, "a module that belongs to no distribution"),
        ("not-a-module/x.py", None, None),
        ("__pycache__/x.pyc", None, None),
        ("readme.txt", None, None),
    ],
)
def test_each_kind_of_neighbour(
    site: Path, name: str, difference: str | None, unproven: str | None
) -> None:
    write(site, "sglang/__init__.py", f"{INFO}/RECORD", name)
    differences, left = inspect_site(site, INFO)
    assert [d.problem for d in differences] == ([difference] if difference else [])
    assert [u.reason for u in left] == ([unproven] if unproven else [])


def test_what_other_distributions_own(site: Path) -> None:
    write(site, f"{INFO}/RECORD", text="mine.py,,\n")
    write(site, "a-1.dist-info/RECORD", text='one/x.py,,\ntwo.py,,\n"three, or four.py",,\n')
    write(site, "b.egg-info/top_level.txt", text="five\nsix\n")
    write(site, "one/x.py", "two.py", "five/x.py", "six.py", "mine.py", "seven.py")
    _, left = inspect_site(site, INFO)
    # The RECORD of the fork itself says nothing about other files.
    assert [u.path for u in left] == ["mine.py", "seven.py"]


def test_a_folder_that_cannot_be_listed(site: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read: No such file"):
        inspect_site(site / "gone", INFO)


def test_modules_where_python_is_started(site: Path) -> None:
    write(site, "a.py", "b.pth", "c.so", "d.txt", "python/x.py")
    assert [u.path for u in inspect_start_folder(site)] == ["a.py", "b.pth", "c.so"]


SCRIPT = "import sys\nfrom sglang.cli import main\nif __name__ == '__main__':\n"
SCRIPT += "    sys.argv[0] = sys.argv[0].removesuffix('.exe')\n    sys.exit(main())\n"
PATH = "../../../bin/sglang"


def scripts(site: Path, path: str = PATH, digest: str | None = None) -> list[str]:
    differences, left = inspect_scripts(site, {path: RecordRow(digest, None)}, POINTS)
    return [d.problem for d in differences] + [u.reason for u in left]


def test_the_script_of_an_entry_point(tmp_path: Path) -> None:
    site, program = tmp_path / "lib/python3.11/site-packages", tmp_path / "bin" / "sglang"
    site.mkdir(parents=True)
    assert scripts(site) == []  # it is not there
    program.parent.mkdir()
    head = f"#!{program.parent}/python3.11\n"
    program.write_text(head + SCRIPT)
    assert scripts(site) == []
    assert scripts(site, digest=hashlib.sha256(program.read_bytes()).hexdigest()) == []
    assert scripts(site, digest="0" * 64) == ["not the file RECORD has"]
    program.write_text(head + "# -*- coding: utf-8 -*-\n" + SCRIPT)
    assert scripts(site) == []
    odd = ["a script in a form that pip and uv do not write"]
    for text in (
        SCRIPT,
        "#!/usr/bin/python3\n" + SCRIPT,
        f"#!{program.parent}/python3 -c evil\n" + SCRIPT,
        f"#!{program.parent}/perl\n" + SCRIPT,
        head + SCRIPT + "evil()\n",
        head + SCRIPT.replace("sglang.cli", "sglang.evil"),
    ):
        program.write_text(text)
        assert scripts(site) == odd, text
    program.unlink()
    program.mkdir()
    assert scripts(site) == ["not a regular file"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("../../../bin/other", ["no entry point has this script"]),
        ("../../../bin/x", ["no entry point has this script"]),  # of another section
        ("../../../etc/sglang", ["no entry point has this script"]),
        ("../../../bin/show", []),
        ("../../Scripts/sglang.exe", []),
        ("../../../bin/__pycache__/sglang.pyc", []),
        ("sglang/run.sh", []),
    ],
)
def test_rows_beside_the_folder(tmp_path: Path, path: str, found: list[str]) -> None:
    assert scripts(tmp_path / "a" / "b" / "c", path) == found


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("sglang/a.py", True),
        ("sglang/a.pyc", False),
        ("../../../bin/sglang", False),
        ("bin/sglang", False),
        ("Scripts/sglang.exe", False),
        (f"{INFO}/INSTALLER", False),
        ("sglang/INSTALLER", True),
    ],
)
def test_which_files_an_installer_keeps(name: str, kept: bool) -> None:
    assert is_kept(name, INFO) is kept
