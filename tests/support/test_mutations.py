"""A change of one place leaves every other line where it is."""

from __future__ import annotations

from pathlib import Path

from tests.support.mutations import list_places, write, write_changed


def test_a_change_keeps_the_other_lines(tmp_path: Path) -> None:
    before = "def f(a):\n    if (\n        a\n    ):\n        raise ValueError(\n            a\n        )\n"
    before += "    return 1\n"
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "a.py").write_text(before)
    changed = []
    for file, node in list_places(tmp_path, []):
        write_changed(tmp_path, file, node)
        changed.append((tmp_path / file).read_text())
        assert changed[-1].splitlines()[-1] == "    return 1"
        assert len(changed[-1].splitlines()) == len(before.splitlines())
        write(tmp_path / file, before.encode())
    assert ["not a" in text for text in changed] == [True, False]
    assert ["pass" in text for text in changed] == [False, True]
