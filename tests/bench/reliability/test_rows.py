"""The rows of the reliability table: they name tests that are there, and count what these say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reliability.__main__ import ROOT, ROWS, Counter, format_table

TESTS = """
import pytest

@pytest.mark.parametrize("n", range(3))
def test_many(record_property, n):
    record_property("tried", 10)
    record_property("accepted", n)

def test_one():
    pass

def test_torn(record_property):
    record_property("tried", 5)
    record_property("torn states", 2)
    assert not "torn"

def test_skipped():
    pytest.skip("no reason")
"""


@pytest.mark.parametrize("name", ROWS)
def test_a_row_names_files_that_are_there(name: str) -> None:
    files = [word for word in ROWS[name].tests if word.endswith(".py")]
    assert files and all((ROOT / file).is_file() for file in files)


def test_what_tests_say_is_added_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(TESTS)
    counter = Counter()
    monkeypatch.chdir(tmp_path)
    pytest.main(
        ["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(path)], plugins=[counter]
    )
    assert counter.numbers == {"tried": 36, "accepted": 3, "torn states": 2, "failures": 2}
    assert len(counter.skipped) == 1 and "test_torn" in capsys.readouterr().err
    table = format_table({"kills": {**counter.numbers, "date": "2026-01-02"}})
    assert table.splitlines()[-1].endswith("| 36 | 2 | accepted: 3; torn states: 2 | 2026-01-02 |")
