"""The published folder: what is in it, when it may be replaced, and that its bytes depend on nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import AGAIN, UTILS, Lab
from tests.support.shipping import (
    HERE,
    MACHINE,
    MACHINES,
    NATIVE,
    OTHER,
    SCRIPT,
    TAGS,
    make_shippable,
    release_wheels,
)
from tool.wheel import Wheel

VERSION = "0.5.23+ada.1"


@pytest.fixture
def shippable(lab: Lab) -> Lab:
    return make_shippable(lab)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "release"


def publish(lab: Lab, out: Path, *args: str, code: int = 0) -> dict[str, object]:
    return lab.json("publish", "--out", str(out), "--offline", "--quiet", *args, code=code)


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def wheel_names(tags: tuple[str, ...] = TAGS, version: str = VERSION) -> list[str]:
    return sorted(f"sglang-{version}-{tag}.whl" for tag in tags)


def beside(out: Path) -> list[str]:
    """What a command left beside the folder."""
    return [path.name for path in out.parent.iterdir() if path.name.startswith(".tool-")]


class TestContent:
    def test_every_locked_wheel_is_there_as_build_makes_it(
        self, shippable: Lab, out: Path, tmp_path: Path
    ) -> None:
        result = publish(shippable, out)["result"]
        assert sorted(path.name for path in out.glob("*.whl")) == wheel_names()
        assert result["files"] == sorted(read(out))
        shippable.tool(
            "build", "--out", str(tmp_path / "one"), "--python", OTHER, "--machine", MACHINES[1],
            "--offline",
        )  # fmt: skip
        (built,) = (tmp_path / "one").iterdir()
        assert (out / built.name).read_bytes() == built.read_bytes()
        for path in out.glob("*.whl"):
            shippable.tool("verify", str(path), "--offline")
            with Wheel(path) as wheel:  # also where the released wheel has it not executable
                assert wheel.members[SCRIPT].mode == 0o755

    def test_the_sums_cover_everything_else(self, shippable: Lab, out: Path) -> None:
        publish(shippable, out)
        files = read(out)
        lines = files.pop("SHA256SUMS").decode().splitlines()
        del files[".ada-token"]
        assert lines == [f"{hashlib.sha256(files[n]).hexdigest()}  {n}" for n in sorted(files)]

    def test_both_indexes_describe_the_wheels(self, shippable: Lab, out: Path) -> None:
        publish(shippable, out)
        page = json.loads((out / "simple/sglang/index.v1_json").read_text())
        assert page["meta"] == {"api-version": "1.1"} and page["versions"] == [VERSION]
        html = (out / "simple/sglang/index.html").read_text()
        assert [file["filename"] for file in page["files"]] == wheel_names()
        for file in page["files"]:
            wheel = out / file["filename"]
            assert file["hashes"] == {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
            assert file["size"] == wheel.stat().st_size and file["requires-python"] == ">=3.8"
            link = f'<a href="{file["url"]}#sha256={file["hashes"]["sha256"]}"'
            assert f'{link} data-requires-python="&gt;=3.8">{wheel.name}</a>' in html
        assert html.count("<a ") == len(TAGS)

    def test_the_bill_of_each_wheel_is_valid_cyclonedx(self, shippable: Lab, out: Path) -> None:
        reason = "the schema is missing: pip install cyclonedx-python-lib[json-validation]"
        pytest.importorskip("cyclonedx.validation.json", reason=reason)
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        publish(shippable, out)
        validator = JsonStrictValidator(SchemaVersion.V1_6)
        for name in wheel_names():
            with Wheel(out / name) as wheel:
                inside = wheel.read(f"{wheel.name.dist_info}/sboms/fork.cdx.json")
            bill = out / f"{name.removesuffix('.whl')}.cdx.json"
            assert bill.read_bytes() == inside
            assert validator.validate_str(inside.decode()) is None

    def test_the_notes_tell_each_change_with_its_threads(self, shippable: Lab, out: Path) -> None:
        patch = shippable.root / "patches/demo/answer.patch"
        forwarded = b"Forwarded: no\n See #123 (open) and https://example.org/pull/7.\n"
        patch.write_bytes(patch.read_bytes().replace(b"Forwarded: no\n", forwarded))
        series = shippable.root / "series.txt"
        series.write_text(series.read_text() + "change gone <0.5.10 upstream 0.5.10: pull 9\n")
        (shippable.root / "CHANGELOG.md").write_text(
            "# Changelog\n\n## Unreleased\n\n### Added\n\n- One thing ([a page](docs/x.md)).\n\n"
            "## 1.0\n\n- An old thing.\n"
        )
        shippable.relock()
        publish(shippable, out)
        notes = (out / "RELEASE_NOTES.md").read_text()
        assert notes.startswith(f"# sglang {VERSION}\n")
        assert "### change demo/answer.patch\n" in notes and "\nBecause it is needed.\n" in notes
        thread = "[#123](https://github.com/sgl-project/sglang/issues/123)"
        assert f"- Forwarded: no. See {thread} (open) and https://example.org/pull/7.\n" in notes
        assert "- gone: upstream has it since 0.5.10: pull 9\n" in notes
        assert "## Changelog: Unreleased\n" in notes and "\n#### Added\n" in notes
        assert "- One thing (a page).\n" in notes and "An old thing" not in notes

    def test_the_constraints_name_the_forks_version(self, shippable: Lab, out: Path) -> None:
        publish(shippable, out)
        lines = (out / "constraints-v0.5.23.txt").read_text().splitlines()
        assert [line for line in lines if not line.startswith("#")] == [f"sglang=={VERSION}"]


class TestSelection:
    def test_pythons_and_machines(self, shippable: Lab, out: Path) -> None:
        publish(shippable, out, "--pythons", OTHER, "--machines", MACHINE)
        tag = f"{OTHER}-{OTHER}-manylinux_2_17_{MACHINE}"
        assert [path.name for path in out.glob("*.whl")] == wheel_names((tag,))
        with Wheel(out / f"sglang-{VERSION}-{tag}.whl") as wheel:
            assert wheel.read(NATIVE).decode() == tag

    def test_all_releases(self, shippable: Lab, out: Path) -> None:
        release_wheels(shippable, "0.5.24", tags=("py3-none-any",))
        patch = shippable.root / "patches/demo/answer.patch"
        series = shippable.root / "series.txt"
        for path in (patch, series):
            path.write_text(path.read_text().replace("==0.5.23", ">=0.5.23,<=0.5.24"))
        shippable.relock("0.5.23", "0.5.24")
        publish(shippable, out, "--refs", "all")
        newer = wheel_names(("py3-none-any",), "0.5.24+ada.1")
        assert sorted(p.name for p in out.glob("*.whl")) == [*wheel_names(), *newer]
        assert sorted(p.name for p in out.glob("constraints-*")) == [
            "constraints-v0.5.23.txt",
            "constraints-v0.5.24.txt",
        ]
        # A wheel for every Python is one for each of them.
        publish(shippable, out, "--refs", "v0.5.24", "--pythons", HERE)
        assert [p.name for p in out.glob("*.whl")] == newer

    @pytest.mark.parametrize(
        "args",
        [
            ("--pythons", "cp399"), ("--machines", "riscv64"), ("--refs", "main"),
            ("--refs", "v0.5.99"), ("--refs", "pin,"), ("--machines", ".*"),
        ],
    )  # fmt: skip
    def test_what_is_not_there_is_refused(
        self, shippable: Lab, out: Path, args: tuple[str, ...]
    ) -> None:
        assert publish(shippable, out, *args, code=2)["error"]["next"] is not None or "pin," in args
        assert not out.exists() and beside(out) == []


class TestBytes:
    def test_two_machines_give_the_same(
        self, make_lab: Callable[[str], Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = []
        for name, zone in (("one", "UTC"), ("two", "Asia/Tokyo")):
            monkeypatch.setenv("TZ", zone)
            lab = make_shippable(make_lab(name))
            folder = tmp_path / name / "some" / "release"
            publish(lab, folder)
            found.append(read(folder))
            assert all(str(tmp_path).encode() not in data for data in found[-1].values())
        assert found[0] == found[1]

    def test_unchanged_wheels_are_kept(self, shippable: Lab, out: Path) -> None:
        publish(shippable, out, "--pythons", HERE)
        inodes = {path.name: path.stat().st_ino for path in out.glob("*.whl")}
        result = publish(shippable, out)["result"]
        kept = {wheel["filename"] for wheel in result["wheels"] if wheel["reused"]}
        assert kept == set(inodes) and len(result["wheels"]) == len(TAGS)
        assert {name: (out / name).stat().st_ino for name in inodes} == inodes
        fresh = read(out)
        shutil.rmtree(out)
        assert not any(w["reused"] for w in publish(shippable, out)["result"]["wheels"])
        assert read(out) == fresh

    def test_a_kernel_a_patch_or_the_revision_makes_new_wheels(
        self, shippable: Lab, out: Path
    ) -> None:
        root = shippable.root
        publish(shippable, out)

        def changed() -> bool:
            wheels = publish(shippable, out)["result"]["wheels"]
            return not any(wheel["reused"] for wheel in wheels)

        assert not changed()
        (root / "ada_dsa/__init__.py").write_text('"""Other kernels."""\n')
        assert changed()
        shippable.patch("demo/more.patch", {UTILS: AGAIN})
        shippable.relock()
        assert changed()
        series = root / "series.txt"
        series.write_text(series.read_text().replace("revision 1", "revision 2"))
        assert changed() and not (out / wheel_names()[0]).exists()

    def test_a_forged_wheel_is_not_taken_over(self, shippable: Lab, out: Path) -> None:
        """Somebody who can write into the folder changes a wheel, its sum, and every page that names it."""
        publish(shippable, out)
        good = read(out)
        name = wheel_names()[0]
        forged = good[name].replace(b"return 33", b"return 66")
        assert forged != good[name]
        (out / name).write_bytes(forged)
        old, new = (hashlib.sha256(d).hexdigest().encode() for d in (good[name], forged))
        for page in ("simple/sglang/index.html", "simple/sglang/index.v1_json"):
            (out / page).write_bytes(good[page].replace(old, new))
        del good["SHA256SUMS"], good[".ada-token"]
        sums = [
            f"{hashlib.sha256((out / n).read_bytes()).hexdigest()}  {n}\n" for n in sorted(good)
        ]
        (out / "SHA256SUMS").write_text("".join(sums))
        publish(shippable, out)
        assert (out / name).read_bytes() == good[name]


class TestOwnership:
    @pytest.mark.parametrize("token", [None, "tool publish\n"])
    def test_a_folder_of_somebody_else_is_refused(
        self, shippable: Lab, out: Path, token: str | None
    ) -> None:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        if token:
            (out / ".ada-token").write_text(token)
        before = read(out)
        error = publish(shippable, out, code=2)["error"]
        assert "was not written by tool publish" in error["message"] and "--out" in error["next"]
        assert read(out) == before and beside(out) == []

    @pytest.mark.parametrize("change", ["added", "edited", "removed", "linked", "fifo"])
    def test_a_folder_that_was_changed_is_refused(
        self, shippable: Lab, out: Path, change: str
    ) -> None:
        publish(shippable, out)
        notes = out / "RELEASE_NOTES.md"
        if change == "added":
            (out / "simple/logo.png").write_text("mine")
        elif change == "edited":
            notes.write_text("mine")
        else:
            notes.rename(out.parent / "notes")
            if change == "linked":
                notes.symlink_to(out.parent / "notes")
            elif change == "fifo":
                os.mkfifo(notes)
        before = read(out)
        error = publish(shippable, out, code=2)["error"]
        name = "simple/logo.png" if change == "added" else "RELEASE_NOTES.md"
        assert error["message"].startswith(name) and error["where"] == str(out)
        assert read(out) == before and beside(out) == []

    def test_a_place_that_cannot_be_written_leaves_nothing(
        self, shippable: Lab, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("mine")
        publish(shippable, tmp_path / "file" / "release", code=6)
        assert (tmp_path / "file").read_text() == "mine"
        assert not (shippable.folder / "folder.json").exists()

    def test_a_file_is_refused_and_an_empty_folder_is_not(self, shippable: Lab, out: Path) -> None:
        out.write_text("mine")
        publish(shippable, out, code=2)
        assert out.read_text() == "mine"
        out.unlink()
        out.mkdir()
        publish(shippable, out)
        assert (out / "SHA256SUMS").is_file()

    def test_a_failure_leaves_the_old_folder(self, shippable: Lab, out: Path) -> None:
        publish(shippable, out, "--pythons", HERE)
        before = read(out)
        for wheel in shippable.home.wheels.glob(f"*-{OTHER}-*"):
            wheel.unlink()
        error = publish(shippable, out, code=6)["error"]
        assert "is not in the cache" in error["message"]
        assert read(out) == before and beside(out) == []

    def test_a_wheel_that_is_not_the_released_one_is_refused(
        self, shippable: Lab, out: Path
    ) -> None:
        publish(shippable, out)
        before = read(out)
        entry = shippable.root / "series.lock"
        lock = json.loads(entry.read_text())
        wheels = lock["releases"]["0.5.23"]["wheels"]
        name = sorted(wheels)[0]
        victim = shippable.home.wheels / name
        victim.write_bytes(victim.read_bytes().replace(b"sglang", b"sglanG"))
        wheels[name]["sha256"] = hashlib.sha256(victim.read_bytes()).hexdigest()
        entry.write_text(json.dumps(lock, indent=2) + "\n")
        publish(shippable, out, code=5)
        assert read(out) == before and beside(out) == []
