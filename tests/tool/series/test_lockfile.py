"""series.lock: whatever it holds, it is read or refused with exit code 5."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import TREE, UTILS, Lab
from tool.errors import IntegrityError, UsageError
from tool.series import load_series, lockfile

GOOD: dict[str, Any] = {
    "format": 1,
    "releases": {
        "0.5.23": {
            "wheels": {"sglang-0.5.23-py3-none-any.whl": {"sha256": "a" * 64, "size": 1}},
            "base": {"commit": "b" * 40, "tree": "c" * 40},
            "patches": [
                {
                    "name": "demo/x.patch",
                    "sha256": "d" * 64,
                    "tree": "e" * 40,
                    "commit": "f" * 40,
                    "files": {"python/sglang/x y.py": ["0" * 40, "1" * 40]},
                }
            ],
        }
    },
}


def load(folder: Path, content: bytes | str) -> lockfile.Lock:
    path = folder / "series.lock"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lockfile.load(path)


def test_another_format_and_a_release_given_twice(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        load(tmp_path, json.dumps(GOOD | {"format": 2}))
    assert caught.value.why == "format 2, this tool reads 1"
    entry = json.dumps(GOOD["releases"]["0.5.23"])
    again = json.loads(entry.replace("sglang-0.5.23", "sglang-0.5.23.0"))
    twice = {"0.5.23.0": again, **GOOD["releases"]}
    with pytest.raises(IntegrityError):
        load(tmp_path, json.dumps(GOOD | {"releases": twice}))


@pytest.mark.parametrize("tags", ["py3-none-any", "1-py3-none-any"])
def test_a_wheel_may_have_a_build_tag(tmp_path: Path, tags: str) -> None:
    assert load(tmp_path, json.dumps(GOOD).replace("py3-none-any", tags)).releases


@pytest.mark.parametrize("tags", ["none-any", "1-2-py3-none-any"])
def test_a_wheel_has_three_tags(tmp_path: Path, tags: str) -> None:
    with pytest.raises(IntegrityError):
        load(tmp_path, json.dumps(GOOD).replace("py3-none-any", tags))


def test_the_good_one_comes_back(tmp_path: Path) -> None:
    lock = load(tmp_path, json.dumps(GOOD))
    assert json.loads(lockfile.dump(lock)) == GOOD


def places(raw: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below: list[tuple[Any, ...]] = []
    if isinstance(raw, dict):
        below = [p for key, value in raw.items() for p in places(value, (*path, key))]
    if isinstance(raw, list):
        below = [p for at, value in enumerate(raw) for p in places(value, (*path, at))]
    return [path, *below]


WRONG: list[object] = [None, True, 1.5, -1, 10**30, "", "x", [], {}, [[]], {"a": 1}]
EMPTY_IS_GOOD = {"releases", "wheels", "files", "patches"}


@pytest.mark.parametrize("place", places(GOOD), ids=str)
def test_a_value_of_the_wrong_kind(tmp_path: Path, place: tuple[Any, ...]) -> None:
    for value in WRONG:
        raw: Any = copy.deepcopy(GOOD)
        spot = raw
        for key in place[:-1]:
            spot = spot[key]
        if not place:
            raw = value
        elif not value and type(value) is type(spot[place[-1]]) and place[-1] in EMPTY_IS_GOOD:
            continue
        else:
            spot[place[-1]] = value
        with pytest.raises(IntegrityError) as caught:
            load(tmp_path, json.dumps(raw))
        assert caught.value.why and caught.value.next_step


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sglang-0.5.23-py3-none-any.whl", "../../../thesis.txt"),
        ("sglang-0.5.23-py3-none-any.whl", "/etc/passwd.whl"),
        ("sglang-0.5.23-py3-none-any.whl", "sglang-0.5.23-py3-none-../x.whl"),
        ("sglang-0.5.23-py3-none-any.whl", "sglang-0.5.22-py3-none-any.whl"),
        ("sglang-0.5.23-py3-none-any.whl", "torch-0.5.23-py3-none-any.whl"),
        ("sglang-0.5.23-py3-none-any.whl", "sglang-0.5.23-py3-none-any.whl\\u0000"),
        ("demo/x.patch", "../x.patch"),
        ("demo/x.patch", "demo/../x.patch"),
        ("python/sglang/x y.py", "python/sglang/../../x"),
        ("python/sglang/x y.py", "/etc/passwd"),
        ("python/sglang/x y.py", "python/sglang/\\ud800"),
        ("python/sglang/x y.py", "python/sglang/.git/config"),
        ("a" * 64, "A" * 64),
        ("a" * 64, "a" * 63),
        ('"0.5.23":', '"' + "1" * 5000 + '":'),
        ('"0.5.23":', '"x":'),
        ('"format": 1', '"format": ' + "1" * 5000),
        ('"format": 1', '"format": NaN'),
        ('"format": 1', '"format": 1, "format": 1'),
        ('"size": 1', '"size": true'),
    ],
)
def test_a_name_or_number_that_must_not_be_used(tmp_path: Path, old: str, new: str) -> None:
    text = json.dumps(GOOD)
    assert old in text
    with pytest.raises(IntegrityError):
        load(tmp_path, text.replace(old, new, 1))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"\0" * 10, b"{}", b"null"],
    ids=["empty", "not UTF-8", "deep list", "deep object", "NULs", "object", "null"],
)
def test_a_file_that_is_no_lock(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(IntegrityError):
        load(tmp_path, content)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_neither_lock_nor_series_nor_patch_hangs(tmp_path: Path, kind: str) -> None:
    for name, error in (("series.lock", IntegrityError), ("series.txt", UsageError)):
        path = tmp_path / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        with pytest.raises(error):
            lockfile.load(path) if name == "series.lock" else load_series(tmp_path)


def test_a_wheel_elsewhere_is_never_removed(lab: Lab) -> None:
    """The cache removes a damaged wheel by its name; such a name is refused before that."""
    lab.patch("demo/answer.patch", {UTILS: TREE["sglang/srt/utils.py"] + "A = 1\n"})
    lab.relock()
    victim = lab.root.parent / "thesis.txt"
    victim.write_text("years of work")
    path = lab.root / "series.lock"
    name = next(iter(lab.lock.releases.values())).wheels[0].filename
    path.write_text(path.read_text().replace(name, "../../thesis.txt"))
    folder = str(lab.root.parent / "fork")
    for command in (["apply", "--into", folder], ["build"], ["check"], ["lock"], ["status"]):
        args = [] if command == ["status"] else ["--offline"]
        error = lab.json(*command, *args, code=5)["error"]
        assert "thesis.txt" in error["why"], command
    assert victim.read_text() == "years of work"
