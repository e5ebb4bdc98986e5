"""Reading hostile or damaged archives, writing plain ones, and RECORD."""

from __future__ import annotations

import csv
import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.forks import COMMA, NATIVE, SCRIPT, make_fork
from tool.errors import IntegrityError, UsageError
from tool.wheel import archive as archives
from tool.wheel import record
from tool.wheel.archive import (
    NotRegularError,
    Wheel,
    WheelName,
    WheelWriter,
    content_digest,
    open_regular,
    unsafe_name,
)
from tool.wheel.record import RecordRow, format_record, parse_record

NAME = "sglang-0.5.23-py3-none-any.whl"


def archive(folder: Path, *members: str | zipfile.ZipInfo) -> Path:
    path = folder / NAME
    with zipfile.ZipFile(path, "w") as out:
        for member in members:
            out.writestr(member, b"content")
    return path


def replace_bytes(path: Path, old: bytes, new: bytes, count: int = -1) -> None:
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, count))


def refusal(path: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        Wheel(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/passwd", "a/../../b", "C:/x", "a\\b", "a//b", "./a", "a\nb", "a/."]
)
def test_member_that_escapes_is_refused(tmp_path: Path, name: str) -> None:
    assert unsafe_name(name)
    text = refusal(archive(tmp_path, "sglang/ok.py", name))
    assert repr(name) in text


@pytest.mark.parametrize("name", [COMMA, "sglang/é.py", "a b/c [1].json", "..a/b..", ".hidden"])
def test_ordinary_member_is_accepted(tmp_path: Path, name: str) -> None:
    with Wheel(archive(tmp_path, name)) as wheel:
        assert wheel.read(name) == b"content"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_member_is_refused(tmp_path: Path) -> None:
    assert "two members of one name" in refusal(archive(tmp_path, "sglang/a.py", "sglang/a.py"))


def test_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    assert "a file and a folder" in refusal(archive(tmp_path, "sglang/a", "sglang/a/b.py"))


def test_symlink_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("sglang/link")
    link.external_attr = 0o120777 << 16
    assert "neither a file nor a folder" in refusal(archive(tmp_path, link))


def test_headers_that_disagree_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, "sglang/seen.py")
    replace_bytes(path, b"sglang/seen.py", b"sglang/evil.py", count=1)
    assert "its two headers disagree" in refusal(path)


def test_bytes_before_the_first_member_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, "sglang/a.py")
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert "bytes stand before" in refusal(path)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, "sglang/a.py", "sglang/b.py")
    data = bytearray(path.read_bytes())
    # The first member claims to be larger than the gap to the second, in both of its headers.
    for at in (18, 22, data.index(b"PK\x01\x02") + 20, data.index(b"PK\x01\x02") + 24):
        struct.pack_into("<I", data, at, 40)
    path.write_bytes(data)
    assert "members overlap" in refusal(path)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_wheel_is_damaged(tmp_path: Path, keep: float) -> None:
    path = make_fork(tmp_path).source
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert "damaged" in refusal(path)


def test_flipped_byte_in_a_member_is_found_on_reading(tmp_path: Path) -> None:
    path = archive(tmp_path, "sglang/a.py")
    replace_bytes(path, b"content", b"c0ntent")
    with Wheel(path) as wheel, pytest.raises(IntegrityError) as caught:
        wheel.read("sglang/a.py")
    assert caught.value.where == "sglang/a.py"


@pytest.mark.parametrize(
    "name", ["sglang.zip", "sglang-0.5.23.whl", "sglang-x-py3-none-any.whl",
             "sglang-0.5.23-1-py3-none-any.whl"],
)  # fmt: skip
def test_file_name_that_is_no_wheel_of_ours(name: str) -> None:
    with pytest.raises(UsageError):
        WheelName.parse(name)


def test_wheel_name_round_trip() -> None:
    text = "sglang-0.5.10.post1+ada.2-cp311-cp311-manylinux_2_34_x86_64.whl"
    name = WheelName.parse(text)
    assert name.filename == text
    assert name.dist_info == "sglang-0.5.10.post1+ada.2.dist-info"


def test_written_wheel_keeps_compressed_bytes_and_modes(tmp_path: Path) -> None:
    out = io.BytesIO()
    with Wheel(make_fork(tmp_path).source) as source:
        writer = WheelWriter(out)
        for name in source.members:
            writer.copy(source, name, name)
        writer.store("sglang/né.py", 0o644, b"new")
        writer.close()
        originals = {n: b"".join(source.packed(n)) for n in source.members}
        modes = {n: m.mode for n, m in source.members.items()}
    assert writer.size == len(out.getvalue())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / NAME).write_bytes(out.getvalue())
    with Wheel(copy / NAME) as written:
        assert {n: b"".join(written.packed(n)) for n in originals} == originals
        assert {n: written.members[n].mode for n in modes} == modes
        assert (modes[SCRIPT], modes[COMMA], modes[NATIVE]) == (0o755, 0o644, 0o755)
        assert written.read("sglang/né.py") == b"new"
        assert written.sha256() == writer.sha256()
    with zipfile.ZipFile(copy / NAME) as again:
        assert again.testzip() is None
        assert {i.date_time for i in again.infolist()} == {(1980, 1, 1, 0, 0, 0)}


SAFE = st.text(
    st.one_of(
        st.sampled_from(",\"=[] 'é"), st.characters(codec="ascii", exclude_categories=["Cc"])
    ),
    min_size=1,
)
ROWS = st.dictionaries(
    SAFE,
    st.builds(
        RecordRow,
        st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
        st.none() | st.integers(0, 2**40),
    ),
)


@given(ROWS)
def test_record_round_trip(rows: dict[str, RecordRow]) -> None:
    data = format_record(rows.items())
    assert parse_record(data, "RECORD") == rows
    # A plain CSV reader, as installers use, sees three columns and the same names.
    assert [r[0] for r in csv.reader(io.StringIO(data.decode(), newline=""))] == list(rows)


def test_record_of_a_name_with_commas_is_quoted() -> None:
    data = format_record([(COMMA, RecordRow("00" * 32, 3))])
    assert data == f'"{COMMA}",sha256={"A" * 43},3\n'.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"a,sha256=" + b"A" * 43 + b",1\na,,\n",
        b"a,b\n",
        b"a,md5=" + b"A" * 43 + b",1\n",
        b"a,sha256=short,1\n",
        b"a,,many\n",
        b'"a,,\n',
        b"\xff,,\n",
        COMMA.encode() + b",,\n",
    ],
)
def test_broken_record_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="is broken"):
        parse_record(data, "RECORD")


def test_content_digest_covers_path_mode_and_content_not_order() -> None:
    one, two = ("a", 0o644, "00" * 32), ("b", 0o755, "11" * 32)
    assert content_digest([one, two]) == content_digest([two, one])
    others = [("a", 0o755, one[2]), ("c", 0o644, one[2]), ("a", 0o644, "22" * 32)]
    assert len({content_digest([x, two]) for x in (one, *others)}) == 4


def test_rows_of_a_record_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_MAX_ROWS", 2)
    assert len(parse_record(b"a,,\nb,,\n", "RECORD")) == 2
    with pytest.raises(IntegrityError, match="row 3 is broken"):
        parse_record(b"a,,\nb,,\nc,,\n", "RECORD")


def test_a_file_that_is_not_there_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Wheel(archive(tmp_path, "sglang/a.py")) as wheel:
        with pytest.raises(IntegrityError, match="the wheel has no such file"):
            wheel.read("sglang/b.py")
        monkeypatch.setattr(archives, "READ_LIMIT", len(b"content"))
        assert wheel.read("sglang/a.py") == b"content"
        monkeypatch.setattr(archives, "READ_LIMIT", len(b"content") - 1)
        with pytest.raises(IntegrityError, match="more than 6 bytes"):
            wheel.read("sglang/a.py")


def test_a_wheel_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the wheel: No such file"):
        Wheel(tmp_path / NAME)
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(UsageError, match="cannot read the wheel: not a regular file"):
        Wheel(tmp_path / NAME)


def test_a_wheel_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path, "sglang/a.py")
    with Wheel(path) as wheel:
        os.truncate(path, 10)
        with pytest.raises(IntegrityError, match="ends early"):
            wheel.read("sglang/a.py")


def test_a_pipe_that_takes_the_place_of_a_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"x")
    os.mkfifo(pipe)
    regular = file.stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: regular)
    with pytest.raises(NotRegularError, match="not a regular file"):
        open_regular(pipe)


def test_links_are_followed_on_request_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link", links=True) as stream:
        assert stream.read() == b"x"
    with pytest.raises(NotRegularError, match="a link where a file should be"):
        open_regular(tmp_path / "link")


def test_bytes_after_a_member_that_another_block_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data ends at the end of a block, and the next block holds more."""
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("sglang/a.py", b"content" * 20)
    with Wheel(path) as wheel:
        whole = b"".join(wheel.packed("sglang/a.py"))
    assert b"".join(archives._inflate(iter([whole[:3], whole[3:]]), "a")) == b"content" * 20
    for blocks in ([whole, b"more"], [whole + b"more"], [whole[:-1]]):
        with pytest.raises(IntegrityError, match="the member is damaged"):
            list(archives._inflate(iter(blocks), "a"))


def test_a_wheel_that_needs_zip64_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_LIMIT", 100)
    writer = WheelWriter(io.BytesIO())
    with pytest.raises(IntegrityError, match="zip64"):
        writer.store("a", 0o644, b"x" * 101)
    writer.store("a", 0o644, b"x" * 50)
    with pytest.raises(IntegrityError, match="zip64"):
        writer.close()
    monkeypatch.setattr(archives, "_LIMIT", 1000)
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 1)
    writer.close()
    writer.store("b", 0o644, b"x")
    with pytest.raises(IntegrityError, match="zip64") as caught:
        writer.close()
    assert caught.value.where == "2 members"


@pytest.mark.parametrize("length", [archives._MAX_NAME, archives._MAX_NAME + 1])
def test_the_longest_name(length: int) -> None:
    assert (unsafe_name("a" * length) is not None) is (length > archives._MAX_NAME)
    assert unsafe_name("") == "an absolute path"
