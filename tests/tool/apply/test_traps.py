"""The ways a patch lands in the wrong place, twice, or not at all, each as a real repository.

Most of them exit 0 under ``git am`` or ``git apply``; the control tests show that.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.lab import B_ONLY, NEXT, RELEASE, TREE, TWIN, TWINS, UTILS, Lab, git, header

FUNCTION = "def helper():\n    return 'ours'\n\n\n"


def upgrade(lab: Lab, changes: dict[str, str]) -> None:
    """Release 0.5.24: the same tree with ``changes``; the series now claims it too."""
    lab.release(NEXT, TREE | changes)


def onto_next(lab: Lab, tmp_path: Path, code: int) -> dict[str, object]:
    """Check the series on 0.5.24, as apply would, before there is a lock entry to compare with."""
    return lab.json("lock", "--sglang-ref", f"v{NEXT}", "--offline", code=code)


def plain_git_apply(lab: Lab, tmp_path: Path, patch: Path, tree: dict[str, str]) -> Path:
    """The control: `git apply` of the same patch on a plain checkout of ``tree``."""
    folder = tmp_path / "control"
    for name, text in tree.items():
        path = folder / "python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(tmp_path, "init", "-q", str(folder))
    diff = patch.read_bytes().partition(b"\n---\n")[2]
    subprocess.run(["git", "apply", "-"], input=diff, cwd=folder, check=True)
    return folder


class TestTwinClasses:
    """Two classes with the same method body; upstream inserts lines above the second."""

    SHIFTED = TWIN.replace("class B", "".join(f"X{i} = {i}\n" for i in range(8)) + "\n\nclass B")

    def test_plain_git_apply_can_hit_the_wrong_twin(self, lab: Lab, tmp_path: Path) -> None:
        # Upstream removed lines above, so the first twin now sits nearer to the hunk's old line.
        tree = TREE | {"sglang/srt/twins.py": "".join(f"P{i} = {i}\n" for i in range(7)) + TWIN}
        patch = lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        folder = plain_git_apply(lab, tmp_path, patch, tree)
        text = (folder / TWINS).read_text()
        assert text.index("x + 2") < text.index("class B"), "the control no longer shows the trap"

    @pytest.mark.parametrize(
        "moved",
        [SHIFTED, "".join(f"P{i} = {i}\n" for i in range(7)) + TWIN],
        ids=["below", "above"],
    )
    def test_the_engine_puts_it_right(self, lab: Lab, tmp_path: Path, moved: str) -> None:
        lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        upgrade(lab, {"sglang/srt/twins.py": moved})
        onto_next(lab, tmp_path, 0)
        tree = tmp_path / "fork"
        result = lab.apply(tree, "--sglang-ref", f"v{NEXT}")["result"]
        assert result["patches"][0]["outcome"] == "merged"
        text = (tree / TWINS).read_text()
        assert text.index("x + 2") > text.index("class B")
        assert text.count("x + 2") == 1


class TestUpstreamHasIt:
    def test_the_same_patch_is_a_verdict_not_silence(self, lab: Lab, tmp_path: Path) -> None:
        lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        upgrade(lab, {"sglang/srt/twins.py": B_ONLY})
        error = onto_next(lab, tmp_path, 4)["error"]
        assert "already has this change" in error["message"]
        assert "demo/twins.patch" in error["where"]

    def test_squashed_with_other_work(self, lab: Lab, tmp_path: Path) -> None:
        lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        squashed = B_ONLY.replace("class A", "LIMIT = 7\n\n\nclass A")
        upgrade(lab, {"sglang/srt/twins.py": squashed})
        assert "already has" in onto_next(lab, tmp_path, 4)["error"]["message"]

    def test_a_part_of_it(self, lab: Lab, tmp_path: Path) -> None:
        utils = TREE["sglang/srt/utils.py"].replace("return 3\n", "return 33\n")
        lab.patch("demo/both.patch", {TWINS: B_ONLY, UTILS: utils}, releases=">=0.5.23")
        upgrade(lab, {"sglang/srt/twins.py": B_ONLY})
        error = onto_next(lab, tmp_path, 4)["error"]
        assert TWINS in error["message"] and "part of the patch" in error["message"]

    def test_the_same_function_added_elsewhere(self, lab: Lab, tmp_path: Path) -> None:
        text = TREE["sglang/srt/utils.py"]
        lab.patch("demo/helper.patch", {UTILS: FUNCTION + text}, releases=">=0.5.23")
        upgrade(lab, {"sglang/srt/utils.py": text + FUNCTION})
        error = onto_next(lab, tmp_path, 3)["error"]
        assert "helper is now defined twice" in error["message"]

    def test_a_near_miss_is_not_retired(self, lab: Lab, tmp_path: Path) -> None:
        """Upstream changed the same line in another way. That is a conflict, never "upstream has it"."""
        lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        upgrade(lab, {"sglang/srt/twins.py": B_ONLY.replace("x + 2", "x + 3")})
        error = onto_next(lab, tmp_path, 3)["error"]
        assert TWINS in error["message"]


class TestNames:
    """The patch reads a name the file imported; upstream now imports it in one function only."""

    BEFORE = "from os import sep\n\n\n" + TREE["sglang/srt/utils.py"]
    AFTER = TREE["sglang/srt/utils.py"].replace(
        "def f9():\n", "def f9():\n    from os import sep\n\n"
    )

    def test_a_name_upstream_took_away(self, lab: Lab, tmp_path: Path) -> None:
        path = "sglang/srt/utils.py"
        lab.release(RELEASE, TREE | {path: self.BEFORE})
        edited = self.BEFORE.replace("return 20\n", "return 20, sep\n")
        lab.patch("demo/names.patch", {UTILS: edited}, releases=">=0.5.23")
        upgrade(lab, {path: self.AFTER})
        error = onto_next(lab, tmp_path, code=3)["error"]
        assert isinstance(error, dict)
        assert "sep is used, and nothing in the file binds it any more" in str(error)


class TestConflicts:
    def test_names_patch_and_file_and_changes_nothing(self, lab: Lab, tmp_path: Path) -> None:
        lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        upgrade(lab, {"sglang/srt/twins.py": TWIN.replace("x + 1", "x * 5")})
        lock = (lab.root / "series.lock").read_bytes()
        error = onto_next(lab, tmp_path, 3)["error"]
        assert error["where"] == "patches/demo/twins.patch" and TWINS in error["message"]
        assert (lab.root / "series.lock").read_bytes() == lock

    def test_a_deleted_file(self, lab: Lab, tmp_path: Path) -> None:
        lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        lab.release(NEXT, {k: v for k, v in TREE.items() if "twins" not in k})
        error = onto_next(lab, tmp_path, 3)["error"]
        assert TWINS in error["message"]

    def test_a_missing_preimage_is_not_guessed_around(self, lab: Lab, tmp_path: Path) -> None:
        path = lab.patch("demo/twins.patch", {TWINS: B_ONLY}, releases=">=0.5.23")
        content = path.read_bytes()
        old = content.partition(b"index ")[2][:40]
        path.write_bytes(content.replace(old, b"1" * 40))
        error = lab.json("lock", "--offline", code=6)["error"]
        assert "missing" in error["message"]

    def test_a_result_that_does_not_parse(self, lab: Lab, tmp_path: Path) -> None:
        lab.patch("demo/broken.patch", {UTILS: TREE["sglang/srt/utils.py"] + "def f(:\n"})
        error = lab.json("lock", "--offline", code=3)["error"]
        assert UTILS in error["message"] and "parse" in error["message"]


class TestBytes:
    def test_crlf_survives(self, lab: Lab, tmp_path: Path) -> None:
        crlf = "a = 1\r\nb = 2\r\nc = 3\r\n"
        lab.release(RELEASE, TREE | {"sglang/srt/crlf.py": crlf})
        path = "python/sglang/srt/crlf.py"
        lab.patch("demo/crlf.patch", {path: crlf.replace("b = 2", "b = 22")})
        lab.relock()
        lab.apply(tmp_path / "fork")
        assert (tmp_path / "fork" / path).read_bytes() == b"a = 1\r\nb = 22\r\nc = 3\r\n"

    def test_no_newline_at_the_end_survives(self, lab: Lab, tmp_path: Path) -> None:
        lab.release(RELEASE, TREE | {"sglang/srt/tail.py": "a = 1\nb = 2"})
        path = "python/sglang/srt/tail.py"
        lab.patch("demo/tail.patch", {path: "a = 1\nb = 3"})
        lab.relock()
        lab.apply(tmp_path / "fork")
        assert (tmp_path / "fork" / path).read_bytes() == b"a = 1\nb = 3"

    def test_adding_and_deleting_files(self, lab: Lab, tmp_path: Path) -> None:
        new = "python/sglang/srt/new.py"
        lab.patch("demo/files.patch", {new: "NEW = 1\n", TWINS: None})
        lab.relock()
        lab.apply(tmp_path / "fork")
        assert (tmp_path / "fork" / new).read_text() == "NEW = 1\n"
        assert not (tmp_path / "fork" / TWINS).exists()


class TestHostilePatches:
    """Each is refused before git reads it; lint names the same thing."""

    GOOD = "diff --git a/{0} b/{0}\nnew file mode {1}\nindex " + "0" * 40 + ".." + "1" * 40
    BODY = "\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+x\n"

    def _refused(self, lab: Lab, content: bytes) -> str:
        path = lab.root / "patches" / "demo" / "bad.patch"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with (lab.root / "series.txt").open("a") as handle:
            handle.write("demo/bad.patch ==0.5.23\n")
        message = lab.json("lock", "--offline", code=2)["error"]["message"]
        findings = lab.json("lint", code=1)["result"]["findings"]
        assert any(f["rule"] == "diff" and message in f["message"] for f in findings)
        return str(message)

    @pytest.mark.parametrize(
        "path",
        [
            "python/sglang/../../../etc/passwd",
            "../outside.py",
            "/etc/passwd",
            ".gitattributes",
            "python/sglang/.gitattributes",
            "python/sglang/.gitmodules",
            "python/sglang/.git/hooks/post-checkout",
            "python/other/x.py",
            "setup.py",
        ],
    )
    def test_a_path_outside_the_package(self, lab: Lab, path: str) -> None:
        body = (self.GOOD + self.BODY).format(path, "100644")
        assert path in self._refused(lab, header("==0.5.23") + body.encode())

    @pytest.mark.parametrize("mode", ["120000", "160000", "040000"])
    def test_a_link_or_submodule(self, lab: Lab, mode: str) -> None:
        body = (self.GOOD + self.BODY).format("python/sglang/x", mode)
        assert "regular files" in self._refused(lab, header("==0.5.23") + body.encode())

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            ("old mode 100644\nnew mode 100755\n", "changes the mode"),
            ("similarity index 100%\nrename from {0}\nrename to {0}2\n", "is a rename"),
            ("index 1234567..89abcde 100644\nGIT binary patch\nliteral 1\n", "is binary"),
            ("index 1234567..89abcde 100644\n--- a/{0}\n+++ b/{0}\n", "full index line"),
        ],
        ids=["mode", "rename", "binary", "short index"],
    )
    def test_anything_but_text_hunks(self, lab: Lab, lines: str, reason: str) -> None:
        body = "diff --git a/{0} b/{0}\n" + lines
        message = self._refused(lab, header("==0.5.23") + body.format(UTILS).encode())
        assert reason in message

    def test_a_diff_in_the_header(self, lab: Lab) -> None:
        evil = (
            b"Description: innocent\n diff --git a/x b/x\n --- a/x\n +++ b/x\nOrigin: vendor\n---\n"
        )
        assert "apply as a diff" in self._refused(lab, evil)

    def test_bidirectional_characters(self, lab: Lab) -> None:
        text = TREE["sglang/srt/utils.py"].replace("return 3\n", "return 3  # ‮ flip\n")
        lab.patch("demo/bidi.patch", {UTILS: text})
        findings = lab.json("lint", code=1)["result"]["findings"]
        assert any("RIGHT-TO-LEFT OVERRIDE" in f["message"] for f in findings)
