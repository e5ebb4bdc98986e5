"""The commands of a patch author: new, refresh, import and drop; explain and diff show the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.support.lab import B_ONLY, TREE, TWINS, UTILS, Lab, git
from tests.support.rebases import check
from tool.authoring.edit import Author
from tool.series import model as series

STOCK = TREE["sglang/srt/utils.py"]
ANSWER = STOCK.replace("return 3\n", "return 33\n")
HEADER = ("--change", "demo", "--drop-when", "never")
WORDS = (*HEADER, "--subject", "Answer more", "--reason", "Because it asks.")


@pytest.fixture
def fork(lab: Lab, tmp_path: Path) -> Path:
    """A worktree of a series of two patches."""
    return lab.fork(
        tmp_path / "fork",
        {"demo/answer.patch": {UTILS: ANSWER}, "demo/twins.patch": {TWINS: B_ONLY}},
    )


def names(lab: Lab, release: str = "0.5.23") -> list[str]:
    return [p.name for p in series.load_series(lab.root).for_release(Version(release))]


def edit(fork: Path, path: str, old: str, new: str) -> None:
    file = fork / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def anew(lab: Lab, fork: Path) -> None:
    """Apply the series as it is now to the worktree."""
    git(fork, "stash", "-u", "-q")
    lab.apply(fork)


class TestNew:
    def test_from_uncommitted_changes(self, lab: Lab, fork: Path) -> None:
        edit(fork, UTILS, "return 5\n", "return 55\n")
        (fork / "python/sglang/srt/more.py").write_text("MORE = 1\n")
        result = lab.json("new", "more", str(fork), *WORDS, "--offline")["result"]
        assert result["written"] == ["demo/more.patch"]
        assert names(lab) == ["demo/answer.patch", "demo/twins.patch", "demo/more.patch"]
        text = (lab.root / "patches" / "demo/more.patch").read_text()
        assert text.startswith("Description: Answer more\n Because it asks.\n")
        check(lab)
        anew(lab, fork)
        assert (fork / "python/sglang/srt/more.py").read_text() == "MORE = 1\n"

    def test_a_long_reason_is_wrapped(self, lab: Lab, fork: Path) -> None:
        """At 80 columns; paragraphs, short lines and words as long as a line stay as they were given."""
        edit(fork, UTILS, "return 5\n", "return 55\n")
        words = "Somebody asks for five and gets another number, which happens quite often"
        address = "https://example.invalid/" + "a" * 80
        reason = f"{words}: {words}.\n\nSee {address} for\n  --more-answers {words}\n* a\n* b\n"
        given = (*HEADER, "--subject", "Answer more", "--reason", reason)
        lab.tool("new", "more", str(fork), *given, "--offline")
        text = (lab.root / "patches" / "demo/more.patch").read_text()
        assert text.partition("\nOrigin:")[0].split("\n") == [
            "Description: Answer more",
            " Somebody asks for five and gets another number, which happens quite often:",
            " Somebody asks for five and gets another number, which happens quite often.",
            " .",
            " See",
            f" {address}",
            " for",
            "   --more-answers Somebody asks for five and gets another number, which happens",
            "   quite often",
            " * a",
            " * b",
        ]
        check(lab)

    @pytest.mark.parametrize("where", [("--detach",), ("-c", "own")])
    def test_a_branch_that_apply_did_not_make(
        self, lab: Lab, fork: Path, where: tuple[str, ...]
    ) -> None:
        git(fork, "switch", "-q", *where)
        edit(fork, UTILS, "return 5\n", "return 55\n")
        for words in (("new", "more", str(fork), *WORDS), ("refresh", "answer", str(fork))):
            error = lab.json(*words, "--offline", code=2)["error"]
            assert "is not on a branch that tool apply made" in error["message"]

    def test_again_after_it_was_interrupted(
        self, lab: Lab, fork: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The patch is written and the worktree still has the change: it is brought up to date."""
        edit(fork, UTILS, "return 5\n", "return 55\n")

        def stop(*_: object) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Author, "move_worktree", stop)
            lab.tool("new", "more", str(fork), *WORDS, "--offline", code=130)
        assert names(lab)[-1] == "demo/more.patch"
        (fork / "python/sglang/srt/other.py").write_text("OTHER = 1\n")
        lab.tool("new", "more", str(fork), *WORDS, "--offline", code=2)
        (fork / "python/sglang/srt/other.py").unlink()
        assert lab.json("new", "more", str(fork), *WORDS, "--offline")["result"]["worktree_moved"]
        assert (
            git(fork, "status", "--porcelain") == "" and "return 55\n" in (fork / UTILS).read_text()
        )
        lab.tool("new", "more", str(fork), *WORDS, "--offline", code=2)
        check(lab)

    def test_in_a_change_of_its_own(self, lab: Lab, fork: Path) -> None:
        edit(fork, UTILS, "return 5\n", "return 55\n")
        words = ("--change", "other", *WORDS[2:])
        lab.tool("new", "more", str(fork), *words, "--offline")
        assert (
            "\nchange other >=0.5.23\n    other/more.patch ==0.5.23\n"
            in (lab.root / "series.txt").read_text()
        )
        check(lab)

    def test_refusals_change_nothing(self, lab: Lab, fork: Path) -> None:
        before = (lab.root / "series.txt").read_bytes()
        error = lab.json("new", "more", str(fork), *WORDS, code=2)["error"]
        assert "no uncommitted changes" in error["message"]
        error = lab.json("new", "answer", str(fork), *WORDS, code=2)["error"]
        assert "exists already" in error["message"] and "refresh" in error["next"]
        lab.json("new", "more", str(fork), *HEADER, code=2)
        edit(fork, UTILS, "return 5\n", "return (\n")
        error = lab.json("new", "more", str(fork), *WORDS, "--offline", code=3)["error"]
        assert "parse" in error["message"]
        git(fork, "checkout", "-q", ".")
        edit(fork, "python/sglang/srt/layers/attention/ada_dsa/__init__.py", "Kernels", "Colonels")
        error = lab.json("new", "more", str(fork), *WORDS, code=2)["error"]
        assert "ada_dsa/" in error["next"]
        assert (lab.root / "series.txt").read_bytes() == before
        assert not (lab.root / "patches" / "demo/more.patch").exists()


class TestRefresh:
    def test_folds_into_an_earlier_patch_and_renews_the_later(self, lab: Lab, fork: Path) -> None:
        lab.patch("demo/later.patch", {UTILS: ANSWER.replace("return 20\n", "return 2020\n")})
        lab.relock()
        lab.apply(fork)
        edit(fork, UTILS, "return 33\n", "return 3333\n")
        result = lab.json("refresh", "answer", str(fork), "--offline")["result"]
        assert set(result["written"]) == {"demo/answer.patch", "demo/later.patch"}
        text = (lab.root / "patches" / "demo/answer.patch").read_text()
        assert "+    return 3333\n" in text and "2020" not in text
        check(lab)
        anew(lab, fork)
        assert "return 3333" in (fork / UTILS).read_text()

    def test_what_a_later_patch_changed_belongs_there(self, lab: Lab, fork: Path) -> None:
        lab.patch("demo/later.patch", {UTILS: ANSWER.replace("return 33\n", "return 333\n")})
        lab.relock()
        lab.apply(fork)
        before = {p.name: p.read_bytes() for p in (lab.root / "patches").rglob("*.patch")}
        edit(fork, UTILS, "return 333\n", "return 3333\n")
        error = lab.json("refresh", "answer", str(fork), "--offline", code=3)["error"]
        assert "does not fit" in error["message"] and "later patch" in error["next"]
        assert {p.name: p.read_bytes() for p in (lab.root / "patches").rglob("*.patch")} == before
        lab.tool("refresh", "later", str(fork), "--offline")
        check(lab)

    def test_on_every_release_it_stands_for(self, lab: Lab, tmp_path: Path) -> None:
        later = TREE | {"sglang/srt/utils.py": "# more\n" + STOCK}
        lab.release("0.5.24", later)
        lab.patch("demo/answer.patch", {UTILS: ANSWER}, releases=">=0.5.23,<=0.5.24")
        lab.relock("0.5.23", "0.5.24")
        lab.apply(tmp_path / "fork")
        edit(tmp_path / "fork", UTILS, "return 33\n", "return 3333\n")
        result = lab.json("refresh", "answer", str(tmp_path / "fork"), "--offline")["result"]
        assert result["releases"] == ["0.5.23", "0.5.24"]
        check(lab)

    def test_an_unknown_patch(self, lab: Lab, fork: Path) -> None:
        error = lab.json("refresh", "nothing", str(fork), code=2)["error"]
        assert "demo/answer.patch" in error["why"]


class TestImport:
    def _mail(self, lab: Lab, fork: Path, text: str, message: str) -> bytes:
        (fork / UTILS).write_text(text)
        git(fork, "commit", "-qam", message)
        mail = git(fork, "format-patch", "-1", "--stdout").encode() + b"\n"
        git(fork, "reset", "-q", "--hard", "HEAD~1")
        return mail

    def _import(self, lab: Lab, content: bytes, *args: str, code: int = 0) -> dict[str, Any]:
        path = lab.root.parent / "incoming"
        path.write_bytes(content)
        words = args or HEADER
        envelope = lab.json("import", str(path), "their", *words, "--offline", code=code)
        return envelope["result"] or envelope["error"]

    def test_a_mail(self, lab: Lab, fork: Path) -> None:
        text = ANSWER.replace("return 9\n", "return 99\n")
        mail = self._mail(lab, fork, text, "Answer nine\n\nNine is asked often.")
        assert self._import(lab, mail)["written"] == ["demo/their.patch"]
        header = (lab.root / "patches" / "demo/their.patch").read_text()
        assert header.startswith("Description: Answer nine\n Nine is asked often.\n")
        check(lab)

    def test_a_plain_diff(self, lab: Lab, fork: Path) -> None:
        edit(fork, UTILS, "return 9\n", "return 99\n")
        diff = git(fork, "diff").encode() + b"\n"
        git(fork, "checkout", "-q", ".")
        assert "does not say" in self._import(lab, diff, code=2)["message"]
        self._import(lab, diff, *WORDS)
        check(lab)

    def test_one_that_would_land_elsewhere(self, lab: Lab, fork: Path) -> None:
        """git apply would put this hunk into the other class without any message."""
        edit(fork, TWINS, "y = x + 1", "y = x + 9")
        diff = git(fork, "diff").encode() + b"\n"
        git(fork, "checkout", "-q", ".")
        moved = diff.replace(b"@@ -3,", b"@@ -4,").replace(b"@@ -2,", b"@@ -3,")
        assert moved != diff
        error = self._import(lab, moved, *WORDS, code=3)
        assert "is not what the diff says" in error["message"] and "tool new" in error["next"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: b"no diff here\n", "no git diff"),
            (lambda m: m + m, "several mails"),
            (
                lambda m: m.replace(b"often.", b"often.\n\n--- a/x\n+++ b/x\n"),
                "apply as a diff",
            ),
        ],
        ids=["no diff", "two mails", "a diff in the message"],
    )
    def test_refused(self, lab: Lab, fork: Path, change: Any, message: str) -> None:
        text = ANSWER.replace("return 9\n", "return 99\n")
        mail = self._mail(lab, fork, text, "Answer nine\n\nNine is asked often.")
        assert message in self._import(lab, change(mail), code=2)["message"]
        assert names(lab) == ["demo/answer.patch", "demo/twins.patch"]


class TestDrop:
    def test_keeps_the_reason(self, lab: Lab, fork: Path) -> None:
        result = lab.json("drop", "answer", "--why", "asked\nno more", "--offline")["result"]
        assert result["removed"] == ["demo/answer.patch"]
        assert not (lab.root / "patches" / "demo/answer.patch").exists()
        text = (lab.root / "series.txt").read_text()
        assert "    # demo/answer.patch ==0.5.23 was dropped: asked no more\n" in text
        assert names(lab) == ["demo/twins.patch"]
        check(lab)

    def test_one_that_another_needs(self, lab: Lab, fork: Path) -> None:
        lab.patch("demo/later.patch", {UTILS: ANSWER.replace("return 33\n", "return 333\n")})
        lab.relock()
        before = (lab.root / "series.txt").read_bytes()
        error = lab.json("drop", "answer", "--why", "x", "--offline", code=3)["error"]
        assert "demo/later.patch" in error["where"]
        assert (lab.root / "series.txt").read_bytes() == before
        assert (lab.root / "patches" / "demo/answer.patch").exists()

    def test_needs_a_reason(self, lab: Lab, fork: Path) -> None:
        assert lab.json("drop", "answer", "--why", " ", code=2)["error"]["next"]


class TestLooking:
    def test_explain(self, lab: Lab, fork: Path) -> None:
        lab.patch("demo/later.patch", {UTILS: ANSWER.replace("return 33\n", "return 333\n")})
        lab.relock()
        result = lab.json("explain", "answer", "--offline")["result"]
        assert result["symbols"] == {UTILS: ["f3"]}
        assert [d["patch"] for d in result["dependents"]] == ["demo/later.patch"]
        assert result["checked_on"] == ["0.5.23"]
        assert ["demo/twins.patch", "==0.5.23"] in result["relatives"]
        text = lab.tool("explain", "demo/answer.patch", "--offline").stdout
        assert "Drop-When: never" in text and "without it demo/later.patch stops" in text
        assert lab.json("explain", "nothing", code=2)["error"]["why"]

    def test_diff(self, lab: Lab, fork: Path) -> None:
        lab.release("0.5.24", TREE | {"sglang/srt/utils.py": "# more\n" + STOCK})
        lab.tool("rebase", "--onto", "v0.5.24", "--offline")
        text = lab.tool("diff", "v0.5.23", "v0.5.24", "--offline").stdout
        assert (
            "1:" in text
            and "change demo/answer.patch" in text
            and "change demo/twins.patch" in text
        )
        assert lab.json("diff", "v0.5.23", "v0.5.1", code=2)["error"]["message"]
