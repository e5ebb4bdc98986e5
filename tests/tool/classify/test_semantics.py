"""Patches that apply but are incomplete (``stale``), and patches that only look like that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import NEXT, TREE, Lab
from tests.support.rebases import check, rebase
from tests.support.rebases import onto as onto_next

ARGS = "python/sglang/srt/args.py"
SOURCE = '''\
"""Arguments."""

from envs import is_old_card


class Args:
    def decide(self):
        use(is_old_card())
        backend = self.nsa_backend
        return backend

    def backends(self):
        import deep_gemm_library

        return deep_gemm_library.backend

    def unrelated(self, first):
        print(first)
        first_step = first + 1
        second_step = first_step + 1
        third_step = second_step + 1
        return third_step

    def close(self):
        return None
'''
LOADED = "        import deep_gemm_library\n"
OURS = "        import ada_gemm_library as deep_gemm_library\n"
PLACE = "        third_step = second_step + 1\n"
END = "    def close(self):\n        return None\n"


def becomes(lab: Lab, ours: str, theirs: str) -> dict[str, object]:
    """The outcome of a patch that turns SOURCE into ``ours``, on a release that has ``theirs``."""
    assert ours != SOURCE and theirs != SOURCE
    carry(lab, ours, theirs)
    result = lab.json("drift", "--onto", f"v{NEXT}", "--offline", code=None)["result"]
    (patch,) = result["patches"]
    assert result["carries"] is (patch["outcome"] != "stale")
    return patch


def carry(lab: Lab, ours: str, theirs: str) -> None:
    lab.release("0.5.23", TREE | {"sglang/srt/args.py": SOURCE})
    lab.patch("demo/ours.patch", {ARGS: ours})
    lab.relock()
    lab.release(NEXT, TREE | {"sglang/srt/args.py": theirs})


def adding(lines: str, place: str = PLACE) -> str:
    """SOURCE with ``lines``, indented as a method's, after ``place``."""
    indented = "".join(f"        {line}\n" for line in lines.split("\n"))
    assert SOURCE.count(place) == 1
    return SOURCE.replace(place, place + indented)


def renamed(old: str, new: str) -> str:
    return SOURCE.replace(old, new)


class TestStale:
    def test_one_more_of_the_lines_it_replaces_everywhere(self, lab: Lab) -> None:
        theirs = SOURCE.replace(END, f"    def more(self):\n{LOADED}        return 1\n\n{END}")
        patch = becomes(lab, SOURCE.replace(LOADED, OURS), theirs)
        assert patch["outcome"] == "stale"
        at = [n for n, x in enumerate(theirs.split("\n"), 1) if x == LOADED.rstrip("\n")]
        (first, *_) = patch["reasons"]
        assert (
            f"the release has this at 2 places, its lines {at[0]} and {at[1]}, 1 more than the "
            "patch was written for: import deep_gemm_library" in first
        )
        assert "import deep_gemm_library" in first

    def test_an_attribute_that_upstream_no_longer_reads(self, lab: Lab) -> None:
        patch = becomes(
            lab, adding('self.nsa_backend = "ada"'), renamed("nsa_backend", "dsa_backend")
        )
        assert patch["outcome"] == "stale"
        assert (
            patch["reasons"][0]
            == f"{ARGS}: the patch uses nsa_backend, which this file of the release has not"
        )

    def test_an_attribute_that_the_patch_reads_and_sets(self, lab: Lab) -> None:
        """The patch assigns the name, but upstream read it. So it is not a name of the patch alone."""
        ours = adding('if self.nsa_backend is None:\n    self.nsa_backend = "ada"')
        patch = becomes(lab, ours, renamed("nsa_backend", "dsa_backend"))
        assert patch["outcome"] == "stale" and "nsa_backend" in patch["reasons"][0]

    def test_an_attribute_set_from_a_variable_of_the_same_name(self, lab: Lab) -> None:
        ours = adding("nsa_backend = use()\nself.nsa_backend = nsa_backend")
        patch = becomes(lab, ours, renamed("nsa_backend", "dsa_backend"))
        assert patch["outcome"] == "stale" and "nsa_backend" in patch["reasons"][0]

    def test_a_function_that_upstream_no_longer_imports(self, lab: Lab) -> None:
        """The line would raise NameError when it runs."""
        patch = becomes(lab, adding("use(is_old_card())"), renamed("is_old_card", "card_is_old"))
        assert patch["outcome"] == "stale" and "is_old_card" in patch["reasons"][0]

    def test_a_local_variable_that_upstream_renamed(self, lab: Lab) -> None:
        patch = becomes(lab, adding("print(first_step)"), renamed("first_step", "one_step"))
        assert patch["outcome"] == "stale" and "first_step" in patch["reasons"][0]

    def test_a_conflict_tells_of_it_too(self, lab: Lab) -> None:
        ours = adding('self.nsa_backend = "ada"').replace("return None", "return False")
        theirs = renamed("nsa_backend", "dsa_backend").replace("return None", "return True")
        carry(lab, ours, theirs)
        result = lab.json("drift", "--onto", f"v{NEXT}", "--offline", code=1)["result"]
        (patch,) = result["patches"]
        assert patch["outcome"] == "conflict"
        assert any("uses nsa_backend" in line for line in patch["reasons"])


class TestNotStale:
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (adding("nsa_backend = use()\nprint(nsa_backend)"), ("nsa_backend", "dsa_backend")),
            (
                SOURCE.replace(
                    END, f"    def ours(self, nsa_backend):\n        use(nsa_backend)\n\n{END}"
                ),
                ("nsa_backend", "dsa_backend"),
            ),
            (
                SOURCE.replace(
                    END,
                    f"    async def ours(self, nsa_backend):\n        use(nsa_backend)\n\n{END}",
                ),
                ("nsa_backend", "dsa_backend"),
            ),
            (adding("use(nsa_backend=1)"), ("nsa_backend", "dsa_backend")),
            (adding("from envs import is_old_card"), ("is_old_card", "card_is_old")),
            (adding("pass  # as nsa_backend did"), ("nsa_backend", "dsa_backend")),
            (adding('use("nsa_backend")'), ("nsa_backend", "dsa_backend")),
            (adding("use(self.other_backend)"), ("nsa_backend", "dsa_backend")),
            (adding("self.first_step = 1\nuse(self.first_step)"), ("first_step", "one_step")),
        ],
        ids=[
            "variable",
            "parameter",
            "asynchronous parameter",
            "keyword",
            "import",
            "comment",
            "string",
            "another attribute",
            "an attribute named as a variable was",
        ],
    )
    def test_a_name_that_is_the_patchs_own_or_none(
        self, lab: Lab, ours: str, theirs: tuple[str, str]
    ) -> None:
        assert becomes(lab, ours, renamed(*theirs))["outcome"] in ("clean", "moved", "merged")

    def test_a_file_that_is_as_the_author_had_it(self, lab: Lab) -> None:
        """Occurrences that the author did not change count as intended."""
        twice = SOURCE.replace(END, f"    def more(self):\n{LOADED}        return 1\n\n{END}")
        lab.release("0.5.23", TREE | {"sglang/srt/args.py": twice})
        lab.patch("demo/ours.patch", {ARGS: twice.replace(LOADED, OURS, 1)})
        lab.relock()
        lab.release(NEXT, TREE | {"sglang/srt/args.py": twice, "sglang/more.py": LOADED.strip()})
        result = lab.json("drift", "--onto", f"v{NEXT}", "--offline")["result"]
        assert result["patches"][0]["outcome"] == "clean"

    def test_a_line_the_patch_left_in_another_place(self, lab: Lab) -> None:
        """The author saw two occurrences and changed one. A third one therefore does not make the patch
        stale.
        """
        lab.release("0.5.23", TREE | {"sglang/srt/args.py": SOURCE})
        kept = f"    def kept(self):\n{LOADED}        return 0\n\n"
        lab.patch("demo/ours.patch", {ARGS: SOURCE.replace(LOADED, OURS).replace(END, kept + END)})
        lab.relock()
        more = f"\n\ndef more():\n{LOADED}    return 1\n".replace("        ", "    ")
        lab.release(NEXT, TREE | {"sglang/srt/args.py": SOURCE + more})
        result = lab.json("drift", "--onto", f"v{NEXT}", "--offline")["result"]
        assert result["patches"][0]["outcome"] in ("clean", "moved", "merged")


@pytest.mark.usefixtures("elsewhere")
class TestRebase:
    @pytest.fixture
    def stopped(self, lab: Lab) -> Path:
        """Stopped at a stale patch; the worktree's file."""
        theirs = SOURCE.replace(END, f"    def more(self):\n{LOADED}        return 1\n\n{END}")
        carry(lab, SOURCE.replace(LOADED, OURS), theirs)
        found = onto_next(lab, code=3)
        assert found["stop"]["outcome"] == "stale" and found["marked"] == {}
        return Path(found["worktree"]) / ARGS

    def test_left_as_it_is_it_keeps_its_file(self, lab: Lab, stopped: Path) -> None:
        (row,) = rebase(lab, "--continue")["patches"]
        assert (row["outcome"], row["decided"], row["file"]) == (
            "stale",
            "as merged",
            "demo/ours.patch",
        )
        assert row["became"] == "kept, now >=0.5.23,<=0.5.24"
        check(lab)

    def test_mended_it_becomes_a_new_file(self, lab: Lab, stopped: Path) -> None:
        stopped.write_text(stopped.read_text().replace(LOADED, OURS))
        (row,) = rebase(lab, "--continue")["patches"]
        assert (row["decided"], row["file"]) == ("by hand", "demo/ours-v0.5.24.patch")
        text = (lab.root / "patches" / "demo/ours-v0.5.24.patch").read_text()
        assert text.count("\n-" + LOADED) == 2
        check(lab)

    def test_left_as_it_is_is_no_answer_for_the_next_release(self, lab: Lab, stopped: Path) -> None:
        """The release may have another occurrence that nobody has looked at."""
        theirs = stopped.read_text().replace(OURS, LOADED)
        rebase(lab, "--continue")
        third = theirs + f"\n\ndef third():\n{LOADED[4:]}    return 3\n"
        lab.release("0.5.25", TREE | {"sglang/srt/args.py": third})
        again = rebase(lab, "--onto", "v0.5.25", "--offline", code=3)
        assert again["stop"]["outcome"] == "stale" and again["remembered"] == []
        assert "2 more" in again["stop"]["reasons"][0]

    def test_a_mended_one_answers_only_where_it_is_all(self, lab: Lab, stopped: Path) -> None:
        theirs = stopped.read_text().replace(OURS, LOADED)
        before = {p: p.read_bytes() for p in sorted(lab.root.rglob("*")) if p.is_file()}
        stopped.write_text(stopped.read_text().replace(LOADED, OURS))
        rebase(lab, "--continue")
        (lab.root / "patches" / "demo/ours-v0.5.24.patch").unlink()
        for path, data in before.items():
            path.write_bytes(data)
        third = theirs + f"\n\ndef third():\n{LOADED[4:]}    return 3\n"
        lab.release("0.5.25", TREE | {"sglang/srt/args.py": third})
        lab.release("0.5.26", TREE | {"sglang/srt/args.py": "# later\n" + theirs})
        again = rebase(lab, "--onto", "v0.5.25", "--from", "v0.5.23", "--offline", code=3)
        assert again["stop"]["outcome"] == "stale" and again["remembered"] == []
        rebase(lab, "--abort")
        done = rebase(lab, "--onto", "v0.5.26", "--from", "v0.5.23", "--offline")
        assert done["state"] == "carried" and len(done["remembered"]) == 1
