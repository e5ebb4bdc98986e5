"""What commands tell a person about a given result; the results themselves have tests of their own."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from packaging.version import Version

from tests.tool.doctor.test_diagnose import GOOD, RTX_4090, RTX_5090, facts
from tool.apply.check_all import CHECK_RULES, Checked
from tool.apply.check_all import Finding as CheckFinding
from tool.authoring.edit import Edited
from tool.authoring.export import Exported
from tool.cli import app, interrupt, options, output
from tool.cli.commands import check, doctor, explain, export, import_, lock, repair, status
from tool.cli.commands import history as history_command
from tool.cli.commands.tune import _list_rows
from tool.cli.commands.verify import report_verification
from tool.cli.header import make_header, report_edit
from tool.cli.progress import Terminal
from tool.doctor.environment import Check, Driver, SelfTest, Torch
from tool.errors import EnvironmentFault, ToolError
from tool.project.journal import Recovery
from tool.rebase.explain import Dependent, Explanation
from tool.rebase.status import PatchStatus, RebaseStatus, Status
from tool.series import lockfile
from tool.series.lockfile import Lock, LockedRelease
from tool.tune import Row, Shape
from tool.tune.search import Unit
from tool.upstream import Base
from tool.verify.checks import VerifyReport
from tool.verify.files import Difference, Unproven

V23, V24 = Version("0.5.23"), Version("0.5.24")
STATUS = Status(
    V23, V23, 2, (V23, V24), "b" * 40, True, ("a.whl", "b.whl"), {"ada/x": "/tree"},
    (
        PatchStatus("swap", "swap/a.patch", "==0.5.23", "applies", ""),
        PatchStatus("swap", "swap/b.patch", "==0.5.9", "upstream", "since 0.5.10"),
    ),
    None,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Project:
    root: Path

    def tool(self, *args: str, code: int = 0) -> Result:
        done = CliRunner().invoke(app.main, [*args, "--series", str(self.root)])
        assert done.exit_code == code, done.output
        return done


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A series of one patch; 0.5.24 is locked and has none. Nothing of it is ever applied."""
    root = tmp_path / "project"
    root.mkdir()
    change = "change demo >=0.5.9\n    demo/answer.patch ==0.5.23\n"
    (root / "series.txt").write_text(f"pin 0.5.23\nrevision 1\n{change}")
    entries = (LockedRelease(v, (), "a" * 40, "b" * 40, ()) for v in (V23, V24))
    lockfile.save(root / "series.lock", Lock({entry.version: entry for entry in entries}))
    return Project(root)


def say(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, found: Any) -> None:
    monkeypatch.setattr(module, name, lambda *_, **__: found)


# -- status --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "sglang v0.5.23 (the pin), fork revision 2"),
        ({"pin": V24}, "sglang v0.5.23, fork revision 2"),
        ({}, "supported: v0.5.23, v0.5.24"),
        ({"supported": ()}, "supported: none"),
        ({}, f"base: {'b' * 40}, imported"),
        ({"imported": False}, f"base: {'b' * 40}"),
        ({"base": None, "imported": False}, "base: not carried"),
        ({}, "wheels in the cache: a.whl, b.whl"),
        ({"cached_wheels": ()}, "wheels in the cache: none"),
        ({}, "worktree: /tree (ada/x)"),
        ({}, "swap    swap/a.patch  ==0.5.23  applies"),
        ({}, "swap    swap/b.patch  ==0.5.9   upstream since 0.5.10"),
        (
            {
                "rebase": RebaseStatus(
                    "/p", V23, V24, "swap/a.patch", "conflict", "/w", "tool rebase"
                )
            },
            "rebase under way: v0.5.23 -> v0.5.24 of /p, stopped at swap/a.patch (conflict)\n  in /w\n"
            "  next: tool rebase",
        ),
        (
            {"rebase": RebaseStatus("/p", V23, V24, None, None, None, "tool rebase --continue")},
            "rebase under way: v0.5.23 -> v0.5.24 of /p, interrupted\n  next: tool rebase --continue",
        ),
        (
            {
                "rebase": RebaseStatus(
                    "/p", V24, V23, None, None, None, "tool rebase --continue", None, "swap/a.patch"
                )
            },
            "rebase under way: swap/a.patch alone, v0.5.24 -> v0.5.23 of /p, interrupted\n"
            "  next: tool rebase --continue",
        ),
    ],
)
def test_status(
    project: Project, monkeypatch: pytest.MonkeyPatch, changed: Mapping[str, Any], line: str
) -> None:
    say(monkeypatch, status, "read_status", dataclasses.replace(STATUS, **changed))
    assert f"\n{line}\n" in f"\n{project.tool('status').stdout}"


# -- check, lock, repair, export, explain ----------------------------------------------------------------


def checked(*findings: CheckFinding, merged: int = 0) -> Checked:
    return Checked(V23, 2, 2 - merged, merged, 3, "t" * 40, 0.5, findings)


def test_check(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, check, "check_releases", (checked(),))
    lines = project.tool("check").stdout.splitlines()
    assert lines[1].split() == ["v0.5.23", "2", "ok", "ok", "ok", "ok", "0.50"]
    assert lines[-1] == "1 release(s), 0 finding(s)"
    bad = CheckFinding(CHECK_RULES[1], "patches/a.patch", "is another one")
    say(monkeypatch, check, "check_releases", (checked(bad, merged=1),))
    lines = project.tool("check", code=1).stdout.splitlines()
    assert lines[1].split() == ["v0.5.23", "2", "(1", "merged)", "ok", "FAILED", "ok", "ok", "0.50"]
    assert lines[-2:] == [
        "v0.5.23: patches/a.patch: lock: is another one",
        "1 release(s), 1 finding(s)",
    ]


def test_check_uses_all_cores_unless_told(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(check, "check_releases", lambda *_, jobs: asked.append(jobs) or ())
    project.tool("check", "--jobs", "3")
    project.tool("check", "--jobs", "0", code=2)
    project.tool("check")
    assert asked == [3, os.cpu_count() or 1]


def test_lock_says_what_it_recorded(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Version, ...]] = []

    def update(_: object, *releases: Version) -> tuple[Version, ...]:
        asked.append(releases)
        return changed

    monkeypatch.setattr(lock, "update_lock", update)
    changed: tuple[Version, ...] = (V23,)
    assert project.tool("lock").stdout == "recorded v0.5.23\nseries.lock updated\n"
    changed = ()
    assert project.tool("lock", "--sglang-ref", "pin").stdout == "series.lock is up to date\n"
    assert asked == [(V23,)] * 2  # 0.5.24 is locked too, and no patch applies to it


def test_lock_of_wheels(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Version]] = []
    added: dict[Version, list[str]] = {V23: ["a.whl"]}
    monkeypatch.setattr(lock, "complete_wheels", lambda _, found: asked.append(found) or added)
    text = project.tool("lock", "--wheels").stdout
    assert text == "v0.5.23: added a.whl\nseries.lock updated\n"
    added = {}
    text = project.tool("lock", "--wheels", "v0.5.23").stdout
    assert text == "series.lock holds every wheel of the index\n"
    assert asked == [[V23, V24], [V23]]
    assert "asks the index" in project.tool("lock", "--wheels", "--offline", code=2).stderr


@pytest.mark.parametrize(
    ("dry", "found", "line", "code"),
    [
        ((), [], "nothing is interrupted", 0),
        ((), [Recovery("/p", "a change", "undone")], "a change: undone", 0),
        (("--dry-run",), [Recovery("/p", "a change", "undone")], "a change: would be undone", 0),
        ((), [Recovery("/p", "a change", "", "it was edited")], "a change: it was edited", 1),
    ],
)
def test_repair(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    dry: tuple[str, ...],
    found: list[Recovery],
    line: str,
    code: int,
) -> None:
    say(monkeypatch, repair, "repair_project", list(found))
    say(monkeypatch, repair, "repair_state", None)
    assert project.tool("repair", *dry, code=code).stdout == f"{line}\n"
    say(monkeypatch, repair, "repair_state", Recovery("/p", "a rebase", "set aside"))
    assert project.tool("repair", code=code).stdout.startswith("a rebase: set aside\n")


NOTHING = Exported((), ("a.patch",), {}, (), {})


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({}, ["0 written, 1 unchanged"]),
        (
            {"written": ("b.patch",), "files": {"b.patch": {"x.py": "changed"}}},
            ["wrote b.patch", "  changed x.py", "1 written, 1 unchanged"],
        ),
        ({"removed": {"b.patch": None}}, ["took b.patch out: no commit holds it any more"]),
        (
            {"removed": {"b.patch": "a.patch"}},
            ["took b.patch out: its commit was squashed into a.patch"],
        ),
        ({"order": ("b", "a")}, ["series.txt has the new order: b, a"]),
    ],
)
def test_export(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: Mapping[str, Any],
    lines: list[str],
) -> None:
    say(monkeypatch, export, "export_patches", dataclasses.replace(NOTHING, **changed))
    text = project.tool("export", str(tmp_path)).stdout.splitlines()
    assert [line for line in text if line in lines] == lines
    assert ("next: tool lock checks them and records the result" in text) is bool(changed)


def test_explain(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    on = Base(V24, "b" * 40, "t" * 40, "pypi", "v0.5.24")
    found = Explanation(
        "swap/a.patch", "Swap it", "One.\n\nTwo.", "swap", ">=0.5.9", None, "==0.5.23", (V23, V24),
        (("Origin", "a\n b"),), (("swap/b.patch", "==0.5.9"),), on, {"x.py": ("f", "g")}, (),
    )  # fmt: skip
    say(monkeypatch, explain, "explain_patch", found)
    assert project.tool("explain", "swap").stdout.splitlines() == [
        "swap/a.patch: Swap it", "  One.", "", "  Two.", "change swap, needed on >=0.5.9",
        "releases ==0.5.23; checked on v0.5.23, v0.5.24", "  beside it: swap/b.patch ==0.5.9",
        "Origin: a b", "on v0.5.24 it changes", "  x.py: f, g", "no later patch depends on it",
    ]  # fmt: skip
    needs = Dependent("c.patch", "conflict", ("it changes g",))
    later = dataclasses.replace(found, upstream="0.5.25: PR 7", dependents=(needs,))
    say(monkeypatch, explain, "explain_patch", later)
    lines = project.tool("explain", "swap").stdout.splitlines()
    assert "  upstream since 0.5.25: PR 7" in lines
    assert lines[-1] == "without it c.patch stops (conflict): it changes g"


def test_history_prints_what_it_renders(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, history_command, "load_history", [])
    say(monkeypatch, history_command, "render_markdown", ["# one", "two"])
    assert project.tool("history").stdout == "# one\ntwo\n"


# -- verify ----------------------------------------------------------------------------------------------


def verified(
    version: Version | None = V23, differences: int = 0, unproven: int = 0
) -> VerifyReport:
    return VerifyReport(
        "wheel", Path("/w.whl"), version, ("3 files",),
        tuple(Unproven(f"u{n}", "no wheel") for n in range(unproven)),
        tuple(Difference(f"d{n}", "missing") for n in range(differences)),
    )  # fmt: skip


def test_an_outcome_of_verification() -> None:
    good = report_verification(verified())
    assert good.lines == ["/w.whl (wheel, sglang 0.5.23): proven", "  checked: 3 files"]
    assert good.exit_code == 0 and good.result["version"] == "0.5.23"
    assert (good.result["outcome"], good.result["differences"]) == ("proven", [])
    unknown = report_verification(verified(None, unproven=1))
    assert unknown.lines[0] == "/w.whl (wheel): NOT PROVEN" and unknown.exit_code == 1
    assert unknown.result["version"] is None
    assert unknown.result["unproven"] == [{"path": "u0", "reason": "no wheel"}]
    bad = report_verification(verified(differences=1, unproven=1))
    assert bad.lines[0].endswith("REFUTED") and bad.exit_code == 5
    assert bad.lines[-1].startswith("next: apply, build or install it again")


@pytest.mark.parametrize("count", [10, 11])
def test_many_differences_are_counted(count: int) -> None:
    lines = list(report_verification(verified(differences=count, unproven=count)).lines)
    assert sum(line.startswith("  d") for line in lines) == 10
    assert ("  and 1 more (all of them: --json)" in lines) is (count == 11)
    named = ", ".join(f"u{n}" for n in range(10)) + (" and 1 more" if count == 11 else "")
    assert f"  not proven: {named}: no wheel" in lines


# -- authoring -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "line"),
    [
        (True, "the worktree holds the series as it now is"),
        (False, "still has the change uncommitted; next: git stash -u there, then tool apply"),
        (None, "next: tool apply brings a worktree up to date"),
    ],
)
def test_an_edit_of_the_series(moved: bool | None, line: str) -> None:
    done = Edited("a.patch", ("a.patch",), ("b.patch",), (V23, V24), {"x.py": "added"}, moved)
    lines = list(report_edit(done).lines)
    assert lines[:4] == [
        "wrote patches/a.patch",
        "  added x.py",
        "removed patches/b.patch",
        "checked on v0.5.23, v0.5.24; series.lock is up to date",
    ]
    assert line in lines[4]
    nowhere = report_edit(dataclasses.replace(done, releases=()))
    assert not any("checked on" in text for text in nowhere.lines)


@pytest.mark.parametrize("name", ["mine", "mine.patch", "swap/mine", "swap/mine.patch"])
def test_a_patch_may_be_named_in_any_form(name: str) -> None:
    fields = make_header(name, "swap", " a  b ", "why", "never")
    assert (fields.name, fields.change, fields.subject) == ("swap/mine.patch", "swap", "a b")


def test_a_diff_from_standard_input_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_, "_MAX_SIZE", 1 << 20)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * (1 << 20))))
    assert len(import_._read(Path("-"))) == 1 << 20
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * (1 << 20) + b"y")))
    with pytest.raises(ToolError, match="standard input is larger than 1 MiB"):
        import_._read(Path("-"))


# -- doctor ----------------------------------------------------------------------------------------------


def examine(monkeypatch: pytest.MonkeyPatch, machine: Any, tested: SelfTest = GOOD) -> list[str]:
    say(monkeypatch, doctor, "examine_environment", (machine, tested))
    return CliRunner().invoke(app.main, ["doctor"]).stdout.splitlines()


def test_doctor_on_a_machine_that_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = examine(monkeypatch, facts())
    text = "\n".join(" ".join(line.split()) for line in lines)
    for line in (
        "python 3.12.9, /venv/bin/python",
        "sglang 0.5.23+ada.1, the fork, /venv/lib/python3.12/site-packages/sglang",
        "driver 580.95.05, CUDA 13.0",
        "torch 2.14.1+cu130, built for CUDA 13.0",
        "GPU 0 NVIDIA GeForce RTX 4090, sm_89, 24.0 GiB, 99 KiB shared memory a block",
        "self-test 2 of 2 kernels ok on GPU 0, sm_89, 30.0 s with compilation",
        "top-k ok error 0.0e+00, wanted exact",
        "transformers 5.19.0 ==5.19.0",
        "0 finding(s)",
    ):
        assert line in text
    assert "installed by no package" not in text and "why:" not in text
    assert not any("DIFFERS" in line or "MISSING" in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"package": None, "owners": ()}, "sglang none"),
        ({"owners": ()}, "installed by no package, so nothing says which versions it wants"),
        ({"kernels": None, "version": "0.5.23"}, "sglang 0.5.23, not the fork,"),
        ({"driver": Driver(None, 12040, None, (RTX_4090,))}, "driver release unknown, CUDA 12.4"),
        ({"driver": Driver("580", None, "broken", ())}, "driver none"),
        ({"driver": Driver(None, None, "none", ())}, "GPU none"),
        ({"torch": None}, "torch none"),
        ({"torch": Torch(None, None, "broken")}, "torch none"),
        ({"torch": Torch("2.14.1", None, None)}, "torch 2.14.1, built without CUDA"),
        ({"installed": {"torch": "2.13.0"}}, "torch 2.13.0 ==2.14.1 DIFFERS"),
        ({"installed": {"torch": "2.13.0"}}, "triton - ==3.8.0,>=3.5.1 MISSING"),
        ({"requires": {}}, "triton 3.8.0 -"),
    ],
)
def test_doctor_on_other_machines(
    monkeypatch: pytest.MonkeyPatch, changed: Mapping[str, Any], line: str
) -> None:
    text = "\n".join(" ".join(one.split()) for one in examine(monkeypatch, facts(**changed)))
    assert line in text
    if changed.get("package", "") is None:
        assert "installed by no package" not in text


@pytest.mark.parametrize(
    ("tested", "line"),
    [
        (SelfTest(skipped="no GPU"), "self-test not run: no GPU"),
        (SelfTest((), None, None, None, "killed"), "self-test 0 of 0 kernels ok, not finished"),
        (
            SelfTest((Check("top-k", False, 0.5, 0.01, 1.0, None),), 89, 1.0),
            "top-k FAIL error 5.0e-01, wanted at most 1e-02",
        ),
        (
            SelfTest((Check("top-k", False, None, 0.0, 1.0, "no compiler"),), 89, 1.0),
            "top-k FAIL no compiler, wanted exact",
        ),
    ],
)
def test_doctor_and_the_self_test(
    monkeypatch: pytest.MonkeyPatch, tested: SelfTest, line: str
) -> None:
    text = "\n".join(" ".join(one.split()) for one in examine(monkeypatch, facts(), tested))
    assert line in text


def test_doctor_and_two_kinds_of_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = examine(monkeypatch, facts(RTX_4090, dataclasses.replace(RTX_5090, index=1)))
    at = lines.index("the GPUs are of different architectures")
    assert lines[at + 1].startswith("  why:  0: NVIDIA GeForce RTX 4090 (sm_89), 1: ")
    assert lines[at + 2].startswith("  next: let the server see those of one kind")
    asked = [line for line in lines if line.startswith(" ") and "--dsa-prefill-backend" in line]
    assert len(asked) == 1


# -- every command ---------------------------------------------------------------------------------------


def test_examples_of_a_command() -> None:
    for name in app.SUMMARIES:
        text = CliRunner().invoke(app.main, [name, "--help"]).output
        count = text.count("\n    $ tool ") + text.count("\n  $ tool ")
        assert count and ("Examples:" in text) is (count > 1) and "Example" in text, name


def test_an_unknown_command() -> None:
    done = CliRunner().invoke(app.main, ["statuss"])
    assert done.exit_code == 2 and "'status'" in done.output
    assert app.main.get_command(app.main.make_context("tool", ["status"]), "statuss") is None


class Full(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_output_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "drop_output", lambda: None)
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(EnvironmentFault, match="the output could not be written") as caught:
        output.print_report("status", output.Report({}, ["a"]), as_json=False)
    assert caught.value.why == "No space left on device"


@pytest.mark.parametrize(
    ("error", "message", "next_step"),
    [
        (OSError(28, "No space left on device", "/f"), "no space left", True),
        (OSError(122, "Disk quota exceeded", "/f"), "no space left", True),
        (OSError(13, "Permission denied", "/f"), "Permission denied", False),
        (OSError("odd"), "odd", False),
    ],
)
def test_an_error_of_the_system(error: OSError, message: str, next_step: bool) -> None:
    found = options._from_os(error)
    assert found.message == message and bool(found.next_step) is next_step
    assert found.where == error.filename


def test_an_error_nobody_expected(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(status, "read_status", fail)
    done = project.tool("status", "--json", code=70)
    assert "internal error: RuntimeError('odd')" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" in done.stderr


def test_a_signal_that_the_caller_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(interrupt, "_ours", False)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupt.leave_at_once()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        interrupt.raise_error()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt.ignore()  # not ours yet
        interrupt.raise_error()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        interrupt.leave_at_once()
        assert signal.getsignal(signal.SIGINT) is interrupt._leave
        interrupt.raise_error()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        interrupt.ignore()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# -- progress --------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("quiet", "terminal", "noted", "drawn"),
    [
        (False, True, True, True), (False, False, True, False),
        (True, True, False, False), (True, False, False, False),
    ],
)  # fmt: skip
def test_bars_are_drawn_where_a_person_looks(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, terminal: bool, noted: bool, drawn: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for says, shown in ((True, noted), (False, drawn)):
        screen = Screen(terminal=terminal)
        monkeypatch.setattr(sys, "stderr", screen)
        progress = Terminal(quiet=quiet)
        if says:
            progress.note("a sentence")
        else:
            with progress.bar("a bar") as step:
                step(1, 2)
        assert bool(screen.getvalue()) is shown


# -- interrupted changes ---------------------------------------------------------------------------------


def test_an_interrupted_change_is_mentioned_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, status, "read_status", STATUS)
    found = [Recovery("/p", "a change", "finished")]
    monkeypatch.setattr(options.Session, "list_interrupted", lambda _: found)
    assert "warning: a change is unfinished; see what can be done" in project.tool("status").stderr
    found.clear()
    assert project.tool("status").stderr == ""

    def warn(session: Any, *_: object) -> Status:
        session.warn("told already")
        return STATUS

    found.append(Recovery("/p", "a change", "finished"))
    monkeypatch.setattr(status, "read_status", warn)
    assert project.tool("status").stderr == "warning: told already\n"
    envelope = json.loads(project.tool("status", "--json").stdout)
    assert envelope["warnings"] == ["told already"] and envelope["ok"]

    def fail(session: Any, *_: object) -> Status:
        raise EnvironmentFault("no network", where="x")

    monkeypatch.setattr(status, "read_status", fail)
    errors = project.tool("status", code=6).stderr
    assert "warning: a change is unfinished" in errors and "error: x: no network" in errors


def test_rows_of_tune() -> None:
    shape = Shape("gemm", (128, 6144), "q_b")
    config, default = {"BLOCK_SIZE_M": 16, "num_warps": 4}, {"BLOCK_SIZE_M": 64, "num_warps": 4}
    faster = Row(Unit(shape, 8), default, 80.0, config, 20.0, 1e-3, 3)
    same = Row(Unit(shape, 1), default, 80.0, default, 80.0, None, 3)
    alone = Row(Unit(shape, 16), None, None, config, 20.0, 2e-3, 3)
    assert list(_list_rows((faster, same, alone)))[1:] == [
        ("gemm N=128,K=6144", "1", "80.0", "80.0", "1.00", "-", "default"),
        ("gemm N=128,K=6144", "8", "80.0", "20.0", "4.00", "1.0e-03", "16/4"),
        ("gemm N=128,K=6144", "16", "-", "20.0", "-", "2.0e-03", "16/4"),
    ]
