"""Forged wheels: a table of them, each with a RECORD that fits, verified with and without the released wheel.

With everything at hand, each is refuted. Without the released wheel none is proven: it is refuted where the
lock, the provenance or the layout shows it, and otherwise the changed file is in the list of what is not
proven.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
from packaging.version import Version

from tests.support.forks import (
    COMMA,
    DELETED,
    KERNELS,
    NATIVE,
    PATCHES,
    SCRIPT,
    TOUCHED,
    UNTOUCHED,
    Fork,
    make_fork,
    rewrite,
)
from tool.verify.checks import VerifyReport
from tool.verify.verify import verify_wheel
from tool.wheel import sbom
from tool.wheel.archive import Wheel
from tool.wheel.overlay import KERNEL_PREFIX

Files = dict[str, tuple[bytes, int]]
Change = Callable[[Files], None]

INFO: Final = "sglang-0.5.23+ada.1.dist-info"
METADATA: Final = f"{INFO}/METADATA"
SBOM: Final = f"{INFO}/{sbom.SBOM_NAME}"
ENTRIES: Final = f"{INFO}/entry_points.txt"
TAG: Final = "cpython-311-x86_64-linux-gnu"
LOCKED: Final = (
    "sglang/__init__.py", "sglang/_version.py", TOUCHED, UNTOUCHED, COMMA, SCRIPT,
    KERNEL_PREFIX + "__init__.py", KERNEL_PREFIX + "ops/logits.py",
    KERNEL_PREFIX + "requirements.txt",
)  # fmt: skip
"""Members that lock, provenance or kernels hold."""
RELEASED: Final = (NATIVE, f"{INFO}/WHEEL", ENTRIES)
"""Members that only the released wheel holds."""


@dataclass(frozen=True)
class Forgery:
    """``alone`` is the outcome without the released wheel; ``path`` the file named then, if one can be."""

    change: Change
    alone: str
    path: str | None = None


def edit(name: str, make: Callable[[bytes], bytes]) -> Change:
    def change(files: Files) -> None:
        data, mode = files[name]
        assert make(data) != data
        files[name] = (make(data), mode)

    return change


def put(name: str, data: bytes = b"evil = 1\n", mode: int = 0o644) -> Change:
    return lambda files: files.update({name: (data, mode)})


def move(name: str, target: str) -> Change:
    return lambda files: files.update({target: files.pop(name)})


def claim(**facts: object) -> Change:
    def change(files: Files) -> None:
        stated = sbom.parse_sbom(files[SBOM][0], SBOM)
        files[SBOM] = (sbom.render_sbom(replace(stated, **facts)), 0o644)  # type: ignore[arg-type]

    return change


def both(*changes: Change) -> Change:
    def change(files: Files) -> None:
        for one in changes:
            one(files)

    return change


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


EDITS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "flipped": flip,
    "longer": lambda data: data + b"\n",
    "shorter": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "prefixed": lambda data: b"import evil\n" + data,
}


def edits() -> dict[str, Forgery]:
    table: dict[str, Forgery] = {}
    for name in (*LOCKED, *RELEASED):
        alone = "refuted" if name in LOCKED else "not proven"
        for how, make in EDITS.items():
            if name == KERNEL_PREFIX + "__init__.py" and how in ("flipped", "shorter", "emptied"):
                continue  # it is empty
            path = None if alone == "refuted" else name
            table[f"{how} {name}"] = Forgery(edit(name, make), alone, path)
        table[f"lost {name}"] = Forgery(
            lambda files, name=name: files.pop(name) and None,  # type: ignore[misc]
            "refuted" if name in LOCKED else "not proven",
        )
        table[f"moved {name}"] = Forgery(
            # "….sox" is no native module, so the tree should not have it.
            move(name, name + "x"),
            "refuted" if name in (*LOCKED, NATIVE) else "not proven",
        )
    for name in (TOUCHED, UNTOUCHED, COMMA, "sglang/_version.py"):
        table[f"executable {name}"] = Forgery(
            lambda files, name=name: files.update({name: (files[name][0], 0o755)}),  # type: ignore[misc]
            "refuted",
            name,
        )
    return table


ADDED: Final[Mapping[str, str]] = {
    # beside the package: refuted without any other wheel
    "evil.pth": "refuted",
    "sitecustomize.py": "refuted",
    "usercustomize/__init__.py": "refuted",
    "torch/__init__.py": "refuted",
    "torch.py": "refuted",
    f"torch.{TAG}.so": "refuted",
    "sglang.py": "refuted",
    f"sglang.{TAG}.so": "refuted",
    "sglang.pth": "refuted",
    "SGLANG/__init__.py": "refuted",
    "sglang2/__init__.py": "refuted",
    "triton/__init__.py": "refuted",
    "__pycache__/x.cpython-311.pyc": "refuted",
    "_distutils_hack/__init__.py": "refuted",
    "sgl_kernel/__init__.py": "refuted",
    "torch-9.dist-info/METADATA": "refuted",
    "sglang-0.5.23.dist-info/METADATA": "refuted",
    "sglang-0.5.23+ada.2.dist-info/METADATA": "refuted",
    "SGLang-0.5.23+ada.1.dist-info/METADATA": "refuted",
    "sglang.egg-info/PKG-INFO": "refuted",
    "sglang.egg-link": "refuted",
    "__editable__.sglang-0.5.23.pth": "refuted",
    "sglang-0.5.23+ada.1.data/scripts/sglang": "refuted",
    "sglang-0.5.23+ada.1.data/purelib/torch/__init__.py": "refuted",
    "sglang-0.5.23+ada.1.data/platlib/evil.pth": "refuted",
    "sglang-0.5.23+ada.1.data/data/bin/python": "refuted",
    "sglang-0.5.23+ada.1.data/headers/x.h": "refuted",
    "other-1.data/scripts/x": "refuted",
    "bin/python": "refuted",
    ".hidden/x.py": "refuted",
    # in the package: the tree is another
    "sglang/extra.py": "refuted",
    "sglang/srt/extra/__init__.py": "refuted",
    "sglang/sitecustomize.py": "refuted",
    "sglang/.hidden": "refuted",
    "sglang/srt/engine.pyc": "refuted",
    "sglang/srt/extra.pyc": "refuted",
    "sglang/srt/extra.pyd": "refuted",
    "sglang/srt/__pycache__/engine.cpython-311.pyc": "refuted",
    "sglang/srt/engine/__init__.py": "refuted",
    "sglang/srt/engine/x.json": "refuted",
    "sglang/x.pth": "refuted",
    DELETED: "refuted",
    KERNEL_PREFIX + "extra.py": "refuted",
    KERNEL_PREFIX + "ops/__init__.py": "refuted",
    KERNEL_PREFIX + "logits.json": "refuted",
    # a native module that Python loads before the source of that name
    f"sglang/__init__.{TAG}.so": "refuted",
    "sglang/_version.so": "refuted",
    f"sglang/srt/engine.{TAG}.so": "refuted",
    "sglang/srt/dsa.abi3.so": "refuted",
    "sglang/srt/layers.so": "refuted",
    KERNEL_PREFIX + "__init__.abi3.so": "refuted",
    KERNEL_PREFIX + f"ops/logits.{TAG}.so": "refuted",
    # what a released wheel may have
    "sglang/srt/other.so": "not proven",
    f"sglang/srt/_more.{TAG}.so": "not proven",
    "tools/__init__.py": "not proven",
    f"{INFO}/licenses/LICENSE": "not proven",
    f"{INFO}/top_level.txt": "not proven",
    f"{INFO}/direct_url.json": "not proven",
    f"{INFO}/uv_cache.json": "not proven",
    f"{INFO}/INSTALLER": "not proven",
    f"{INFO}/sboms/other.cdx.json": "not proven",
    f"{INFO}/x.py": "not proven",
    f"{INFO}/entry_points.txt.bak": "not proven",
}


def additions() -> dict[str, Forgery]:
    return {
        f"added {name}": Forgery(put(name), alone, name if alone == "not proven" else None)
        for name, alone in ADDED.items()
    }


def sub(name: str, old: bytes, new: bytes) -> Change:
    return edit(name, lambda data: data.replace(old, new))


MADE: Final = PATCHES[0]
REQUIRE: Final = b"Requires-Dist: triton>=3.5\n"
METADATA_CHANGES: Final[Mapping[str, Forgery]] = {
    "metadata: evil requirement": Forgery(
        sub(METADATA, REQUIRE, REQUIRE + b"Requires-Dist: evil\n"), "not proven", METADATA
    ),
    "metadata: evil requirement in the provenance too": Forgery(
        both(
            sub(METADATA, REQUIRE, REQUIRE + b"Requires-Dist: evil\n"),
            claim(requirements=("triton>=3.5", "evil")),
        ),
        "not proven",
        METADATA,
    ),
    "metadata: requirement by URL": Forgery(
        sub(METADATA, b"torch==2.14.1", b"torch @ https://example.org/torch.whl"), "not proven", METADATA
    ),
    "metadata: requirement lost": Forgery(sub(METADATA, REQUIRE, b""), "not proven", METADATA),
    "metadata: kernels' requirement lost in the provenance too": Forgery(
        both(sub(METADATA, REQUIRE, b""), claim(requirements=())), "not proven", METADATA
    ),
    "metadata: release's version": Forgery(sub(METADATA, b": 0.5.23+ada.1", b": 0.5.23"), "refuted"),
    "metadata: another version": Forgery(sub(METADATA, b"+ada.1", b"+ada.2"), "refuted"),
    "metadata: another name": Forgery(sub(METADATA, b"Name: sglang", b"Name: torch"), "refuted"),
    "metadata: two names": Forgery(sub(METADATA, b"Name: ", b"Name: torch\nName: "), "refuted"),
    "metadata: two names in another case": Forgery(
        sub(METADATA, b"Name: ", b"name: torch\nName: "), "refuted"
    ),
    "metadata: version twice": Forgery(
        sub(METADATA, b"Name: ", b"VERSION: 9\nName: "), "refuted"
    ),
    "metadata: empty": Forgery(edit(METADATA, lambda _: b""), "refuted"),
    "metadata: not text": Forgery(edit(METADATA, lambda _: b"\xff\xfe\0"), "refuted"),
    "metadata: lost": Forgery(lambda files: files.pop(METADATA) and None, "refuted"),
    "metadata: description": Forgery(edit(METADATA, lambda d: d + b"more\n"), "not proven", METADATA),
    "entry points: another function": Forgery(
        sub(ENTRIES, b"sglang.cli:main", b"os:abort"), "not proven", ENTRIES
    ),
    "entry points: a plug-in": Forgery(
        edit(ENTRIES, lambda d: d + b"[pytest11]\nx = evil\n"), "not proven", ENTRIES
    ),
    "wheel: another tag": Forgery(sub(f"{INFO}/WHEEL", b"py3", b"py2"), "not proven", f"{INFO}/WHEEL"),
    "wheel: pure": Forgery(
        sub(f"{INFO}/WHEEL", b"Purelib: true", b"Purelib: false"), "not proven", f"{INFO}/WHEEL"
    ),
}  # fmt: skip

CLAIMS: Final[Mapping[str, Change]] = {
    "version": claim(version=Version("0.5.23+ada.2")),
    "release": claim(release=Version("0.5.22")),
    "source": claim(source="sglang-0.5.23-cp311-cp311-manylinux_2_34_x86_64.whl"),
    "source outside": claim(source="../../evil.whl"),
    "source sha256": claim(source_sha256="d" * 64),
    "tree": claim(tree="d" * 40),
    "no patches": claim(patches=()),
    "one patch": claim(patches=PATCHES[:1]),
    "patches turned": claim(patches=PATCHES[::-1]),
    "patch name": claim(patches=(replace(MADE, name="other.patch"), PATCHES[1])),
    "patch sha256": claim(patches=(replace(MADE, sha256="d" * 64), PATCHES[1])),
    "kernel digest": claim(kernel_digest="d" * 64),
    "kernel tree": claim(kernel_tree="d" * 40),
    "kernel files": claim(kernel_files=len(KERNELS) + 1),
    "no executables": claim(executables=()),
    "more executables": claim(executables=(SCRIPT, UNTOUCHED)),
    "not JSON": edit(SBOM, lambda _: b"{"),
    "deep JSON": edit(SBOM, lambda _: b"[" * 100_000),
    "long number": edit(SBOM, lambda d: d.replace(b'"version": 1\n', b'"version": ' + b"9" * 5000 + b"\n")),
    "empty object": edit(SBOM, lambda _: b"{}"),
    "another field": edit(SBOM, lambda d: d.replace(b'"version": 1\n', b'"version": 1, "x": 1\n')),
    "surrogate": edit(SBOM, lambda d: d.replace(b'"0.5.23"', b'"\\ud800"')),
    "lost": lambda files: files.pop(SBOM) and None,
}  # fmt: skip
HEADER_CLAIMS: Final[Mapping[str, Change]] = {
    "patch forwarded": claim(patches=(replace(MADE, forwarded="https://example.org"), PATCHES[1])),
    "patch applied": claim(patches=(replace(MADE, applied_upstream="0.6"), PATCHES[1])),
    "patch kind": claim(patches=(replace(MADE, kind="backport"), PATCHES[1])),
    "patch change": claim(patches=(replace(MADE, change="other"), PATCHES[1])),
}
FORGERIES: Final[Mapping[str, Forgery]] = {
    **edits(),
    **additions(),
    **METADATA_CHANGES,
    **{f"provenance: {n}": Forgery(change, "refuted") for n, change in CLAIMS.items()},
    **{f"provenance: {n}": Forgery(change, "refuted") for n, change in HEADER_CLAIMS.items()},
}


def describe(_: Version) -> tuple[sbom.PatchProvenance, ...]:
    return PATCHES


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fork, bytes, str]:
    folder = tmp_path_factory.mktemp("genuine")
    fork = make_fork(folder)
    path = fork.build(folder / "out").path
    return fork, path.read_bytes(), path.name


def verify(fork: Fork, path: Path, *, with_released: bool) -> VerifyReport:
    released = fork.source if with_released else None
    return verify_wheel(
        path, lock=fork.lock, kernels=fork.kernels, patches=describe, released=released
    )


def test_the_table_is_large_enough_and_the_original_is_proven(
    genuine: tuple[Fork, bytes, str], tmp_path: Path
) -> None:
    fork, data, name = genuine
    assert len(FORGERIES) >= 120
    path = tmp_path / name
    path.write_bytes(data)
    assert verify(fork, path, with_released=True).outcome == "proven"
    assert verify(fork, path, with_released=False).outcome == "not proven"
    with Wheel(path) as wheel:
        assert {*LOCKED, *RELEASED, METADATA, SBOM} < set(wheel.members)
    rewrite(path, lambda files: None, record=True)  # the forger's tools alone change nothing
    assert verify(fork, path, with_released=True).outcome == "proven"


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_wheel(
    genuine: tuple[Fork, bytes, str],
    tmp_path: Path,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    fork, data, filename = genuine
    path = tmp_path / filename
    path.write_bytes(data)
    forgery = FORGERIES[name]
    rewrite(path, forgery.change, record=True)
    report = verify(fork, path, with_released=True)
    assert report.outcome == "refuted"
    report = verify(fork, path, with_released=False)
    assert report.outcome == forgery.alone, (report.first, report.unproven)
    if forgery.alone == "not proven" and forgery.path:
        assert forgery.path in {u.path for u in report.unproven}
    record_property("tried", 2)


def check_random_forgeries(genuine: tuple[Fork, bytes, str], tmp_path: Path, count: int) -> None:
    """Random edits of one to three members, with a RECORD that fits."""
    fork, data, filename = genuine
    path = tmp_path / filename
    names = (*LOCKED, *RELEASED, METADATA, SBOM)
    for seed in range(count):
        choose = random.Random(seed)
        path.write_bytes(data)

        def change(files: Files, choose: random.Random = choose) -> None:
            for name in choose.sample(names, choose.randint(1, 3)):
                content, mode = files[name]
                at = choose.randrange(len(content) + 1)
                inserted = choose.randbytes(choose.randint(1, 4))
                files[name] = (content[:at] + inserted + content[at:], mode)

        rewrite(path, change, record=True)
        assert verify(fork, path, with_released=True).outcome == "refuted", seed
        assert verify(fork, path, with_released=False).outcome != "proven", seed


def test_random_forgeries(genuine: tuple[Fork, bytes, str], tmp_path: Path) -> None:
    check_random_forgeries(genuine, tmp_path, 30)


@pytest.mark.exhaustive
def test_many_random_forgeries(
    genuine: tuple[Fork, bytes, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    check_random_forgeries(genuine, tmp_path, 3000)
    record_property("tried", 6000)  # with and without the released wheel
