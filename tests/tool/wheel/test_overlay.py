"""The fork wheel: its content, its reproducibility, and the inputs that are refused."""

from __future__ import annotations

import contextlib
import difflib
import email
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.version import Version

from tests.support import forks
from tests.support.forks import (
    ADDED,
    COMMA,
    DELETED,
    KERNELS,
    METADATA,
    NATIVE,
    PATCHED,
    PATCHES,
    SCRIPT,
    TOUCHED,
    Fork,
    lock_for,
    make_fork,
    release_files,
    write_wheel,
)
from tool.errors import EnvironmentFault, IntegrityError, ToolError, UsageError
from tool.series.lockfile import LockedWheel
from tool.wheel import sbom as provenance
from tool.wheel import version as stamp
from tool.wheel.archive import Wheel, content_digest
from tool.wheel.overlay import KERNEL_PREFIX, hash_kernels
from tool.wheel.record import parse_record
from tool.wheel.sbom import PatchProvenance

FORK_INFO = "sglang-0.5.23+ada.1.dist-info"


@pytest.fixture
def fork(tmp_path: Path) -> Fork:
    return make_fork(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_members_of_the_fork(fork: Fork, out: Path) -> None:
    built = fork.build(out)
    assert built.path == out / "sglang-0.5.23+ada.1-py3-none-any.whl"
    assert built.version == "0.5.23+ada.1"
    kernels = {KERNEL_PREFIX + n: d for n, d in KERNELS.items()}
    with Wheel(built.path) as wheel, Wheel(fork.source) as source:
        assert wheel.read(TOUCHED) == PATCHED[f"python/{TOUCHED}"]
        assert wheel.read(ADDED) == PATCHED[f"python/{ADDED}"]
        assert DELETED not in wheel.members
        assert {n: wheel.read(n) for n in wheel.members if n.startswith(KERNEL_PREFIX)} == kernels
        kept = set(source.members) & set(wheel.members) - {TOUCHED, stamp.VERSION_FILE}
        assert {COMMA, SCRIPT, NATIVE} <= kept
        for name in kept:
            assert b"".join(wheel.packed(name)) == b"".join(source.packed(name))
            assert wheel.members[name].mode == source.members[name].mode
        infos = {n.split("/")[0] for n in wheel.members if ".dist-info/" in n}
        assert infos == {FORK_INFO}
        for plain in ("WHEEL", "entry_points.txt"):
            assert wheel.read(f"{FORK_INFO}/{plain}") == source.read(
                f"sglang-0.5.23.dist-info/{plain}"
            )
    assert built.replaced == (stamp.VERSION_FILE, TOUCHED)
    assert built.added == tuple(sorted([ADDED, *kernels]))
    assert built.removed == (DELETED,)
    assert built.kept == len(kept) + 2  # WHEEL and entry_points.txt, under another folder name
    assert built.size == built.path.stat().st_size
    assert built.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()


def test_record_and_content_digest_hold(fork: Fork, out: Path) -> None:
    built = fork.build(out)
    with zipfile.ZipFile(built.path) as archive:
        contents = {i.filename: archive.read(i) for i in archive.infolist()}
        modes = {i.filename: i.external_attr >> 16 & 0o777 for i in archive.infolist()}
    hashes = {n: hashlib.sha256(d).hexdigest() for n, d in contents.items()}
    record = f"{FORK_INFO}/RECORD"
    rows = parse_record(contents[record], record)
    assert rows.pop(record) == (None, None)
    assert rows == {n: (hashes[n], len(contents[n])) for n in contents if n != record}
    assert built.content_digest == content_digest((n, modes[n], hashes[n]) for n in contents)


def test_metadata_differs_in_version_and_added_requirement_only(fork: Fork, out: Path) -> None:
    with Wheel(fork.build(out).path) as wheel:
        text = wheel.read(f"{FORK_INFO}/METADATA").decode()
    before = METADATA.format(version="0.5.23").splitlines()
    changes = [
        line for line in difflib.ndiff(before, text.splitlines()) if line.startswith(("+", "-"))
    ]
    assert sorted(changes) == [
        "+ Requires-Dist: triton>=3.5",
        "+ Version: 0.5.23+ada.1",
        "- Version: 0.5.23",
    ]
    message = email.message_from_string(text)
    assert message.get_all("Requires-Dist") == [
        "torch==2.14.1", "tilelang==0.1.12", 'ray>=2; extra == "ray"', "triton>=3.5"
    ]  # fmt: skip
    assert message.get_payload() == "# About\n\nVersion: 1.0 of this text\nRequires-Dist: nothing\n"


@pytest.mark.parametrize(
    ("present", "wanted", "added"),
    [
        ("tilelang==0.1.12", "tilelang>=0.1.11", ()),
        ("tilelang==0.1.12", "TileLang == 0.1.12", ()),
        ("triton>=3.6", "triton>=3.5", ()),
        ("triton>3.5", "triton>=3.5", ()),
        ("triton~=3.5", "triton>=3.5", ()),
        ("triton<4,>=3.5", "triton>=3.5,<4", ()),
        ("triton", "triton", ()),
        ("triton>=3.5", "triton", ()),
        ("triton>=3.4", "triton>=3.5", ("triton>=3.5",)),
        ("triton>=3.5", "triton>=3.5,<4", ("triton<4,>=3.5",)),
        ("triton", "triton>=3.5", ("triton>=3.5",)),
        ("numpy", "triton>=3.5", ("triton>=3.5",)),
        ("apache-tvm_ffi==0.1.11", "apache.tvm-ffi>=0.1", ()),
        ('triton==3.6; extra == "x"', "triton>=3.5", ("triton>=3.5",)),
        ("cuda==1", "cuda[cu13]>=1", ("cuda[cu13]>=1",)),
        ("cuda[cu13]==1", "cuda>=1", ()),
    ],
)
def test_requirements_the_release_implies_are_left_out(
    present: str, wanted: str, added: tuple[str, ...]
) -> None:
    metadata = f"Name: sglang\nRequires-Dist: {present}\n\nbody\n".encode()
    assert stamp.find_missing_requirements(metadata, [wanted, wanted]) == added


def test_requirement_the_release_contradicts_is_refused(fork: Fork, out: Path) -> None:
    fork.requires = ["torch>=2.15"]
    with pytest.raises(UsageError, match=r"pins torch==2\.14\.1"):
        fork.build(out)
    assert not list(out.glob("*"))


def test_version_stamp_and_its_inverse() -> None:
    data = release_files("0.5.23")[stamp.VERSION_FILE][0]
    old, new = Version("0.5.23"), stamp.fork_version(Version("0.5.23"), 3)
    stamped = stamp.replace_version(data, old, new)
    assert b"__version__ = version = '0.5.23+ada.3'\n__version_tuple__ = (0, 5)\n" in stamped
    assert stamp.replace_version(stamped, new, old) == data
    assert stamp.read_version(stamped) == new
    assert stamp.public_release(new) == old
    for wrong in (b"", data + data, data.replace(b"'0.5.23'", b"'0.5.22'")):
        with pytest.raises(IntegrityError):
            stamp.replace_version(wrong, old, new)


def test_metadata_without_body_or_requirements() -> None:
    data = b"Name: sglang\nVersion: 0.5.23\n"
    old, new = Version("0.5.23"), Version("0.5.23+ada.1")
    wanted = b"Name: sglang\nVersion: 0.5.23+ada.1\nRequires-Dist: a\nRequires-Dist: b\n"
    assert stamp.replace_metadata(data, old, new, ["a", "b"]) == wanted


def test_two_builds_are_byte_identical(
    fork: Fork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for number, mask in enumerate((0o000, 0o077)):
        folder = tmp_path / f"here{number}"
        folder.mkdir()
        moved = folder / fork.source.name
        moved.write_bytes(fork.source.read_bytes())
        moved.chmod(0o600 + number)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("TZ", ("UTC", "Asia/Tokyo")[number])
        old = os.umask(mask)
        try:
            # The same inputs in another order are the same inputs.
            order = reversed if number else iter
            shuffled = replace(
                fork,
                source=moved,
                patched=dict(order(list(fork.patched.items()))),
                kernels=dict(order(list(fork.kernels.items()))),
            )
            built = shuffled.build(Path("out") if number else tmp_path / "other")
        finally:
            os.umask(old)
        assert built.path.stat().st_mode & 0o777 == 0o644
        results.append((built.path.read_bytes(), built.sha256, built.content_digest))
    assert results[0] == results[1]


def test_revision_and_kernels_change_the_result(fork: Fork, tmp_path: Path) -> None:
    first = fork.build(tmp_path / "a")
    second = fork.build(tmp_path / "b", revision=2)
    fork.kernels = {**fork.kernels, "ops/logits.py": b"K = 2\n"}
    third = fork.build(tmp_path / "c")
    assert second.path.name == "sglang-0.5.23+ada.2-py3-none-any.whl"
    assert len({b.content_digest for b in (first, second, third)}) == 3


# --- provenance -------------------------------------------------------------------------------


def sbom(path: Path) -> bytes:
    with Wheel(path) as wheel:
        return wheel.read(f"{wheel.name.dist_info}/{provenance.SBOM_NAME}")


def test_pedigree_names_ancestor_patches_and_kernels(fork: Fork, out: Path) -> None:
    document = json.loads(sbom(fork.build(out).path))
    component = document["metadata"]["component"]
    assert component["purl"] == "pkg:pypi/sglang@0.5.23%2Bada.1"
    assert component["pedigree"]["ancestors"] == [
        {
            "type": "library",
            "name": "sglang",
            "version": "0.5.23",
            "purl": f"pkg:pypi/sglang@0.5.23?file_name={fork.source.name}",
            "hashes": [
                {
                    "alg": "SHA-256",
                    "content": hashlib.sha256(fork.source.read_bytes()).hexdigest(),
                }
            ],
        }
    ]
    patches = component["pedigree"]["patches"]
    assert [(p["type"], p["diff"]["url"]) for p in patches] == [
        ("unofficial", "patches/kernel-swap/v0.5.23.patch"),
        ("backport", "patches/sharing/v0.5.23.patch"),
    ]
    assert patches[1]["resolves"][0]["references"] == ["https://example.org/pull/7"]
    kernels, swap, share = document["components"]
    assert kernels["hashes"][0]["content"] == hash_kernels(fork.kernels)
    assert swap["hashes"][0]["content"] == PATCHES[0].sha256
    status = [p["value"] for c in (swap, share) for p in c["properties"] if "status" in p["name"]]
    assert status == ["not-forwarded", "applied-upstream"]
    assert not {"timestamp"} & set(document["metadata"])


def test_provenance_round_trip_and_strictness(fork: Fork, out: Path) -> None:
    data = sbom(fork.build(out).path)
    facts = provenance.parse_sbom(data, "x")
    assert provenance.render_sbom(facts) == data
    assert facts.patches == PATCHES
    assert facts.executables == (SCRIPT,)
    assert facts.requirements == ("triton>=3.5",)
    assert facts.tree == fork.locked.final_tree
    for wrong in (b"{}", b"[]", b"not json", data[:-1], data.replace(b'"1.6"', b'"1.5"')):
        with pytest.raises(IntegrityError):
            provenance.parse_sbom(wrong, "x")


@pytest.mark.parametrize("commit", [None, "c" * 40])
def test_provenance_is_valid_cyclonedx(fork: Fork, out: Path, commit: str | None) -> None:
    reason = "the schema is missing: pip install cyclonedx-python-lib[json-validation]"
    pytest.importorskip("cyclonedx.validation.json", reason=reason)
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    fork.locked = replace(fork.locked, commit=commit)
    data = sbom(fork.build(out).path)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode())
    assert problem is None, problem
    assert provenance.parse_sbom(data, "x").commit == commit
    assert (b"not a release" in data) is (commit is not None)


@pytest.mark.parametrize(
    ("header", "kind", "status"),
    [
        ({"Origin": "vendor"}, "unofficial", "not-forwarded"),
        ({"Origin": "backport, https://example.org/c/1"}, "backport", "not-forwarded"),
        ({"Origin": "upstream", "Applied-Upstream": "0.6.0"}, "cherry-pick", "applied-upstream"),
        ({"Forwarded": "https://example.org/pull/1"}, "unofficial", "forwarded"),
        ({"Forwarded": "not-needed"}, "unofficial", "not-forwarded"),
    ],
)
def test_patch_status_follows_its_header(header: dict[str, str], kind: str, status: str) -> None:
    patch = PatchProvenance.from_header("x.patch", "a" * 64, "change", header)
    assert (patch.kind, patch.status) == (kind, status)


# --- refusals ---------------------------------------------------------------------------------


def spoil_source(fork: Fork) -> None:
    data = bytearray(fork.source.read_bytes())
    data[200] ^= 1
    fork.source.write_bytes(data)


def rename_source(fork: Fork) -> None:
    fork.source = fork.source.rename(fork.source.with_name("sglang-0.5.23-cp39-cp39-any.whl"))


def rebuilt_by_a_mirror(fork: Fork) -> None:
    files = release_files("0.5.23")
    files[NATIVE] = (b"\x7fELF other", 0o755)
    fork.source = write_wheel(fork.source.parent, "0.5.23", files)


def other_preimage(fork: Fork) -> None:
    """Another release's file under a lock that lists this wheel."""
    files = release_files("0.5.23")
    files[TOUCHED] = (b"def route(): pass\n", 0o644)
    fork.source = write_wheel(fork.source.parent, "0.5.23", files)
    sha256 = hashlib.sha256(fork.source.read_bytes()).hexdigest()
    wheels = (LockedWheel(fork.source.name, sha256, fork.source.stat().st_size),)
    fork.locked = replace(fork.locked, wheels=wheels)


def file_already_there(fork: Fork) -> None:
    files = release_files("0.5.23") | {ADDED: (b"theirs\n", 0o644)}
    fork.source = write_wheel(fork.source.parent, "0.5.23", files)
    sha256 = hashlib.sha256(fork.source.read_bytes()).hexdigest()
    wheels = (LockedWheel(fork.source.name, sha256, fork.source.stat().st_size),)
    fork.locked = replace(fork.locked, wheels=wheels)


def set_patched(path: str, data: bytes | None) -> Callable[[Fork], None]:
    def change(fork: Fork) -> None:
        fork.patched = {**fork.patched, path: data}

    return change


def drop_patched(fork: Fork) -> None:
    fork.patched = {p: d for p, d in fork.patched.items() if p != f"python/{ADDED}"}


def relock(extra: dict[str, bytes | None]) -> Callable[[Fork], None]:
    def change(fork: Fork) -> None:
        fork.patched = {**PATCHED, **extra}
        fork.locked = lock_for(fork.source, fork.patched)

    return change


def edited_patch(fork: Fork) -> None:
    fork.patches = (PATCHES[0], replace(PATCHES[1], sha256="c" * 64))


def missing_patch(fork: Fork) -> None:
    fork.patches = PATCHES[:1]


def kernels(files: dict[str, bytes]) -> Callable[[Fork], None]:
    def change(fork: Fork) -> None:
        fork.kernels = files

    return change


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (spoil_source, IntegrityError, "is not the released file"),
        (rename_source, IntegrityError, "is not a wheel of sglang 0.5.23 that series.lock lists"),
        (rebuilt_by_a_mirror, IntegrityError, "is not the released file"),
        (other_preimage, IntegrityError, f"python/{TOUCHED}: the file in the wheel is not the one"),
        (file_already_there, IntegrityError, f"python/{ADDED}: the file in the wheel is not"),
        (set_patched(f"python/{TOUCHED}", b"other\n"), IntegrityError, f"python/{TOUCHED}: the pa"),
        (set_patched(f"python/{DELETED}", b"kept\n"), IntegrityError, f"python/{DELETED}: the pa"),
        (set_patched("python/sglang/more.py", b""), IntegrityError, "python/sglang/more.py: the p"),
        (drop_patched, IntegrityError, f"python/{ADDED}: the patched files are not those"),
        (relock({"README.md": b"x"}), IntegrityError, "outside python/sglang/"),
        (relock({f"python/{NATIVE}": b"x"}), IntegrityError, "outside python/sglang/"),
        (relock({f"python/{KERNEL_PREFIX}a.py": b""}), IntegrityError, "where the kernels go"),
        (edited_patch, IntegrityError, "patches/sharing/v0.5.23.patch: the patches are not those"),
        (missing_patch, IntegrityError, "patches/sharing/v0.5.23.patch: the patches are not those"),
        (kernels({}), UsageError, "no __init__.py"),
        (kernels({"__init__.py": b"", "../x.py": b""}), UsageError, "'..' part"),
    ],
)
def test_refused(
    fork: Fork, out: Path, change: Callable[[Fork], None], error: type[ToolError], words: str
) -> None:
    change(fork)
    with pytest.raises(error) as caught:
        fork.build(out)
    assert words in str(caught.value)
    assert type(caught.value) is error
    assert not list(out.glob("*"))


# --- faults while writing ---------------------------------------------------------------------


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to write past ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


def test_full_disk_keeps_the_old_wheel(fork: Fork, out: Path) -> None:
    before = fork.build(out)
    old = before.path.read_bytes()
    fork.kernels = {**fork.kernels, "more.py": b"#" * 10_000}
    for limit in (0, 1000, before.size):
        with file_size_limit(limit), pytest.raises(EnvironmentFault) as caught:
            fork.build(out)
        assert caught.value.exit_code == 6
        assert [p.name for p in out.iterdir()] == [before.path.name]
        assert before.path.read_bytes() == old


def test_out_that_is_a_file_is_a_fault(fork: Fork, out: Path) -> None:
    out.write_text("in the way")
    with pytest.raises(EnvironmentFault, match="cannot write the wheel"):
        fork.build(out)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.support.forks import Fork, lock_for, PATCHED
source = Path({source!r})
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
if {step!r} == "write":
    from tool.wheel import archive
    archive.WheelWriter.close = die
else:
    os.fsync = die
Fork(source, lock_for(source, PATCHED)).build(Path({out!r}), revision=1)
"""


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_kill_leaves_the_old_wheel_and_the_next_run_cleans_up(
    fork: Fork, out: Path, step: str
) -> None:
    wanted = fork.build(out)
    old = b"an older wheel of that name"
    wanted.path.write_bytes(old)
    code = KILLED.format(
        root=str(Path(__file__).parents[3]), source=str(fork.source), step=step, out=str(out)
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert wanted.path.read_bytes() == old
    assert len(list(out.iterdir())) == 2  # the killed writer's hidden file
    assert fork.build(out) == wanted
    assert list(out.iterdir()) == [wanted.path]


# --- the real releases ------------------------------------------------------------------------

ReleasedWheel = Callable[[str], Path]
REAL = {
    "0.5.9": "python/sglang/srt/layers/attention/nsa/nsa_indexer.py",
    "0.5.23": "python/sglang/srt/server_args.py",
}


def real_fork(source: Path, touched: str) -> Fork:
    """A one-line edit of a real module takes the place of the series."""
    with Wheel(source) as wheel:
        edited = wheel.read(touched.removeprefix("python/")) + b"# edited\n"
    patched: dict[str, bytes | None] = {touched: edited, "python/sglang/srt/ada_new.py": b"N = 1\n"}
    return Fork(source, lock_for(source, patched, PATCHES[:1]), patched, patches=PATCHES[:1])


@pytest.mark.index
@pytest.mark.parametrize("version", REAL)
def test_real_release(released_wheel: ReleasedWheel, tmp_path: Path, version: str) -> None:
    fork = real_fork(released_wheel(version), REAL[version])
    built, again = fork.build(tmp_path / "a"), fork.build(tmp_path / "b")
    assert built.path.read_bytes() == again.path.read_bytes()
    info = f"sglang-{version}+ada.1.dist-info"
    with Wheel(built.path) as wheel, Wheel(fork.source) as source:
        rows = parse_record(wheel.read(f"{info}/RECORD"), "RECORD")
        assert set(rows) == set(wheel.members)
        assert sum("," in n for n in rows) > 300
        new = {REAL[version].removeprefix("python/"), stamp.VERSION_FILE}
        kept = set(source.members) & set(wheel.members) - new
        assert len(kept) == len([n for n in source.members if n.startswith("sglang/")]) - len(new)
        for name in kept:
            assert b"".join(wheel.packed(name)) == b"".join(source.packed(name))
        old = source.read(f"sglang-{version}.dist-info/METADATA")
        new_metadata = wheel.read(f"{info}/METADATA")
    before, after = (Metadata.from_email(m, validate=True) for m in (old, new_metadata))
    assert after.version == Version(f"{version}+ada.1")
    extra = {str(r) for r in after.requires_dist or ()} - {
        str(r) for r in before.requires_dist or ()
    }
    pinned = any(r.name == "tilelang" for r in before.requires_dist or ())
    assert extra == ({"triton>=3.5"} if pinned else {"triton>=3.5", "tilelang>=0.1.11"})
    assert after.description == before.description


@pytest.mark.parametrize(
    "row", [b"", b"sglang/srt/engine.py,,\n", b"sglang/srt/engine.py,sha256=AAAA,1\n"]
)
def test_a_released_wheel_whose_record_does_not_fit_is_not_built_on(
    tmp_path: Path, row: bytes
) -> None:
    source = forks.write_wheel(tmp_path, "0.5.23", forks.release_files("0.5.23"))

    def change(files: dict[str, tuple[bytes, int]]) -> None:
        name = "sglang-0.5.23.dist-info/RECORD"
        lines = files[name][0].splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(forks.UNTOUCHED.encode())]
        assert len(kept) == len(lines) - 1
        files[name] = (b"".join([*kept, row]), 0o644)

    forks.rewrite(source, change)
    fork = forks.Fork(source, forks.lock_for(source, forks.PATCHED))
    with pytest.raises(IntegrityError):
        fork.build(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.whl"))
