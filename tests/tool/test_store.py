"""What is kept between commands: found under the same words, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import TREE, UTILS, Lab

from tool import pycheck, store
from tool.store import Store


def entries(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_value_is_found_under_its_words_only(tmp_path: Path) -> None:
    Store(tmp_path).put({"a": [1, None]}, "kind", "word")
    again = Store(tmp_path)
    assert again.get("kind", "word") == {"a": [1, None]}
    assert again.get("kind", "Word") is None and again.get("kindword") is None


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:-1], lambda b: b.replace(b"1", b"2"), lambda b: b + b" "],
    ids=["emptied", "cut", "edited", "longer"],
)
def test_a_damaged_entry_counts_as_missing(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    Store(tmp_path).put([1], "word")
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert Store(tmp_path).get("word") is None
    Store(tmp_path).put([1], "word")
    assert entry.read_bytes() == whole


def test_what_another_program_kept_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tool" / "store.py"
    source.parent.mkdir()
    source.write_text("version = 1\n")
    monkeypatch.setattr(store, "__file__", str(source))
    root = tmp_path / "known"
    Store(root).put(1, "word")
    assert Store(root).get("word") == 1
    (old,) = entries(root)
    source.write_text("version = 2\n")
    assert Store(root).get("word") is None
    assert not old.exists()


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "known").write_text("in the way")
    blocked = Store(tmp_path / "known")
    blocked.put(1, "word")
    assert blocked.get("word") is None


@pytest.mark.parametrize("path", [pycheck.__file__, __file__])
def test_an_outline_comes_back(path: str) -> None:
    outline = pycheck.outline(Path(path).read_bytes())
    assert outline.spans and outline.counts
    assert pycheck.from_plain(json.loads(json.dumps(pycheck.to_plain(outline)))) == outline


def test_a_file_is_parsed_once_for_all(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.patch("answer.patch", {UTILS: TREE["sglang/srt/utils.py"].replace("return 3", "return 5")})
    lab.relock()
    monkeypatch.setattr("tool.proofs.Outlines._known", {})  # as in another process
    first = lab.json("check", "--offline")["result"]
    monkeypatch.setattr("tool.proofs.Outlines._known", {})
    monkeypatch.setattr(pycheck, "outline", lambda source: pytest.fail("parsed again"))
    again = lab.json("check", "--offline")["result"]
    for result in (first, again):
        for release in result["releases"]:
            del release["seconds"]
    assert again == first and first["findings"] == 0
