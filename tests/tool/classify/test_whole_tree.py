"""A patch that applies, and refers to what the release has nowhere: in other files than it changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import NEXT, RELEASE, TREE, Lab
from tests.support.rebases import check, onto, rebase

PATH = "python/sglang/srt/args.py"
SOURCE = '''\
"""Arguments."""

import sglang.srt.tools
from sglang.srt import tools
from sglang.srt.platform import get_platform
from sglang.srt.environ import envs


def scale(value, factor=1):
    return value * factor


class Args(tools.Base):
    def decide(self):
        if get_platform():
            return self.choose(1)
        return scale(2)

    def choose(self, limit, *, strict=False):
        return limit


def last():
    return None
'''
END = "def last():\n    return None\n"
HELPER = "def is_old_card(index=0):\n    return index\n"
PLATFORM = "class Platform:\n    device_sm = 89\n\n\ndef get_platform():\n    return Platform()\n"
ENVIRON = "class Envs:\n    SGLANG_FUSE = 1\n    SGLANG_OTHER = 1\n\n\nenvs = Envs()\n"
BEFORE = {
    "sglang/srt/args.py": SOURCE,
    "sglang/srt/cards.py": HELPER,
    "sglang/srt/platform.py": PLATFORM,
    "sglang/srt/environ.py": ENVIRON,
    "sglang/srt/tools.py": "class Base:\n    def log(self, text, level=1):\n        pass\n\n\n"
    "def make_pool(size, page=1):\n    return size\n",
    "sglang/srt/kinds.py": "from enum import Enum\n\n\nclass Kind(Enum):\n    FIRST = 1\n    SECOND = 2\n",
}


def using(*lines: str) -> str:
    """SOURCE with a function of these lines before its last one."""
    body = "".join(f"    {line}\n" for line in lines)
    return SOURCE.replace(END, f"def ours(self=None):\n{body}\n\n{END}")


def carry(
    lab: Lab, ours: str, changes: dict[str, str | None], before: dict[str, str] | None = None
) -> None:
    files: dict[str, str | None] = {**TREE, **BEFORE, **(before or {})}
    lab.release(RELEASE, {path: text for path, text in files.items() if text is not None})
    lab.patch("demo/ours.patch", {PATH: ours})
    lab.relock()
    files |= changes
    lab.release(NEXT, {path: text for path, text in files.items() if text is not None})


Drift = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def outcome(lab: Lab) -> Drift:
    """(what the patch makes of the file, what the next release changes) → outcome and reasons."""

    def run(
        ours: str, changes: dict[str, str | None], before: dict[str, str] | None = None
    ) -> tuple[str, list[str]]:
        carry(lab, ours, changes, before)
        done = lab.tool("drift", "--onto", f"v{NEXT}", "--offline", "--json", code=None)
        result = json.loads(done.stdout)["result"]
        (patch,) = result["patches"]
        assert result["carries"] is (patch["outcome"] in ("clean", "moved", "merged"))
        return patch["outcome"], patch["reasons"]

    return run


IMPORTING = using("from sglang.srt.cards import is_old_card", "return is_old_card()")
MOVED = {"sglang/srt/cards.py": "x = 1\n", "sglang/srt/gpus.py": HELPER}


class TestImports:
    @pytest.mark.parametrize("touched", [False, True], ids=["file as it was", "file changed"])
    def test_a_name_that_moved_to_another_module(self, outcome: Drift, touched: bool) -> None:
        changes = MOVED | ({"sglang/srt/args.py": "# later\n" + SOURCE} if touched else {})
        kind, reasons = outcome(IMPORTING, changes)
        assert kind == "stale"
        line = (
            IMPORTING.split("\n").index("    from sglang.srt.cards import is_old_card")
            + 1
            + touched
        )
        assert reasons == [
            f"{PATH} (line {line} with the patch) imports is_old_card from sglang.srt.cards, "
            "which has no such name"
        ]

    def test_a_module_that_is_gone(self, outcome: Drift) -> None:
        kind, reasons = outcome(IMPORTING, {"sglang/srt/cards.py": None})
        assert kind == "stale" and "there is no such module" in reasons[0]

    @pytest.mark.parametrize(
        "statement",
        [
            "import sglang.srt.cards",
            "import sglang.srt.cards as cards",
            "from sglang.srt import cards",
            "from . import cards",
            "from .cards import is_old_card",
            "from .cards import *",
        ],
    )
    def test_every_form_of_an_import(self, outcome: Drift, statement: str) -> None:
        module_level = SOURCE.replace("\n\ndef scale", f"\n{statement}\n\n\ndef scale")
        assert outcome(module_level, {"sglang/srt/cards.py": None})[0] == "stale"

    def test_an_attribute_of_a_module(self, outcome: Drift) -> None:
        ours = using("return tools.make_pool(1)")
        gone = BEFORE["sglang/srt/tools.py"].replace("make_pool", "build_pool")
        kind, reasons = outcome(ours, {"sglang/srt/tools.py": gone})
        assert kind == "stale" and "sglang.srt.tools.make_pool" in reasons[0]

    def test_an_attribute_of_a_module_by_its_full_name(self, outcome: Drift) -> None:
        ours = using("return sglang.srt.tools.make_pool(1)")
        gone = BEFORE["sglang/srt/tools.py"].replace("make_pool", "build_pool")
        assert outcome(ours, {"sglang/srt/tools.py": gone})[0] == "stale"

    @pytest.mark.parametrize(
        "cards",
        [
            "from sglang.srt.gpus import is_old_card\n",
            "from sglang.srt.gpus import *\n",
            "from .gpus import (\n    other,\n    is_old_card,\n)\n",
            "import sglang.srt.gpus as gpus\n\nis_old_card = gpus.is_old_card\n",
            "try:\n    from fast import is_old_card\nexcept ImportError:\n    is_old_card = None\n",
            "if True:\n    def is_old_card():\n        pass\n",
            "def __getattr__(name):\n    return name\n",
            "for is_old_card in (1, 2):\n    pass\n",
            "with open('x') as is_old_card:\n    pass\n",
            "first, is_old_card = 1, 2\n",
            "def fill():\n    global is_old_card\n    is_old_card = 1\n",
            "globals().update(is_old_card=1)\n",
            "from outside import *\n",
            "is_old_card: int = 1\n",
        ],
    )
    def test_a_name_that_is_still_there_in_some_way(self, outcome: Drift, cards: str) -> None:
        changes = {"sglang/srt/cards.py": cards, "sglang/srt/gpus.py": HELPER}
        assert outcome(IMPORTING, changes)[0] == "clean"

    def test_a_module_that_became_a_package(self, outcome: Drift) -> None:
        changes = {"sglang/srt/cards.py": None, "sglang/srt/cards/__init__.py": HELPER}
        assert outcome(IMPORTING, changes)[0] == "clean"

    @pytest.mark.parametrize("error", ["ImportError", "(ValueError, ModuleNotFoundError)", ""])
    def test_an_import_that_the_code_may_do_without(self, outcome: Drift, error: str) -> None:
        ours = using(
            "try:", "    from sglang.srt.cards import is_old_card", f"except {error}:", "    pass"
        )
        assert (
            outcome(ours.replace("except :", "except:"), {"sglang/srt/cards.py": None})[0]
            == "clean"
        )

    def test_a_handler_of_another_error_is_no_guard(self, outcome: Drift) -> None:
        ours = using(
            "try:", "    from sglang.srt.cards import is_old_card", "except ValueError:", "    pass"
        )
        assert outcome(ours, {"sglang/srt/cards.py": None})[0] == "stale"

    def test_the_kernels_and_other_packages_are_not_looked_for(self, outcome: Drift) -> None:
        ours = using(
            "import torch.gone", "from sglang.srt.layers.attention.ada_dsa.arch import prefers"
        )
        assert outcome(ours, {"sglang/srt/cards.py": None})[0] == "clean"


class TestAttributes:
    READING = using("return get_platform().device_sm")

    def test_renamed_everywhere(self, outcome: Drift) -> None:
        kind, reasons = outcome(
            self.READING, {"sglang/srt/platform.py": PLATFORM.replace("device_sm", "capability")}
        )
        assert kind == "stale"
        assert "the patch uses device_sm, which no file of the release has" in reasons[0]

    @pytest.mark.parametrize(
        "line",
        [
            "get_platform().device_sm = 1",
            'return getattr(get_platform(), "device_sm", 0)',
            'setattr(get_platform(), "device_sm", 0)',
        ],
    )
    def test_set_or_read_by_name(self, outcome: Drift, line: str) -> None:
        changes = {"sglang/srt/platform.py": PLATFORM.replace("device_sm", "capability")}
        assert outcome(using(line), changes)[0] == "stale"

    def test_still_in_a_file_far_away(self, outcome: Drift) -> None:
        changes: dict[str, str | None] = {
            "sglang/srt/platform.py": PLATFORM.replace("device_sm", "capability"),
            "sglang/srt/far.py": "class Far:\n    device_sm = 1\n",
        }
        assert outcome(self.READING, changes)[0] == "clean"

    def test_a_longer_word_is_another_one(self, outcome: Drift) -> None:
        changes = {"sglang/srt/platform.py": PLATFORM.replace("device_sm", "device_sm_major")}
        assert outcome(self.READING, changes)[0] == "stale"

    def test_one_that_the_release_before_had_not_either(self, outcome: Drift) -> None:
        assert outcome(using("return self.of_another_library"), MOVED)[0] == "clean"

    def test_one_that_the_patch_defines(self, outcome: Drift) -> None:
        ours = SOURCE.replace(END, f"class Ours:\n    device_sm = 1\n\n\n{END}").replace(
            END, f"def ours(x):\n    return x.device_sm\n\n\n{END}"
        )
        changes = {"sglang/srt/platform.py": PLATFORM.replace("device_sm", "capability")}
        assert outcome(ours, changes)[0] == "clean"

    def test_of_the_one_instance_of_a_class(self, outcome: Drift) -> None:
        """The word is still there, as a string: only the class tells."""
        gone = ENVIRON.replace("    SGLANG_FUSE = 1\n", "") + 'OLD = {"SGLANG_FUSE": 1}\n'
        kind, reasons = outcome(using("return envs.SGLANG_FUSE"), {"sglang/srt/environ.py": gone})
        assert kind == "stale" and "envs.SGLANG_FUSE" in reasons[0]

    def test_of_an_enumeration(self, outcome: Drift) -> None:
        ours = using("from sglang.srt.kinds import Kind", "return Kind.FIRST, Kind.SECOND.value")
        gone = BEFORE["sglang/srt/kinds.py"].replace("FIRST = 1", 'OTHER = "FIRST"')
        kind, reasons = outcome(ours, {"sglang/srt/kinds.py": gone})
        assert kind == "stale" and len(reasons) == 1 and "Kind.FIRST" in reasons[0]

    @pytest.mark.parametrize(
        "environ",
        [
            ENVIRON.replace(
                "    SGLANG_FUSE = 1\n", "    def __getattr__(self, n):\n        return n\n"
            ),
            ENVIRON.replace("    SGLANG_FUSE = 1\n", "").replace("Envs:", "Envs(More):"),
            ENVIRON.replace(
                "    SGLANG_FUSE = 1\n", "    def set(self):\n        self.SGLANG_FUSE = 1\n"
            ),
            ENVIRON.replace("    SGLANG_FUSE = 1\n", "") + "if envs:\n    envs = other()\n",
        ],
        ids=["any", "a base", "set by a method", "another value"],
    )
    def test_a_class_whose_text_does_not_tell(self, outcome: Drift, environ: str) -> None:
        environ += 'OLD = "SGLANG_FUSE"\n'
        assert (
            outcome(using("return envs.SGLANG_FUSE"), {"sglang/srt/environ.py": environ})[0]
            == "clean"
        )


class TestCalls:
    @pytest.mark.parametrize(
        ("line", "old", "new", "why"),
        [
            ("scale(1, factor=2)", "factor=1", "ratio=1", "takes no argument factor"),
            ("scale(1, 2)", "value, factor=1", "value", "at most 1 arguments"),
            ("scale(1)", "value, factor=1", "value, factor, unit=1", "needs an argument factor"),
            ("scale(1)", "value, factor=1", "value, *, factor", "needs an argument factor"),
        ],
    )
    def test_a_function_of_the_same_file(
        self, outcome: Drift, line: str, old: str, new: str, why: str
    ) -> None:
        changed = (
            SOURCE.replace(old, new).replace("* factor", "").replace("scale(2)", "scale(2, **{})")
        )
        kind, reasons = outcome(using(f"return {line}"), {"sglang/srt/args.py": changed})
        assert kind == "stale" and any("calls scale" in r and why in r for r in reasons)

    def test_a_method_of_the_same_class(self, outcome: Drift) -> None:
        added = "    def ours(self):\n        return self.choose(1, strict=True)\n\n"
        ours = SOURCE.replace("    def decide", added + "    def decide")
        changed = SOURCE.replace("strict=False", "exact=False")
        kind, reasons = outcome(ours, {"sglang/srt/args.py": changed})
        assert kind == "stale" and "self.choose, which takes no argument strict" in reasons[0]

    @pytest.mark.parametrize(
        "line", ["tools.make_pool(1, page=2)", "from .tools import make_pool; make_pool(1, page=2)"]
    )
    def test_a_function_of_another_file(self, outcome: Drift, line: str) -> None:
        gone = BEFORE["sglang/srt/tools.py"].replace("page=1", "block=1")
        kind, reasons = outcome(using(line), {"sglang/srt/tools.py": gone})
        assert kind == "stale" and "make_pool, which takes no argument page" in reasons[0]

    def test_a_keyword_put_into_a_call_that_was_there(self, outcome: Drift) -> None:
        before = SOURCE.replace("scale(2)", "scale(\n            2,\n        )")
        ours = before.replace("            2,\n", "            2,\n            factor=3,\n")
        changed = before.replace("factor", "ratio")
        kind, reasons = outcome(
            ours, {"sglang/srt/args.py": changed}, before={"sglang/srt/args.py": before}
        )
        assert kind == "stale" and "takes no argument factor" in reasons[0]

    def test_the_constructor_of_a_class(self, outcome: Drift) -> None:
        pool = "class Pool:\n    def __init__(self, size, page=1):\n        self.size = size\n"
        ours = using("from sglang.srt.pool import Pool", "return Pool(1, page=2)")
        changed = {"sglang/srt/pool.py": pool.replace("page", "block")}
        kind, reasons = outcome(ours, changed, before={"sglang/srt/pool.py": pool})
        assert kind == "stale" and "Pool, which takes no argument page" in reasons[0]

    @pytest.mark.parametrize(
        "definition",
        [
            "def scale(value, **more):\n",
            "@something\ndef scale(value):\n",
            "scale = print\n\n\ndef other(value, factor=1):\n",
            "def scale(value, factor=1):\n    pass\n\n\ndef scale(value):\n",
        ],
        ids=["any keyword", "decorated", "a variable", "twice"],
    )
    def test_a_call_of_which_the_text_does_not_tell(self, outcome: Drift, definition: str) -> None:
        changed = SOURCE.replace("def scale(value, factor=1):\n", definition).replace(
            "* factor", ""
        )
        kind, _ = outcome(using("return scale(1, factor=2)"), {"sglang/srt/args.py": changed})
        assert kind in ("clean", "moved", "merged")

    def test_a_parameter_that_hides_a_function(self, outcome: Drift) -> None:
        ours = using(
            "return (lambda scale: scale(factor=1))(self)", "x = [scale(a=1) for scale in ()]"
        )
        changed = SOURCE.replace("factor=1", "ratio=1").replace("* factor", "")
        assert outcome(ours, {"sglang/srt/args.py": changed})[0] in ("clean", "moved", "merged")


@pytest.mark.usefixtures("elsewhere")
class TestARenameThatWasFollowed:
    """The worktree has the patch merged into the file's new place; our own import is still the old one."""

    RENAMED: dict[str, str | None] = {
        "sglang/srt/args.py": None,
        "sglang/srt/arguments.py": SOURCE,
        "sglang/srt/cards.py": None,
        "sglang/srt/gpus.py": HELPER,
    }

    def test_continue_names_the_line(self, lab: Lab) -> None:
        carry(lab, IMPORTING, self.RENAMED)
        stopped = onto(lab, code=3)
        assert stopped["stop"]["outcome"] == "target gone"
        file = Path(stopped["worktree"]) / "python/sglang/srt/arguments.py"
        error = rebase(lab, "--continue", code=3)
        line = (
            file.read_text().split("\n").index("    from sglang.srt.cards import is_old_card") + 1
        )
        assert (
            f"arguments.py (line {line} with the patch) imports sglang.srt.cards"
            in error["message"]
        )
        file.write_text(file.read_text().replace("srt.cards", "srt.gpus"))
        rebase(lab, "--continue")
        check(lab)

    def test_check_and_lock_refuse_it(self, lab: Lab) -> None:
        carry(lab, IMPORTING, {})
        path = lab.root / "patches" / "demo/ours.patch"
        path.write_bytes(path.read_bytes().replace(b"srt.cards", b"srt.gone"))
        error = lab.json("lock", "--offline", code=3)["error"]
        assert "imports sglang.srt.gone, and there is no such module" in error["message"]
        (found,) = lab.json("check", "--offline", code=1)["result"]["releases"][0]["findings"][:1]
        assert found["where"] == "patches/demo/ours.patch"


class TestLint:
    def test_an_import_of_a_locked_patch(self, lab: Lab) -> None:
        carry(lab, IMPORTING, {})
        assert lab.json("lint")["result"]["findings"] == []
        path = lab.root / "patches" / "demo/ours.patch"
        path.write_bytes(path.read_bytes().replace(b"srt.cards", b"srt.gone"))
        (found,) = lab.json("lint", code=1)["result"]["findings"]
        line = (
            path.read_text().split("\n").index("+    from sglang.srt.gone import is_old_card") + 1
        )
        assert found == {
            "rule": "imports",
            "where": f"patches/demo/ours.patch:{line}",
            "message": "imports sglang.srt.gone, and there is no such module in v0.5.23",
        }

    @pytest.mark.parametrize(
        ("statement", "why"),
        [
            (
                "from sglang.srt.layers.attention.ada_dsa.gone import x",
                "gone.py is not in the kernels",
            ),
            ("import sglang.srt.layers.attention.ada_dsa.gone", "gone.py is not in the kernels"),
            (
                "from sglang.srt.layers.attention.ada_dsa.arch import (\n        x,\n    )",
                "no such name",
            ),
            ("from sglang.srt.layers.attention.ada_dsa.arch import prefers", None),
            ("from sglang.srt.layers.attention.ada_dsa import arch", None),
            ("import sglang.srt.layers.attention.ada_dsa", None),
        ],
    )
    def test_an_import_of_the_kernels(self, lab: Lab, statement: str, why: str | None) -> None:
        (lab.root / "ada_dsa" / "arch.py").write_text("def prefers():\n    return 1\n")
        carry(lab, using(statement), {})
        findings = lab.json("lint", code=int(why is not None))["result"]["findings"]
        assert why is None or (why in findings[0]["message"] and findings[0]["rule"] == "imports")

    def test_a_guarded_import_and_a_lock_that_does_not_parse(self, lab: Lab) -> None:
        ours = using(
            "try:", "    import sglang.srt.cards as cards", "except ImportError:", "    cards = 1"
        )
        carry(lab, ours, {})
        path = lab.root / "patches" / "demo/ours.patch"
        path.write_bytes(path.read_bytes().replace(b"srt.cards", b"srt.gone"))
        assert lab.json("lint")["result"]["findings"] == []
        (lab.root / "series.lock").write_text("{")
        assert lab.json("lint")["result"]["findings"] == []


class TestEveryConflict:
    OTHER = "python/sglang/srt/twins.py"

    def both(self, lab: Lab, changes: dict[str, str | None]) -> dict[str, object]:
        lab.release(RELEASE, TREE | BEFORE)
        ours = TREE["sglang/srt/twins.py"].replace("y = x + 1", "y = x + 2", 1)
        lab.patch("demo/ours.patch", {PATH: using("return 1234567"), self.OTHER: ours})
        lab.relock()
        theirs = TREE["sglang/srt/twins.py"].replace("y = x + 1", "y = x + 3", 1)
        files = TREE | BEFORE | {"sglang/srt/twins.py": theirs} | changes
        lab.release(NEXT, {path: text for path, text in files.items() if text is not None})
        result = lab.json("drift", "--onto", f"v{NEXT}", "--offline", code=1)["result"]
        (patch,) = result["patches"]
        return dict(patch)

    def test_beside_a_file_that_is_gone(self, lab: Lab) -> None:
        patch = self.both(lab, {"sglang/srt/args.py": None})
        assert patch["outcome"] == "target gone"
        assert f"{PATH} is gone" in str(patch["reasons"])
        assert f"{self.OTHER}, A.run (line 6 when the patch was written): upstream changed" in str(
            patch["reasons"]
        )

    def test_beside_a_file_that_upstream_has(self, lab: Lab) -> None:
        patch = self.both(lab, {"sglang/srt/args.py": using("return 1234567")})
        assert patch["outcome"] == "partial"
        assert f"{self.OTHER}, A.run (line 6 when the patch was written): upstream changed" in str(
            patch["reasons"]
        )
