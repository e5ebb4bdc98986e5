"""What `tool rebase` says to a person at a stop. The JSON form has tests of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.lab import NEXT, TREE, TWIN, Lab
from tests.support.rebases import LIMITS, MERGED, OURS, SOURCE, STOCK, THEIRS, WANTED, upgrade

ONTO = ("rebase", "--onto", f"v{NEXT}", "--offline")

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_both_sides_of_a_conflict_and_what_to_do(three: Lab) -> None:
    upgrade(three, {"sglang/srt/limits.py": THEIRS})
    text = three.tool(*ONTO, code=3).stdout
    assert "stopped at demo/limits.patch: conflict" in text
    upstream, _, ours = text.partition("  the patch, in the same place:")
    assert f"{LIMITS}, Pool.size: upstream, since the patch was written:" in upstream
    theirs = THEIRS.splitlines()[SOURCE.splitlines().index(STOCK.rstrip())]
    assert theirs.strip() in upstream and WANTED.strip() in ours
    assert (
        "next: resolve the conflicts, then: tool rebase --continue; or tool rebase --skip" in text
    )
    (Path.cwd() / f"sglang-v{NEXT}-rebase" / LIMITS).write_text(MERGED)
    text = three.tool("rebase", code=3).stdout
    assert "next: look at the merge; nothing is left to resolve: tool rebase --continue" in text


def test_every_line_number_says_what_it_counts_in(lab: Lab) -> None:
    """Two conflicts in one file, and one more of a line that the patch replaces wherever it stands."""
    call = "    last = compute_everything()\n"
    ours = OURS.replace(call, "    last = compute_everything(1)\n")
    theirs = "# upstream\n" + THEIRS.replace(call, "    last = compute_everything(2)\n")
    theirs += "\n\ndef again():\n" + call + call
    lab.release("0.5.23", _files(SOURCE, TWIN))
    lab.patch("demo/both.patch", {LIMITS: ours})
    lab.relock()
    lab.release(NEXT, _files(theirs, TWIN))
    text = lab.tool(*ONTO, code=3).stdout
    numbers = re.findall(r"\blines? \d+", text)
    said = re.findall(
        r"\bline \d+ when the patch was written|\blines? \d+ and \d+ in the worktree"
        r"|\bthe release has this at 2 places, its lines \d+ and \d+, 1 more",
        text,
    )
    assert len(numbers) == len(said) > 4, text
    lines = (Path.cwd() / f"sglang-v{NEXT}-rebase" / LIMITS).read_text().splitlines()
    first, second = (at for at, line in enumerate(lines, 1) if line.startswith("<<<<<<<"))
    assert f"  {LIMITS}: conflicts at lines {first} and {second} in the worktree\n" in text


def test_a_conflict_in_a_file_that_moved_shows_no_hunks(three: Lab) -> None:
    moved = SOURCE.replace(STOCK, STOCK.replace("self.page", "self.page_size"))
    stub = "from sglang.srt.bounds import *\n"
    upgrade(three, {"sglang/srt/limits.py": stub, "sglang/srt/bounds.py": moved})
    text = three.tool(*ONTO, code=3).stdout
    assert "target gone" in text and "upstream, since the patch was written" not in text


@pytest.mark.parametrize("twins", [TWIN, TWIN.replace("y = x + 1", "y = x + 3")])
def test_a_part_that_upstream_has(lab: Lab, twins: str) -> None:
    both = {LIMITS: OURS, "python/sglang/srt/twins.py": TWIN.replace("y = x + 1", "y = x + 2")}
    lab.release("0.5.23", _files(SOURCE, TWIN))
    lab.patch("demo/both.patch", dict(both))
    lab.relock()
    lab.release(NEXT, _files(OURS, twins))
    text = lab.tool(*ONTO, code=4).stdout
    assert "stopped at demo/both.patch: partial" in text
    (step,) = [line for line in text.splitlines() if line.startswith("next: ")]
    needed, skip = step.split("; if it is not: ")
    first = "resolve the conflicts, then: " if twins != TWIN else ""
    assert needed == (
        f"next: if what upstream lacks is still needed: {first}tool rebase --continue"
    )
    assert skip == "tool rebase --skip --why TEXT"


def _files(limits: str, twins: str) -> dict[str, str]:
    return TREE | {"sglang/srt/limits.py": limits, "sglang/srt/twins.py": twins}
